"""Signs that an attack was fooled rather than resisted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt.core import ThreatModel, attacking, generator
from robustkt.data import Split, to_float
from robustkt.evaluate import Attacked, attacked
from robustkt.losses import ce

MASKING_IMAGES = 100


def masking_warnings(
    model: nn.Module, split: Split, threat: ThreatModel, results: Sequence[Attacked], *, device: torch.device
) -> list[str]:
    """Signs that the gradient misleads the attacks, so that the accuracies flatter the network (1802.00420)."""
    count = min(len(split), MASKING_IMAGES)
    chosen = torch.arange(count) * len(split) // count  # from all over a set that may be sorted
    some = Split(split.x[chosen], split.y[chosen])
    x, y = to_float(some.x.to(device)), some.y.to(device)
    found = []
    first, second = _logits(model, x), _logits(model, x)
    if not torch.equal(first, second):
        found.append(
            "the output is randomised: gradients of one draw say little; a smoothed classifier has certificates"
        )
    if bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), torch.ones(len(x), device=device), atol=1e-4):
        found.append("the network returns probabilities, not logits: its gradients vanish where it is sure")
    by_name = {result.name: result for result in results}
    squares = [warning for result in results for warning in _square_warning(result, len(split))]
    grad = _gradients(model, x, y)
    if grad is None:
        return [*found, "the network has no gradient with respect to its images: only Square says something", *squares]
    around = _gradients(model, threat.random_start(x, generator(device, 0, "masking")), y)
    unknown = ~torch.cat([grad, grad if around is None else around], dim=1).isfinite().all(dim=1)
    if bool(unknown.any()):
        share = float(unknown.double().mean())
        found.append(f"the gradient is not a finite number for {share:.0%} of the images: gradient attacks are blind")
    zero = float((grad == 0).all(dim=1).double().mean())
    if zero > 0.01:
        found.append(f"the gradient at the image is exactly zero for {zero:.0%} of the images")
    half = ThreatModel("linf", Fraction(1, 2))
    (left,) = attacked(model, some, half, ["pgd-sat"], seed=0, device=device)
    if left.accuracy > float(y.bincount().max()) / len(y) + 0.1:
        found.append(f"{left.accuracy:.0%} survive PGD at linf 0.5, where any image can be made uniform grey")
    if {"fgsm", "pgd-sat"} <= set(by_name) and by_name["pgd-sat"].accuracy > by_name["fgsm"].accuracy + 0.002:
        found.append("20 steps of PGD do less than one step of FGSM")
    if "pgd-sat" in by_name:
        (longer,) = attacked(model, some, threat, ["pgd:steps=100"], seed=0, device=device)
        short = float(by_name["pgd-sat"].right[chosen].double().mean())
        if longer.accuracy > short + 0.02:
            found.append(f"100 steps of PGD leave {longer.accuracy:.0%} of {count} images, 20 steps {short:.0%}")
    return found + squares


def _square_warning(result: Attacked, images: int) -> list[str]:
    """Square sees no gradient: if it breaks what the white-box attacks could not, their gradients misled them."""
    left = list(result.stages.items())
    for (_, before), (stage, after) in itertools.pairwise(left):
        if stage == "square" and before - after > max(0.002 * images, 1):
            share = (before - after) / images
            return [
                f"Square breaks a further {share:.1%} after the gradient attacks of {result.name}: masked gradients"
            ]
    return []


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with attacking(model), torch.no_grad():
        logits: Tensor = model(x)
    return logits


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """The gradients (B, D) of the cross-entropy at the images; None for a network without gradients."""
    with attacking(model), torch.enable_grad():
        x = x.clone().requires_grad_(True)
        loss = ce(model(x), y).sum()
        if not loss.requires_grad:
            return None
        (grad,) = torch.autograd.grad(loss, x)
    return grad.flatten(1)
