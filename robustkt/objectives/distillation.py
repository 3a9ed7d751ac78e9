"""Carrying adversarial robustness from a teacher to a student by its soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms, ThreatModel
from robustkt.errors import UsageError
from robustkt.numbers import exact
from robustkt.objectives.adversarial import toward_disagreement

__all__ = ["RSLAD"]

PRESETS = {
    "rslad-iccv21": {
        "method": "rslad", "kl_scale": 0.1, "steps": 10, "epochs": 300, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 2e-4, "decay_norm": True, "schedule": "multistep",
        "milestones": ["215/300", "260/300", "285/300"], "ema": None,
    },
    "rslad-fast": {
        "method": "rslad", "kl_scale": 1.0, "steps": 10, "epochs": 30, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "decay_norm": False, "schedule": "onecycle", "ema": 0.995,
    },
}  # fmt: skip


class SoftView(NamedTuple):
    """What RSLAD's outer problem is taken on."""

    x_adv: Tensor  # (B, C, H, W)
    target: Tensor  # (B, K), the teacher's logits at the clean images


@dataclass(frozen=True, kw_only=True)
class RSLAD:
    """Robust soft label adversarial distillation (2108.07969); no hard label anywhere.

    max_x' KL(T(x)‖S(x')) from x + 0.001·N(0, I), S in eval mode;
    min_S  w·KL(T(x)‖S(x')) + (1 − w)·KL(T(x)‖S(x)), w = 5/6.
    """

    teacher: Model
    threat: ThreatModel
    steps: int = 10
    step_size: Fraction | None = None  # None = eps/4
    adversarial_weight: Fraction = Fraction(5, 6)  # w
    kl_scale: float = 1.0  # factor on both terms; the released CIFAR-10 script averages over the classes too: 0.1

    def __post_init__(self) -> None:
        if self.adversarial_weight > 1:
            raise UsageError(
                f"adversarial_weight is a share of the loss, not {exact(self.adversarial_weight)}",
                "Give a number up to 1; the paper's is 5/6.",
            )

    def perturb(self, student: Model, batch: Batch) -> SoftView:
        """x' and the teacher's logits, which see the clean images only."""
        with torch.no_grad():
            target = self.teacher(batch.x)
        x_adv = toward_disagreement(
            student,
            batch,
            self.threat,
            steps=self.steps,
            step_size=self.step_size or self.threat.eps / 4,
            target=target,
        )
        return SoftView(x_adv, target)

    def loss(self, student: Model, batch: Batch, view: SoftView) -> Terms:
        """{"kl_adv", "kl_clean"}."""
        w = float(self.adversarial_weight)
        return {
            "kl_adv": self.kl_scale * w * losses.kl(view.target, student(view.x_adv)).mean(),
            "kl_clean": self.kl_scale * (1 - w) * losses.kl(view.target, student(batch.x)).mean(),
        }
