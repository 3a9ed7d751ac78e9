"""Training a smoothed classifier against attacks on itself: SmoothMix, SmoothAdv."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks.smoothed import rise
from robustkt.core import Batch, Model, Terms, ThreatModel
from robustkt.objectives._noise import HALF, QUARTER, by_sigma, mean_probability, noises

__all__ = ["SmoothAdv", "SmoothMix"]

# SmoothMix's is the variant without the one-step adversary, which is the paper's main one; `--set one_step=true`
# is its other one, for higher robustness at σ = .5 and 1.
PRESETS = {
    "smoothmix-neurips21": {
        "method": "smoothmix", "draws": 2, "steps": 4, "eta": 5.0, "one_step": False, "epochs": 150,
        "batch_size": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm": True,
        "schedule": "multistep", "milestones": ["50/150", "100/150"], "ema": None,
    },
    "smoothadv-neurips19": {
        "method": "smoothadv", "steps": 10, "epochs": 150, "batch_size": 256, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "decay_norm": True, "schedule": "multistep", "milestones": ["50/150", "100/150"],
        "ema": None,
    },
}  # fmt: skip


class MixView(NamedTuple):
    """What SmoothMix's outer problem is taken on."""

    noise: Tensor  # (m, B, C, H, W)
    x_near: Tensor  # (B, C, H, W), x, or its one-step adversary
    x_far: Tensor  # (B, C, H, W), the end of the ascent, in [0, 1]
    share: Tensor  # (B,), l ~ U[0, 1/2]


@dataclass(frozen=True, kw_only=True)
class SmoothMix:
    """SmoothMix (2111.09277).

    x_T: T L2-normalised steps of size a up −log p̄_y, p̄ = mean_i softmax f(x + δ_i), eval mode, clipped to [0, 1];
    min_f mean_i CE(f(x + δ_i), y) + η·w·1[argmax p̄ = y]·mean_i KL(y_mix‖f(x_mix + δ_i)),
    x_mix = (1 − l)·x + l·x_T,  y_mix = (1 − l)·p̄ + l/K,  w = min(1, (epoch + 1)/warmup_epochs).
    `one_step` takes x_1, at most w·a from x, for x throughout the outer problem: the variant for higher robustness.
    """

    sigma: Fraction
    draws: int = 2  # m
    steps: int = 4  # T
    step_size: Fraction | None = None  # a; None = 2σ, the paper's .5 / 1 / 2 at σ = .25 / .5 / 1
    eta: float = 5.0
    warmup_epochs: int = 10
    one_step: bool = False

    def perturb(self, student: Model, batch: Batch) -> MixView:
        """The noises, both ends of the mix with the same noises, and the mixing shares."""
        x, rng = batch.x, batch.rng
        noise = noises(batch, self.sigma, self.draws)
        step = self.step_size or 2 * self.sigma
        path = rise(student, x, batch.y, noise, box, steps=self.steps, length=float(step))
        near = ThreatModel("l2", step * Fraction(self._warm(batch))).project(path[0], x) if self.one_step else x
        share = torch.rand(len(x), generator=rng, device=x.device) / 2
        return MixView(noise, near, path[-1], share)

    def loss(self, student: Model, batch: Batch, view: MixView) -> Terms:
        """{"ce", "mix"}; gradients flow through p̄ into y_mix, as in the released code."""
        logits = student((view.x_near + view.noise).flatten(0, 1))
        p = mean_probability(logits, self.draws)
        l_x, l_y = view.share.view(-1, 1, 1, 1), view.share.view(-1, 1)
        x_mix = (1 - l_x) * view.x_near + l_x * view.x_far
        y_mix = ((1 - l_y) * p + l_y / p.shape[1]).clamp_min(torch.finfo(p.dtype).tiny)
        mixed = losses.kl_soft(y_mix.repeat(self.draws, 1), student((x_mix + view.noise).flatten(0, 1)))
        right = (p.argmax(dim=1) == batch.y).repeat(self.draws)
        return {
            "ce": losses.ce(logits, batch.y.repeat(self.draws)).mean(),
            "mix": self.eta * self._warm(batch) * (right * mixed).mean(),
        }

    def _warm(self, batch: Batch) -> float:
        return min(1.0, (batch.epoch + 1) / self.warmup_epochs)


class SmoothAdvView(NamedTuple):
    """What SmoothAdv's outer problem is taken on."""

    noise: Tensor  # (m, B, C, H, W)
    x_adv: Tensor  # (B, C, H, W)


@dataclass(frozen=True, kw_only=True)
class SmoothAdv:
    """Adversarially trained smoothed classifiers (1906.04584).

    max_x' −log mean_i p_y(x' + δ_i) by PGD in an L2 ball that grows to `radius` over the warm-up;
    min_f mean_i CE(f(x' + δ_i), y) with the same noises.
    """

    sigma: Fraction
    draws: int | None = None  # m; None = 4 / 8 / 2 up to σ = .25 / up to .5 / above
    steps: int = 10
    radius: Fraction | None = None  # in [0, 1] pixel units; None = 1 up to σ = .5, 2 above
    warmup_epochs: int = 10

    @property
    def copies(self) -> int:
        """Noisy copies of an image, m: `draws`, or what the paper takes at this σ."""
        return self.draws or by_sigma(self.sigma, [(QUARTER, 4), (HALF, 8)], 2)

    def perturb(self, student: Model, batch: Batch) -> SmoothAdvView:
        """x' and the noises; steps are 2·radius/steps long, as in the authors' code."""
        whole = self.radius or by_sigma(self.sigma, [(HALF, Fraction(1))], Fraction(2))
        radius = whole * min(Fraction(1), Fraction(batch.epoch + 1, self.warmup_epochs))
        noise, ball = noises(batch, self.sigma, self.copies), ThreatModel("l2", radius)
        length = float(2 * radius / self.steps)
        path = rise(student, batch.x, batch.y, noise, ball.project, steps=self.steps, length=length)
        return SmoothAdvView(noise, path[-1])

    def loss(self, student: Model, batch: Batch, view: SmoothAdvView) -> Terms:
        """{"ce"}, on the noisy adversarial images."""
        logits = student((view.x_adv + view.noise).flatten(0, 1))
        return {"ce": losses.ce(logits, batch.y.repeat(len(view.noise))).mean()}


def box(x_adv: Tensor, x: Tensor) -> Tensor:
    """`x_adv` in [0, 1]: SmoothMix's ascent has no ball."""
    return x_adv.clamp(0, 1)
