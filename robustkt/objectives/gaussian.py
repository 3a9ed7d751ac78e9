"""Training under Gaussian noise with hard labels: plain augmentation, Stability, Consistency, MACER."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms
from robustkt.errors import UsageError
from robustkt.objectives._noise import HALF, QUARTER, by_sigma, mean_probability, minus_log_mean, noises

__all__ = ["MACER", "Consistency", "Gaussian", "Stability"]

PRESETS = {
    "gaussian-icml19": {
        "method": "gaussian", "draws": 1, "epochs": 90, "batch_size": 256, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "decay_norm": True, "schedule": "multistep", "milestones": ["30/90", "60/90"],
        "ema": None,
    },
    "stability-neurips19": {
        "method": "stability", "epochs": 150, "batch_size": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4,
        "decay_norm": True, "schedule": "multistep", "milestones": ["50/150", "100/150"], "ema": None,
    },
    "consistency-neurips20": {
        "method": "consistency", "draws": 2, "eta": 0.5, "epochs": 150, "batch_size": 256, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 1e-4, "decay_norm": True, "schedule": "multistep", "milestones": ["50/150", "100/150"],
        "ema": None,
    },
    "macer-iclr20": {
        "method": "macer", "draws": 16, "beta": 16.0, "hinge": 8.0, "epochs": 440, "batch_size": 64, "lr": 0.01,
        "momentum": 0.9, "weight_decay": 5e-4, "decay_norm": True, "schedule": "multistep",
        "milestones": ["200/440", "400/440"], "ema": None,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Gaussian augmentation (1902.02918): min_f mean_i CE(f(x + δ_i), y), δ_i ~ N(0, σ² I)."""

    sigma: Fraction
    draws: int = 1  # m; four are a strong, cheap baseline

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ_i (m·B, C, H, W), unclipped."""
        return (batch.x + noises(batch, self.sigma, self.draws)).flatten(0, 1)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}, on the noisy images."""
        return {"ce": losses.ce(student(view), batch.y.repeat(self.draws)).mean()}


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Stability training (1905.10447): min_f CE(f(x), y) + λ·H(f(x), f(x + δ)), H(p, q) = −Σ p log q."""

    sigma: Fraction
    lam: float | None = None  # λ; None = 2 up to σ = .5, 1 above

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ (B, C, H, W)."""
        return batch.x + noises(batch, self.sigma, 1)[0]

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce", "stability"}; gradients flow through both predictions."""
        lam = by_sigma(self.sigma, [(HALF, 2.0)], 1.0) if self.lam is None else self.lam
        z, z_noisy = student(batch.x), student(view)
        crossed = -(z.softmax(dim=1) * z_noisy.log_softmax(dim=1)).sum(dim=1)
        return {"ce": losses.ce(z, batch.y).mean(), "stability": lam * crossed.mean()}


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Consistency regularisation (2006.04062).

    min_f mean_i CE(f(x + δ_i), y) + λ·mean_i KL(p̄‖p_i) + η·H(p̄),  p_i = softmax f(x + δ_i), p̄ their mean.
    """

    sigma: Fraction
    draws: int = 2  # m
    lam: float | None = None  # λ; None = 20 up to σ = .25, 10 above
    eta: float = 0.5

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise UsageError(f"draws must be 2 or more, not {self.draws}", "Leave it out for 2.")

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ_i (m·B, C, H, W)."""
        return (batch.x + noises(batch, self.sigma, self.draws)).flatten(0, 1)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce", "consistency", "entropy"}; gradients flow through p̄."""
        lam = by_sigma(self.sigma, [(QUARTER, 20.0)], 10.0) if self.lam is None else self.lam
        logits = student(view)
        p = mean_probability(logits, self.draws).clamp_min(torch.finfo(logits.dtype).tiny)
        return {
            "ce": losses.ce(logits, batch.y.repeat(self.draws)).mean(),
            "consistency": lam * losses.kl_soft(p.repeat(self.draws, 1), logits).mean(),
            "entropy": self.eta * losses.entropy(p).mean(),
        }


@dataclass(frozen=True, kw_only=True)
class MACER:
    """Maximising the certified radius (2001.02378).

    min_f −log p̄_y + λ·(σ/2)·max(0, γ − (Φ⁻¹(q̂_y) − Φ⁻¹(q̂_2))) where q̂ has y highest, q̂_2 its second;
    p̄ = mean_i softmax f(x + δ_i), q̂ = mean_i softmax β·f(x + δ_i). A row whose margin is not finite in the network's
    precision, which is one as sure as numbers tell, adds nothing, as in the authors' code.
    """

    sigma: Fraction
    draws: int = 16  # m
    lam: float | None = None  # λ; None = 12 / 6 / 12 up to σ = .25 / up to .5 / above
    beta: float = 16.0  # inverse temperature of q̂
    hinge: float = 8.0  # γ

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ_i (m·B, C, H, W)."""
        return (batch.x + noises(batch, self.sigma, self.draws)).flatten(0, 1)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"nll", "radius"}."""
        lam = by_sigma(self.sigma, [(QUARTER, 12.0), (HALF, 6.0)], 12.0) if self.lam is None else self.lam
        logits = student(view)
        margin, counted = self._margin(mean_probability(self.beta * logits, self.draws), batch.y)
        hinge = torch.where(counted, (self.hinge - margin).clamp_min(0), 0)
        return {
            "nll": minus_log_mean(logits, batch.y, self.draws).mean(),
            "radius": lam * float(self.sigma) / 2 * hinge.mean(),
        }

    @staticmethod
    def _margin(q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Φ⁻¹(q̂_y) − Φ⁻¹(q̂_2), and the rows (B,) where y is highest and both ends are finite."""
        top, order = q.topk(2, dim=1)
        counted = (order[:, 0] == y) & torch.special.ndtri(top).isfinite().all(dim=1)
        safe = torch.where(counted[:, None], top, torch.tensor([0.75, 0.25], dtype=q.dtype, device=q.device))
        ends = torch.special.ndtri(safe)  # of harmless numbers where a row does not count: no NaN flows back
        return ends[:, 0] - ends[:, 1], counted
