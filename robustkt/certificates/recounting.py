"""Whether a bound follows from the counts in its row, mode by mode: what can be told without the votes themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from robustkt.certificates import lower_bound
from robustkt.certificates.cohen import randomised_lower_bound
from robustkt.certificates.sequential import LOOKS, anytime_lower_bound, first_stage, log_e, look_sizes, sizes

PRINTED = 2e-9  # bounds are printed to nine decimals, rounded down, and again where a log was read and written again
ROUNDING = 1e-10  # another machine's root finding


@dataclass(frozen=True)
class Procedure:
    """A certification as it was told."""

    mode: str
    n: int
    n0: int
    alpha: float  # of an image
    thresholds: tuple[
        float, ...
    ] = ()  # the probabilities that its radii need, of modes that stop when they are decided


@dataclass(frozen=True)
class Counted:
    """The counts behind a bound, as a log has them."""

    successes: int
    trials: int
    drawn: int
    p_low: float
    u: float | None = None


def follows(row: Counted, procedure: Procedure, u: float | None = None) -> bool:
    """Whether the procedure can have ended with these counts and this bound; `u` is the randomised one's own number.

    Of `fixed`, `randomised` and `adaptive` the bound is that of the counts. `sequential` and `looks` may keep a bound
    of an earlier look, whose counts no log holds: then whether any votes that lead to these counts give it.
    """
    mode, n, n0, alpha = procedure.mode, procedure.n, procedure.n0, procedure.alpha
    if not 0 <= row.successes <= row.trials <= n or (mode == "randomised") != (row.u is not None) or row.u != u:
        return False
    if mode in ("fixed", "randomised"):
        exact = _bound(row.successes, n, alpha) if u is None else _randomised(row.successes, n, alpha, u)
        return (row.trials, row.drawn) == (n, n0 + n) and _is(row.p_low, exact)
    if mode == "adaptive":
        whole = row.trials > 0 and row.drawn == first_stage(n0, n) + row.trials
        return whole and _is(row.p_low, _bound(row.successes, row.trials, alpha))
    looks = tuple(sizes(n)) if mode == "sequential" else look_sizes(n)
    if row.trials not in looks or row.drawn != n0 + row.trials:
        return False
    before = [size for size in looks if size <= row.trials]
    kept = _kept_sequential if mode == "sequential" else _kept_looks
    return kept(row, procedure, before)


def _kept_sequential(row: Counted, procedure: Procedure, looks: Sequence[int]) -> bool:
    """The anytime bound at stopping, Clopper–Pearson at n, or a threshold that was rejected at some look."""
    half = procedure.alpha / 2
    last = _anytime(row.successes, row.trials, half)
    if row.trials == procedure.n:
        last = max(last, _bound(row.successes, procedure.n, half))
    if _is(row.p_low, last):
        return True
    return row.p_low > last and any(
        _is(row.p_low, p) and any(_rejected(min(size, row.successes), size, p, half) for size in looks)
        for p in procedure.thresholds
    )


def _kept_looks(row: Counted, procedure: Procedure, looks: Sequence[int]) -> bool:
    """The largest Clopper–Pearson bound of any look."""
    share = procedure.alpha / len(LOOKS)
    if _is(row.p_low, _bound(row.successes, row.trials, share)):
        return True
    return row.p_low > _bound(row.successes, row.trials, share) and any(
        _some_count(row.p_low, size, max(0, row.successes - (row.trials - size)), min(size, row.successes), share)
        for size in looks[:-1]
    )


def _some_count(p_low: float, trials: int, least: int, most: int, alpha: float) -> bool:
    """Whether a count from `least` to `most` has this bound; bounds grow with counts."""
    while least < most:
        middle = (least + most) // 2
        if _bound(middle, trials, alpha) < p_low - ROUNDING:
            least = middle + 1
        else:
            most = middle
    return _is(p_low, _bound(least, trials, alpha))


def _rejected(successes: int, trials: int, p: float, alpha: float) -> bool:
    evidence = float(log_e(successes, trials, np.array([p]))[0])
    return evidence >= math.log(1 / alpha) - ROUNDING


def _is(printed: float, exact: float) -> bool:
    return -PRINTED - ROUNDING <= printed - exact <= ROUNDING


_bound = cache(lower_bound)
_randomised = cache(randomised_lower_bound)
_anytime = cache(anytime_lower_bound)
