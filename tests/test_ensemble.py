"""APGD, FAB, Square and their ensemble, against other ways to the same numbers; and what must hold however they run."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn

from robustkt import api, certlog
from robustkt import data as datasets
from robustkt.api.loading import load_network
from robustkt.attacks import Journal, apgd, fab, named, square
from robustkt.attacks._rolling import Search, hunt, uniform
from robustkt.attacks.autoattack import standard
from robustkt.core import ThreatModel
from robustkt.data import Split
from robustkt.errors import UsageError
from robustkt.evaluate import attacked
from robustkt.losses import ce_unrounded, dlr, margin
from robustkt.registry import Registry

Norm = Literal["linf", "l2"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def curved(classes: int = 4, shape: tuple[int, int, int] = (1, 5, 5), seed: int = 0) -> nn.Module:
    """A small network in double, so that a batch's make-up does not show in its rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inside = int(np.prod(shape))
        net = nn.Sequential(nn.Flatten(), nn.Linear(inside, 12), nn.Tanh(), nn.Linear(12, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net.double().eval()


def pictures(net: nn.Module, count: int, shape: tuple[int, int, int] = (1, 5, 5)) -> tuple[Tensor, Tensor]:
    """Images with the labels that the network gives them."""
    x = torch.rand(count, *shape, generator=rng(1), dtype=torch.float64)
    with torch.no_grad():
        return x, net(x).argmax(dim=1)


def small(classes: int, steps: int = 8, queries: int = 20) -> list[Search]:
    """AutoAttack's stages with small budgets."""
    first: list[Search] = [*apgd.untargeted("apgd-ce", ce_unrounded, steps, 1, 1)]
    count = min(9, classes - 1)
    return [
        *first,
        *apgd.targeted(classes, count, steps),
        *fab.targeted(classes, count, steps),
        square.Square(queries),
    ]


# -- APGD as the paper has it ------------------------------------------------------------------------------------------


def plain_apgd(
    net: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: float, norm: Norm, steps: int
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 1 of 2003.01690 for one image, in float64, with the rules of the authors' code at a checkpoint."""

    def value_and_slope(at: Tensor) -> tuple[float, Tensor]:
        at = at.detach().requires_grad_(True)
        value = nn.functional.cross_entropy(net(at), y)
        (slope,) = torch.autograd.grad(value, at)
        return value.item(), slope

    def onto(at: Tensor) -> Tensor:
        delta = at - x
        if norm == "linf":
            return (x + delta.clamp(-eps, eps)).clamp(0, 1)
        return (x + delta * min(1.0, eps / max(delta.norm().item(), 1e-300))).clamp(0, 1)

    checks, length = [0.0, 0.22], 0.22
    while checks[-1] < 1:
        length = max(length - 0.03, 0.06)
        checks.append(round(checks[-1] + length, 10))
    due = [round(p * steps) for p in checks]
    size, at, before = 2 * eps, start, start
    value, slope = value_and_slope(at)
    best, best_at, best_slope = value, at, slope
    best_then, halved_then, rises, at_check = best, True, 0, 0
    path, sizes = [], []
    for k in range(1, steps + 1):
        away = slope.sign() if norm == "linf" else slope / slope.norm()
        aim = onto(at + size * away)
        a = 0.75 if k > 1 else 1.0
        at, before = onto(at + a * (aim - at) + (1 - a) * (at - before)), at
        new, slope = value_and_slope(at)
        rises += new > value
        value = new
        path.append(at)
        if value > best:
            best, best_at, best_slope = value, at, slope
        if k in due:
            halve = rises <= 0.75 * (k - at_check) or (not halved_then and best == best_then)
            if halve:
                size, at, slope = size / 2, best_at, best_slope
            halved_then, best_then, rises, at_check = halve, best, 0, k
        sizes.append(size)
    return path, sizes


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(3))
def test_apgd_takes_the_path_of_the_paper(norm: Norm, seed: int) -> None:
    net, threat = curved(seed=seed), ThreatModel(norm, Fraction(1, 5) if norm == "linf" else Fraction(1, 2))
    x, y = pictures(net, 1)
    run = apgd.APGD("apgd-ce", lambda z, y, t: ce_unrounded(z, y), steps=100)
    s = run.begin(net, x, y, threat, torch.tensor([seed]))
    far = (s["x_adv"] - x).abs().max() if norm == "linf" else (s["x_adv"] - x).norm()
    assert far <= float(threat.eps) + 1e-12
    path, sizes = plain_apgd(net, x, y, s["at"], float(threat.eps), norm, 100)
    assert sizes[-1] < sizes[0]
    s |= {"x": x, "y": y, "seed": torch.tensor([seed]), "age": torch.zeros(1, dtype=torch.int64)}
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    for k in range(100):
        run.step(net, s, threat)
        s["age"] = s["age"] + 1
        torch.testing.assert_close(seen[-1], path[k], rtol=0, atol=1e-9)
        assert s["size"].item() == pytest.approx(sizes[k])


# -- FAB ---------------------------------------------------------------------------------------------------------------


def nearest(x: np.ndarray, w: np.ndarray, level: float, norm: Norm) -> float | None:
    """The length of the smallest d, by scipy; None where no point of the box lies on the plane."""
    n = len(x)
    if norm == "linf":  # minimise t over (d, t), |d_i| <= t
        up = np.hstack([np.eye(n), -np.ones((n, 1))])
        down = np.hstack([-np.eye(n), -np.ones((n, 1))])
        found = optimize.linprog(
            np.r_[np.zeros(n), 1], np.vstack([up, down]), np.zeros(2 * n), np.r_[w, 0][None], [level - w @ x],
            bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
        )  # fmt: skip
        return float(found.x[-1]) if found.success else None
    whole = np.where(w * np.sign(level - w @ x) > 0, 1 - x, -x)
    if abs(w @ whole) < abs(level - w @ x) - 1e-12:
        return None
    found = optimize.root_scalar(  # d = clip(λ w) for one λ: the change of w·x rises with λ
        lambda lam: w @ np.clip(lam * w, -x, 1 - x) - (level - w @ x), bracket=[-1e6, 1e6], xtol=1e-13
    )
    return float(np.linalg.norm(np.clip(found.root * w, -x, 1 - x)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_to_plane_is_the_nearest_point_of_the_box(norm: Norm) -> None:
    random, feasible, infeasible = np.random.default_rng(0), 0, 0
    for trial in range(60):
        n = int(random.integers(1, 12))
        x, w = random.random(n), random.standard_normal(n)
        if trial % 3 == 0:
            x = np.where(random.random(n) < 0.5, x.round(), x)  # on walls
        if trial % 4 == 1:
            w[random.random(n) < 0.4] = 0
        level = float(w @ random.random(n)) if trial % 5 else float(w @ x + 3 * random.standard_normal())
        d = fab.to_plane(*(torch.tensor(v, dtype=torch.float64) for v in (x[None], w[None], [level])), norm=norm)[
            0
        ].numpy()
        assert np.isfinite(d).all()
        assert (x + d >= -1e-12).all()
        assert (x + d <= 1 + 1e-12).all()
        assert (d[w == 0] == 0).all()
        wanted = nearest(x, w, level, norm)
        if wanted is None:
            infeasible += 1
            corner = np.where(w * np.sign(level - w @ x) > 0, 1 - x, -x)
            np.testing.assert_allclose(d[w != 0], corner[w != 0], atol=1e-9)
        else:
            feasible += 1
            assert w @ (x + d) == pytest.approx(level, abs=1e-8)
            length = np.abs(d).max() if norm == "linf" else np.linalg.norm(d)
            assert length == pytest.approx(wanted, abs=1e-6)
    assert feasible > 20
    assert infeasible > 3


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-30])
def test_to_plane_knows_the_plane_not_its_scale(norm: str, scale: float) -> None:
    x, w = torch.rand(20, 9, generator=rng()), torch.randn(20, 9, generator=rng(1))
    level = (w * torch.rand(20, 9, generator=rng(2))).sum(dim=1)
    plain = fab.to_plane(x, w, level, norm=norm)
    torch.testing.assert_close(fab.to_plane(x, w * scale, level * scale, norm=norm), plain, rtol=1e-3, atol=1e-4)


def test_to_plane_stays_where_there_is_no_plane() -> None:
    x = torch.rand(3, 4, generator=rng())
    for norm in ("linf", "l2"):
        assert torch.equal(fab.to_plane(x, torch.zeros(3, 4), torch.ones(3), norm=norm), torch.zeros(3, 4))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_smallest_change_of_a_linear_network(norm: Norm) -> None:
    w = torch.randn(16, generator=rng(3), dtype=torch.float64)

    def net(x: Tensor) -> Tensor:
        score = (x - 0.5).flatten(1) @ w
        return torch.stack([-score, score], dim=1)

    x = 0.3 + 0.4 * torch.rand(12, 1, 4, 4, generator=rng(4), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    wanted = ((x - 0.5).flatten(1) @ w).abs() / torch.linalg.vector_norm(w, 1 if norm == "linf" else 2)
    search, threat = fab.FAB("fab-t 1", 1), ThreatModel(norm, Fraction(1, 10**6))
    state = search.begin(net, x, y, threat, torch.zeros(12)) | {"x": x, "y": y}
    for _ in range(30):
        search.step(net, state, threat)
    assert (state["nearest"] >= wanted * (1 - 1e-9)).all()
    assert (state["nearest"] <= 1.05 * wanted).all()
    assert not (state["broken"] & (wanted > 1e-6)).any()


# -- Square ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 6, 9), (3, 12, 5), (1, 1, 1), (1, 2, 7)], ids=str)
def test_square_stays_in_the_ball_and_never_gets_worse(norm: Norm, shape: tuple[int, int, int]) -> None:
    net, threat = curved(3, shape), ThreatModel(norm, Fraction(1, 20))
    x, y = pictures(net, 6, shape)
    search = square.Square(200)
    s = search.begin(net, x, y, threat, torch.arange(6))
    s |= {"x": x, "y": y, "seed": torch.arange(6), "age": torch.zeros(6, dtype=torch.int64)}
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    with torch.no_grad():
        for _ in range(search.steps):
            before = s["value"].clone()
            search.step(net, s, threat)
            s["age"] = s["age"] + 1
            assert (s["value"] >= before).all()
            torch.testing.assert_close(s["value"], margin(net(s["x_adv"]), y))
    delta = (torch.stack(seen) - x).flatten(2)
    far = delta.abs().amax(dim=2) if norm == "linf" else delta.norm(dim=2)
    assert far.max() <= float(threat.eps) + 1e-6
    assert torch.stack(seen).min() >= 0
    assert torch.stack(seen).max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9)], ids=str)
def test_squares_candidates_use_the_whole_ball_and_every_pixel(shape: tuple[int, int, int]) -> None:
    x = torch.full((1, *shape), 0.5, dtype=torch.float64)
    for norm in ("linf", "l2"):
        threat = ThreatModel(norm, Fraction(1, 10))  # type: ignore[arg-type]
        s: dict[str, Tensor] = {"x": x, "x_adv": x}
        propose = square._squares if norm == "linf" else square._windows
        start = square._stripes(x, torch.tensor([3])) if norm == "linf" else square._tiling(x, torch.tensor([3]))
        s["x_adv"] = x + 0.1 * start
        touched = torch.zeros(shape[1:], dtype=torch.bool)
        for number in range(400):
            u = uniform(torch.tensor([number]), (5 + shape[0],), "u")
            share = torch.tensor([0.05], dtype=torch.float64)
            at = propose(s, u, share, threat)
            delta = at - x
            length = delta.abs().max() if norm == "linf" else delta.norm()
            assert length.item() == pytest.approx(0.1, abs=1e-6)
            assert set((at != s["x_adv"]).flatten().tolist()) <= {True, False}
            touched |= (at != s["x_adv"])[0].any(dim=0)
        assert touched.all()


def test_squares_patches_shrink_as_scheduled() -> None:
    search = square.Square(10_000)
    ages = torch.tensor([0, 10, 11, 50, 51, 201, 501, 1_001, 2_001, 4_001, 6_001, 8_001, 9_999])
    halvings = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    torch.testing.assert_close(search._share(ages).double(), 0.8 / 2.0 ** halvings.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(square.Square(5_000)._share(ages // 2)[2:], search._share(ages // 2 * 2)[2:])


def test_a_tie_that_argmax_gets_wrong_is_broken() -> None:
    """With equal logits the first class is named: an image of the second is wrong there, at a margin of 0."""

    class Tied(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = ((x - 0.5).flatten(1).abs().amax(dim=1) > 0.01).to(x)
            return torch.stack([torch.zeros_like(moved), 1 - moved], dim=1)

    x, y, journal = torch.full((2, 1, 4, 4), 0.5), torch.tensor([1, 1]), Journal()
    run = named("square").run
    x_adv = run(Tied(), x, y, ThreatModel("linf", Fraction(1, 10)), rng=rng(), queries=5, journal=journal)
    assert (Tied()(x_adv).argmax(dim=1) != y).all()
    assert journal.known("square") == {0: True, 1: True}


def test_logits_that_are_no_numbers_under_attack_are_broken() -> None:
    class Burst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = (x - 0.5).flatten(1).abs().amax(dim=1) > 0.01
            z = torch.stack([x.flatten(1).sum(dim=1) + 9, x.flatten(1).sum(dim=1)], dim=1)
            return torch.where(moved[:, None], torch.nan, z)

    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    for name in ("square", "apgd-ce"):
        journal = Journal()
        named(name).run(Burst(), x, y, ThreatModel("linf", Fraction(1, 10)), rng=rng(), journal=journal)
        assert list(journal.known(name).values()) == [True, True]


# -- hunt --------------------------------------------------------------------------------------------------------------


def verdicts(
    net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, batch_size: int = 7, journal: Journal | None = None
) -> tuple[dict[str, dict[int, bool]], Tensor]:
    journal = journal or Journal()
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
    found = hunt(net, x, y, threat, small(classes), rng=rng(5), batch_size=batch_size, journal=journal)
    return journal.stages, found


THREATS = [ThreatModel("linf", Fraction(1, 25)), ThreatModel("l2", Fraction(3, 20))]


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_verdicts_depend_neither_on_the_batch_nor_on_neighbours(threat: ThreatModel) -> None:
    net = curved()
    x, y = pictures(net, 16)
    y[:2] = (y[:2] + 1) % 4  # wrong without an attack
    wanted, images = verdicts(net, x, y, threat)
    fallen = {row for stage in wanted.values() for row, broken in stage.items() if broken}
    assert {0, 1} < fallen
    assert len(fallen) < 14
    for batch_size in (1, 3, 256):
        found, other = verdicts(net, x, y, threat, batch_size=batch_size)
        assert found == wanted
        torch.testing.assert_close(other, images, rtol=0, atol=1e-9)
    crowd = x.clone()
    crowd[8:] = crowd[8:].flip(2)
    found, other = verdicts(net, crowd, y, threat)
    torch.testing.assert_close(other[:8], images[:8], rtol=0, atol=1e-9)
    for stage, rows in wanted.items():
        assert {r: b for r, b in found[stage].items() if r < 8} == {r: b for r, b in rows.items() if r < 8}


def test_an_images_random_numbers_follow_it_whatever_is_attacked_beside_it() -> None:
    """A borderline image that another device gets wrong would else shift the seeds of all after it."""
    net, threat = curved(), THREATS[0]
    data = Split((pictures(net, 24)[0] * 255).round().to(torch.uint8), torch.zeros(24, dtype=torch.int64))
    with torch.no_grad():
        y = net(data.x.double() / 255).argmax(dim=1)
    seeds: list[dict[int, int]] = []

    class Recording(square.Square):
        def begin(self, model: Any, x: Tensor, y: Tensor, threat: ThreatModel, given: Tensor) -> Any:
            seeds[-1] |= {tuple(image.flatten().tolist()): seed for image, seed in zip(x, given.tolist(), strict=True)}
            return super().begin(model, x, y, threat, given)

    for wrong in ([], [3, 7]):
        seeds.append({})
        labels = y.clone()
        labels[wrong] = (labels[wrong] + 1) % 4
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(square, "Square", Recording)
            attacked(
                net.float(), Split(data.x, labels), threat, ["square:queries=5"], seed=0, device=torch.device("cpu")
            )
    assert len(seeds[1]) == 22
    assert {image: seeds[0][image] for image in seeds[1]} == seeds[1]


class Dying(Journal):
    """Raises when told for the n-th time, before or after writing it down."""

    def __init__(self, calls: int, after: bool) -> None:
        super().__init__()
        self.calls, self.after = calls, after

    def tell(self, stage: str, rows: Any, broken: Any) -> None:
        self.calls -= 1
        if self.calls or self.after:
            super().tell(stage, rows, broken)
        if not self.calls:
            raise KeyboardInterrupt


def test_an_interrupted_hunt_ends_with_the_same_verdicts() -> None:
    net, threat = curved(), THREATS[0]
    x, y = pictures(net, 10)
    wanted, _ = verdicts(net, x, y, threat, batch_size=4)
    at = 0
    while True:
        at += 5  # of an odd number both sides of a call come in turn
        journal = Dying(at, after=at % 2 == 0)
        try:
            verdicts(net, x, y, threat, batch_size=4, journal=journal)
        except KeyboardInterrupt:
            kept = Journal()
            kept.stages = journal.stages
            found, _ = verdicts(net, x, y, threat, batch_size=3, journal=kept)
            assert found == wanted
            continue
        break
    assert at > 8


def test_the_batch_stays_full_while_images_fall() -> None:
    net, threat = curved(), ThreatModel("linf", Fraction(1, 20))
    x, y = pictures(net, 120)
    rows: list[int] = []
    search = [square.Square(60)]
    net.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    journal = Journal()
    hunt(net, x, y, threat, search, rng=rng(), batch_size=16, journal=journal)
    fell = sum(journal.known("square").values())
    assert 20 < fell < 118
    assert max(rows) <= 16
    steps = [n for n in rows[8:-60] if n > 0]
    full = sum(n >= 14 for n in steps if n > 2)
    assert full / sum(n > 2 for n in steps) > 0.8


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_few_classes_have_few_targets(classes: int) -> None:
    names = [search.name for search in standard(classes)]
    count = min(9, classes - 1)
    assert names == [
        "apgd-ce",
        *(f"apgd-t {k}" for k in range(1, count + 1)),
        *(f"fab-t {k}" for k in range(1, count + 1)),
        "square",
    ]
    net = curved(classes)
    x, y = pictures(net, 5)
    found, x_adv = verdicts(net, x, y, ThreatModel("linf", Fraction(1, 2)))
    with torch.no_grad():
        assert (net(x_adv).argmax(dim=1) != y).all()
    assert set(found) == set(names)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("classes", [2, 5])
def test_no_image_that_was_seen_broken_is_called_robust(threat: ThreatModel, classes: int) -> None:
    net = curved(classes)
    x, y = pictures(net, 18)
    for row in range(18):
        seen: list[tuple[Tensor, Tensor]] = []
        hook = net.register_forward_hook(lambda m, i, o, seen=seen: seen.append((i[0].detach(), o.detach())))
        found, _ = verdicts(net, x[row : row + 1], y[row : row + 1], threat)
        hook.remove()
        at, logits = torch.cat([i for i, _ in seen]), torch.cat([o for _, o in seen])
        delta = (at - x[row]).flatten(1)
        far = delta.abs().amax(dim=1) if threat.norm == "linf" else delta.norm(dim=1)
        inside = (far <= float(threat.eps) - 1e-9) & (at >= 0).flatten(1).all(1) & (at <= 1).flatten(1).all(1)
        met = bool((inside & (logits.argmax(dim=1) != y[row])).any())
        assert not met or any(stage.get(0) for stage in found.values())


@pytest.mark.parametrize("calls", [1, 2, 5, 30, 60])
def test_a_network_that_raises_is_left_as_it_was(calls: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Dropout(), nn.Linear(25, 4)).train()
    net[2].eval()
    net[3].bias.requires_grad_(False)
    net[3].weight.grad = torch.ones(4, 25)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    left = calls

    def fail(module: nn.Module, inputs: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise MemoryError

    net.register_forward_pre_hook(fail)
    x = torch.rand(6, 1, 5, 5, generator=rng())
    with torch.no_grad():
        y = net.eval()[1:](x.flatten(1)).argmax(dim=1)
    net.train()
    net[2].eval()
    with pytest.raises(MemoryError):
        hunt(net, x, y, ThreatModel("linf", Fraction(1, 1000)), small(4), rng=rng(), batch_size=4)
    assert [m.training for m in net.modules()] == [True, True, True, False, True]
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]
    assert torch.equal(net[3].weight.grad, torch.ones(4, 25))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_rand_version_averages_over_a_noisy_networks_draws() -> None:
    passes = 0

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = curved().float()

        def forward(self, x: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return self.net(x + 0.02 * torch.randn(x.shape))

    torch.manual_seed(0)
    model = Noisy()
    x, _ = pictures(curved(), 6)
    x = x.float()
    y = model.net(x).argmax(dim=1)
    attack, journal = named("autoattack:version=rand"), Journal()
    wide = ThreatModel("linf", Fraction(1, 2))
    x_adv = attack.run(model, x, y, wide, rng=rng(), journal=journal, **attack.options)
    assert list(journal.stages) == ["apgd-ce", "apgd-dlr"]
    assert passes > 20
    with torch.no_grad():
        assert (model.net(x_adv).argmax(dim=1) != y).all()
    with pytest.raises(UsageError, match="did you mean 'rand'"):
        named("autoattack:version=rant").run(model, x, y, wide, rng=rng(), version="rant")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spelled", "options"),
    [
        ("PGD_SAT", "pgd-sat", {}),
        (" pgd:steps=50:loss=dlr ", "pgd:loss=dlr:steps=50", {"loss": "dlr", "steps": 50}),
        ("pgd:step-size=2/255", "pgd:step_size=2/255", {"step_size": Fraction(2, 255)}),
        ("pgd:step_size=none", "pgd", {}),
        ("smoothadv:sigma=.25", "smoothadv:sigma=0.25", {"sigma": Fraction(1, 4)}),
        ("autoattack:version=rand", "autoattack:version=rand", {"version": "rand"}),
    ],
)
def test_names_have_one_spelling(text: str, spelled: str, options: dict[str, Any]) -> None:
    found = named(text)
    assert found.name == spelled
    assert {k: v for k, v in found.options.items() if v is not None} == options
    assert named(found.name) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgd-satt", "did you mean 'pgd-sat'"),
        ("pgd:step=5", "did you mean 'steps'"),
        ("pgd:rng=5", "unknown setting for pgd 'rng'"),
        ("pgd:steps=some", "steps"),
        ("pgd:steps", "steps"),
        ("pgd:steps=0", "must be above 0"),
        ("pgd:steps=1.5", "whole number"),
        ("pgd:steps=5:steps=7", "steps"),
        ("fgsm:steps=3", "unknown setting for fgsm 'steps'"),
        ("pgd:loss=cee", "did you mean 'ce'"),
        ("autoattack:version=strandard", "did you mean 'standard'"),
    ],
)
def test_names_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        named(text)
    assert message in f"{caught.value} {getattr(caught.value, 'hint', '')}"


def test_dlr_is_refused_where_it_is_undefined() -> None:
    net = curved(2)
    x, y = pictures(net, 2)
    with pytest.raises(UsageError, match="3 classes"):
        named("pgd").run(net, x, y, THREATS[0], rng=rng(), loss="dlr")
    assert dlr(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(-2 / 3)


# -- the smoothed classifier -------------------------------------------------------------------------------------------


def test_smoothadv_respects_the_radius_of_a_linear_smoothed_classifier_and_succeeds_beyond() -> None:
    """A linear classifier smoothed is itself: its radius is the distance to the plane, whatever sigma."""
    w = torch.randn(16, generator=rng(3))
    w = w / w.norm()

    class Plane(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 4 * ((x - 0.5).flatten(1) @ w)
            return torch.stack([-score, score], dim=1)

    x = torch.randint(90, 166, (60, 1, 4, 4), generator=rng(4), dtype=torch.uint8)
    distance = ((x / 255 - 0.5).flatten(1) @ w).double()
    data, sure = Split(x, (distance > 0).long()), distance.abs() > 0.1
    data = Split(data.x[sure], data.y[sure])
    assert len(data) > 10
    run: Callable[[Fraction], Any] = lambda eps: attacked(  # noqa: E731
        Plane(), data, ThreatModel("l2", eps), ["smoothadv:draws=4:steps=8"], seed=0,
        device=torch.device("cpu"), sigma=Fraction(1, 10),
    )[0]  # fmt: skip
    inside, beyond = run(Fraction(8, 100)), run(Fraction(3, 2))
    assert (inside.predicted != 1 - data.y).all(), "a certified image was turned over"
    assert inside.accuracy > 0.9
    assert beyond.accuracy == 0
    assert (beyond.predicted == 1 - data.y).double().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("eps", ["1/4", "1/2"])
def test_no_attack_turns_over_a_certified_image_of_a_trained_network(eps: str, registry: Registry) -> None:
    """SmoothAdv inside the certified radius, away from the certified class: broken no more often than alpha allows."""
    api.train(method="gaussian", arch="smallcnn", data="digits", registry=registry, given={"sigma": "1/4", "epochs": 8})
    certified = api.certify("gen0", sigma="1/4", n=1_000, max_images=360, registry=registry, device="cpu")
    log = certlog.parse(Path(certified["log"]).read_text())
    sure = [row for row in log if row.predict >= 0 and row.radius_reaches(Fraction(eps))][:120]
    assert len(sure) > 60
    found = registry.get("gen0")
    model = load_network(registry, found).eval()
    test = datasets.load("digits").test
    images = Split(test.x[[row.idx for row in sure]], torch.tensor([row.predict for row in sure]))
    threat = ThreatModel("l2", Fraction(eps))
    (result,) = attacked(model, images, threat, ["smoothadv"], seed=0, device=torch.device("cpu"), sigma=Fraction(1, 4))
    assert result.predicted is not None
    turned = int(((result.predicted != images.y) & (result.predicted >= 0)).sum())
    assert stats.binomtest(turned, len(sure), 0.002, alternative="greater").pvalue > 1e-4  # α, and PREDICT's own
