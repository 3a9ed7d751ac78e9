"""Signs that an attack was fooled rather than resisted."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt.core import ThreatModel, attacking, generator
from robustkt.data import Split, to_float
from robustkt.evaluate import Attacked, attacked
from robustkt.losses import ce

MASKING_IMAGES = 100
HALF = ThreatModel("linf", Fraction(1, 2))  # any image can be made uniform grey; the field asks for eps ≥ 64/255
NOTHING_SURVIVES = 0.05  # the share that may be left at HALF, for want of a better attack
DESTROYING = ("pgd-sat", "pgd:loss=margin:restarts=3:steps=50")  # at HALF; the second where the first leaves too many
THOROUGH = ("pgd:restarts=3:steps=100", "pgd:loss=margin:restarts=3:steps=100")
LADDER = ("fgsm", "pgd-sat", "pgd:steps=100")  # each should break what the one before does


def masking_warnings(
    model: nn.Module, split: Split, threat: ThreatModel, results: Sequence[Attacked], *, device: torch.device
) -> list[str]:
    """Signs that the gradient misleads the attacks, so that the accuracies flatter the network (1802.00420).

    At most `MASKING_IMAGES` of the images are attacked for it, whatever attacks the `results` are of.
    """
    count = min(len(split), MASKING_IMAGES)
    chosen = torch.arange(count) * len(split) // count  # from all over a set that may be sorted
    some = Split(split.x[chosen], split.y[chosen])
    x, y = to_float(some.x.to(device)), some.y.to(device)
    logits = _logits(model, x)
    found = _of_output(logits, _logits(model, x))
    grad = _gradients(model, x, y)
    if grad is None:
        return [*found, "the network has no gradient with respect to its images: only Square says something"]
    around = _gradients(model, threat.random_start(x, generator(device, 0, "masking")), y)
    found += _of_gradient(grad, grad if around is None else around)
    if len(logits.argmax(dim=1).unique()) == 1 and len(y.unique()) > 1:
        found.append(f"the network names one class for all {count} images: nothing can be said of how it withstands")
    else:
        found += _of_destruction(model, some, device)
    ladder = attacked(model, some, threat, LADDER, seed=0, device=device)
    one, short, long = (int(result.right.sum()) for result in ladder)
    if many(short - one, count):
        found.append(f"20 steps of PGD leave {short / count:.0%} of {count} images, one step of FGSM {one / count:.0%}")
    if long - short > 0.02 * count:
        found.append(f"100 steps of PGD leave {long / count:.0%} of {count} images, 20 steps {short / count:.0%}")
    return found + _square(model, split, threat, results, device)


def many(broken: int, images: int) -> bool:
    """Whether so many images say something of the attacks: more than 0.2 points, and in a small set more than one."""
    return broken > max(0.002 * images, 1)


def _of_output(first: Tensor, second: Tensor) -> list[str]:
    """Signs in the logits (B, K) of the same images, asked for twice."""
    found = []
    apart = (first - second).abs().amax() > 1e-4 * first.abs().amax()  # more than a device's order of summation does
    if bool(apart):
        found.append(
            "the output is randomised: gradients of one draw say little; a smoothed classifier has certificates"
        )
    ones = torch.ones(len(first), device=first.device)
    if bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), ones, atol=1e-4):
        found.append("the network returns probabilities, not logits: its gradients vanish where it is sure")
    return found


def _of_gradient(grad: Tensor, around: Tensor) -> list[str]:
    """Signs in the gradients (B, D) at the images and beside them."""
    found = []
    unknown = ~torch.cat([grad, around], dim=1).isfinite().all(dim=1)
    if bool(unknown.any()):
        share = float(unknown.double().mean())
        found.append(f"the gradient is not a finite number for {share:.0%} of the images: gradient attacks are blind")
    zero = float((grad == 0).all(dim=1).double().mean())
    if zero > 0.01:
        found.append(f"the gradient at the image is exactly zero for {zero:.0%} of the images")
    return found


def _of_destruction(model: nn.Module, some: Split, device: torch.device) -> list[str]:
    """A sign where images survive what leaves nothing of them."""
    standing = torch.ones(len(some), dtype=torch.bool)
    for name in DESTROYING:
        (result,) = attacked(model, some, HALF, [name], seed=0, device=device)
        standing &= result.right
        left = float(standing.double().mean())
        if left <= NOTHING_SURVIVES:
            return []
    return [f"{left:.0%} survive PGD at linf 0.5, where any image can be made uniform grey"]


def _square(
    model: nn.Module, split: Split, threat: ThreatModel, results: Sequence[Attacked], device: torch.device
) -> list[str]:
    """Square sees no gradient: if it breaks what no gradient attack can, their gradients misled them.

    Square alone or as a stage of an ensemble is held against all other attacks together, and what it breaks beyond
    them, or `MASKING_IMAGES` of it, against a thorough PGD: one step of FGSM may be the only other attack.
    """
    stages = [(stage == "square", broken) for result in results for stage, broken in result.broken.items()]
    nothing = torch.zeros(len(split), dtype=torch.bool)
    squared = torch.stack([nothing, *(broken for square, broken in stages if square)]).any(dim=0)
    others = torch.stack([nothing, *(broken for square, broken in stages if not square)]).any(dim=0)
    rows = (squared & ~others).nonzero().squeeze(1)
    if not many(len(rows), len(split)):
        return []
    some = rows[torch.arange(min(len(rows), MASKING_IMAGES)) * len(rows) // min(len(rows), MASKING_IMAGES)]
    tried = attacked(model, Split(split.x[some], split.y[some]), threat, THOROUGH, seed=0, device=device)
    kept = float(torch.stack([result.right for result in tried]).all(dim=0).double().mean())
    if not many(round(kept * len(rows)), len(split)):
        return []
    share = f"{kept * len(rows) / len(split):.1%} of {len(split)} images"
    return [f"Square breaks a further {share}, which no gradient attack did: masked gradients"]


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
