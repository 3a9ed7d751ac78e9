"""Attacks on a smoothed classifier: gradient ascent through the expectation over its noise."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from robustkt.core import Model, ThreatModel, attacking, gaussian, unit
from robustkt.losses import ce

__all__ = ["smoothadv"]

Project = Callable[[Tensor, Tensor], Tensor]  # a moved image and its origin (B, C, H, W) -> where it may be


def rise(
    model: Model,
    x: Tensor,
    y: Tensor,
    noise: Tensor | Callable[[], Tensor],
    project: Project,
    *,
    steps: int,
    length: float,
    steepest: Callable[[Tensor], Tensor] = unit,
) -> list[Tensor]:
    """The points after each step up −log mean_i softmax f(x' + δ_i)_y from x, in eval mode.

    Args:
        model: the base network, images (B, C, H, W) to logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: δ (m, B, C, H, W), the same at every step, or what draws it afresh.
        project: where a step may end.
        steps: how many.
        length: of a step, in the norm of `steepest`.
        steepest: the direction of a step, from the gradient.
    """
    path, at = [], x
    with attacking(model):
        for _ in range(steps):
            at = at.detach().requires_grad_(True)
            drawn = noise() if callable(noise) else noise
            with torch.enable_grad():
                log_p = -ce(model((at + drawn).flatten(0, 1)), y.repeat(len(drawn))).unflatten(0, (len(drawn), -1))
                (grad,) = torch.autograd.grad(-log_p.logsumexp(dim=0).sum(), at)  # of the mean, but for log m
            at = project(at.detach() + length * steepest(grad), x)
            path.append(at)
    return path


def smoothadv(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    sigma: Fraction,
    draws: int = 32,
    steps: int = 20,
    step_size: Fraction | None = None,
) -> Tensor:
    """SmoothAdv as an attack (1906.04584): max_x' −log mean_i softmax f(x' + δ_i)_y, fresh δ_i ~ N(0, σ² I) a step.

    Args:
        model: the base network; the smoothed classifier's noise is added here, unclipped.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,), or the smoothed classifier's own predictions, to make it leave them.
        threat: the ball.
        rng: of the noise.
        sigma: the smoothed classifier's standard deviation, in [0, 1] pixel units.
        draws: noisy copies a step.
        steps: gradient steps.
        step_size: in [0, 1] pixel units; 2 eps/steps by default, as in the paper.
    """
    return rise(
        model, x, y, lambda: torch.stack([gaussian(x, sigma, rng) for _ in range(draws)]), threat.project,
        steps=steps, length=float(step_size or 2 * threat.eps / steps), steepest=threat.steepest,
    )[-1]  # fmt: skip
