"""Objectives: each formula against code of its own in float64, and the contract of every method of the catalog."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from robustkt import data as datasets
from robustkt import objectives
from robustkt.api.recipes import assemble
from robustkt.catalog import METHODS
from robustkt.core import Batch, ThreatModel
from robustkt.errors import UsageError
from robustkt.objectives.adversarial import SAT, TRADES, Natural
from robustkt.objectives.distillation import RSLAD, SoftView
from robustkt.objectives.gaussian import Gaussian
from robustkt.objectives.smoothed import MixView, SmoothMix
from robustkt.objectives.transfer import CRT, NoisyView

SHAPE = (1, 4, 4)
B = 5  # no round number, and none that anybody would configure
CLASSES = [2, 10, 100]
EPS = Fraction(8, 255)
SIGMA = Fraction(1, 4)
LINF, L2 = ThreatModel("linf", Fraction(1, 10)), ThreatModel("l2", Fraction(1, 2))
GIVEN = {"sigma": "0.25", "eps": "8/255"}
NAMES = METHODS.names()
ATTACKING = [name for name in NAMES if "steps" in objectives.hyperparameters(name)]
CERTIFIED = [name for name in NAMES if "sigma" in objectives.needs(name)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(classes: int, seed: int = 0, scale: float = 3.0) -> nn.Sequential:
    """Two layers in float64, sure enough of itself for its probabilities to differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, classes)).double()
    with torch.no_grad():
        net[3].weight *= scale
    return net


def batch(classes: int, *, epoch: int = 0, seed: int = 7) -> Batch:
    draw = rng(1)
    x = torch.rand(B, *SHAPE, generator=draw, dtype=torch.float64)
    return Batch(x, torch.randint(classes, (B,), generator=draw), epoch, rng(seed))


def given_for(name: str) -> dict[str, str]:
    needs = objectives.needs(name)
    return {key: text for key, text in GIVEN.items() if key in needs or (key == "eps" and "threat" in needs)}


def needed(name: str, teacher: nn.Module) -> dict[str, Any]:
    have = {"teacher": teacher, "threat": LINF, "sigma": SIGMA}
    return {key: have[key] for key in objectives.needs(name)}


# -- the formulas once more, one image at a time or by torch's own distributions ---------------------------------------


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return -Categorical(logits=logits).log_prob(y).sum() / len(y)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    return kl_divergence(Categorical(logits=target), Categorical(logits=logits)).sum() / len(target)


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def total(terms: Any) -> Tensor:
    assert all(term.shape == () for term in terms.values())
    return sum(terms.values(), torch.zeros((), dtype=torch.float64))


def same(net: nn.Module, terms: Any, reference: Tensor, tolerance: float = 1e-9) -> None:
    """The sum of the terms and its gradient are those of the reference."""
    found = total(terms)
    torch.testing.assert_close(found, reference, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(gradients(net, found), gradients(net, reference), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def differ(net: nn.Module, first: Tensor, second: Tensor) -> bool:
    pairs = zip(gradients(net, first), gradients(net, second), strict=True)
    return any((a - b).abs().max() > 1e-3 * a.abs().max() for a, b in pairs)


def ascent(
    net: nn.Module, x: Tensor, start: Tensor, eps: float, step: float, steps: int, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """Signed gradient ascent in the linf ball, written out."""
    at = torch.minimum(torch.maximum(start, x - eps), x + eps).clamp(0, 1)
    for _ in range(steps):
        at = at.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(loss(net(at)), at)
        at = at.detach() + step * torch.sign(grad)
        at = torch.minimum(torch.maximum(at, x - eps), x + eps).clamp(0, 1)
    return at.detach()


# -- natural, SAT, TRADES ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", CLASSES)
def test_natural(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    view = Natural().perturb(net, seen)
    assert torch.equal(view, seen.x)
    terms = Natural().loss(net, seen, view)
    assert set(terms) == {"ce"}
    same(net, terms, cross_entropy(net(seen.x), seen.y))


@pytest.mark.parametrize("classes", CLASSES)
def test_sat(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = SAT(threat=LINF, steps=3)
    view = objective.perturb(net, seen)
    start = seen.x + (torch.rand(seen.x.shape, generator=rng(7)) * 2 - 1) * 0.1
    wanted = ascent(net, seen.x, start, 0.1, 0.025, 3, lambda z: cross_entropy(z, seen.y))
    torch.testing.assert_close(view, wanted, rtol=0, atol=1e-7)
    assert (view - seen.x).abs().max() > 0.05
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"ce"}
    same(net, terms, cross_entropy(net(view), seen.y))


@pytest.mark.parametrize("classes", CLASSES)
def test_trades(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = TRADES(threat=LINF, steps=3, beta=6.0)
    view = objective.perturb(net, seen)
    start = seen.x + 0.001 * torch.randn(seen.x.shape, generator=rng(7))
    clean = net(seen.x).detach()
    wanted = ascent(net, seen.x, start, 0.1, 0.025, 3, lambda z: divergence(clean, z))
    torch.testing.assert_close(view, wanted, rtol=0, atol=1e-7)
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"ce", "kl"}
    reference = cross_entropy(net(seen.x), seen.y) + 6 * divergence(net(seen.x), net(view))
    same(net, terms, reference)
    torch.testing.assert_close(terms["kl"], 6 * divergence(net(seen.x), net(view)))
    detached = cross_entropy(net(seen.x), seen.y) + 6 * divergence(net(seen.x).detach(), net(view))
    torch.testing.assert_close(total(objective.loss(net, seen, view)), detached)  # the same value …
    assert differ(net, total(objective.loss(net, seen, view)), detached)  # … but not the same gradient


def test_trades_with_another_weight() -> None:
    net, seen = network(10), batch(10)
    view = (seen.x + 0.05).clamp(0, 1)
    terms = TRADES(threat=LINF, beta=1.5).loss(net, seen, view)
    same(net, terms, cross_entropy(net(seen.x), seen.y) + 1.5 * divergence(net(seen.x), net(view)))


@pytest.mark.parametrize("name", [name for name in NAMES if "threat" in objectives.needs(name)])
@pytest.mark.parametrize("threat", [ThreatModel("linf", EPS), L2], ids=str)
def test_inner_steps_default_to_a_quarter_of_eps(name: str, threat: ThreatModel) -> None:
    net, teacher = network(10), network(10, seed=5)
    kind, have = METHODS.get(name), {**needed(name, teacher), "threat": threat}
    views = [
        kind(**have, steps=3, step_size=step).perturb(net, batch(10)) for step in (None, threat.eps / 4, threat.eps / 8)
    ]
    x_adv, same_again, shorter = (getattr(view, "x_adv", view) for view in views)
    assert torch.equal(x_adv, same_again)
    assert not torch.equal(x_adv, shorter)
    assert kind(**have).steps == 10


# -- RSLAD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_rslad(classes: int, scale: float) -> None:
    net, teacher, seen = network(classes), network(classes, seed=5), batch(classes)
    objective = RSLAD(teacher=teacher, threat=LINF, steps=3, kl_scale=scale)
    view = objective.perturb(net, seen)
    soft = teacher(seen.x).detach()
    start = seen.x + 0.001 * torch.randn(seen.x.shape, generator=rng(7))
    wanted = ascent(net, seen.x, start, 0.1, 0.025, 3, lambda z: divergence(soft, z))
    torch.testing.assert_close(view.x_adv, wanted, rtol=0, atol=1e-7)
    torch.testing.assert_close(view.target, soft)
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"kl_adv", "kl_clean"}
    adversarial, clean = divergence(soft, net(view.x_adv)), divergence(soft, net(seen.x))
    torch.testing.assert_close(terms["kl_adv"], scale * 5 / 6 * adversarial)
    same(net, terms, scale * (5 / 6 * adversarial + 1 / 6 * clean))


def test_rslad_has_no_use_for_labels() -> None:
    net, teacher = network(10), network(10, seed=5)
    objective = RSLAD(teacher=teacher, threat=LINF, steps=3)
    found = []
    for shift in (0, 3):
        seen = batch(10)
        seen = seen._replace(y=(seen.y + shift) % 10)
        view = objective.perturb(net, seen)
        found.append((view.x_adv, total(objective.loss(net, seen, view))))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_rslads_teacher_sees_the_clean_images_once_and_nothing_else() -> None:
    net, teacher, seen = network(10), network(10, seed=5), batch(10)
    shown: list[Tensor] = []
    teacher.register_forward_hook(lambda module, inputs, output: shown.append(inputs[0]))
    objective = RSLAD(teacher=teacher, threat=LINF, steps=3)
    objective.loss(net, seen, objective.perturb(net, seen))
    assert len(shown) == 1
    assert torch.equal(shown[0], seen.x)


def test_rslads_weight_and_scale_are_fields() -> None:
    net, seen = network(10), batch(10)
    view = SoftView((seen.x + 0.05).clamp(0, 1), network(10, seed=5)(seen.x).detach())
    objective = RSLAD(teacher=net, threat=LINF, adversarial_weight=Fraction(1, 4), kl_scale=2.0)
    reference = 2 * (divergence(view.target, net(view.x_adv)) / 4 + 3 * divergence(view.target, net(seen.x)) / 4)
    same(net, objective.loss(net, seen, view), reference)
    only = RSLAD(teacher=net, threat=LINF, adversarial_weight=Fraction(1))
    same(net, only.loss(net, seen, view), divergence(view.target, net(view.x_adv)))


# -- Gaussian, CRT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", CLASSES)
def test_gaussian(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    view = Gaussian(sigma=SIGMA).perturb(net, seen)
    torch.testing.assert_close(view, seen.x + 0.25 * torch.randn(seen.x.shape, generator=rng(7)))
    assert view.min() < 0  # unclipped
    assert view.max() > 1
    terms = Gaussian(sigma=SIGMA).loss(net, seen, view)
    assert set(terms) == {"ce"}
    same(net, terms, cross_entropy(net(view), seen.y))


@pytest.mark.parametrize("classes", CLASSES)
def test_crt(classes: int) -> None:
    net, teacher, seen = network(classes), network(classes, seed=5), batch(classes)
    shown: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    teacher.register_forward_hook(lambda module, inputs, output: shown["teacher"].append(inputs[0]))
    objective = CRT(teacher=teacher, sigma=SIGMA)
    view = objective.perturb(net, seen)
    torch.testing.assert_close(view.x, seen.x + 0.25 * torch.randn(seen.x.shape, generator=rng(7)))
    assert view.x.min() < 0
    assert view.x.max() > 1
    net.register_forward_hook(lambda module, inputs, output: shown["student"].append(inputs[0]))
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"l2"}
    assert len(shown["teacher"]) == len(shown["student"]) == 1
    assert torch.equal(shown["teacher"][0], shown["student"][0])  # one draw, the same for both
    apart = net(view.x) - teacher(view.x).detach()
    same(net, terms, sum(row.pow(2).sum().sqrt() for row in apart) / B)


def test_crt_has_no_use_for_labels_and_compares_raw_logits() -> None:
    net, teacher, seen = network(10), network(10, seed=5), batch(10)
    view = NoisyView(seen.x, teacher(seen.x).detach())
    first = total(CRT(teacher=teacher, sigma=SIGMA).loss(net, seen, view))
    other = total(CRT(teacher=teacher, sigma=SIGMA).loss(net, seen._replace(y=(seen.y + 1) % 10), view))
    assert torch.equal(first, other)
    shifted = NoisyView(seen.x, view.target + 5)
    assert abs(total(CRT(teacher=teacher, sigma=SIGMA).loss(net, seen, shifted)) - first) > 1


# -- SmoothMix --------------------------------------------------------------------------------------------------------


def mean_probability(net: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    return sum(torch.softmax(net(x + delta), dim=1) for delta in noise) / len(noise)


def far_end(net: nn.Module, seen: Batch, noise: Tensor, steps: int, step: float) -> Tensor:
    """SmoothMix's ascent, one image at a time."""
    ends = []
    for i, (x, label) in enumerate(zip(seen.x, seen.y, strict=True)):
        at = x
        for _ in range(steps):
            at = at.detach().requires_grad_(True)
            p = sum(torch.softmax(net((at + delta[i])[None])[0], dim=0)[label] for delta in noise) / len(noise)
            (grad,) = torch.autograd.grad(-torch.log(p), at)
            at = (at.detach() + step * grad / grad.pow(2).sum().sqrt()).clamp(0, 1)
        ends.append(at.detach())
    return torch.stack(ends)


def mixed_loss(net: nn.Module, seen: Batch, view: MixView, weight: float, *, through: bool = True) -> Tensor:
    """SmoothMix's outer loss, one image and one noise at a time."""
    whole, draws = torch.zeros((), dtype=torch.float64), len(view.noise)
    for i, (x, label) in enumerate(zip(seen.x, seen.y, strict=True)):
        logits = torch.stack([net((x + delta[i])[None])[0] for delta in view.noise])
        p = torch.softmax(logits, dim=1).mean(dim=0)
        p_target = p if through else p.detach()
        share = view.share[i].double()
        x_mix = (1 - share) * x + share * view.x_far[i]
        y_mix = (1 - share) * p_target + share / p.numel()
        for k, delta in enumerate(view.noise):
            whole = whole - torch.log(torch.softmax(logits[k], dim=0)[label]) / draws
            log_q = torch.log(torch.softmax(net((x_mix + delta[i])[None])[0], dim=0))
            if p.argmax() == label:
                whole = whole + weight * (y_mix * (torch.log(y_mix) - log_q)).sum() / draws
    return whole / len(seen.x)


def half_right(net: nn.Module, seen: Batch, noise: Tensor) -> Batch:
    """The batch with labels that p̄ gets right on even places and wrong on odd ones."""
    best = mean_probability(net, seen.x, noise).argmax(dim=1)
    classes = net[3].out_features
    return seen._replace(y=torch.where(torch.arange(B) % 2 == 0, best, (best + 1) % classes))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("draws", "step_size", "step"), [(2, None, 0.5), (3, Fraction(1, 8), 0.125)])
def test_smoothmix_ascent(classes: int, draws: int, step_size: Fraction | None, step: float) -> None:
    net, seen = network(classes), batch(classes)
    view = SmoothMix(sigma=SIGMA, draws=draws, steps=4, step_size=step_size).perturb(net, seen)
    again = rng(7)
    noise = torch.stack([0.25 * torch.randn(seen.x.shape, generator=again) for _ in range(draws)])
    share = torch.rand(B, generator=again) / 2
    assert torch.equal(view.noise, noise)
    assert torch.equal(view.share, share)
    torch.testing.assert_close(view.x_far, far_end(net, seen, noise, 4, step), rtol=0, atol=1e-9)
    assert view.x_far.min() >= 0
    assert view.x_far.max() <= 1
    before, after = (mean_probability(net, x, noise).gather(1, seen.y[:, None]) for x in (seen.x, view.x_far))
    assert (after < before).all()


def test_smoothmix_shares_are_uniform_up_to_a_half() -> None:
    x = torch.rand(2000, *SHAPE, generator=rng(1))
    view = SmoothMix(sigma=SIGMA, steps=1).perturb(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), Batch(x, torch.zeros(2000, dtype=torch.int64), 0, rng())
    )
    counts = torch.histc(view.share, bins=5, min=0, max=0.5)
    assert counts.sum() == 2000
    assert (counts > 300).all()
    assert not torch.equal(view.noise[0], view.noise[1])
    assert view.noise.std().item() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("epoch", "ramp"), [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)])
@pytest.mark.parametrize("draws", [2, 3])
def test_smoothmix_loss(classes: int, epoch: int, ramp: float, draws: int) -> None:
    net, seen = network(classes), batch(classes, epoch=epoch)
    objective = SmoothMix(sigma=SIGMA, draws=draws, steps=2, eta=5.0)
    view = objective.perturb(net, seen)
    seen = half_right(net, seen, view.noise)
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"ce", "mix"}
    same(net, terms, mixed_loss(net, seen, view, 5 * ramp), tolerance=1e-6)  # the shares are drawn in fp32
    plain = sum(cross_entropy(net(seen.x + delta), seen.y) for delta in view.noise) / draws
    torch.testing.assert_close(terms["ce"], plain)
    assert terms["mix"] > 0


def test_smoothmix_gradients_flow_through_the_mixed_label() -> None:
    net, seen = network(10), batch(10, epoch=9)
    objective = SmoothMix(sigma=SIGMA, steps=2)
    view = objective.perturb(net, seen)
    seen = half_right(net, seen, view.noise)
    detached = mixed_loss(net, seen, view, 5, through=False)
    torch.testing.assert_close(total(objective.loss(net, seen, view)), detached, rtol=1e-6, atol=0)
    assert differ(net, total(objective.loss(net, seen, view)), detached)


def test_smoothmix_mixes_only_what_is_classified_rightly() -> None:
    net, seen = network(10), batch(10, epoch=9)
    objective = SmoothMix(sigma=SIGMA, steps=1)
    view = objective.perturb(net, seen)
    best = mean_probability(net, seen.x, view.noise).argmax(dim=1)
    assert objective.loss(net, seen._replace(y=(best + 1) % 10), view)["mix"] == 0
    assert objective.loss(net, seen._replace(y=best), view)["mix"] > 0


def test_smoothmix_stays_finite_where_the_network_is_sure() -> None:
    net, seen = network(10, scale=1e5).float(), batch(10, epoch=9)
    seen = seen._replace(x=seen.x.float())
    objective = SmoothMix(sigma=SIGMA)
    view = objective.perturb(net, seen)
    view = view._replace(share=torch.zeros(B))  # nothing is mixed in, so that y_mix has zeros
    best = mean_probability(net, seen.x, view.noise).argmax(dim=1)
    terms = objective.loss(net, seen._replace(y=best), view)
    assert torch.isfinite(total(terms))
    assert all(torch.isfinite(grad).all() for grad in gradients(net, total(terms)))


# -- the contract of every method -------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Batch norm and dropout in modes and wishes of their own, and a note of the mode of every forward pass."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.3))
        self.frozen = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, classes)
        self.seen: list[tuple[bool, bool]] = []
        self.break_at = 0  # the forward pass, counted from 1, that raises

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((any(m.training for m in self.modules()), any(p.requires_grad for p in self.parameters())))
        if len(self.seen) == self.break_at:
            raise MemoryError
        return self.head(self.frozen(self.body(x)).flatten(1))


@pytest.fixture
def tiny() -> Iterator[Tiny]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Tiny()
        net(torch.rand(30, *SHAPE))  # moves the running statistics
        net.train()
        net.frozen.eval()
        net.frozen.weight.requires_grad_(False)
        net.head.bias.grad = torch.full((3,), 7.0)
        net.seen.clear()
        yield net


@pytest.fixture
def teacher(tiny: Tiny) -> Tiny:
    other = copy.deepcopy(tiny).eval()
    other.requires_grad_(True)
    other.head.bias.grad = None
    with torch.no_grad():
        other.head.weight.neg_()
    return other


def small_batch(seed: int = 3, count: int = B) -> Batch:
    draw = rng(2)
    return Batch(torch.rand(count, *SHAPE, generator=draw), torch.randint(3, (count,), generator=draw), 4, rng(seed))


def make(name: str, teacher: Tiny) -> Any:
    return objectives.build(name, given_for(name), teacher if "teacher" in objectives.needs(name) else None)


def snapshot(net: nn.Module) -> Any:
    modules = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in net.modules()]
    grads = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    return modules, grads, {name: value.tolist() for name, value in net.state_dict().items()}


def tensors(view: Any) -> list[Tensor]:
    if view is None:
        return []
    return [view] if isinstance(view, Tensor) else [t for part in view for t in tensors(part)]


@pytest.mark.parametrize("name", NAMES)
def test_inner_problems_leave_both_networks_as_they_were(name: str, tiny: Tiny, teacher: Tiny) -> None:
    before, taught = snapshot(tiny), snapshot(teacher)
    seen = small_batch()
    x, y = seen.x.clone(), seen.y.clone()
    view = make(name, teacher).perturb(tiny, seen)
    assert snapshot(tiny) == before
    assert snapshot(teacher) == taught
    assert torch.equal(seen.x, x)
    assert torch.equal(seen.y, y)
    assert not any(t.requires_grad for t in tensors(view))
    assert all(torch.isfinite(t).all() for t in tensors(view))
    assert set(tiny.seen) <= {(False, False)}  # eval mode, no weight gradients


@pytest.mark.parametrize("name", ATTACKING)
def test_inner_problems_that_raise_leave_the_student_as_it_was(name: str, tiny: Tiny, teacher: Tiny) -> None:
    before, objective = snapshot(tiny), make(name, teacher)
    objective.perturb(tiny, small_batch())
    passes = len(tiny.seen)
    assert passes >= objective.steps
    for at in range(1, passes + 1):
        tiny.seen.clear()
        tiny.break_at = at
        with pytest.raises(MemoryError):
            objective.perturb(tiny, small_batch())
        assert snapshot(tiny) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [B, 2])
def test_a_step_gives_finite_scalars_and_moves_the_student_alone(
    name: str, count: int, tiny: Tiny, teacher: Tiny
) -> None:
    tiny.head.bias.grad = None
    objective, seen, taught = make(name, teacher), small_batch(count=count), snapshot(teacher)
    view = objective.perturb(tiny, seen)
    tiny.seen.clear()
    terms = objective.loss(tiny, seen, view)
    assert tiny.seen
    assert all(training for training, _ in tiny.seen)  # the outer problem in the student's own mode
    assert terms
    for term in terms.values():
        assert term.shape == ()
        assert term.dtype == torch.float32
        assert torch.isfinite(term)
        assert term >= 0
    torch.stack(list(terms.values())).sum().backward()
    for parameter_name, parameter in tiny.named_parameters():
        if parameter_name == "frozen.weight":
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
    assert tiny.head.weight.grad is not None
    assert tiny.head.weight.grad.abs().max() > 0
    assert snapshot(teacher) == taught  # gradients included: there are none


@pytest.mark.parametrize("name", NAMES)
def test_a_step_depends_on_its_generator_alone(name: str, tiny: Tiny, teacher: Tiny) -> None:
    tiny.body[3].eval()  # dropout draws from torch's own generator, which the engine seeds
    short = {"steps": 1} if name in ATTACKING else {}  # many steps end in the same corner from every start
    objective = objectives.build(name, {**given_for(name), **short}, teacher)

    def step(seed: int, elsewhere: int) -> list[Tensor]:
        torch.manual_seed(elsewhere)
        before, net, seen = torch.get_rng_state(), copy.deepcopy(tiny), small_batch(seed)
        view = objective.perturb(net, seen)
        terms = objective.loss(net, seen, view)
        assert torch.equal(torch.get_rng_state(), before)
        return [*tensors(view), *terms.values()]

    first, again, other = step(1, 10), step(1, 20), step(2, 10)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True)) == (name == "natural")


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_a_mean_over_the_batch_at_hand(name: str) -> None:
    """The same images twice give the same loss; a division by any fixed size would not."""
    net, guide = network(3), network(3, seed=5)
    objective, seen = METHODS.get(name)(**needed(name, guide)), batch(3, epoch=4)
    view = objective.perturb(net, seen)
    draws = getattr(objective, "draws", 1) or 1

    def twice(view: Any) -> Any:
        """Every image and its noises once more."""
        if view is None:
            return None
        if not isinstance(view, Tensor):
            return type(view)(*map(twice, view))
        if view.dim() == 5:  # noises, (m, B, C, H, W)
            return torch.cat([view, view], dim=1)
        if len(view) == draws * B and draws > 1:
            return torch.cat([view.unflatten(0, (draws, B))] * 2, dim=1).flatten(0, 1)
        return torch.cat([view, view])

    assert tensors(view)
    doubled = seen._replace(x=torch.cat([seen.x] * 2), y=torch.cat([seen.y] * 2))
    once, again = objective.loss(net, seen, view), objective.loss(net, doubled, twice(view))
    for term, value in once.items():
        torch.testing.assert_close(again[term], value)


@pytest.mark.parametrize("name", NAMES)
def test_methods_are_frozen_and_take_only_what_they_need(name: str, teacher: Tiny) -> None:
    objective = make(name, teacher)
    with pytest.raises(AttributeError):
        objective.anything = 1
    assert objectives.needs(name) <= {"teacher", "threat", "sigma"}
    assert not set(objectives.hyperparameters(name)) & {"teacher", "threat"}
    assert METHODS.get(name).__doc__


# -- from settings to objectives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_complete_plain_and_stable(name: str, teacher: Tiny) -> None:
    found = objectives.resolve(name, given_for(name))
    wanted = set(objectives.hyperparameters(name)) | ({"norm", "eps"} if "threat" in objectives.needs(name) else set())
    assert set(found) == wanted - {"extra_steps", "views"}  # they came later: left out while none, so that ids stay
    assert json.loads(json.dumps(found)) == found
    assert objectives.resolve(name, found) == found
    built = objectives.build(name, found, teacher)
    for key in objectives.hyperparameters(name):
        value = getattr(built, key)
        assert found.get(key) == (value if not isinstance(value, Fraction) else found[key])
        if isinstance(value, Fraction):
            assert Fraction(str(found[key])) == value


def test_settings_of_each_method() -> None:
    assert objectives.resolve("natural", {}) == {}
    assert objectives.resolve("sat", {"eps": "8/255"}) == {
        "norm": "linf", "eps": "8/255", "steps": 10, "step_size": None, "inner": "pgd", "sentinel": 0.2,
    }  # fmt: skip
    assert objectives.resolve("TRADES", {"eps": "8/255", "beta": "1", "step_size": "2/255"}) == {
        "norm": "linf", "eps": "8/255", "beta": 1.0, "steps": 10, "step_size": "2/255", "inner": "pgd", "sentinel": 0.2,
    }  # fmt: skip
    assert objectives.resolve("rslad", {"eps": 0.5, "norm": "l2", "steps": "7"}) == {
        "norm": "l2", "eps": "0.5", "steps": 7, "step_size": None, "adversarial_weight": "5/6", "kl_scale": 1.0,
        "inner": "pgd", "sentinel": 0.2,
    }  # fmt: skip
    assert objectives.resolve("gaussian", {"sigma": "0.250"}) == {"sigma": "0.25", "draws": 1}
    assert objectives.resolve("crt", {"sigma": 0.12}) == {
        "sigma": "0.12", "match": "l2", "temperature": 1.0, "draws": 1, "ce_weight": 0.0,
    }  # fmt: skip
    assert objectives.resolve("smoothmix", {"sigma": "1/3", "eta": "0"}) == {
        "sigma": "1/3", "draws": 2, "steps": 4, "step_size": None, "eta": 0.0, "warmup_epochs": 10,
        "one_step": False,
    }  # fmt: skip
    assert objectives.resolve("smoothadv", {"sigma": "0.5"})["draws"] is None


def test_n_fgsm_records_no_settings_of_pgds() -> None:
    """Else a recipe would tell of ten steps, and two that train alike would have different ids."""
    plain = objectives.resolve("sat", {"eps": "8/255", "inner": "n-fgsm"})
    assert plain == objectives.resolve("sat", {"eps": "8/255", "inner": "n-fgsm", "steps": 7, "step_size": "2/255"})
    assert plain["steps"] is plain["step_size"] is None
    assert plain["sentinel"] == 0.2
    assert objectives.build("sat", plain).collapse == 0.2  # type: ignore[attr-defined]
    assert "PGD needs its steps" in refused("sat", {"eps": "8/255", "steps": None})


@pytest.mark.parametrize(("epochs", "begin"), [(200, 60), (30, 9), (5, 2), (1, 0)])
def test_iads_introspection_begins_after_the_papers_share_of_the_epochs(epochs: int, begin: int) -> None:
    given = {"eps": "8/255"}
    assert objectives.resolve("iad", given, epochs=epochs)["begin_epoch"] == begin
    assert objectives.resolve("iad", {**given, "begin_epoch": "4"}, epochs=epochs)["begin_epoch"] == 4
    assert objectives.resolve("iad", {**given, "begin_epoch": 0}, epochs=epochs)["begin_epoch"] == 0


def test_presets_scale_with_the_epochs(digits: datasets.Dataset) -> None:
    for epochs, begin in ((None, 60), ("10", 3)):
        recipe = assemble(
            method="iad", arch="resnet8", arch_source=None, data=digits,
            given={"eps": "8/255", **({"epochs": epochs} if epochs else {})}, preset="iad-iclr22", precision="fp32",
            seed=0,
        )  # fmt: skip
        assert recipe.settings["begin_epoch"] == begin


def test_a_share_of_the_loss_may_be_nothing(tiny: Tiny, teacher: Tiny) -> None:
    settings = objectives.resolve("rslad", {"eps": "8/255", "adversarial_weight": "0"})
    objective, seen = objectives.build("rslad", settings, teacher), small_batch()
    terms = objective.loss(tiny, seen, objective.perturb(tiny, seen))
    assert terms["kl_adv"] == 0
    assert terms["kl_clean"] > 0


@pytest.mark.parametrize("name", [name for name in NAMES if "teacher" in objectives.needs(name)])
def test_a_teacher_in_train_mode_teaches_in_eval_mode_and_is_left_as_it_was(name: str, tiny: Tiny) -> None:
    """Its BatchNorm would move, and its logits depend on the batch."""
    teachers = [copy.deepcopy(tiny), copy.deepcopy(tiny)]
    teachers[0].train()
    teachers[1].eval()
    before, found = snapshot(teachers[0]), []
    for guide in teachers:
        objective = make(name, guide)
        seen = small_batch()
        view = objective.perturb(copy.deepcopy(tiny), seen)
        objective.loss(copy.deepcopy(tiny), seen, view)
        found.append(tensors(view))
    assert snapshot(teachers[0]) == before
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_needs() -> None:
    assert objectives.needs("natural") == set()
    assert objectives.needs("sat") == objectives.needs("trades") == {"threat"}
    assert objectives.needs("rslad") == {"teacher", "threat"}
    assert objectives.needs("gaussian") == objectives.needs("smoothmix") == {"sigma"}
    assert objectives.needs("crt") == {"teacher", "sigma"}


def refused(name: str, given: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        objectives.resolve(name, given)
    return str(caught.value)


@pytest.mark.parametrize("name", CERTIFIED)
@pytest.mark.parametrize("sigma", [None, "0", 0, 0.0, "-0.25", "nan", "inf", "a lot", "1/0"])
def test_noise_levels_that_cannot_be_are_refused(name: str, sigma: Any) -> None:
    said = refused(name, {} if sigma is None else {"sigma": sigma})
    assert "σ" in said if sigma is None else "sigma" in said


@pytest.mark.parametrize("name", [name for name in NAMES if "threat" in objectives.needs(name)])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs its eps"),
        ({"eps": "8"}, "--eps 8/255"),
        ({"eps": "256/255"}, "over 1"),
        ({"eps": "0"}, "above 0"),
        ({"eps": -1}, "above 0"),
        ({"eps": "eight"}, "not a number"),
        ({"eps": "8/255", "norm": "l1"}, "unknown norm"),
        ({"eps": "8/255", "steps": "2.5"}, "whole number"),
        ({"eps": "8/255", "steps": 0}, "steps must be above 0"),
        ({"eps": "8/255", "steps": -3}, "steps must be above 0"),
        ({"eps": "8/255", "steps": "ten"}, "steps must be a whole number, not ten"),
        ({"eps": "8/255", "step_size": "0"}, "step_size must be above 0"),
        ({"eps": "8/255", "step_size": "-2/255"}, "step_size must be above 0"),
    ],
)
def test_threats_and_steps_that_cannot_be_are_refused(name: str, given: dict[str, Any], said: str) -> None:
    assert said in refused(name, given)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("trades", {"eps": "8/255", "beta": "-1"}, "beta"),
        ("trades", {"eps": "8/255", "beta": "inf"}, "beta"),
        ("rslad", {"eps": "8/255", "kl_scale": -0.1}, "kl_scale"),
        ("rslad", {"eps": "8/255", "adversarial_weight": "-1/6"}, "adversarial_weight"),
        ("rslad", {"eps": "8/255", "adversarial_weight": "6/5"}, "adversarial_weight"),
        ("smoothmix", {"sigma": "0.25", "draws": "1.5"}, "draws"),
        ("smoothmix", {"sigma": "0.25", "draws": 0}, "draws"),
        ("smoothmix", {"sigma": "0.25", "warmup_epochs": 0}, "warmup_epochs"),
        ("smoothmix", {"sigma": "0.25", "eta": "nan"}, "eta"),
        ("smoothmx", {"sigma": "0.25"}, "did you mean 'smoothmix'"),
    ],
)
def test_values_that_cannot_be_are_refused(name: str, given: dict[str, Any], said: str) -> None:
    assert said in refused(name, given)


@pytest.fixture(scope="module")
def digits() -> datasets.Dataset:
    return datasets.load("digits")


PRESETS = METHODS.tables("PRESETS")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_recipes(preset: str, digits: datasets.Dataset) -> None:
    table = dict(PRESETS[preset])
    method = table.pop("method")
    given = {key: value for key, value in given_for(method).items() if key not in table}
    recipe = assemble(
        method=method, arch="resnet8", arch_source=None, data=digits, given=given, preset=preset,
        precision="fp32", seed=0,
    )  # fmt: skip
    assert recipe.method == method
    assert recipe.settings == objectives.resolve(method, {**table, **given}, epochs=recipe.training.epochs)
    for key, value in table.items():
        if key in given_for(method):
            continue  # what is given overrides the preset
        stands = getattr(recipe.training, key, None) if hasattr(recipe.training, key) else recipe.settings.get(key)
        if key == "milestones":
            assert stands == pytest.approx([float(Fraction(str(share))) for share in value])
        else:
            assert stands == value
    assert objectives.build(method, recipe.settings, network(10)) is not None
    if "threat" in objectives.needs(method):
        assert recipe.threat == ("linf", Fraction(table.get("eps", "8/255")))
        assert recipe.settings["eps"] == table.get("eps", "8/255")
    if "sigma" in objectives.needs(method):
        assert recipe.sigma == Fraction(1, 4)


def test_published_settings() -> None:
    """The figures of the papers' scripts that the recipes are named after."""
    common = {"batch_size": 128, "lr": 0.1, "momentum": 0.9, "ema": None, "decay_norm": True}
    wanted: dict[str, dict[str, Any]] = {
        "rslad-iccv21": {"epochs": 300, "weight_decay": 2e-4, "kl_scale": 0.1, "steps": 10, **common},
        "trades-icml19": {
            "epochs": 76,
            "weight_decay": 2e-4,
            "beta": 6.0,
            "steps": 10,
            "eps": "0.031",
            "step_size": "0.007",
            **common,
        },
        "gaussian-icml19": {"epochs": 90, "weight_decay": 1e-4, **common, "batch_size": 256},
        "smoothmix-neurips21": {"weight_decay": 1e-4, "draws": 2, "steps": 4, "eta": 5.0, **common, "batch_size": 256},
        "crt-neurips22": {"epochs": 200, "weight_decay": 1e-4, **common},
        "rslad-fast": {"weight_decay": 5e-4, "kl_scale": 1.0, "schedule": "onecycle", "ema": 0.995},
    }
    for preset, figures in wanted.items():
        assert figures.items() <= PRESETS[preset].items(), preset
        assert not PRESETS[preset].get("nesterov", False)


def test_the_published_kl_scale_is_that_of_a_mean_over_ten_classes() -> None:
    net, seen = network(10), batch(10)
    view = SoftView(seen.x, network(10, seed=5)(seen.x).detach())
    scale = PRESETS["rslad-iccv21"]["kl_scale"]
    found = total(RSLAD(teacher=net, threat=LINF, kl_scale=scale).loss(net, seen, view))
    p, q = Categorical(logits=view.target), Categorical(logits=net(seen.x))
    torch.testing.assert_close(found, (p.probs * (p.logits - q.logits)).mean())


def test_given_settings_go_before_presets(digits: datasets.Dataset) -> None:
    recipe = assemble(
        method="rslad", arch="resnet8", arch_source=None, data=digits,
        given={"eps": "4/255", "epochs": "3", "kl_scale": "0.5"}, preset="rslad-iccv21", precision="fp32", seed=0,
    )  # fmt: skip
    assert recipe.settings["eps"] == "4/255"
    assert recipe.settings["kl_scale"] == 0.5
    assert recipe.training.epochs == 3
    assert recipe.training.weight_decay == 2e-4


@pytest.mark.parametrize(
    ("method", "preset", "given", "said"),
    [
        ("sat", "rslad-iccv21", {"eps": "8/255"}, "one of rslad, not of sat"),
        ("rslad", "trades-icml19", {"eps": "8/255"}, "rslad-fast, rslad-iccv21"),
        ("rslad", "rslad-iccv2021", {"eps": "8/255"}, "did you mean 'rslad-iccv21'"),
        ("rslad", None, {"eps": "8/255", "sigma": "0.25"}, "rslad has no sigma"),
        ("crt", None, {"sigma": "0.25", "eps": "8/255"}, "crt has no eps"),
        ("trades", None, {"eps": "8/255", "betta": 1}, "did you mean 'beta'"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    method: str, preset: str | None, given: dict[str, Any], said: str, digits: datasets.Dataset
) -> None:
    with pytest.raises(UsageError) as caught:
        assemble(
            method=method, arch="resnet8", arch_source=None, data=digits, given=given, preset=preset,
            precision="fp32", seed=0,
        )  # fmt: skip
    assert said in str(caught.value)


def test_the_default_training_is_finite_for_the_smallest_data(digits: datasets.Dataset) -> None:
    recipe = assemble(
        method="natural", arch="resnet8", arch_source=None, data=digits, given={}, preset=None, precision="fp32", seed=3
    )
    assert recipe.seed == 3
    assert recipe.threat is None
    assert recipe.sigma is None
    assert math.isclose(recipe.training.ema or 0, 0.98)
    assert 10 <= recipe.training.epochs <= 60


def test_consistency_of_one_draw_is_refused() -> None:
    assert "draws must be 2 or more, not 1" in refused("consistency", {"sigma": "0.25", "draws": 1})
