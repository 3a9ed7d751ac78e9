"""Carrying certified robustness from a smoothed teacher to a student, without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.catalog import unknown
from robustkt.core import Batch, Model, Terms
from robustkt.errors import UsageError
from robustkt.numbers import exact
from robustkt.objectives._noise import noise
from robustkt.objectives._replayed import Replayed, taught
from robustkt.objectives.distillation import tempered, warm

__all__ = ["CRT"]

PRESETS = {
    "crt-neurips22": {
        "method": "crt", "match": "l2", "draws": 1, "ce_weight": 0.0, "views": None, "epochs": 200, "batch_size": 128,
        "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "decay_norm": True, "schedule": "multistep",
        "milestones": [0.5, 0.75], "ema": None,
    },
    "crt-fast": {
        "method": "crt", "match": "l2", "draws": 1, "ce_weight": 0.0, "epochs": 30, "batch_size": 128, "lr": 0.1,
        "momentum": 0.9, "weight_decay": 5e-4, "decay_norm": False, "schedule": "onecycle", "ema": 0.995,
    },
}  # fmt: skip


def _squared(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    return (logits - target).square().sum(dim=1)


def _probabilities(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    return losses.l2(target.softmax(dim=1), logits.softmax(dim=1))


def _raw(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    return losses.l2(target, logits)


# the teacher's logits (B, K), the student's, τ -> (B,)
MATCHES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "l2": _raw,
    "squared-l2": _squared,
    "probabilities": _probabilities,
    "kl": tempered,
}


class NoisyView(NamedTuple):
    """What CRT's loss is taken on: the same noisy images for both networks."""

    x: Tensor  # (m·B, C, H, W), x + δ_i
    target: Tensor  # (m·B, K), the teacher's raw logits there


@dataclass(frozen=True, kw_only=True)
class CRT(Replayed):
    """Certified robustness transfer (2210.14283): min_S ‖S(x + δ) − T(x + δ)‖₂ on raw logits, δ ~ N(0, σ² I).

    Un-squared, the same noise to both, one draw an image, no labels, no temperature: the paper's form and the default.
    The fields are variants to compare it with: min_S (1 − w)·mean_i match(T(x + δ_i), S(x + δ_i)) + w·CE.
    """

    teacher: Model
    sigma: Fraction
    match: str = "l2"  # or squared-l2, probabilities (un-squared L2 of the softmaxes), kl (τ²·KL_τ)
    temperature: float = 1.0  # τ, of kl
    draws: int = 1  # m
    ce_weight: float = 0.0  # w, of the cross-entropy on the noisy images

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown("match", self.match, MATCHES)
        warm(self.temperature)
        if not 0 <= self.ce_weight < 1:
            raise UsageError(
                f"ce_weight is a share of the loss, not {self.ce_weight}", "Give one from 0 to below 1; at 1 there "
                "would be no teacher: that is --method gaussian."
            )  # fmt: skip

    @property
    def copies(self) -> int:
        """m noisy ones."""
        return self.draws

    @property
    def marks(self) -> dict[str, str]:
        """The noise level."""
        return {"sigma": exact(self.sigma)}

    def seen(self, batch: Batch, copy: int) -> Tensor:
        """x + δ of one draw."""
        return batch.x + noise(batch, self.sigma, copy)

    def perturb(self, student: Model, batch: Batch) -> NoisyView:
        """The noisy images and the teacher's logits there."""
        x = torch.cat([self.seen(batch, copy) for copy in range(self.copies)])
        return NoisyView(x, taught(self.teacher, batch, x))

    def loss(self, student: Model, batch: Batch, view: NoisyView) -> Terms:
        """{the match's name} and, with a weight on it, {"ce"}."""
        logits = student(view.x)
        apart = MATCHES[self.match](view.target, logits, self.temperature)
        terms = {self.match: (1 - self.ce_weight) * apart.mean()}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * losses.ce(logits, batch.y.repeat(self.draws)).mean()
        return terms
