"""Training several modes of one backbone at once: each domain goes through adapters of its own.

The loss is Σ_d w_d·loss(f_d(a_d(x)), target_d), where f_d is the network through the adapter of domain d. All domains
go through one concatenated forward pass, and every attack through the adapter that it trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from robustkt import losses
from robustkt.catalog import unknown
from robustkt.core import Batch, Model, Terms
from robustkt.errors import UsageError
from robustkt.generation import DOMAIN, NOISY
from robustkt.mixture import CLEAN, ROBUST
from robustkt.modes import through
from robustkt.numbers import exact, noise_level
from robustkt.objectives._inner import Adversarial, near_start, toward, uniform_start
from robustkt.objectives._modal import Modal
from robustkt.objectives._noise import noises
from robustkt.objectives._replayed import taught
from robustkt.objectives.distillation import RSLAD, SoftView, share

__all__ = ["CoTraining", "DualRSLAD", "SigmaAdapters"]

PRESETS = {
    "advprop-cvpr20": {
        "method": "cotraining", "adapter": "dualbatchnorm", "serves": "clean", "alpha": 0.5, "eps": "4/255", "steps": 5,
        "step_size": "1/255",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CoTraining(Modal, Adversarial):
    """Co-training on clean and adversarial images with adapters (2210.04886); AdvProp (1911.09665) by its preset.

    max_x' CE(f_robust(x'), y) from a uniform start;  min_f (1 − α)·CE(f_clean(x), y) + α·CE(f_robust(x'), y).
    """

    alpha: float = 0.5  # weight of the adversarial images
    serves: str = ROBUST  # the default mode, by which epochs are selected; clean in AdvProp

    def __post_init__(self) -> None:
        Modal.__post_init__(self)
        Adversarial.__post_init__(self)
        share("alpha", self.alpha)
        if self.serves not in (CLEAN, ROBUST):
            raise unknown("mode to serve", self.serves, [CLEAN, ROBUST])

    @property
    def domains(self) -> tuple[str, ...]:
        """Clean images and adversarial ones; the last is the default mode."""
        return (CLEAN, ROBUST) if self.serves == ROBUST else (ROBUST, CLEAN)

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x' (B, C, H, W), through the robust adapter."""
        with through(student, ROBUST):
            return self.maximise(student, batch, lambda z: losses.ce(z, batch.y), uniform_start)

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce_clean", "ce_adv"}."""
        z, z_adv = both(student, batch.x, view)
        return {
            "ce_clean": (1 - self.alpha) * losses.ce(z, batch.y).mean(),
            "ce_adv": self.alpha * losses.ce(z_adv, batch.y).mean(),
        }


@dataclass(frozen=True, kw_only=True)
class DualRSLAD(Modal, RSLAD):
    """RSLAD (2108.07969) into a student with two modes (adapters of 2210.04886): soft labels for both.

    max_x' KL(T(x)‖S_robust(x')) from x + 0.001·N(0, I);
    min_S  w·KL(T(x)‖S_robust(x')) + (1 − w)·KL(T(x)‖S_clean(x)), w = 1/2.
    """

    adversarial_weight: Fraction = Fraction(1, 2)  # w; the modes do not compete, so they weigh the same

    def __post_init__(self) -> None:
        Modal.__post_init__(self)
        RSLAD.__post_init__(self)

    @property
    def domains(self) -> tuple[str, ...]:
        """Clean images and adversarial ones; the last is the default mode."""
        return (CLEAN, ROBUST)

    def perturb(self, student: Model, batch: Batch) -> SoftView:
        """x' and the teacher's logits, which see the clean images only."""
        target = taught(self.teacher, batch, batch.x)
        with through(student, ROBUST):
            return SoftView(self.maximise(student, batch, toward(target), near_start), target)

    def loss(self, student: Model, batch: Batch, view: SoftView) -> Terms:
        """{"kl_adv", "kl_clean"}."""
        w = float(self.adversarial_weight)
        z, z_adv = both(student, batch.x, view.x_adv)
        return {
            "kl_adv": self.kl_scale * w * losses.kl(view.target, z_adv).mean(),
            "kl_clean": self.kl_scale * (1 - w) * losses.kl(view.target, z).mean(),
        }


@dataclass(frozen=True, kw_only=True)
class SigmaAdapters(Modal):
    """One backbone for several levels of Gaussian noise, an adapter each (1902.02918 with adapters of 2210.04886).

    min_f mean_σ CE(f_σ(x + δ_σ), y), δ_σ ~ N(0, σ² I).
    """

    sigma: Fraction  # of the default mode
    sigmas: str = "0.12,0.25,0.5"  # of all modes, the default one's among them

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = next((exact(level) for level in self.levels if not DOMAIN.fullmatch(named(level))), None)
        if odd is not None:
            raise UsageError(f"σ {odd} is no short decimal, and a mode is called by its σ", "Take one such as 0.25.")
        object.__setattr__(self, "sigmas", ",".join(exact(level) for level in sorted(self.levels)))  # one spelling
        if len(set(self.levels)) < len(self.levels) or self.sigma not in self.levels:
            raise UsageError(
                f"sigmas {self.sigmas} must name every level once, {exact(self.sigma)} among them",
                f"Write --set sigmas=0.12,{exact(self.sigma)}, say.",
            )

    @cached_property
    def levels(self) -> tuple[Fraction, ...]:
        """The noise levels, rising, that of the default mode last."""
        return tuple(sorted(map(noise_level, self.sigmas.split(",")), key=lambda level: (level == self.sigma, level)))

    @property
    def draws(self) -> int:
        """Noisy copies of an image: one a level."""
        return len(self.levels)

    @property
    def domains(self) -> tuple[str, ...]:
        """`sigma0.25` …; the last is the default mode."""
        return tuple(named(level) for level in self.levels)

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """x + δ_σ for each level (levels·B, C, H, W), unclipped, in the order of the domains."""
        return torch.cat([batch.x + noises(batch, level, 1)[0] for level in self.levels])

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce_σ"} for each level."""
        with through(student, *self.domains):
            logits = student(view).chunk(len(self.domains))
        parts = zip(self.domains, logits, strict=True)
        return {f"ce_{domain}": losses.ce(z, batch.y).mean() / len(logits) for domain, z in parts}


def both(student: Model, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K) at the clean images in the clean mode, at the adversarial ones in the robust mode; one pass."""
    with through(student, CLEAN, ROBUST):
        z, z_adv = student(torch.cat([x, x_adv])).chunk(2)
    return z, z_adv


def named(level: Fraction) -> str:
    """The domain of a noise level."""
    return f"{NOISY}{exact(level)}"
