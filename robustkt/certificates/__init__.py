"""Statistics of randomized smoothing: counts in, a certificate out; nothing here ever sees a network."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

Counts = Sequence[int]  # (K,), how many noisy copies fell into each class

# A certifier is a generator: it yields how many fresh noisy copies it wants and is sent their counts, until it returns
# a certificate. So one batch can serve many images at once, and a coin can test it without a network.
Certifying = Generator[int, Counts, "Certificate"]

GRID = 10**6  # radii are rounded down to multiples of 1/GRID


@dataclass(frozen=True)
class Certificate:
    """The label is constant in a ball around the image; wrong with probability at most `alpha`."""

    label: int | None  # None = abstained
    radius: float  # [0, 1] pixel units, rounded down; 0.0 when abstaining
    alpha: float
    n: int  # noisy samples spent, selection included
    successes: int  # nA: copies of the estimation that fell into the selected class
    trials: int  # copies of the estimation
    p_low: float  # lower confidence bound on the selected class's probability
    u: float | None = None  # the uniform number of a randomised bound, drawn before the data


def drive(certifying: Certifying, sample: Callable[[int], Counts]) -> Certificate:
    """Run a certifier against `sample(n) -> counts`."""
    try:
        wanted = next(certifying)
        while True:
            wanted = certifying.send(sample(wanted))
    except StopIteration as done:
        certificate: Certificate = done.value
        return certificate


@functools.lru_cache(maxsize=10_000)  # the counts of many images are the same: all copies, or all but one
def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper–Pearson lower bound on a probability: Beta⁻¹(α; k, n − k + 1), 0 when k is 0."""
    from statsmodels.stats.proportion import proportion_confint

    return float(proportion_confint(successes, trials, alpha=2 * alpha, method="beta")[0]) if successes else 0.0


def round_down(exact: float) -> float:
    """A radius on the grid that is no larger than `exact`, whatever the last digits of a double hold."""
    return max(0.0, math.floor(exact * (1 - 1e-12) * GRID) / GRID)


class Geometry(Protocol):
    """What turns a probability into a radius: a noise (robustkt.noises)."""

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """The exact radius of a lower bound p > ½."""
        ...

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """The probability whose radius it is."""
        ...


@dataclass(frozen=True)
class Ball:
    """Radii in one norm around images of one shape, from the votes under one noise."""

    noise: Geometry
    norm: str
    shape: tuple[int, ...]  # (C, H, W)

    def radius(self, p_low: float) -> float:
        """The radius that a lower bound certifies, rounded down to the grid; 0 up to ½."""
        if p_low <= 0.5:
            return 0.0
        exact = self.noise.radius(p_low, self.norm, self.shape)
        return exact if self.norm == "l0" else round_down(exact)

    def needed(self, radius: float) -> float:
        """The probability that certifies `radius`, rounded up."""
        return min(self.noise.needed(radius, self.norm, self.shape) * (1 + 1e-12), 1 - 1e-15)
