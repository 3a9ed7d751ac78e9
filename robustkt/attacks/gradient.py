"""Projected gradient ascent on the image, and the named attacks that are one call of it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Model, ThreatModel, attacking
from robustkt.errors import RobustKTError

__all__ = ["clean", "fgsm", "pgd_sat", "pgd_trades"]

TRADES_STEP = Fraction("0.003") / Fraction(8, 255)  # the step of the TRADES evaluation, as a share of eps


def ascend(
    model: Model,
    x: Tensor,
    threat: ThreatModel,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: Fraction,
    start: Tensor,
) -> Tensor:
    """Projected gradient ascent (PGD, 1706.06083): repeat x' ← Π(x' + step_size · steepest(∇ loss(model(x')))).

    Args:
        model: images (B, C, H, W) to logits (B, K); attacked in eval mode and left as it was.
        x: clean images (B, C, H, W) in [0, 1].
        threat: the ball that every iterate stays in.
        loss: logits (B, K) to a loss a row (B,), to be raised.
        steps: number of gradient steps.
        step_size: length of a step in the threat's norm, in [0, 1] pixel units.
        start: the first iterate (B, C, H, W); it is projected first.

    Returns:
        The last iterate (B, C, H, W), without gradient.

    Raises:
        RobustKTError: no gradient reaches the images.
    """
    with attacking(model):
        x_adv = threat.project(start.detach(), x)
        for _ in range(steps):
            x_adv.requires_grad_(True)
            with torch.enable_grad():
                raised = loss(model(x_adv)).sum()
                if not raised.requires_grad:
                    raise RobustKTError(
                        "the network has no gradient with respect to its images, so gradient attacks say nothing",
                        "Attack a differentiable network, or leave these attacks out (--attack clean).",
                    )
                (grad,) = torch.autograd.grad(raised, x_adv)
            x_adv = threat.project(x_adv.detach() + float(step_size) * threat.steepest(grad), x)
    return x_adv


def clean(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """No attack: the images as they are."""
    return x


def fgsm(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """FGSM (1412.6572): one step of length eps from the clean image on the cross-entropy."""
    return ascend(model, x, threat, lambda z: losses.ce(z, y), steps=1, step_size=threat.eps, start=x)


def pgd_sat(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """PGD_SAT (1706.06083): 20 steps of eps/4 (2/255 at eps 8/255) on the cross-entropy from a uniform start."""
    return ascend(
        model,
        x,
        threat,
        lambda z: losses.ce(z, y),
        steps=20,
        step_size=threat.eps / 4,
        start=threat.random_start(x, rng),
    )


def pgd_trades(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """PGD_TRADES (1901.08573): 20 steps of 0.003 at eps 8/255, in proportion at others, CE, from a uniform start."""
    return ascend(
        model,
        x,
        threat,
        lambda z: losses.ce(z, y),
        steps=20,
        step_size=threat.eps * TRADES_STEP,
        start=threat.random_start(x, rng),
    )
