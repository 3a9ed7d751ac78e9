"""Attacks: the contract each keeps, and optima known in closed form on linear networks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkt.attacks import apgd, ascend, autoattack, fab, gradient
from robustkt.attacks.square import Square
from robustkt.catalog import ATTACKS
from robustkt.core import Attack, ThreatModel
from robustkt.losses import ce, ce_unrounded, margin

NAMES = ATTACKS.names()
SEARCHING = [name for name in NAMES if name != "clean"]
SHAPE = (1, 4, 4)
EPS = Fraction(8, 255)
THREATS = [ThreatModel("linf", EPS), ThreatModel("linf", Fraction(1, 2)), ThreatModel("l2", Fraction(1, 2))]

# An image that is broken is done: these do not go on to the worst image.
STOPPING = {"apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "autoattack"}
BUDGETS: dict[str, dict[str, Any]] = {
    "apgd-ce": {"steps": 30},
    "apgd-dlr": {"steps": 30},
    "apgd-t": {"steps": 30},
    "fab-t": {"steps": 20},
    "square": {"queries": 300},
    "smoothadv": {"sigma": Fraction(1, 100), "draws": 3},
}


def get(name: str) -> Attack:
    """The attack with a budget that small networks need."""
    return functools.partial(ATTACKS.get(name), **BUDGETS.get(name, {}))


@pytest.fixture(autouse=True)
def _small_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(classes: int) -> list[Any]:
        first = apgd.untargeted("apgd-ce", ce_unrounded, 20, 1, 1)
        return [*first, *apgd.targeted(classes, 2, 20), *fab.targeted(classes, 2, 10), Square(300)]

    monkeypatch.setitem(autoattack.VERSIONS, "standard", small)


def does_its_work(name: str, start: Tensor, reached: Tensor, most: Tensor) -> bool:
    """Of margins (B,), above 0 where the network is wrong: as they are, as attacked, at the optimum in closed form."""
    if name not in STOPPING:
        return bool((reached - start >= 0.9 * (most - start)).all())
    if name in ("square", "autoattack"):  # what stands to the end was last seen by Square, which has 3 x 3 windows
        return bool(((reached > 0) | (reached - start >= 0.25 * (most - start))).all())
    clear = most > 0.05 * (most - start)
    return bool((reached[clear] > 0).all() and (reached - start >= 0.9 * (most - start))[most < 0].all())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 8, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, *SHAPE, generator=rng(1)) * (high - low) + low
    return x, torch.randint(3, (count,), generator=rng(2))


@pytest.fixture
def network() -> nn.Sequential:
    """Batch norm and dropout, in mixed modes, with gradients on some parameters already."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
    net(torch.rand(20, *SHAPE))  # moves the running statistics off their start
    net.train()
    net[3].eval()
    net[0].weight.requires_grad_(False)
    net[0].bias.grad = torch.full((4,), 7.0)
    return net


class Linear(nn.Module):
    """Logits (−m, m) of the margin m = w·x + b: the best attack in any ball is known in closed form."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.randn(16, generator=rng(3)))

    def forward(self, x: Tensor) -> Tensor:
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([-margin, margin], dim=1)

    def worst(self, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        """The image in the ball, the box left aside, that the network gets wrong most."""
        away = (1 - 2 * y).float()[:, None] * threat.steepest(self.w.detach()[None])
        return (x.flatten(1) + float(threat.eps) * away).view_as(x)


def snapshot(net: nn.Module) -> Any:
    modules = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]
    grads = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    return modules, grads, {name: value.tolist() for name, value in net.state_dict().items()}


# -- the contract of every attack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_attacks_stay_in_ball_and_box(name: str, threat: ThreatModel, network: nn.Sequential) -> None:
    x, y = images()
    x[0] = x[0].round()  # on the edge of the box
    kept = x.clone()
    x_adv = get(name)(network, x, y, threat, rng=rng())
    delta = (x_adv - x).flatten(1)
    far = delta.abs().amax(dim=1) if threat.norm == "linf" else delta.norm(dim=1)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert far.max() <= float(threat.eps) + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_leave_the_network_as_it_was(name: str, network: nn.Sequential) -> None:
    before = snapshot(network)
    x, y = images()
    first = get(name)(network, x, y, THREATS[0], rng=rng())
    assert snapshot(network) == before
    with torch.no_grad():
        again = get(name)(network, x, y, THREATS[0], rng=rng())
    assert snapshot(network) == before
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", SEARCHING)
def test_attacks_leave_the_network_as_it_was_when_it_raises(name: str, network: nn.Sequential) -> None:
    before = snapshot(network)
    calls = 0

    def fail(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 + (name != "fgsm"):  # in the middle, where there is one
            raise MemoryError

    network.register_forward_pre_hook(fail)
    x, y = images()
    with pytest.raises(MemoryError):
        get(name)(network, x, y, THREATS[0], rng=rng())
    assert snapshot(network) == before


@pytest.mark.parametrize("name", SEARCHING)
def test_attacks_see_the_network_in_eval_mode_inside_the_box(name: str, network: nn.Sequential) -> None:
    seen: list[tuple[bool, bool, bool]] = []
    network.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (
                any(m.training for m in module.modules()),
                any(p.requires_grad for p in module.parameters()),
                # smoothed classifiers see noise that is not clipped
                name != "smoothadv" and bool((inputs[0] < 0).any() or (inputs[0] > 1).any()),
            )
        )
    )
    x, y = images()
    get(name)(network, x, y, THREATS[1], rng=rng())
    assert seen
    assert set(seen) == {(False, False, False)}


@pytest.mark.parametrize("name", NAMES)
def test_attacks_depend_on_their_generator_alone(name: str, network: nn.Sequential) -> None:
    x, y = images()
    attack: Attack = get(name)
    torch.manual_seed(1)
    first, before = attack(network, x, y, THREATS[0], rng=rng(5)), torch.get_rng_state()
    torch.manual_seed(2)
    again = attack(network, x, y, THREATS[0], rng=rng(5))
    assert torch.equal(first, again)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["pgd-sat", "pgd-trades"])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_random_starts_differ_between_seeds_and_images(name: str, threat: ThreatModel) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(flat[1].weight)  # no gradient: the start is what comes back
    x, y = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    first, other = (get(name)(flat, x, y, threat, rng=rng(seed)) for seed in (0, 1))
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first, threat.random_start(x, rng(0)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_an_image_is_attacked_by_itself(name: str, threat: ThreatModel, network: nn.Sequential) -> None:
    """A mean over the batch in the gradient, or batch statistics, would make neighbours matter."""
    x, y = images()
    x, y, network = x.double(), y, network.double()
    crowd = get(name)(network, x, y, threat, rng=rng())
    neighbours = torch.cat([x[:1], x[1:].flip(1, 2, 3)])
    other = get(name)(network, neighbours, y, threat, rng=rng())
    torch.testing.assert_close(crowd[0], other[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SEARCHING)
def test_attacks_reach_the_optimum_of_a_linear_network(name: str, norm: Literal["linf", "l2"]) -> None:
    model, (x, _), y = Linear(), images(low=0.2, high=0.8), torch.arange(8) % 2  # the ball stays inside the box
    threat = ThreatModel(norm, EPS)
    x_adv, best = get(name)(model, x, y, threat, rng=rng()), model.worst(x, y, threat)
    start, reached, most = (margin(model(at), y) for at in (x, x_adv, best))
    assert does_its_work(name, start, reached, most)
    assert (most > start + 0.01).all()
    assert (most > 0).any()
    if name in STOPPING:
        return
    if norm == "linf":  # every coordinate moves to the wall: the distance is eps exactly, in the right direction
        # 20 steps of 0.003 are a little less than 2 eps: a start at the far wall does not come all the way over
        short = float(2 * EPS - 20 * Fraction("0.003")) if name == "pgd-trades" else 0.0
        torch.testing.assert_close(x_adv, best, rtol=0, atol=short + 1e-7)
        assert ((x_adv - best).abs() < 1e-7).float().mean() > 0.9
    else:
        torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), torch.full((8,), float(EPS)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", SEARCHING)
def test_attacks_use_the_corners_of_the_box(name: str) -> None:
    model, (x, _), y = Linear(), images(), torch.arange(8) % 2
    threat = ThreatModel("linf", Fraction(3, 10))
    corner = model.worst(x, y, threat).clamp(0, 1)
    start, reached, most = (margin(model(at), y) for at in (x, get(name)(model, x, y, threat, rng=rng()), corner))
    assert does_its_work(name, start, reached, most)
    assert (reached <= most + 1e-5).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", SEARCHING)
def test_a_network_that_is_very_sure_is_no_harder_to_attack(name: str, norm: Literal["linf", "l2"]) -> None:
    """At a margin of 60 the gradient is about 1e-26: its direction is all that may matter."""
    model = Linear()
    x = torch.full((2, *SHAPE), 0.5) + 0.4 * torch.stack([-model.w.sign(), model.w.sign()]).detach().view(2, *SHAPE)
    y = torch.tensor([0, 1])
    model.w.data *= 30 / ((x[1] - 0.5).flatten() @ model.w.detach())
    assert (ce(model(x), y) < 1e-25).all()
    threat = ThreatModel(norm, EPS)
    start, reached, most = (
        model(at)[:, 1] * (1 - 2 * y)
        for at in (x, get(name)(model, x, y, threat, rng=rng()), model.worst(x, y, threat))
    )
    assert does_its_work(name, start, reached, most)


# -- each attack by itself --------------------------------------------------------------------------------------------


def test_the_named_attacks_are_there() -> None:
    assert {"clean", "fgsm", "pgd", "pgd-sat", "pgd-trades", "cw", "smoothadv", *STOPPING} <= set(NAMES)


def test_clean_is_the_image(network: nn.Sequential) -> None:
    x, y = images()
    assert torch.equal(gradient.clean(network, x, y, THREATS[0], rng=rng()), x)


def test_fgsm_is_one_signed_step_from_the_image(network: nn.Sequential) -> None:
    x, y = images()
    plain = copy.deepcopy(network).eval()
    at = x.clone().requires_grad_(True)
    F.cross_entropy(plain(at), y).backward()
    assert at.grad is not None
    wanted = (x + 8 / 255 * at.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(gradient.fgsm(network, x, y, THREATS[0], rng=rng()), wanted, rtol=0, atol=1e-7)
    slope = at.grad / at.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    wanted = (x + 0.5 * slope).clamp(0, 1)
    torch.testing.assert_close(gradient.fgsm(network, x, y, THREATS[2], rng=rng()), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "step"), [("pgd_sat", Fraction(2, 255)), ("pgd_trades", Fraction(3, 1000))])
def test_pgd_takes_twenty_steps_of_its_own_from_a_uniform_start(
    name: str, step: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def record(model: Any, x: Tensor, threat: ThreatModel, loss: Callable[[Tensor], Tensor], **how: Any) -> Tensor:
        asked.update(how, loss=loss(torch.tensor([[2.0, 0.0, 1.0]])), threat=threat)
        return x

    monkeypatch.setattr(gradient, "ascend", record)
    x, y = torch.full((1, *SHAPE), 0.5), torch.tensor([1])
    for threat, share in ((ThreatModel("linf", EPS), 1), (ThreatModel("l2", 3 * EPS), 3)):
        getattr(gradient, name)(Linear(), x, y, threat, rng=rng(9))
        assert asked["steps"] == 20
        assert asked["step_size"] == step * share
        assert asked["threat"] is threat
        assert torch.equal(asked["start"], threat.random_start(x, rng(9)))
        torch.testing.assert_close(asked["loss"], F.cross_entropy(torch.tensor([[2.0, 0.0, 1.0]]), y, reduction="none"))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_has_the_length_it_is_given_until_it_meets_the_wall(norm: Literal["linf", "l2"]) -> None:
    model, (x, _), y = Linear(), images(low=0.3, high=0.7), torch.arange(8) % 2
    x, model = x.double(), model.double()
    threat = ThreatModel(norm, Fraction(1, 10))
    for steps in range(7):
        x_adv = ascend(model, x, threat, lambda z: ce(z, y), steps=steps, step_size=Fraction(3, 100), start=x)
        short = ThreatModel(norm, min(Fraction(1, 10), steps * Fraction(3, 100)) or Fraction(1, 10**9))
        torch.testing.assert_close(x_adv, model.worst(x, y, short), rtol=0, atol=2e-9)


def test_a_start_outside_the_ball_is_brought_back() -> None:
    x, threat = torch.full((1, *SHAPE), 0.5), THREATS[0]
    far = ascend(Linear(), x, threat, lambda z: z[:, 0], steps=0, step_size=EPS, start=x + 1)
    torch.testing.assert_close(far, x + 8 / 255)


def test_ascent_raises_the_loss_it_is_given(network: nn.Sequential) -> None:
    x, y = images()
    network.eval()
    for sign in (1, -1):
        x_adv = ascend(
            network, x, THREATS[1], lambda z, s=sign: s * ce(z, y), steps=5, step_size=Fraction(1, 50), start=x
        )
        assert (sign * (ce(network(x_adv), y) - ce(network(x), y)) > 0).all()


def test_a_restart_is_for_the_images_that_still_stand() -> None:
    """The others are left alone, and what comes out is what restarts of all of them give."""
    model, y = Linear().double(), torch.arange(40) % 2
    x = torch.rand(40, *SHAPE, generator=rng(1)).double() * 0.2 + 0.4
    model(x)
    threat, count = ThreatModel("linf", EPS), []
    hook = model.register_forward_hook(lambda module, inputs, output: count.append(len(inputs[0])))
    x_adv = gradient.pgd(model, x, y, threat, rng=rng(), restarts=3, steps=4, step_size=Fraction(1, 255))
    hook.remove()
    assert [len(x)] * 6 == count[:6]
    assert len(x) > count[6] >= count[-1] > 0
    fell = margin(model(x_adv), y) > 0
    source, seen = rng(), torch.zeros(40, dtype=torch.bool)
    for number in range(3):
        start = threat.random_start(x, source)
        one = ascend(
            model, x, threat, lambda z: ce(z, y), steps=4, step_size=Fraction(1, 255), start=start,
            wrong=lambda z: margin(z, y) > 0,
        )  # fmt: skip
        wrong = margin(model(one), y) > 0
        first = wrong & ~seen
        torch.testing.assert_close(x_adv[first], one[first], rtol=0, atol=1e-12)
        seen |= wrong
        assert number or (0 < int(wrong.sum()) < 40)
    assert torch.equal(seen, fell)
