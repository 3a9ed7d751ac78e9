"""Which (n, α) a log was made with: an honest radius is σ·Φ⁻¹ of the Clopper–Pearson bound of a whole count."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SIZES = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
ALPHAS = (0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001, 1e-5)

EXACT = 512  # failures up to which each count's bound is computed; beyond, a spline in their logarithm is as good
RATIO = 1.004  # between the spline's nodes: errors below 1e-11
ODDS_OFF = math.log(1e-3)  # how unlikely an off-lattice radius is in a log that was made so
ODDS_FIELD = 2.0  # in favour of the field's α = .001, in nats
ODDS_CLAIM = 5.0  # in favour of what is claimed
CLOSE = 5.0  # candidates within so many nats of the best fit as well
MISFIT = 0.25  # share of off-lattice radii above which nothing fits


@dataclass(frozen=True)
class Printing:
    """How a log prints its radii: so many decimals, or so many significant digits."""

    digits: int
    fixed: bool

    def __str__(self) -> str:
        return f"{self.digits} {'decimals' if self.fixed else 'significant digits'}"


@dataclass(frozen=True)
class Radii:
    """The distinct positive radii of a log, ascending."""

    values: Floats  # (V,) as printed
    units: Floats  # (V,) the last printed place
    rows: NDArray[np.int64]  # (V,) how many images have it
    printing: Printing


@dataclass(frozen=True)
class Fit:
    """How well one (n, α) explains a log."""

    n: int
    alpha: float
    score: float  # nats; only differences mean something
    nearest: bool  # printed to the nearest, else rounded down
    above: Bools  # (V,) larger than what n successes of n give
    off: Bools  # (V,) what no count gives, though not above
    up: Bools  # (V,) every count that prints so has a smaller radius: an over-claim
    pile: int  # images with the largest possible radius
    largest: float  # that radius, unrounded

    def misfits(self, radii: Radii) -> int:
        """Images whose radius this (n, α) cannot give."""
        return int(radii.rows[self.off | self.above].sum())


def gather(printed: Sequence[str]) -> Radii | None:
    """The distinct positive radii among printed ones, with how they are printed; None when there are none."""
    counts = Counter(text for text in printed if float(text) > 0)
    if not counts:
        return None
    printing = _printing(counts)
    found: dict[float, tuple[float, int]] = {}
    for text, rows in counts.items():
        value = float(text)
        decimals, _ = places(text)
        place = printing.digits if printing.fixed else printing.digits - 1 - math.floor(math.log10(value))
        unit = 10.0 ** -max(place, decimals)  # `1.2` beside `0.123` is 1.20; a longer one than the others is exacter
        before = found.get(value, (unit, 0))
        found[value] = (min(unit, before[0]), before[1] + rows)
    values = np.array(sorted(found))
    units = np.array([found[v][0] for v in values.tolist()])
    return Radii(values, units, np.array([found[v][1] for v in values.tolist()]), printing)


def places(text: str) -> tuple[int, int]:
    """Decimals and significant digits of a printed number: `3.63e-05` has 7 and 3."""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, part = mantissa.lstrip("+-").partition(".")
    return max(0, len(part) - int(exponent or 0)), len((whole + part).lstrip("0"))


def _printing(counts: Counter[str]) -> Printing:
    """The commonest number of decimals or of significant digits, whichever more of the radii share."""
    decimals: Counter[int] = Counter()
    significant: Counter[int] = Counter()
    for text, rows in counts.items():
        after, digits = places(text)
        decimals[after] += rows
        significant[digits] += rows
    (after, share), (digits, other) = decimals.most_common(1)[0], significant.most_common(1)[0]
    return Printing(after, True) if share >= other else Printing(digits, False)


def bounds(successes: Floats, trials: Floats | float, alpha: float) -> Floats:
    """`certificates.lower_bound` of many counts at once: Beta⁻¹(α; k, n − k + 1), 0 where k is 0."""
    from scipy.special import betaincinv

    k = np.maximum(successes, 0.5)  # k = 0 has no Beta
    found: Floats = np.where(successes > 0, betaincinv(k, trials - k + 1, alpha), 0.0)
    return found


@functools.lru_cache(maxsize=len(SIZES) * len(ALPHAS))  # 53 MB when all are asked for
def lattice(n: int, alpha: float) -> Floats:
    """The radii over σ that counts of n draws can give, ascending, the positive ones; (up to n/2,), not to be changed.

    Every log is fitted by all of them.
    """
    from scipy.interpolate import CubicSpline
    from scipy.special import ndtri

    most = n - n // 2  # failures; with more the bound is below ½
    failures = np.arange(min(most, EXACT) + 1, dtype=np.float64)
    radii = ndtri(bounds(n - failures, float(n), alpha))
    if most > EXACT:
        steps = math.ceil(math.log(most / EXACT) / math.log(RATIO)) + 4
        nodes = np.geomspace(EXACT / RATIO, most, steps)
        spline = CubicSpline(np.log(nodes), ndtri(bounds(n - nodes, float(n), alpha)))
        rest = spline(np.log(np.arange(EXACT + 1, most + 1, dtype=np.float64)))
        radii = np.concatenate([radii, rest])
    found: Floats = radii[radii > 0][::-1].copy()
    found.flags.writeable = False
    return found


def fit(radii: Radii, sigma: float, n: int, alpha: float) -> Fit | None:
    """How well (n, α) explains the radii, for the better of the two ways of rounding; None if it certifies nothing."""
    grid = sigma * lattice(n, alpha)
    if not len(grid):
        return None
    down, nearest = _rounded(radii, grid, n, alpha, False), _rounded(radii, grid, n, alpha, True)
    return min(down, nearest, key=lambda f: (f.misfits(radii), -f.score))  # rounding down, when both fit as well


def _rounded(radii: Radii, grid: Floats, n: int, alpha: float, nearest: bool) -> Fit:
    values, units = radii.values, radii.units
    # a log with so many digits may come from single precision
    slack = 1e-9 + np.where(units < 1e-6, 2.4e-7 * values, 0.0)
    low = values - (units / 2 if nearest else 0.0) - slack
    high = values + (units / 2 if nearest else units) + slack
    start, stop = np.searchsorted(grid, low, "left"), np.searchsorted(grid, high, "right")
    hits = stop - start
    above = low > grid[-1]
    off = (hits == 0) & ~above
    top = (low <= grid[-1]) & (grid[-1] <= high)
    highest = grid[np.clip(stop - 1, 0, None)]
    up = (hits > 0) & (highest < values - slack)
    # What is expected of a radius that owes nothing to the lattice: the finer the printing, the more a hit says.
    at = np.clip(np.searchsorted(grid, values), 1, max(1, len(grid) - 2))
    spacing = (grid[np.clip(at + 1, 0, len(grid) - 1)] - grid[at - 1]) / 2 if len(grid) > 1 else grid
    gain = np.where(hits > 0, np.log(np.maximum(hits, 1) * spacing / (high - low)), ODDS_OFF)
    gain = np.where(top, 0.0, gain)
    score = float((gain * radii.rows).sum()) + sum(_pile(radii.rows, int(i)) for i in np.flatnonzero(top))
    pile = int(radii.rows[top].sum())
    return Fit(n, alpha, score, nearest, above, off, up, pile, float(grid[-1]))


def _pile(rows: NDArray[np.int64], place: int) -> float:
    """How much more of the images have this radius than the five below it: they gather at the largest possible one."""
    around = max(1.0, float(rows[max(0, place - 5) : place].mean()) if place else 1.0)
    return max(0.0, float(rows[place]) * math.log(rows[place] / around))


def infer(
    radii: Radii,
    sigma: float,
    *,
    sizes: Collection[int] = (),
    alphas: Collection[float] = (),
    claim: tuple[int | None, float | None] = (None, None),
) -> list[Fit]:
    """Every (n, α) that explains the radii, the best first; those within CLOSE nats of it fit as well.

    A candidate loses for each radius that none of its counts gives, and wins for each that hits a place where its
    lattice is sparse and for images gathering at its largest radius. Empty when the best leaves a quarter unexplained.

    Args:
        radii: of the log.
        sigma: of the noise, in the radii's unit.
        sizes: further n to try.
        alphas: further α.
        claim: the n and α that the log claims; they are believed where the radii do not tell.
    """
    from scipy.special import ndtri

    found = []
    for n in sorted({*SIZES, *sizes}):
        for alpha in sorted({*ALPHAS, *alphas}, reverse=True):
            largest = sigma * float(ndtri(alpha ** (1 / n)))  # what n of n give; spares most of the small lattices
            if radii.rows[radii.values - radii.units > largest + 1e-6 * radii.values].sum() > MISFIT * radii.rows.sum():
                continue
            one = fit(radii, sigma, n, alpha)
            if one is not None and one.misfits(radii) <= MISFIT * radii.rows.sum():
                claimed = any(c is not None for c in claim) and claim[0] in (None, n) and claim[1] in (None, alpha)
                found.append((one.score + ODDS_FIELD * (alpha == 0.001) + ODDS_CLAIM * claimed, one))
    found.sort(key=lambda pair: -pair[0])
    return [Fit(**{**vars(one), "score": score}) for score, one in found]


def equals(fits: Sequence[Fit]) -> list[Fit]:
    """The best of `infer`'s answer and those that fit as well."""
    return [one for one in fits if one.score >= fits[0].score - CLOSE]
