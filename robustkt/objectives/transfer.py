"""Carrying certified robustness from a smoothed teacher to a student, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms, gaussian

__all__ = ["CRT"]

PRESETS = {
    "crt-neurips22": {
        "method": "crt", "epochs": 200, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "decay_norm": True, "schedule": "multistep", "milestones": [0.5, 0.75], "ema": None,
    },
}  # fmt: skip


class NoisyView(NamedTuple):
    """What CRT's loss is taken on: the same noisy images for both networks."""

    x: Tensor  # (B, C, H, W), x + δ
    target: Tensor  # (B, K), the teacher's raw logits there


@dataclass(frozen=True, kw_only=True)
class CRT:
    """Certified robustness transfer (2210.14283): min_S ‖S(x + δ) − T(x + δ)‖₂ on raw logits, δ ~ N(0, σ² I).

    Un-squared, the same noise to both, one draw an image, no labels, no temperature.
    """

    teacher: Model
    sigma: Fraction

    def perturb(self, student: Model, batch: Batch) -> NoisyView:
        """The noisy images and the teacher's logits there."""
        x = batch.x + gaussian(batch.x, self.sigma, batch.rng)
        with torch.no_grad():
            return NoisyView(x, self.teacher(x))

    def loss(self, student: Model, batch: Batch, view: NoisyView) -> Terms:
        """{"l2"}."""
        return {"l2": losses.l2(view.target, student(view.x)).mean()}
