"""The further objectives against their formulas, one image at a time in float64: values, gradients and views."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from robustkt import api, objectives
from robustkt.catalog import METHODS
from robustkt.core import Batch, ThreatModel
from robustkt.errors import UsageError
from robustkt.objectives.adversarial import MART, SAT, TRADES
from robustkt.objectives.distillation import ARD, IAD, RSLAD, AdaAD, AdaptiveView, AdversarialView
from robustkt.objectives.gaussian import MACER, Consistency, Gaussian, Stability
from robustkt.objectives.smoothed import SmoothAdv, SmoothAdvView, SmoothMix
from robustkt.objectives.transfer import CRT, NoisyView
from robustkt.registry import Registry
from tests.test_objectives import (
    CLASSES,
    LINF,
    SHAPE,
    SIGMA,
    B,
    ascent,
    batch,
    cross_entropy,
    divergence,
    mixed_loss,
    network,
    rng,
    same,
    total,
)

EPS = float(LINF.eps)
ZERO = torch.zeros((), dtype=torch.float64)


def rows(logits: Tensor) -> list[list[Tensor]]:
    """Each row's probabilities, by the definition."""
    return [[torch.exp(z) / torch.exp(row).sum() for z in row] for row in logits]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum((a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True)), ZERO)


def near(seen: Batch) -> Tensor:
    return seen.x + 0.001 * torch.randn(seen.x.shape, generator=rng(7))


def uniform(seen: Batch) -> Tensor:
    return seen.x + (torch.rand(seen.x.shape, generator=rng(7)) * 2 - 1) * EPS


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)


# -- against an attack ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", CLASSES)
def test_mart(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = MART(threat=LINF, steps=3, lam=2.5)
    view = objective.perturb(net, seen)
    close(view, ascent(net, seen.x, near(seen), EPS, EPS / 4, 3, lambda z: cross_entropy(z, seen.y)))
    reference = ZERO
    for p, q, y in zip(rows(net(seen.x)), rows(net(view)), seen.y.tolist(), strict=True):
        others = torch.stack([v for k, v in enumerate(q) if k != y]).max()
        reference = reference - torch.log(q[y]) - torch.log(1.0001 - others) + 2.5 * kl(p, q) * (1 - p[y])
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"bce", "kl"}
    same(net, terms, reference / B)
    assert MART(threat=LINF).lam == 5  # the paper's


@pytest.mark.parametrize("sure", [60.0, 300.0, 1e4])
@pytest.mark.parametrize(
    "make", [MART, TRADES, lambda threat: ARD(teacher=lambda x: x.flatten(1)[:, :3], threat=threat)]
)
def test_losses_stay_finite_where_the_network_is_sure(make: Callable[..., Any], sure: float) -> None:
    logits = torch.tensor([[sure, 0.0, -sure], [-sure, sure, 0.0]], requires_grad=True)
    seen = Batch(torch.rand(2, *SHAPE), torch.tensor([2, 0]), 0, rng())
    objective = make(threat=LINF)
    view = AdversarialView(seen.x, torch.zeros(2, 3), torch.ones(2)) if isinstance(objective, ARD) else seen.x
    loss = total(objective.loss(lambda x: logits, seen, view))
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 30.0), (0.7, 4.0)])
def test_ard(classes: int, alpha: float, temperature: float) -> None:
    net, guide, seen = network(classes), network(classes, seed=5), batch(classes)
    objective = ARD(teacher=guide, threat=LINF, steps=3, alpha=alpha, temperature=temperature, kl_scale=0.5)
    view = objective.perturb(net, seen)
    close(view.x_adv, ascent(net, seen.x, uniform(seen), EPS, EPS / 4, 3, lambda z: cross_entropy(z, seen.y)))
    close(view.target, guide(seen.x).detach())
    soft = divergence(guide(seen.x).detach() / temperature, net(view.x_adv) / temperature)
    reference = 0.5 * alpha * temperature**2 * soft
    if alpha < 1:
        reference = reference + (1 - alpha) * cross_entropy(net(seen.x), seen.y)
    terms = objective.loss(net, seen, view)
    assert set(terms) == ({"kl_adv"} if alpha == 1 else {"kl_adv", "ce"})
    same(net, terms, reference)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("epoch", [0, 4])
def test_iad(classes: int, weighted: bool, epoch: int) -> None:
    net, guide, seen = network(classes), network(classes, seed=5), batch(classes, epoch=epoch)
    objective = IAD(
        teacher=guide, threat=LINF, steps=3, alpha=0.8, beta=0.3, temperature=2.0, begin_epoch=4, weighted=weighted
    )
    view = objective.perturb(net, seen)
    close(view.x_adv, ascent(net, seen.x, uniform(seen), EPS, EPS / 4, 3, lambda z: cross_entropy(z, seen.y)))
    reference = ZERO
    for i, y in enumerate(seen.y.tolist()):
        x, x_adv = seen.x[i : i + 1], view.x_adv[i : i + 1]
        trust = rows(guide(x_adv).detach())[0][y] ** (0.3 if epoch >= 4 else 0)
        torch.testing.assert_close(view.trust[i], trust)
        taught = kl(rows(guide(x).detach() / 2)[0], rows(net(x_adv) / 2)[0])
        reference = reference + 0.8 * 4 * (trust if weighted else 1) * taught
        if epoch >= 4:
            reference = reference + 0.8 * (1 - trust) * kl(rows(net(x))[0], rows(net(x_adv))[0])
        reference = reference + 0.2 * -torch.log(rows(net(x))[0][y])
    terms = objective.loss(net, seen, view)
    assert set(terms) == {"kl_adv", "ce"} | ({"kl_self"} if epoch >= 4 else set())
    same(net, terms, reference / B)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_adaad(classes: int, alpha: float) -> None:
    net, guide, seen = network(classes), network(classes, seed=5), batch(classes)
    objective = AdaAD(teacher=guide, threat=LINF, steps=3, alpha=alpha)
    view = objective.perturb(net, seen)
    at = near(seen)
    at = torch.minimum(torch.maximum(at, seen.x - EPS), seen.x + EPS).clamp(0, 1)
    for _ in range(3):
        at = at.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(divergence(guide(at), net(at)), at)  # through both networks
        at = at.detach() + EPS / 4 * grad.sign()
        at = torch.minimum(torch.maximum(at, seen.x - EPS), seen.x + EPS).clamp(0, 1)
    close(view.x_adv, at)
    reference = alpha * divergence(guide(view.x_adv).detach(), net(view.x_adv))
    if alpha < 1:
        reference = reference + (1 - alpha) * divergence(guide(seen.x).detach(), net(seen.x))
    terms = objective.loss(net, seen, view)
    assert set(terms) == ({"kl_adv"} if alpha == 1 else {"kl_adv", "kl_clean"})
    same(net, terms, reference)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in guide.parameters())


def test_adaads_clean_teacher_pass_is_not_made_where_it_counts_for_nothing() -> None:
    view = AdaAD(teacher=network(3, seed=5), threat=LINF, steps=1).perturb(network(3), batch(3))
    assert isinstance(view, AdaptiveView)
    assert view.target is None


INNER = [name for name in METHODS.names() if "inner" in objectives.hyperparameters(name)]


def test_every_method_against_an_attack_can_exchange_its_inner_problem() -> None:
    assert set(INNER) == {"sat", "trades", "mart", "ard", "iad", "rslad", "adaad", "cotraining", "dualrslad"}


@pytest.mark.parametrize("name", INNER)
def test_n_fgsm_is_one_step_from_wide_noise(name: str) -> None:
    net, guide, seen = network(3), network(3, seed=5), batch(3)
    given = {"teacher": guide} if "teacher" in objectives.needs(name) else {}
    view = METHODS.get(name)(**given, threat=LINF, inner="n-fgsm").perturb(net, seen)
    x_adv = getattr(view, "x_adv", view)
    noisy = (seen.x + 2 * EPS * (2 * torch.rand(seen.x.shape, generator=rng(7)) - 1)).clamp(0, 1)
    moved = (x_adv - noisy).abs()
    inside = (x_adv > 0) & (x_adv < 1)
    close(moved[inside], torch.full_like(moved[inside], EPS))  # eps in each coordinate, where the box leaves room
    assert (x_adv - seen.x).abs().max() > 1.5 * EPS  # not projected on the ball
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_n_fgsm_rises_on_the_methods_own_loss() -> None:
    net, seen = network(3), batch(3)
    noisy = (seen.x + 2 * EPS * (2 * torch.rand(seen.x.shape, generator=rng(7)) - 1)).clamp(0, 1).requires_grad_(True)
    (grad,) = torch.autograd.grad(cross_entropy(net(noisy), seen.y), noisy)
    wanted = (noisy + EPS * grad.sign()).clamp(0, 1).detach()
    close(SAT(threat=LINF, inner="n-fgsm").perturb(net, seen), wanted)


def test_what_an_inner_problem_cannot_be() -> None:
    with pytest.raises(UsageError, match="did you mean 'n-fgsm'"):
        SAT(threat=LINF, inner="nfgsm")
    with pytest.raises(UsageError, match="N-FGSM is an attack in linf"):
        SAT(threat=ThreatModel("l2", Fraction(1)), inner="n-fgsm")


def test_only_single_step_training_watches_for_collapse() -> None:
    assert SAT(threat=LINF).collapse is None
    assert SAT(threat=LINF, inner="n-fgsm").collapse == 0.2
    assert RSLAD(teacher=network(3), threat=LINF, inner="n-fgsm", sentinel=0.1).collapse == 0.1


# -- under noise ------------------------------------------------------------------------------------------------------


def drawn(seen: Batch, count: int) -> list[Tensor]:
    draw = rng(7)
    return [0.25 * torch.randn(seen.x.shape, generator=draw) for _ in range(count)]


@pytest.mark.parametrize("classes", CLASSES)
def test_gaussian_with_several_draws(classes: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = Gaussian(sigma=SIGMA, draws=3)
    view = objective.perturb(net, seen)
    copies = [seen.x + noise for noise in drawn(seen, 3)]
    torch.testing.assert_close(view, torch.cat(copies))
    reference = sum((cross_entropy(net(x), seen.y) for x in copies), ZERO) / 3
    same(net, objective.loss(net, seen, view), reference)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("sigma", "lam"), [("0.25", 2), ("0.5", 2), ("1", 1)])
def test_stability(classes: int, sigma: str, lam: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = Stability(sigma=Fraction(sigma))
    view = objective.perturb(net, seen)
    torch.testing.assert_close(view, seen.x + float(sigma) * torch.randn(seen.x.shape, generator=rng(7)))
    reference = ZERO
    for p, q, y in zip(rows(net(seen.x)), rows(net(view)), seen.y.tolist(), strict=True):
        crossed = -sum((a * torch.log(b) for a, b in zip(p, q, strict=True)), ZERO)
        reference = reference - torch.log(p[y]) + lam * crossed
    same(net, objective.loss(net, seen, view), reference / B)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("sigma", "lam"), [("0.25", 20), ("0.5", 10), ("1", 10)])
def test_consistency(classes: int, sigma: str, lam: int) -> None:
    net, seen = network(classes), batch(classes)
    objective = Consistency(sigma=Fraction(sigma), eta=0.7)
    copies = objective.perturb(net, seen).unflatten(0, (2, B))
    reference = ZERO
    for i, y in enumerate(seen.y.tolist()):
        drawn = [rows(net(copies[k, i : i + 1]))[0] for k in range(2)]
        mean = [(a + b) / 2 for a, b in zip(*drawn, strict=True)]
        for p in drawn:
            reference = reference - torch.log(p[y]) / 2 + lam * kl(mean, p) / 2
        reference = reference - 0.7 * sum((a * torch.log(a) for a in mean), ZERO)
    terms = objective.loss(net, seen, copies.flatten(0, 1))
    assert set(terms) == {"ce", "consistency", "entropy"}
    same(net, terms, reference / B, tolerance=1e-8)


def quantile(p: Tensor) -> Tensor:
    """Φ⁻¹ with its derivative √(2π)·exp(q²/2), by the standard library."""
    at = NormalDist().inv_cdf(float(p.detach()))
    return at + (p - p.detach()) * math.sqrt(2 * math.pi) * math.exp(at * at / 2)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize(("sigma", "lam"), [("0.25", 12), ("0.5", 6), ("1", 12)])
def test_macer(classes: int, sigma: str, lam: int) -> None:
    net, seen = network(classes, scale=1.0), batch(classes)
    objective = MACER(sigma=Fraction(sigma), draws=3, beta=2.0, hinge=1.5)
    copies = objective.perturb(net, seen).unflatten(0, (3, B))
    best = sum(torch.softmax(2 * net(copies[k]), dim=1) for k in range(3)).argmax(dim=1)
    seen = seen._replace(y=torch.where(torch.arange(B) % 2 == 0, best, (best + 1) % classes))
    reference, counted = ZERO, 0
    for i, y in enumerate(seen.y.tolist()):
        logits = [net(copies[k, i : i + 1]) for k in range(3)]
        mean = [sum(p) / 3 for p in zip(*[rows(z)[0] for z in logits], strict=True)]
        sharp = torch.stack([sum(p) / 3 for p in zip(*[rows(2 * z)[0] for z in logits], strict=True)])
        reference = reference - torch.log(mean[y])
        first, second = sharp.topk(2).values
        apart = quantile(first) - quantile(second)
        if sharp.argmax() == y and apart < 1.5:
            counted += 1
            reference = reference + lam * float(sigma) / 2 * (1.5 - apart)
    assert counted >= 2
    terms = objective.loss(net, seen, copies.flatten(0, 1))
    assert set(terms) == {"nll", "radius"}
    same(net, terms, reference / B, tolerance=1e-8)


def test_macer_teaches_where_the_network_is_wrong_beyond_doubt() -> None:
    """−log p̄_y has a slope however small p̄_y is; one that is cut off at 1e-20 leaves such an image alone for ever."""
    logits = torch.tensor([[0.0, 80.0, 0.0], [0.0, 0.0, 90.0]], requires_grad=True)
    seen = Batch(torch.rand(1, *SHAPE), torch.tensor([0]), 0, rng())
    terms = MACER(sigma=SIGMA, draws=2).loss(lambda x: logits, seen, seen.x)
    assert terms["nll"].item() == pytest.approx(80 + math.log(2), abs=1e-3)
    (grad,) = torch.autograd.grad(terms["nll"], logits)
    torch.testing.assert_close(grad[0], torch.tensor([-1.0, 1.0, 0.0]), rtol=0, atol=1e-3)


def test_macer_leaves_out_what_is_too_sure_to_measure() -> None:
    logits = torch.tensor([[40.0, 0.0, -40.0], [1.0, 0.0, -1.0]], requires_grad=True)
    seen = Batch(torch.rand(2, *SHAPE), torch.tensor([0, 0]), 0, rng())
    objective = MACER(sigma=SIGMA, draws=1, beta=1.0)
    terms = objective.loss(lambda x: logits, seen, seen.x)
    (grad,) = torch.autograd.grad(terms["radius"], logits)
    assert grad.isfinite().all()
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).any()


@pytest.mark.parametrize("epoch", [0, 3, 20])
def test_smoothmix_with_one_step_takes_the_first_step_for_the_image(epoch: int) -> None:
    net, seen = network(10), batch(10, epoch=epoch)
    plain, one = (SmoothMix(sigma=SIGMA, one_step=flag).perturb(net, batch(10, epoch=epoch)) for flag in (False, True))
    assert torch.equal(plain.x_near, seen.x)
    assert torch.equal(plain.x_far, one.x_far)
    assert torch.equal(plain.noise, one.noise)
    warm = min(1.0, (epoch + 1) / 10)
    for i, (x, label) in enumerate(zip(seen.x, seen.y, strict=True)):
        at = x.clone().requires_grad_(True)
        p = sum(torch.softmax(net((at + delta[i])[None])[0], dim=0)[label] for delta in one.noise) / 2
        (grad,) = torch.autograd.grad(-torch.log(p), at)
        step = ((x + 0.5 * grad / grad.norm()).clamp(0, 1) - x).detach()
        short = step * min(1.0, 0.5 * warm / float(step.norm()))
        torch.testing.assert_close(one.x_near[i], (x + short).clamp(0, 1), rtol=0, atol=1e-7)
    moved = seen._replace(x=one.x_near)
    terms = SmoothMix(sigma=SIGMA, one_step=True).loss(net, seen, one)
    same(net, terms, mixed_loss(net, moved, one, 5 * warm), tolerance=1e-8)


@pytest.mark.parametrize(("epoch", "radius"), [(0, 0.1), (4, 0.5), (30, 1.0)])
def test_smoothadv(epoch: int, radius: float) -> None:
    net, seen = network(10), batch(10, epoch=epoch)
    objective = SmoothAdv(sigma=SIGMA, draws=2, steps=3)
    view = objective.perturb(net, seen)
    for mine, theirs in zip(view.noise, drawn(seen, 2), strict=True):
        torch.testing.assert_close(mine, theirs)
    at = seen.x
    for _ in range(3):
        at = at.detach().requires_grad_(True)
        p = sum(torch.softmax(net(at + delta), dim=1) for delta in view.noise) / 2
        (grad,) = torch.autograd.grad(-torch.log(p[torch.arange(B), seen.y]).sum(), at)
        step = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = at.detach() + 2 * radius / 3 * step - seen.x
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        at = (seen.x + delta * (radius / length).clamp(max=1)).clamp(0, 1)
    torch.testing.assert_close(view.x_adv, at, rtol=0, atol=1e-7)
    reference = sum((cross_entropy(net(view.x_adv + delta), seen.y) for delta in view.noise), ZERO) / 2
    same(net, objective.loss(net, seen, view), reference)


@pytest.mark.parametrize(("sigma", "draws"), [("0.12", 4), ("0.25", 4), ("0.5", 8), ("1", 2)])
def test_smoothadvs_draws_follow_the_noise(sigma: str, draws: int) -> None:
    seen = batch(10)
    view = SmoothAdv(sigma=Fraction(sigma), steps=1).perturb(network(10), seen)
    assert len(view.noise) == draws
    assert len(SmoothAdv(sigma=Fraction(sigma), steps=1, draws=3).perturb(network(10), seen).noise) == 3
    SmoothAdv(sigma=Fraction(sigma), steps=1).loss(network(10), seen, view)


def test_smoothadvs_radius_follows_the_noise() -> None:
    net, seen, longest = network(10), batch(10, epoch=30), []
    for sigma, radius in (("0.5", None), ("1", None), ("1", Fraction(1, 4))):
        view = SmoothAdv(sigma=Fraction(sigma), steps=4, draws=1, radius=radius).perturb(net, seen)
        assert isinstance(view, SmoothAdvView)
        longest.append((view.x_adv - seen.x).flatten(1).norm(dim=1).max().item())
    assert longest[2] <= 0.25 + 1e-9
    assert 0.25 < longest[0] <= 1 + 1e-9
    assert longest[1] <= 2 + 1e-9


APART: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": lambda s, t: (s - t).pow(2).sum().sqrt(),
    "squared-l2": lambda s, t: (s - t).pow(2).sum(),
    "probabilities": lambda s, t: (torch.softmax(s, 0) - torch.softmax(t, 0)).pow(2).sum().sqrt(),
    "kl": lambda s, t: 9 * kl(rows(t[None] / 3)[0], rows(s[None] / 3)[0]),
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("match", list(APART))
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_variants_of_crt(classes: int, match: str, weight: float) -> None:
    net, guide, seen = network(classes), network(classes, seed=5), batch(classes)
    objective = CRT(teacher=guide, sigma=SIGMA, match=match, temperature=3.0, draws=2, ce_weight=weight)
    view = objective.perturb(net, seen)
    assert isinstance(view, NoisyView)
    torch.testing.assert_close(view.x, torch.cat([seen.x + noise for noise in drawn(seen, 2)]))
    reference = ZERO
    for x, y in zip(view.x, seen.y.repeat(2).tolist(), strict=True):
        student, teacher = net(x[None])[0], guide(x[None])[0].detach()
        reference = reference + (1 - weight) * APART[match](student, teacher)
        if weight:
            reference = reference - weight * torch.log(torch.softmax(student, 0)[y])
    terms = objective.loss(net, seen, view)
    assert set(terms) == {match, "ce"} if weight else {match}
    same(net, terms, reference / (2 * B), tolerance=1e-8)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("crt", {"match": "L1"}, "unknown match 'L1'"),
        ("crt", {"temperature": "0", "match": "kl"}, "temperature must be above 0"),
        ("ard", {"temperature": "0"}, "temperature must be above 0"),
        ("iad", {"temperature": "0"}, "temperature must be above 0"),
        ("crt", {"ce_weight": "1"}, "ce_weight is a share"),
        ("ard", {"alpha": "1.5"}, "alpha is a share of the loss"),
        ("iad", {"alpha": "2"}, "alpha is a share of the loss"),
        ("adaad", {"alpha": "1.01"}, "alpha is a share of the loss"),
        ("trades", {"inner": "fgsm"}, "did you mean 'n-fgsm'"),
    ],
)
def test_what_the_methods_refuse(method: str, given: dict[str, str], said: str) -> None:
    needed = {"sigma": "0.25"} if "sigma" in objectives.needs(method) else {"eps": "8/255"}
    with pytest.raises(UsageError) as caught:
        objectives.resolve(method, {**needed, **given})
    assert said in str(caught.value)


# -- one file touched -------------------------------------------------------------------------------------------------

DROPPED = '''
"""A method of a user's own."""

from dataclasses import dataclass

from robustkt import losses

__all__ = ["Tempered"]

PRESETS = {"tempered-fast": {"method": "tempered", "temperature": 3.0, "epochs": 1}}


@dataclass(frozen=True, kw_only=True)
class Tempered:
    """Cross-entropy at a temperature."""

    temperature: float = 2.0

    def perturb(self, student, batch):
        return batch.x

    def loss(self, student, batch, view):
        return {"ce": losses.ce(student(view) / self.temperature, batch.y).mean()}
'''


def test_a_new_objective_is_one_file(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "tempering.py").write_text(DROPPED)
    assert ast.parse(DROPPED)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path / "more")])
    assert objectives.__spec__ is not None
    monkeypatch.setattr(objectives.__spec__, "submodule_search_locations", objectives.__path__)
    assert "tempered" in METHODS.names()
    made = cli(
        "train", "-m", "tempered", "-a", "smallcnn", "-d", "digits", "--preset", "tempered-fast", "--batch-size", "512",
        "--json", "--registry", registry.root,
    )  # fmt: skip
    assert made.code == 0
    assert registry.get("gen0").recipe.settings == {"temperature": 3.0}
    wrong = cli("train", "-m", "temperd", "-a", "smallcnn", "-d", "digits", "--registry", registry.root)
    assert "did you mean 'tempered'" in wrong.err
    assert api.evaluate("gen0", attacks=["fgsm"], eps="0.1", max_images=9, registry=registry)["images"] == 9
    sys.modules.pop("robustkt.objectives.tempering")
