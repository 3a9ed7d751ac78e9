"""Inner maximisation that objectives exchange: PGD of several steps, or one step of N-FGSM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks import ascend, ascend_friendly
from robustkt.catalog import unknown
from robustkt.core import Batch, Model, ThreatModel, attacking
from robustkt.errors import UsageError
from robustkt.generation import LATER

USES = {
    "pgd": ["extra_steps", "steps", "step_size"],
    "n-fgsm": ["sentinel"],
}  # the fields that only one of them has a use for

Loss = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)
Start = Callable[[ThreatModel, Batch], Tensor]
Own = Callable[[Tensor], Tensor]  # what the model gives (B, …) -> the student's logits (B, K)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The fields of every objective that trains against a threat model."""

    threat: ThreatModel
    inner: str = "pgd"  # or n-fgsm
    steps: int | None = 10  # of pgd
    step_size: Fraction | None = None  # of pgd, in the threat's norm; None = eps/4, which is 2/255 at 8/255
    sentinel: float = 0.2  # n-fgsm: a fall of the held-out robust accuracy by more than this is a collapse
    # of pgd: τ of friendly training (2002.11242), after which a misclassified image takes no step; None = it takes all
    extra_steps: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise unknown("inner maximisation", self.inner, INNER)
        if self.inner == "n-fgsm" and self.threat.norm != "linf":
            raise UsageError("N-FGSM is an attack in linf", "Use --set inner=pgd, or --norm linf.")
        if self.inner == "pgd" and self.steps is None:
            raise UsageError("PGD needs its steps", "Leave them out for 10.")

    @property
    def collapse(self) -> float | None:
        """How far a fall of the held-out robust accuracy makes the engine go back; None = never."""
        return self.sentinel if self.inner == "n-fgsm" else None

    def maximise(self, student: Model, batch: Batch, loss: Loss, start: Start, own: Own = lambda z: z) -> Tensor:
        """x' (B, C, H, W) that raises `loss`; `own` picks the student's logits out of what the model gives."""
        return INNER[self.inner](self, student, batch, loss, start, own)


def uniform_start(threat: ThreatModel, batch: Batch) -> Tensor:
    """A uniform point of the ball, as in PGD-AT."""
    return threat.random_start(batch.x, batch.rng)


def near_start(threat: ThreatModel, batch: Batch) -> Tensor:
    """x + 0.001·N(0, I), as in TRADES: the KL to the clean prediction has no slope at x itself."""
    return batch.x + 0.001 * torch.randn(batch.x.shape, generator=batch.rng, device=batch.x.device)


def toward(target: Tensor) -> Loss:
    """KL from fixed target logits (B, K) to those of x'."""
    fixed = target.detach()
    return lambda z: losses.kl(fixed, z)


def prediction(model: Model, x: Tensor) -> Tensor:
    """The logits (B, K) at `x` as an attack sees them: eval mode, no gradient."""
    with attacking(model), torch.no_grad():
        return model(x)


def _pgd(how: Adversarial, student: Model, batch: Batch, loss: Loss, start: Start, own: Own) -> Tensor:
    """PGD (1706.06083), or with `extra_steps` PGD-K-τ (2002.11242)."""
    given: dict[str, Any] = {
        "steps": cast(int, how.steps),
        "step_size": how.step_size or how.threat.eps / 4,
        "start": start(how.threat, batch),
    }
    if how.extra_steps is None:
        return ascend(student, batch.x, how.threat, loss, **given)
    return ascend_friendly(student, batch.x, batch.y, how.threat, loss, extra=how.extra_steps, own=own, **given)


def _n_fgsm(how: Adversarial, student: Model, batch: Batch, loss: Loss, start: Start, own: Own) -> Tensor:
    """N-FGSM (2202.01181): noise in ±2 eps, one step of eps from there, clamped to [0, 1] but not to the ball."""
    eps = float(how.threat.eps)
    noise = 2 * eps * (2 * torch.rand(batch.x.shape, generator=batch.rng, device=batch.x.device) - 1)
    whole = ThreatModel("linf", Fraction(1))  # the box is all that holds it
    noisy = (batch.x + noise).clamp(0, 1)
    return ascend(student, batch.x, whole, loss, steps=1, step_size=how.threat.eps, start=noisy)


INNER = {"pgd": _pgd, "n-fgsm": _n_fgsm}
