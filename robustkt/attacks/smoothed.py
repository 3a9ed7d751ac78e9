"""An end-to-end attack on a smoothed classifier: PGD through the expectation over its noise."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from robustkt.core import Model, ThreatModel, attacking, gaussian
from robustkt.losses import ce

__all__ = ["smoothadv"]


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
    x_adv, length = x, float(step_size or 2 * threat.eps / steps)
    with attacking(model):
        for _ in range(steps):
            at = x_adv.detach().requires_grad_(True)
            with torch.enable_grad():
                log_p = [-ce(model(at + gaussian(x, sigma, rng)), y) for _ in range(draws)]
                (grad,) = torch.autograd.grad(-torch.stack(log_p).logsumexp(dim=0).sum(), at)  # a mean but for log n
            x_adv = threat.project(at.detach() + length * threat.steepest(grad), x)
    return x_adv
