"""Accuracies known in closed form, the same at every call; warnings that fire on what they are for, and else never."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustkt.core import ThreatModel
from robustkt.data import Split
from robustkt.decided import Decided
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.evaluate import (
    BATCH,
    Attacked,
    attacked,
    clean_accuracy,
    noisy_accuracy,
    robust_accuracy,
)
from robustkt.masking import masking_warnings

CPU = torch.device("cpu")
EPS = Fraction(8, 255)
LINF, L2 = ThreatModel("linf", EPS), ThreatModel("l2", Fraction(1, 10))
ALL = ("clean", "fgsm", "pgd-sat", "pgd-trades")


class Linear(nn.Module):
    """Logits (−m, m) of the margin m = w·(x − 1/2)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([-margin, margin], dim=1)


def split(count: int) -> Split:
    """Images far from the box's edge, each with the label that `Linear` gives it, but for every tenth."""
    x = torch.randint(60, 196, (count, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    y = Linear()(x / 255).argmax(dim=1)
    y[::10] = 1 - y[::10]
    return Split(x, y)


def margins(images: Split) -> Tensor:
    """How far each image is on the right side."""
    with torch.no_grad():
        logits = Linear().double()(images.x.double() / 255)
    return (2 * images.y - 1) * logits[:, 1]


# -- accuracies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, BATCH, 2 * BATCH + 1])
def test_clean_accuracy(count: int) -> None:
    assert clean_accuracy(Linear(), split(count), device=CPU) == pytest.approx(1 - len(range(0, count, 10)) / count)


@pytest.mark.parametrize("sigma", [Fraction(1, 16), Fraction(1, 4)])
def test_noisy_accuracy_is_the_chance_of_staying_on_the_right_side(sigma: Fraction) -> None:
    model, images = Linear(), split(600)
    spread = float(sigma) * model.w.detach().double().norm()
    wanted = stats.norm.cdf((margins(images) / spread).numpy()).mean()
    found = noisy_accuracy(model, images, sigma, draws=8, device=CPU)
    assert found == pytest.approx(wanted, abs=0.02)
    assert 0.55 < found < 0.85


def test_noisy_accuracy_is_the_same_at_every_call_with_noise_of_its_own_for_every_draw_and_batch() -> None:
    seen: list[Tensor] = []
    model, images = Linear(), split(BATCH + 20)
    images = Split(images.x[:1].expand(BATCH + 20, -1, -1, -1), images.y)  # one image, so that inputs differ by noise
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    torch.manual_seed(1)
    first, state = noisy_accuracy(model, images, Fraction(1, 4), draws=3, device=CPU), torch.get_rng_state()
    torch.manual_seed(2)
    assert noisy_accuracy(model, images, Fraction(1, 4), draws=3, device=CPU) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    once, again = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [len(x) for x in once] == [BATCH, 20] * 3
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert len({tuple(x.flatten().tolist()) for x in torch.cat(once)}) == 3 * (BATCH + 20)
    assert torch.cat(once).min() < 0  # unclipped


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_robust_accuracy_is_the_share_of_large_margins(threat: ThreatModel) -> None:
    model, images = Linear(), split(BATCH + 50)
    reach = float(threat.eps) * torch.linalg.vector_norm(model.w.detach(), 1 if threat.norm == "linf" else 2)
    wanted = (margins(images) > reach).double().mean().item()
    found = robust_accuracy(model, images, threat, steps=10, device=CPU)
    assert found == pytest.approx(wanted, abs=0.015)  # ten steps of PGD in L2 end a little off the best point
    assert 0.2 < wanted < 0.8
    weak = robust_accuracy(model, images, threat, steps=1, device=CPU)
    assert wanted + 0.02 < weak < clean_accuracy(model, images, device=CPU)  # a quarter of the way, from anywhere
    assert robust_accuracy(model, images, threat, steps=1, device=CPU) == weak


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_attacks_take_exactly_the_small_margins(threat: ThreatModel) -> None:
    model, images, told = Linear(), split(BATCH + 50), []
    results = attacked(model, images, threat, ALL, seed=0, device=CPU, advance=told.append)
    assert [result.name for result in results] == list(ALL)
    assert sum(told) == pytest.approx(len(ALL) * len(images))
    reach = float(threat.eps) * torch.linalg.vector_norm(model.w.detach(), 1 if threat.norm == "linf" else 2)
    safe, sure = margins(images), 0.1 * reach  # an attack may miss the optimum by so much
    for result in results:
        far = 0 if result.name == "clean" else reach
        assert result.right.shape == (BATCH + 50,)
        assert result.right.dtype == torch.bool
        assert result.accuracy == result.right.double().mean()
        decided = (safe - far).abs() > sure
        assert torch.equal(result.right[decided], (safe > far)[decided])
    assert results[1].accuracy < results[0].accuracy - 0.2


def test_attacks_are_the_same_for_the_same_seed_whatever_else_was_drawn_or_attacked() -> None:
    starts: list[Tensor] = []
    model, images = Linear(), split(20)
    model.register_forward_hook(lambda module, inputs, output: starts.append(inputs[0].detach().clone()))

    def start(attacks: tuple[str, ...], seed: int, elsewhere: int) -> Tensor:
        torch.manual_seed(elsewhere)
        attacked(model, images, LINF, attacks[:-1], seed=seed, device=CPU)
        starts.clear()
        attacked(model, images, LINF, attacks[-1:], seed=seed, device=CPU)
        return starts[1]  # after the clean images

    first = start(("pgd-sat",), 0, 1)
    assert torch.equal(first, start(("fgsm", "pgd-trades", "pgd-sat"), 0, 2))
    assert not torch.equal(first, start(("pgd-sat",), 1, 1))
    assert not torch.equal(first, start(("pgd-trades",), 0, 1))


def test_unknown_attacks_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        attacked(Linear(), split(3), LINF, ["pgd-satt"], seed=0, device=CPU)
    assert "did you mean 'pgd-sat'" in str(caught.value)


def test_networks_are_judged_in_eval_mode_and_left_as_they_were() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 2)).train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = []
    net.register_forward_hook(lambda module, inputs, output: modes.append(any(m.training for m in module.modules())))
    images = split(30)
    noisy_accuracy(net, images, Fraction(1, 4), draws=1, device=CPU)
    robust_accuracy(net, images, LINF, steps=2, device=CPU)
    clean_accuracy(net, images, device=CPU)
    masking_warnings(net, images, LINF, attacked(net, images, LINF, ALL, seed=0, device=CPU), device=CPU)
    assert modes
    assert not any(modes)
    assert [m.training for m in net.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


# -- signs of masking -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> Split:
    """Three classes of four-by-four pictures: a bright row each, in noise."""
    rng = torch.Generator().manual_seed(2)
    y = torch.randint(3, (150,), generator=rng)
    x = torch.randint(40, 120, (150, 1, 4, 4), generator=rng)
    x[torch.arange(150), 0, y] += 80
    return Split(x.to(torch.uint8), y)


@pytest.fixture(scope="module")
def trained(images: Split) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images.images(slice(None))), images.y).backward()
            optimizer.step()
    net.zero_grad(set_to_none=True)
    return net


class After(nn.Module):
    """A network with something done to what goes in and what comes out."""

    def __init__(self, net: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before or (lambda x: x), after or (lambda z: z)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class Contrary(torch.autograd.Function):
    """The identity, whose gradient points the wrong way — everywhere, or only off the grid of bytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, everywhere: bool) -> Tensor:
        off = ((x * 255 - (x * 255).round()).abs() > 1e-3).flatten(1).any(dim=1).view(-1, 1, 1, 1)
        ctx.save_for_backward(torch.where(off | everywhere, -1.0, 1.0))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


def found(net: nn.Module, images: Split) -> tuple[list[str], list[Attacked]]:
    results = attacked(net, images, LINF, ALL, seed=0, device=CPU)
    return masking_warnings(net, images, LINF, results, device=CPU), results


def test_an_ordinary_network_gives_no_warning(trained: nn.Module, images: Split) -> None:
    warnings, results = found(trained, images)
    assert results[0].accuracy > 0.95
    assert warnings == []


def test_a_network_that_says_nothing_of_the_image_gives_no_false_alarm_but_for_its_gradient(images: Split) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.zeros_(flat[1].weight)
    warnings, _ = found(flat, images)
    assert [warning.split(" for ")[0] for warning in warnings] == [
        "the gradient at the image is exactly zero",
        "the network names one class",
    ]
    assert "100%" in warnings[0]


def test_probabilities_are_noticed(trained: nn.Module, images: Split) -> None:
    warnings, _ = found(After(trained, after=lambda z: z.softmax(dim=1)), images)
    assert len(warnings) == 1
    assert "returns probabilities, not logits" in warnings[0]


@pytest.mark.parametrize(
    "after",
    [
        lambda z: z.softmax(dim=1) + 0.1,
        lambda z: z.log_softmax(dim=1),
        lambda z: z.relu(),
        lambda z: z - z.mean(1, keepdim=True) + 1 / 3,
    ],
)
def test_logits_that_only_resemble_probabilities_are_not(trained: nn.Module, images: Split, after: Any) -> None:
    warnings, _ = found(After(trained, after=after), images)
    assert not any("probabilities" in warning for warning in warnings)


def test_a_randomised_output_is_noticed(trained: nn.Module, images: Split) -> None:
    torch.manual_seed(0)
    warnings, _ = found(After(trained, after=lambda z: z + 0.01 * torch.randn_like(z)), images)
    assert len(warnings) == 1
    assert "randomised" in warnings[0]


@pytest.mark.parametrize(("share", "heard"), [(0, False), (1, False), (2, True), (40, True)])
def test_gradients_of_exactly_zero_are_noticed(trained: nn.Module, images: Split, share: int, heard: bool) -> None:
    """`share` of the 100 images that are looked at have none."""
    looked_at = torch.arange(100) * len(images) // 100
    blind = images.images(looked_at[:share]).flatten(1)

    def before(x: Tensor) -> Tensor:
        hidden = (x.flatten(1)[:, None] == blind[None]).all(dim=2).any(dim=1).view(-1, 1, 1, 1)
        return torch.where(hidden, x.detach(), x)

    warnings, _ = found(After(trained, before=before), images)
    assert [w for w in warnings if "exactly zero" in w] == (
        [f"the gradient at the image is exactly zero for {share}% of the images"] if heard else []
    )


class Rooted(nn.Module):
    """A network after a square root of 0: finite logits; a gradient that is 0·∞ everywhere, or at the first pixel."""

    def __init__(self, net: nn.Module, pixels: int) -> None:
        super().__init__()
        self.net, self.pixels = net, pixels

    def forward(self, x: Tensor) -> Tensor:
        root = (0 * x.flatten(1)[:, : self.pixels]).sqrt().sum(dim=1, keepdim=True)
        return self.net(x) + root


@pytest.mark.parametrize("pixels", [1, 16])
@pytest.mark.parametrize("threat", [LINF, ThreatModel("l2", Fraction(1, 20))], ids=str)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd:restarts=2", "apgd-ce", "apgd-t:targets=2", "fab-t:targets=2"])
def test_a_gradient_that_is_no_number_breaks_no_image_and_is_noticed(
    trained: nn.Module, images: Split, threat: ThreatModel, name: str, pixels: int
) -> None:
    seen: list[Tensor] = []
    net = Rooted(trained, pixels)
    net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    clean, result = attacked(net, images, threat, ["clean", name], seed=0, device=CPU)
    assert all(bool(x.isfinite().all()) for x in seen)
    if pixels == 16:
        assert result.accuracy > clean.accuracy - 0.05, "there is no direction to go"
    else:
        other = attacked(trained, images, threat, [name], seed=0, device=CPU)[0]
        assert result.accuracy < clean.accuracy or other.accuracy == clean.accuracy, "15 of 16 directions are left"
    warnings = masking_warnings(net, images, threat, [clean, result], device=CPU)
    assert "the gradient is not a finite number for 100% of the images: gradient attacks are blind" in warnings


@pytest.mark.parametrize("outside", [torch.nan, torch.inf, 0.9, -0.5])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_an_image_outside_the_threat_breaks_nothing(
    trained: nn.Module, images: Split, threat: ThreatModel, outside: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stray(model: Any, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: Any) -> Tensor:
        return torch.full_like(x, outside)

    monkeypatch.setattr("robustkt.attacks.gradient.fgsm", stray)
    clean, result = attacked(trained, images, threat, ["clean", "fgsm"], seed=0, device=CPU)
    assert torch.equal(result.right, clean.right)


def test_surviving_what_nothing_can_survive_is_noticed(trained: nn.Module, images: Split) -> None:
    warnings, results = found(After(trained, before=lambda x: Contrary.apply(x, True)), images)
    assert results[1].accuracy == results[0].accuracy  # the attacks walk away from every boundary
    assert len(warnings) == 1
    assert "survive PGD at linf 0.5" in warnings[0]


def test_always_naming_the_largest_class_is_no_masking() -> None:
    """It keeps 90 of 100 images under any attack, without a trick."""
    constant = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        constant[1].weight.mul_(1e-3)
        constant[1].bias.copy_(torch.tensor([9.0, 0.0]))
    lopsided = Split(split(100).x, (torch.arange(100) >= 90).long())
    warnings, results = found(constant, lopsided)
    assert results[2].accuracy == pytest.approx(0.9)
    assert warnings == [
        "the network names one class for all 100 images: nothing can be said of how it withstands",
    ]


def test_an_unbalanced_set_hides_no_masking() -> None:
    """90 of 100 images of one class, a network that knows both and whose gradient points the wrong way."""
    lopsided = split(2_000)
    lopsided = Split(lopsided.x, Linear()(lopsided.x / 255).argmax(dim=1))
    rows = [(lopsided.y == label).nonzero().squeeze(1) for label in (0, 1)]
    kept = torch.cat([rows[0][:90], rows[1][:10]])
    lopsided = Split(lopsided.x[kept], lopsided.y[kept])
    honest, _ = found(Linear(), lopsided)
    assert honest == []
    net = After(Linear(), before=lambda x: Contrary.apply(x, True))
    warnings, results = found(net, lopsided)
    assert results[0].accuracy == 1
    assert results[2].accuracy > 0.9
    assert any("survive PGD at linf 0.5" in w for w in warnings)


def test_pgd_that_does_less_than_fgsm_is_noticed(trained: nn.Module, images: Split) -> None:
    wide = ThreatModel("linf", Fraction(1, 5))
    net = After(trained, before=lambda x: Contrary.apply(x, False))  # misleading wherever a random start may lie
    results = attacked(net, images, wide, ALL, seed=0, device=CPU)
    assert results[1].accuracy < results[2].accuracy
    for asked in ([], results[:1], results[1:3]):
        warnings = masking_warnings(net, images, wide, asked, device=CPU)
        assert any(w.startswith("20 steps of PGD leave") and "one step of FGSM" in w for w in warnings)


@pytest.mark.parametrize(
    ("right", "heard"),
    [
        ((50, 50, 50), ""),
        ((50, 51, 51), ""),  # one image is chance
        ((50, 52, 40), "20 steps of PGD leave 52% of 100 images, one step of FGSM 50%"),
        ((50, 40, 42), ""),
        ((50, 40, 43), "100 steps of PGD leave 43% of 100 images, 20 steps 40%"),
    ],
)
def test_more_steps_should_leave_less(
    trained: nn.Module, images: Split, right: tuple[int, ...], heard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was asked for: the warnings have attacks of their own."""

    def scripted(model: Any, some: Split, threat: ThreatModel, names: Any, **how: Any) -> list[Attacked]:
        left = right if threat == LINF else (0,) * len(names)
        return [Attacked(name, torch.arange(len(some)) < n) for name, n in zip(names, left, strict=True)]

    monkeypatch.setattr("robustkt.masking.attacked", scripted)
    assert masking_warnings(trained, images, LINF, [], device=CPU) == ([heard] if heard else [])


def test_a_network_without_gradients_is_scored_by_square_and_said_to_have_none(
    trained: nn.Module, images: Split
) -> None:
    """It is what the error of the gradient attacks advises."""
    net = After(trained, after=lambda z: z.detach())
    results = attacked(net, images, LINF, ["clean", "square:queries=10"], seed=0, device=CPU)
    warnings = masking_warnings(net, images, LINF, results, device=CPU)
    assert warnings == ["the network has no gradient with respect to its images: only Square says something"]
    with pytest.raises(RobustKTError, match="no gradient"):
        attacked(net, images, LINF, ["apgd-ce"], seed=0, device=CPU)


def mask(*rows: int, images: int = 1_000) -> Tensor:
    return torch.zeros(images, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.int64), True)


def unbreakable(model: Any, some: Split, threat: ThreatModel, names: Any, **how: Any) -> list[Attacked]:
    """Attacks that break nothing at 8/255, and everything farther off."""
    return [Attacked(name, torch.full((len(some),), threat == LINF)) for name in names]


@pytest.mark.parametrize(("broken", "heard"), [(0, False), (2, False), (3, True)])
@pytest.mark.parametrize("alone", [True, False])
def test_square_after_the_white_box_attacks_is_noticed(
    trained: nn.Module, images: Split, broken: int, heard: bool, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone or in an ensemble: what it breaks and no gradient attack does."""
    monkeypatch.setattr("robustkt.masking.attacked", unbreakable)
    many = Split(images.x[:1].expand(1_000, -1, -1, -1), images.y[:1].expand(1_000))
    squared = mask(*range(1, 1 + broken), *range(20, 30))
    first = {"apgd-ce": mask(*range(15, 25)), "fab-t 9": mask(500)}
    results = (
        [Attacked("pgd", ~mask(*range(15, 25)), broken={"": mask(*range(15, 25))}),
         Attacked("cw", ~mask(*range(25, 30)), broken={"": mask(*range(25, 30))}),
         Attacked("square:queries=9", ~squared, broken={"square": squared})]
        if alone
        else [Attacked("autoattack", ~squared, broken={**first, "square": mask(*range(1, 1 + broken))})]
    )  # fmt: skip
    warnings = masking_warnings(trained, many, LINF, results, device=CPU)
    wanted = [f"Square breaks a further 0.{broken}% of 1000 images, which no gradient attack did: masked gradients"]
    assert [w for w in warnings if "Square" in w] == (wanted if heard else [])


@pytest.mark.parametrize(("broken", "heard"), [(1, False), (2, True)])
def test_in_a_small_set_one_image_that_square_breaks_is_chance(
    trained: nn.Module, images: Split, broken: int, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustkt.masking.attacked", unbreakable)
    few = Split(images.x[:50], images.y[:50])
    squared = mask(*range(broken), images=50)
    results = [Attacked("square", ~squared, broken={"square": squared})]
    warnings = masking_warnings(trained, few, LINF, results, device=CPU)
    assert any("of 50 images, which no gradient attack did" in w for w in warnings) == heard


@pytest.mark.parametrize("weak", [[], ["fgsm"], ["pgd:steps=1"]])
def test_square_that_does_more_than_a_weak_attack_is_no_masking(
    trained: nn.Module, images: Split, weak: list[str]
) -> None:
    """Square breaks a good deal that one step does not, of a network that hides nothing."""
    wide = ThreatModel("linf", Fraction(1, 8))
    results = attacked(trained, images, wide, [*weak, "square:queries=300"], seed=0, device=CPU)
    by_one_step = results[0].right if weak else torch.ones(len(images), dtype=torch.bool)
    assert int((by_one_step & ~results[-1].right).sum()) > 1
    assert masking_warnings(trained, images, wide, results, device=CPU) == []


def test_square_against_misleading_gradients_is_noticed(trained: nn.Module, images: Split) -> None:
    net = After(trained, before=lambda x: Contrary.apply(x, True))
    wide = ThreatModel("linf", Fraction(1, 4))
    for names in (["square:queries=100"], ["pgd", "square:queries=100"], ["autoattack"]):
        results = attacked(net, Split(images.x[:40], images.y[:40]), wide, names, seed=0, device=CPU)
        warnings = masking_warnings(net, Split(images.x[:40], images.y[:40]), wide, results, device=CPU)
        assert any("which no gradient attack did" in w for w in warnings), names


def test_rounding_that_differs_from_call_to_call_is_no_randomness(trained: nn.Module, images: Split) -> None:
    """As of a device that sums in another order each time."""
    torch.manual_seed(0)
    warnings, _ = found(After(trained, after=lambda z: z * (1 + 1e-6 * torch.randn_like(z))), images)
    assert warnings == []


def test_a_network_whose_logits_are_no_numbers_is_refused(trained: nn.Module, images: Split) -> None:
    net = After(trained, after=lambda z: z / 0 * 0)
    with pytest.raises(IntegrityError, match="not finite"):
        attacked(net, images, LINF, ["autoattack"], seed=0, device=CPU)


def test_every_attack_and_every_stage_of_one_is_a_milestone(trained: nn.Module, images: Split) -> None:
    told: list[tuple[str, int]] = []
    attacks = ["clean", "fgsm", "apgd-t:steps=3:targets=2"]
    results = attacked(
        trained, images, LINF, attacks, seed=0, device=CPU, milestone=lambda name, right: told.append((name, right))
    )
    clean, fgsm, apgd = (int(result.right.sum()) for result in results)
    stages = list(results[2].stages.items())
    assert len(stages) == 2
    assert told == [
        ("clean", clean),
        ("fgsm", fgsm),
        *((f"{results[2].name}, {stage}", left) for stage, left in stages),
        (results[2].name, apgd),
    ]


def test_progress_counts_every_image_once_for_every_attack_also_after_an_interruption(
    trained: nn.Module, images: Split
) -> None:
    attacks = ["clean", "fgsm", "apgd-t:steps=5", "square:queries=10"]
    decided, told = Decided(), []

    def advance(amount: float) -> None:
        told.append(amount)
        if stop and sum(told) > stop:
            raise KeyboardInterrupt

    stop = 2.5 * len(images)
    with pytest.raises(KeyboardInterrupt):
        attacked(trained, images, LINF, attacks, seed=0, device=CPU, advance=advance, decided=decided)
    stop = 0
    told.clear()
    again = attacked(trained, images, LINF, attacks, seed=0, device=CPU, advance=advance, decided=decided)
    assert sum(told) == pytest.approx(4 * len(images))
    plain = attacked(trained, images, LINF, attacks, seed=0, device=CPU)
    for a, b in zip(again, plain, strict=True):
        assert torch.equal(a.right, b.right)
        assert a.stages == b.stages
