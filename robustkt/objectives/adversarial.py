"""Training against an attack with hard labels: natural training for comparison, SAT, TRADES, MART."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms
from robustkt.objectives._inner import Adversarial, near_start, prediction, toward, uniform_start

__all__ = ["MART", "SAT", "TRADES", "Natural"]

PRESETS = {
    "trades-icml19": {
        "method": "trades", "eps": "0.031", "beta": 6.0, "steps": 10, "step_size": "0.007",
        "epochs": 76, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 2e-4, "decay_norm": True, "schedule": "multistep", "milestones": ["74/76"], "ema": None,
    },
    "mart-iclr20": {
        "method": "mart", "eps": "0.031", "lam": 5.0, "steps": 10, "step_size": "0.007",
        "epochs": 120, "batch_size": 128, "lr": 0.01, "momentum": 0.9, "weight_decay": 3.5e-3, "decay_norm": True,
        "schedule": "multistep", "milestones": ["74/120", "89/120", "99/120"], "ema": None,
    },
    "sat-fast": {
        "method": "sat", "inner": "n-fgsm", "epochs": 30, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "decay_norm": False, "schedule": "onecycle", "ema": 0.995,
    },
    "trades-fast": {
        "method": "trades", "steps": 5, "step_size": None, "epochs": 30, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "decay_norm": False, "schedule": "onecycle", "ema": 0.995,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Natural:
    """Plain training: min_f CE(f(x), y)."""

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """The batch as it is."""
        return batch.x

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}."""
        return {"ce": losses.ce(student(view), batch.y).mean()}


@dataclass(frozen=True, kw_only=True)
class SAT(Adversarial):
    """Standard adversarial training, PGD-AT (1706.06083).

    max_x' CE(f(x'), y) from a uniform start;  min_f CE(f(x'), y).
    """

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W)."""
        return self.maximise(student, batch, lambda z: losses.ce(z, batch.y), uniform_start)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}, on the adversarial images."""
        return {"ce": losses.ce(student(view), batch.y).mean()}


@dataclass(frozen=True, kw_only=True)
class TRADES(Adversarial):
    """TRADES (1901.08573).

    max_x' KL(f(x)‖f(x')) from x + 0.001·N(0, I);  min_f CE(f(x), y) + β·KL(f(x)‖f(x')), gradients through both.
    """

    beta: float = 6.0

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W)."""
        return self.maximise(student, batch, toward(prediction(student, batch.x)), near_start)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce", "kl"}; the clean branch of the KL is not detached."""
        z, z_adv = student(batch.x), student(view)
        return {"ce": losses.ce(z, batch.y).mean(), "kl": self.beta * losses.kl(z, z_adv).mean()}


@dataclass(frozen=True, kw_only=True)
class MART(Adversarial):
    """Misclassification-aware adversarial training (ICLR 2020, openreview rklOg6EFwS).

    max_x' CE(f(x'), y) from x + 0.001·N(0, I);
    min_f CE(f(x'), y) − log(1.0001 − max_{k≠y} p'_k) + λ·KL(f(x)‖f(x'))·(1 − p_y(x)), p = f(x), p' = f(x').
    """

    lam: float = 5.0  # λ; 6 for the released WideResNet

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W)."""
        return self.maximise(student, batch, lambda z: losses.ce(z, batch.y), near_start)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"bce", "kl"}; gradients flow through the clean branch too."""
        z, z_adv = student(batch.x), student(view)
        doubt = 1 - z.softmax(dim=1).gather(1, batch.y[:, None]).squeeze(1)
        return {
            "bce": (losses.ce(z_adv, batch.y) + _runner_up(z_adv, batch.y)).mean(),
            "kl": self.lam * (losses.kl(z, z_adv) * doubt).mean(),
        }


def _runner_up(logits: Tensor, y: Tensor) -> Tensor:
    """−log(1.0001 − max_{k≠y} p_k), shape (B,)."""
    p = logits.softmax(dim=1).scatter(1, y[:, None], 0)
    loss: Tensor = -torch.log(1.0001 - p.amax(dim=1))
    return loss
