"""Training under Gaussian noise with hard labels, for certificates by randomized smoothing: Gaussian, SmoothMix."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms, attacking, gaussian, unit

__all__ = ["Gaussian", "SmoothMix"]

PRESETS = {
    "gaussian-icml19": {
        "method": "gaussian", "epochs": 90, "batch_size": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "decay_norm": True, "schedule": "multistep", "milestones": ["30/90", "60/90"], "ema": None,
    },
    "smoothmix-neurips21": {
        "method": "smoothmix", "draws": 2, "steps": 4, "eta": 5.0, "epochs": 150, "batch_size": 256, "lr": 0.1,
        "momentum": 0.9, "weight_decay": 1e-4, "decay_norm": True, "schedule": "multistep",
        "milestones": ["50/150", "100/150"], "ema": None,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian augmentation (1902.02918): min_f CE(f(x + δ), y), δ ~ N(0, σ² I)."""

    sigma: Fraction

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ (B, C, H, W), unclipped."""
        return batch.x + gaussian(batch.x, self.sigma, batch.rng)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}, on the noisy images."""
        return {"ce": losses.ce(student(view), batch.y).mean()}


class MixView(NamedTuple):
    """What SmoothMix's outer problem is taken on."""

    noise: Tensor  # (m, B, C, H, W)
    x_far: Tensor  # (B, C, H, W), the end of the ascent, in [0, 1]
    share: Tensor  # (B,), l ~ U[0, 1/2]


@dataclass(frozen=True, kw_only=True)
class SmoothMix:
    """SmoothMix (2111.09277).

    x_T: T L2-normalised steps of size a up −log p̄_y, p̄ = mean_i softmax f(x + δ_i), eval mode, clipped to [0, 1];
    min_f mean_i CE(f(x + δ_i), y) + η·w·1[argmax p̄ = y]·mean_i KL(y_mix‖f(x_mix + δ_i)),
    x_mix = (1 − l)·x + l·x_T,  y_mix = (1 − l)·p̄ + l/K,  w = min(1, (epoch + 1)/warmup_epochs).
    """

    sigma: Fraction
    draws: int = 2  # m
    steps: int = 4  # T
    step_size: Fraction | None = None  # a; None = 2σ, the paper's .5 / 1 / 2 at σ = .25 / .5 / 1
    eta: float = 5.0
    warmup_epochs: int = 10

    def perturb(self, student: Model, batch: Batch) -> MixView:
        """The noises, the ascent's end with the same noises, and the mixing shares."""
        x, rng = batch.x, batch.rng
        noise = torch.stack([gaussian(x, self.sigma, rng) for _ in range(self.draws)])
        step = float(self.step_size or 2 * self.sigma)
        x_far = x
        with attacking(student):
            for _ in range(self.steps):
                x_far = x_far.detach().requires_grad_(True)
                with torch.enable_grad():
                    p = self._mean_probability(student((x_far + noise).flatten(0, 1)))
                    rising = -p.gather(1, batch.y[:, None]).clamp_min(1e-20).log().sum()
                    (grad,) = torch.autograd.grad(rising, x_far)
                x_far = (x_far.detach() + step * unit(grad)).clamp(0, 1)
        share = torch.rand(len(x), generator=rng, device=x.device) / 2
        return MixView(noise, x_far, share)

    def loss(self, student: Model, batch: Batch, view: MixView) -> Terms:
        """{"ce", "mix"}; gradients flow through p̄ into y_mix, as in the released code."""
        logits = student((batch.x + view.noise).flatten(0, 1))
        p = self._mean_probability(logits)
        l_x, l_y = view.share.view(-1, 1, 1, 1), view.share.view(-1, 1)
        x_mix = (1 - l_x) * batch.x + l_x * view.x_far
        y_mix = ((1 - l_y) * p + l_y / p.shape[1]).clamp_min(torch.finfo(p.dtype).tiny)
        mixed = losses.kl_soft(y_mix.repeat(self.draws, 1), student((x_mix + view.noise).flatten(0, 1)))
        right = (p.argmax(dim=1) == batch.y).repeat(self.draws)
        weight = self.eta * min(1.0, (batch.epoch + 1) / self.warmup_epochs)
        return {
            "ce": losses.ce(logits, batch.y.repeat(self.draws)).mean(),
            "mix": weight * (right * mixed).mean(),
        }

    def _mean_probability(self, logits: Tensor) -> Tensor:
        drawn: Tensor = logits.softmax(dim=1).unflatten(0, (self.draws, -1))
        return drawn.mean(dim=0)
