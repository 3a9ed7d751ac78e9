"""Uniform and Laplace noise, whose votes certify L1 balls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from robustkt.streams import Stream

__all__ = ["Laplace", "Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Uniform on [−λ, λ]^d with λ = σ√3: L1 radius 2λ(p − ½) (Lee et al., 1906.04948; Yang et al., 2002.08118)."""

    sigma: Fraction  # standard deviation of a pixel, in [0, 1] units
    norms: ClassVar[tuple[str, ...]] = ("l1",)
    about: ClassVar[str] = "L1: 2λ(p − ½), λ = σ√3."

    @property
    def lam(self) -> float:
        """λ, half the width."""
        return float(self.sigma) * math.sqrt(3)

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """Noise drawn and added in fp32."""
        stream.uniform(out).mul_(2 * self.lam).sub_(self.lam).add_(x)

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """In [0, 1] pixel units, summed over pixels."""
        return 2 * self.lam * (p - 0.5)

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """The inverse, 1 beyond the largest radius λ."""
        return min(1.0, 0.5 + radius / (2 * self.lam))


@dataclass(frozen=True)
class Laplace:
    """Laplace noise of scale λ = σ/√2: L1 radius −λ·ln(2(1 − p)) (Teng et al. 2020; Yang et al., 2002.08118)."""

    sigma: Fraction  # standard deviation of a pixel, in [0, 1] units
    norms: ClassVar[tuple[str, ...]] = ("l1",)
    about: ClassVar[str] = "L1: −λ·ln(2(1 − p)), λ = σ/√2."

    @property
    def lam(self) -> float:
        """λ, the mean distance from 0."""
        return float(self.sigma) / math.sqrt(2)

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """By inversion: the sign and −ln of one uniform number."""
        u = stream.uniform(out).mul_(2).sub_(1)  # [−1, 1)
        size = (1 - u.abs()).clamp_(min=2.0**-24).log_().mul_(-self.lam)
        out.copy_(u.sign_().mul_(size)).add_(x)

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """In [0, 1] pixel units, summed over pixels."""
        return -self.lam * math.log(max(2 * (1 - p), 1e-300))

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """The inverse."""
        return 1 - math.exp(-radius / self.lam) / 2
