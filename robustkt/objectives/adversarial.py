"""Training against an attack with hard labels: natural training for comparison, SAT, TRADES."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks import ascend
from robustkt.core import Batch, Model, Terms, ThreatModel, attacking

__all__ = ["SAT", "TRADES", "Natural"]

PRESETS = {
    "trades-icml19": {
        "method": "trades", "eps": "0.031", "beta": 6.0, "steps": 10, "step_size": "0.007",
        "epochs": 76, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 2e-4, "decay_norm": True, "schedule": "multistep", "milestones": ["74/76"], "ema": None,
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
class SAT:
    """Standard adversarial training, PGD-AT (1706.06083).

    max_x' CE(f(x'), y) from a uniform start;  min_f CE(f(x'), y).
    """

    threat: ThreatModel
    steps: int = 10
    step_size: Fraction | None = None  # in the threat's norm; None = eps/4, which is 2/255 at 8/255

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W)."""
        return ascend(
            student,
            batch.x,
            self.threat,
            lambda z: losses.ce(z, batch.y),
            steps=self.steps,
            step_size=self.step_size or self.threat.eps / 4,
            start=self.threat.random_start(batch.x, batch.rng),
        )

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}, on the adversarial images."""
        return {"ce": losses.ce(student(view), batch.y).mean()}


@dataclass(frozen=True, kw_only=True)
class TRADES:
    """TRADES (1901.08573).

    max_x' KL(f(x)‖f(x')) from x + 0.001·N(0, I);  min_f CE(f(x), y) + β·KL(f(x)‖f(x')), gradients through both.
    """

    threat: ThreatModel
    beta: float = 6.0
    steps: int = 10
    step_size: Fraction | None = None  # None = eps/4

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W)."""
        return toward_disagreement(
            student, batch, self.threat, steps=self.steps, step_size=self.step_size or self.threat.eps / 4
        )

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce", "kl"}; the clean branch of the KL is not detached."""
        z, z_adv = student(batch.x), student(view)
        return {"ce": losses.ce(z, batch.y).mean(), "kl": self.beta * losses.kl(z, z_adv).mean()}


def toward_disagreement(
    student: Model,
    batch: Batch,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: Fraction,
    target: Tensor | None = None,
) -> Tensor:
    """PGD on KL(target‖student(x')) from x + 0.001·N(0, I); the target logits (B, K) default to the student's own at x.

    The inner problem of TRADES (own logits) and of RSLAD (the teacher's).
    """
    if target is None:
        with attacking(student), torch.no_grad():
            target = student(batch.x)
    fixed = target.detach()
    start = batch.x + 0.001 * torch.randn(batch.x.shape, generator=batch.rng, device=batch.x.device)
    return ascend(
        student, batch.x, threat, lambda z: losses.kl(fixed, z), steps=steps, step_size=step_size, start=start
    )
