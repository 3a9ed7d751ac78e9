"""Gaussian noise, drawn as floats or on the grid of pixel values; certifies L2 balls and what contains in them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustkt.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from robustkt.streams import Stream

__all__ = ["Gaussian", "Quantised"]

LEVELS = 255  # pixel values are k/255
REACH = 8  # quantised noise ends at so many σ; the mass beyond, 1e-15, is counted against the certificate
ROUNDING = 4e-16  # error of a double in [0, 1] after one function of scipy's, generously


@dataclass(frozen=True)
class Gaussian:
    """N(0, σ² I), unclipped: L2 radius σ·Φ⁻¹(p) (1902.02918); L∞ and Lq by the largest ball inside the L2 ball."""

    sigma: Fraction  # in [0, 1] pixel units
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf", "lq")
    about: ClassVar[str] = "L2: σ·Φ⁻¹(p). L∞: that / √d. Lq, q > 2: that / d^(1/2 − 1/q), as --norm l4."

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """Noise drawn and added in fp32."""
        stream.normal(out).mul_(float(self.sigma)).add_(x)

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """In [0, 1] pixel units."""
        from scipy.special import ndtri

        return float(self.sigma) * float(ndtri(p)) / shrink(norm, shape)

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """Φ of the radius over σ."""
        from scipy.special import ndtr

        return float(ndtr(radius * shrink(norm, shape) / float(self.sigma)))


@dataclass(frozen=True)
class Quantised:
    """N(0, σ² I) rounded to the grid of pixel values k/255, drawn with integers: sound in floating point.

    Voráček and Hein, ICLR 2023. An image on the grid plus continuous noise, rounded to the grid, is the image plus
    rounded noise; so the certificate of 1902.02918 holds for the network behind the rounding, and all that the
    network sees is an integer number of grey levels. Integers of 60 bits are compared with thresholds; support beyond
    8σ is cut off. The total variation between what is drawn and the ideal noise is counted on both sides.
    """

    sigma: Fraction  # in [0, 1] pixel units
    norms: ClassVar[tuple[str, ...]] = Gaussian.norms
    about: ClassVar[str] = Gaussian.about

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """Whole grey levels added as integers, then divided by 255.

        Raises:
            UsageError: the image is not on the grid.
        """
        levels = (x * LEVELS).round()
        if not bool((levels / LEVELS - x).abs().max() < 1e-6):
            raise UsageError("quantised noise needs images of 8 bits a channel", "Take --noise gaussian for others.")
        noise = rounded_normal(float(self.sigma), stream.integers(out.numel())).view(out.shape)
        out.copy_(noise.add_(levels.to(noise.dtype))).div_(LEVELS)

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """As for continuous noise, less what drawing loses in each of the two images."""
        from scipy.special import ndtri

        loss = self._loss(shape)
        if p - loss <= 0.5 + loss:
            return 0.0
        return float(self.sigma) * float(ndtri(p - loss) - ndtri(0.5 + loss)) / shrink(norm, shape)

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """The inverse, rounded up by what drawing loses."""
        from scipy.special import ndtr, ndtri

        loss = self._loss(shape)
        exact = float(ndtr(radius * shrink(norm, shape) / float(self.sigma) + ndtri(0.5 + loss)))
        return min(1.0, exact + loss)

    def _loss(self, shape: tuple[int, ...]) -> float:
        """The largest difference of any event's probability, over all pixels of an image."""
        from scipy.special import ndtr

        thresholds = 2 * support(float(self.sigma))
        return math.prod(shape) * (2 * float(ndtr(-REACH)) + thresholds * (2 * ROUNDING + 2.0**-60))


def shrink(norm: str, shape: tuple[int, ...]) -> float:
    """By what an L2 radius is divided for the largest ball of another norm inside: d^(1/2 − 1/q)."""
    q = math.inf if norm == "linf" else float(norm[1:])
    divisor: float = math.prod(shape) ** (0.5 - 1 / q)
    return divisor


def support(sigma: float) -> int:
    """The most grey levels that quantised noise moves a pixel."""
    return math.ceil(REACH * sigma * LEVELS)


@functools.lru_cache(maxsize=4)
def thresholds(sigma: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """(2·support,) int64: a uniform 60-bit integer u falls into grey level (how many of these are ≤ u) − support."""
    from scipy.special import ndtr

    largest, whole = support(sigma), 2**60
    steps = (np.arange(largest) + 0.5) / (sigma * LEVELS)  # upper edges of levels 0, 1, …
    above = [round(float(share) * whole) for share in ndtr(-steps)]
    return np.array([*above[::-1], *(whole - count for count in above)], dtype=np.int64)


def rounded_normal(sigma: float, integers: Tensor) -> Tensor:
    """Normal noise of deviation `sigma` (in [0, 1] pixel units) in whole grey levels, from integers below 2^60."""
    import torch

    edges = torch.from_numpy(thresholds(sigma)).to(integers.device)
    return torch.searchsorted(edges, integers, right=True).sub_(support(sigma))
