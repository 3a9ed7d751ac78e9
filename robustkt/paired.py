"""Two classifiers on the same images: tests of the difference of their shares that keep their level, and their power.

`won` images are right for the new one only, `lost` for the old one only; the difference is (won − lost)/images.
Its score test under a stated difference is Nam's (1997) and Tango's (1998). Its p-value here is the exact
unconditional one (Hsueh, Liu & Chen 2001): the largest over all discordances that the null hypothesis allows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

K = TypeVar("K")
Floats = NDArray[np.float64]

TIE = 1e-9  # scores closer than this are equal
REACH = 9.0  # standard deviations around a mean outside which a binomial has no mass; what is cut off is added
FINE, COARSE = 48, 40  # discordances tried: near either end, a fraction of an image apart, and between them
ZOOMS = 3  # times the surroundings of the largest are looked at more closely
POWER = 0.8  # the customary one


@dataclass(frozen=True)
class Pairs:
    """What two classifiers did on the same images."""

    won: int  # right for the new one only
    lost: int  # right for the old one only
    images: int

    @property
    def difference(self) -> float:
        """Share of the new one minus share of the old one."""
        return (self.won - self.lost) / self.images

    @property
    def flipped(self) -> Pairs:
        """The old one against the new one."""
        return Pairs(self.lost, self.won, self.images)

    @property
    def discordance(self) -> float:
        """Share of images on which they differ, one image more than seen: none seen is not none there."""
        return min(1.0, (self.won + self.lost + 1) / self.images)


def pairs(new: Sequence[bool], old: Sequence[bool]) -> Pairs:
    """Counts of two verdicts on the same images, image by image."""
    both = list(zip(new, old, strict=True))
    return Pairs(sum(n and not o for n, o in both), sum(o and not n for n, o in both), len(both))


# -- the score ---------------------------------------------------------------------------------------------------


def score(won: Any, lost: Any, images: int, difference: float) -> Floats:
    """How many standard errors the seen difference lies above `difference` (Nam 1997; Tango 1998).

    The standard error is the one that the largest likelihood under that difference gives. Arrays of counts give an
    array; 0 where nothing can be seen.
    """
    b, c = np.asarray(won, dtype=np.float64), np.asarray(lost, dtype=np.float64)
    n, d = float(images), difference
    linear = -b - c + (2 * n - b + c) * d
    constant = -c * d * (1 - d)
    root = np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0))
    p_lost = np.maximum((root - linear) / (4 * n), 0.0)
    variance = n * np.maximum(2 * p_lost + d * (1 - d), 0.0)
    gap = b - c - n * d
    seen = np.where(np.abs(gap) <= TIE, 0.0, np.copysign(np.inf, gap))
    return np.divide(gap, np.sqrt(variance), out=seen, where=variance > TIE * TIE)


def interval(counts: Pairs, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's (1998) interval of the difference: those that the two-sided score test does not reject."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def end(sign: int, start: float) -> float:
        inside, outside = start, float(sign)
        if abs(inside - outside) < TIE:
            return outside
        for _ in range(60):
            middle = (inside + outside) / 2
            kept = abs(float(score(counts.won, counts.lost, counts.images, middle))) <= z
            inside, outside = (middle, outside) if kept else (inside, middle)
        return inside

    return end(-1, counts.difference), end(1, counts.difference)


# -- exact tests -------------------------------------------------------------------------------------------------


def p_above(counts: Pairs, difference: float) -> float:
    """P-value of the hypothesis that the true difference is at most `difference`, against a larger one.

    The largest probability, over all discordances that have this difference, of a score at least as large as the seen
    one. The score grows with `won` and falls with `lost`, so that smaller differences give smaller probabilities.
    """
    z = float(score(counts.won, counts.lost, counts.images, difference))
    return _largest(counts.images, difference, z)


def non_inferior(counts: Pairs, margin: float) -> float:
    """P-value of the hypothesis that the new one is worse by at least `margin`; small = it is not."""
    return p_above(counts, -margin)


def shown_loss(counts: Pairs, margin: float = 0.0) -> float:
    """P-value of the hypothesis that the new one has lost at most `margin`; small = it has lost more."""
    if counts.lost - counts.won <= counts.images * margin:
        return 1.0  # nothing speaks for it, and nobody asks how little
    return p_above(counts.flipped, margin)


def lower_bound(counts: Pairs, alpha: float, margin: float) -> float:
    """A difference that the true one exceeds with probability 1 − `alpha`: the exact test of it is the first to reject.

    It lies at or above −`margin` exactly if `non_inferior` is at most `alpha`. Exact p-values rise with the difference
    but for small steps back, so that the bound is good to about a tenth of an image's share.
    """
    if non_inferior(counts, margin) <= alpha:
        rejected, kept = -margin, min(1.0, max(counts.difference, -margin) + TIE)
    else:
        rejected, kept = -1.0, -margin
    while kept - rejected > 1e-5:
        middle = (rejected + kept) / 2
        if p_above(counts, middle) <= alpha:
            rejected = middle
        else:
            kept = middle
    return rejected


def mcnemar(counts: Pairs) -> float:
    """Two-sided exact p-value of no difference: each discordant image a fair coin (McNemar 1947)."""
    from scipy.special import bdtr

    discordant, fewer = counts.won + counts.lost, min(counts.won, counts.lost)
    return min(1.0, 2 * float(bdtr(fewer, discordant, 0.5))) if discordant else 1.0


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """P-values adjusted so that taking those up to α claims one wrongly with probability at most α (Holm 1979).

    Holds however the tests depend on each other.
    """
    adjusted: dict[K, float] = {}
    largest = 0.0
    for i, key in enumerate(sorted(p_values, key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[key]))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


@functools.lru_cache(maxsize=4096)
def _largest(images: int, difference: float, z: float) -> float:
    """The largest probability of a score of at least `z` over the discordances that allow `difference`."""
    needed = _thresholds(images, difference, z)
    low, high = max(0.0, -difference), (1 - difference) / 2
    if high - low < TIE:
        return _tail(images, difference, low, needed)
    steps = np.arange(FINE) / images  # the counts' steps show where few images are discordant, or few are not
    between = low + (high - low) * np.linspace(0.0, 1.0, COARSE) ** 2
    places = np.concatenate([low + steps * 2 / 3, high - steps / 4, between])
    tried = {float(p): _tail(images, difference, float(p), needed) for p in places if low <= p <= high}
    for _ in range(ZOOMS):
        order = sorted(tried)
        best = max(range(len(order)), key=lambda i: tried[order[i]])
        left, right = order[max(best - 1, 0)], order[min(best + 1, len(order) - 1)]
        for p in np.linspace(left, right, 8)[1:-1]:
            tried[float(p)] = _tail(images, difference, float(p), needed)
    return min(1.0, max(tried.values()))


def _thresholds(images: int, difference: float, z: float) -> NDArray[np.int64]:
    """For each number of lost images the fewest won ones that give a score of at least `z`; images + 1 for none."""
    lost = np.arange(images + 1)
    low, high = np.zeros(images + 1, dtype=np.int64), images - lost + 1
    while np.any(low < high):
        middle = (low + high) // 2
        enough = score(np.minimum(middle, images - lost), lost, images, difference) >= z - TIE
        enough |= middle > images - lost
        low, high = np.where(enough, low, np.minimum(middle + 1, high)), np.where(enough, middle, high)
    return np.where(low > images - lost, images + 1, low)


def _tail(images: int, difference: float, p_lost: float, needed: NDArray[np.int64]) -> float:
    """The probability of at least `needed[lost]` won images when images are lost with p_lost, won with that + δ."""
    from scipy.special import betainc, gammaln, xlog1py, xlogy

    p_won = min(max(p_lost + difference, 0.0), 1 - p_lost)
    spread = REACH * math.sqrt(images * p_lost * (1 - p_lost)) + REACH**2 / 2
    first, last = max(0, math.floor(images * p_lost - spread)), min(images, math.ceil(images * p_lost + spread))
    lost = np.arange(first, last + 1)
    ways = gammaln(images + 1) - gammaln(lost + 1) - gammaln(images - lost + 1)
    mass = np.exp(ways + xlogy(lost, p_lost) + xlog1py(images - lost, -p_lost))
    wanted, rest = needed[lost], images - lost
    some = (wanted >= 1) & (wanted <= rest)
    share = min(1.0, p_won / (1 - p_lost)) if p_lost < 1 else 0.0
    enough = np.where(wanted < 1, 1.0, 0.0)
    enough[some] = betainc(wanted[some], rest[some] - wanted[some] + 1, share)
    return float(mass @ enough) + max(0.0, 1 - float(mass.sum()))


# -- planning ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def critical(images: int, difference: float, alpha: float) -> float:
    """The smallest score, to 1/1000, at which the exact test of `difference` rejects at level `alpha`."""
    low, high = 0.0, 2.0 * NormalDist().inv_cdf(1 - alpha) + 4
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if _largest(images, difference, middle) <= alpha else (middle, high)
    return high


def power(images: int, discordance: float, margin: float, alpha: float, difference: float = 0.0) -> float:
    """Probability that the exact test shows non-inferiority by `margin` when the true difference is `difference`.

    Of `images` images the two differ on a share `discordance`.
    """
    needed = _thresholds(images, -margin, critical(images, -margin, alpha))
    discordance = max(discordance, abs(difference))
    return min(1.0, _tail(images, difference, (discordance - difference) / 2, needed))


def images_needed(discordance: float, margin: float, alpha: float, wanted: float = POWER) -> int:
    """About how many images let an equally good model pass with probability `wanted` (the formula of Nam 1997)."""
    a, b = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(wanted)
    half = discordance / 2
    linear = -discordance - 2 * margin  # of the likelihood's equation, divided by n, at the true shares
    restricted = (math.sqrt(max(linear**2 - 8 * half * margin * (1 + margin), 0.0)) - linear) / 4
    null = 2 * restricted - margin * (1 + margin)
    needed = ((a * math.sqrt(null) + b * math.sqrt(discordance)) / margin) ** 2
    return math.ceil(max(needed, math.log(alpha) / math.log1p(-margin)))


def resolution(images: int, discordance: float, alpha: float, margin: float = 0.0, wanted: float = POWER) -> float:
    """The smallest true loss that the exact test shows to exceed `margin` with probability `wanted`; 1 = none.

    Of the images the two differ on a share `discordance`, or on all that are lost where that is more.
    """
    needed = _thresholds(images, margin, critical(images, margin, alpha))
    low, high = margin, 1.0
    while high - low > 1e-5:
        loss = (low + high) / 2
        seen = _tail(images, loss, (max(discordance, loss) - loss) / 2, needed) >= wanted
        low, high = (low, loss) if seen else (loss, high)
    return high
