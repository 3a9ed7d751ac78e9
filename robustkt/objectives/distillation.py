"""Carrying adversarial robustness from a teacher to a student by its soft labels: ARD, IAD, RSLAD, AdaAD."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from robustkt import losses
from robustkt.core import Batch, Model, Terms, attacking
from robustkt.errors import UsageError
from robustkt.numbers import exact
from robustkt.objectives._inner import Adversarial, near_start, prediction, toward, uniform_start
from robustkt.objectives._replayed import Replayed, taught

__all__ = ["ARD", "IAD", "RSLAD", "AdaAD"]

# ARD's and IAD's released scripts mean to lower the rate at 100 and at 150, but each time from the first rate: once.
# ARD's averages the KL over the ten classes too, as RSLAD's does: kl_scale 0.1.
PRESETS = {
    "rslad-iccv21": {
        "method": "rslad", "kl_scale": 0.1, "steps": 10, "views": None, "epochs": 300, "batch_size": 128, "lr": 0.1,
        "momentum": 0.9, "weight_decay": 2e-4, "decay_norm": True, "schedule": "multistep",
        "milestones": ["215/300", "260/300", "285/300"], "ema": None,
    },
    "rslad-fast": {
        "method": "rslad", "kl_scale": 1.0, "steps": 10, "epochs": 30, "batch_size": 128, "lr": 0.1, "momentum": 0.9,
        "weight_decay": 5e-4, "decay_norm": False, "schedule": "onecycle", "ema": 0.995,
    },
    "ard-aaai20": {
        "method": "ard", "temperature": 30.0, "alpha": 1.0, "kl_scale": 0.1, "steps": 10, "views": None, "epochs": 200,
        "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "decay_norm": True,
        "schedule": "multistep", "milestones": ["100/200"], "ema": None,
    },
    "iad-iclr22": {
        "method": "iad", "temperature": 1.0, "alpha": 1.0, "beta": 0.1, "steps": 10, "views": None, "epochs": 200,
        "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "decay_norm": True,
        "schedule": "multistep", "milestones": ["100/200"], "ema": None,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distilled(Adversarial):
    """The fields of every distillation of adversarial robustness."""

    teacher: Model
    kl_scale: float = 1.0  # factor on the KL terms: 1 = mean over the batch; RSLAD's released script has 0.1


class AdversarialView(NamedTuple):
    """What ARD's and IAD's outer problems are taken on."""

    x_adv: Tensor  # (B, C, H, W)
    target: Tensor  # (B, K), the teacher's logits at the clean images
    trust: Tensor  # (B,), A: how far the teacher is believed; ones in ARD


@dataclass(frozen=True, kw_only=True)
class ARD(Replayed, Distilled):
    """Adversarially robust distillation (1905.09747).

    max_x' CE(S(x'), y) from a uniform start;  min_S α·τ²·KL_τ(T(x)‖S(x')) + (1 − α)·CE(S(x), y).
    """

    temperature: float = 30.0  # τ
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alpha", self.alpha)
        warm(self.temperature)

    def perturb(self, student: Model, batch: Batch) -> AdversarialView:
        """x' and the teacher's logits at x."""
        target = taught(self.teacher, batch, batch.x)
        x_adv = self.maximise(student, batch, lambda z: losses.ce(z, batch.y), uniform_start)
        return AdversarialView(x_adv, target, torch.ones_like(batch.y, dtype=target.dtype))

    def loss(self, student: Model, batch: Batch, view: AdversarialView) -> Terms:
        """{"kl_adv"} and, where α < 1, {"ce"}."""
        taught = tempered(view.target, student(view.x_adv), self.temperature)
        return {
            "kl_adv": self.kl_scale * self.alpha * taught.mean(),
            **hard(1 - self.alpha, student, batch),
        }


@dataclass(frozen=True, kw_only=True)
class IAD(Replayed, Distilled):
    """Introspective adversarial distillation (2106.04928): the teacher is believed as far as it withstands x' itself.

    max_x' CE(S(x'), y) from a uniform start;
    min_S α·τ²·A·KL_τ(T(x)‖S(x')) + α·(1 − A)·KL(S(x)‖S(x')) + (1 − α)·CE(S(x), y),  A = p_T(y|x')^β a row.
    Before `begin_epoch` the teacher is believed wholly: A = 1. Gradients flow through both sides of the second term.
    """

    temperature: float = 1.0  # τ
    alpha: float = 1.0
    beta: float = 0.1
    begin_epoch: int = 9  # 60/200 of a recipe's epochs where it is not given: 9 of the default 30
    weighted: bool = True  # A on the first term, as in the paper; the released code leaves it out

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alpha", self.alpha)
        warm(self.temperature)

    @staticmethod
    def scaled(epochs: int) -> dict[str, int]:
        """The settings that follow the length of the training, the paper's 60 of 200, where they are not given."""
        return {**Replayed.scaled(epochs), "begin_epoch": round(epochs * 60 / 200)}

    def perturb(self, student: Model, batch: Batch) -> AdversarialView:
        """x', the teacher's logits at x, and A."""
        x_adv = self.maximise(student, batch, lambda z: losses.ce(z, batch.y), uniform_start)
        target = taught(self.teacher, batch, batch.x)
        trust = torch.ones_like(batch.y, dtype=target.dtype)
        if batch.epoch >= self.begin_epoch:
            trust = (-self.beta * losses.ce(prediction(self.teacher, x_adv), batch.y)).exp()  # p_T(y|x')^β
        return AdversarialView(x_adv, target, trust)

    def loss(self, student: Model, batch: Batch, view: AdversarialView) -> Terms:
        """{"kl_adv"} and, once they count, {"kl_self", "ce"}."""
        z_adv, trust = student(view.x_adv), view.trust
        taught = tempered(view.target, z_adv, self.temperature)
        terms = {"kl_adv": self.kl_scale * self.alpha * ((trust if self.weighted else 1) * taught).mean()}
        if batch.epoch >= self.begin_epoch:
            own = losses.kl(student(batch.x), z_adv)
            terms["kl_self"] = self.kl_scale * self.alpha * ((1 - trust) * own).mean()
        return {**terms, **hard(1 - self.alpha, student, batch)}


class SoftView(NamedTuple):
    """What RSLAD's outer problem is taken on."""

    x_adv: Tensor  # (B, C, H, W)
    target: Tensor  # (B, K), the teacher's logits at the clean images


@dataclass(frozen=True, kw_only=True)
class RSLAD(Replayed, Distilled):
    """Robust soft label adversarial distillation (2108.07969); no hard label anywhere.

    max_x' KL(T(x)‖S(x')) from x + 0.001·N(0, I), S in eval mode;
    min_S  w·KL(T(x)‖S(x')) + (1 − w)·KL(T(x)‖S(x)), w = 5/6.
    """

    adversarial_weight: Fraction = Fraction(5, 6)  # w

    def __post_init__(self) -> None:
        super().__post_init__()
        share("adversarial_weight", self.adversarial_weight)

    def perturb(self, student: Model, batch: Batch) -> SoftView:
        """x' and the teacher's logits, which see the clean images only."""
        target = taught(self.teacher, batch, batch.x)
        return SoftView(self.maximise(student, batch, toward(target), near_start), target)

    def loss(self, student: Model, batch: Batch, view: SoftView) -> Terms:
        """{"kl_adv", "kl_clean"}."""
        w = float(self.adversarial_weight)
        return {
            "kl_adv": self.kl_scale * w * losses.kl(view.target, student(view.x_adv)).mean(),
            "kl_clean": self.kl_scale * (1 - w) * losses.kl(view.target, student(batch.x)).mean(),
        }


class AdaptiveView(NamedTuple):
    """What AdaAD's outer problem is taken on."""

    x_adv: Tensor  # (B, C, H, W)
    target_adv: Tensor  # (B, K), the teacher's logits at x'
    target: Tensor | None  # (B, K), those at the clean images, where they count


@dataclass(frozen=True, kw_only=True)
class AdaAD(Distilled):
    """Adaptive adversarial distillation (CVPR 2023, Huang et al.): the teacher answers the attack too.

    max_x' KL(T(x')‖S(x')) from x + 0.001·N(0, I), the gradient through both networks;
    min_S α·KL(T(x')‖S(x')) + (1 − α)·KL(T(x)‖S(x)).
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alpha", self.alpha)

    def perturb(self, student: Model, batch: Batch) -> AdaptiveView:
        """x' and the teacher's logits there, and at x where α < 1."""

        def both(x: Tensor) -> Tensor:
            return torch.cat([self.teacher(x), student(x)], dim=1)

        def apart(z: Tensor) -> Tensor:
            return losses.kl(*z.chunk(2, dim=1))

        with attacking(student), attacking(self.teacher):
            x_adv = self.maximise(both, batch, apart, near_start, own=lambda z: z.chunk(2, dim=1)[1])
        target = prediction(self.teacher, batch.x) if self.alpha < 1 else None
        return AdaptiveView(x_adv, prediction(self.teacher, x_adv), target)

    def loss(self, student: Model, batch: Batch, view: AdaptiveView) -> Terms:
        """{"kl_adv"} and, where α < 1, {"kl_clean"}."""
        terms = {"kl_adv": self.kl_scale * self.alpha * losses.kl(view.target_adv, student(view.x_adv)).mean()}
        if view.target is not None:
            clean = losses.kl(view.target, student(batch.x))
            terms["kl_clean"] = self.kl_scale * (1 - self.alpha) * clean.mean()
        return terms


def tempered(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """τ²·KL_τ, shape (B,): both sets of logits (B, K) divided by τ; τ² keeps the gradient's size (1503.02531)."""
    return temperature**2 * losses.kl(target / temperature, logits / temperature)


def hard(weight: float, student: Model, batch: Batch) -> dict[str, Tensor]:
    """The clean cross-entropy with this weight, or nothing where it has none."""
    return {"ce": weight * losses.ce(student(batch.x), batch.y).mean()} if weight > 0 else {}


def share(name: str, value: float | Fraction) -> None:
    """Raise a UsageError unless `value` lies in [0, 1]."""
    if not 0 <= value <= 1:
        told = exact(value) if isinstance(value, Fraction) else value
        raise UsageError(f"{name} is a share of the loss, not {told}", f"Give {name} a value from 0 to 1.")


def warm(temperature: float) -> None:
    """Raise a UsageError unless a temperature is above 0: logits are divided by it."""
    if not temperature > 0:
        raise UsageError(f"temperature must be above 0, not {temperature}", "Leave it out for the default.")
