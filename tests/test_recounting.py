"""Honest rows of every mode follow from their counts, rows that claim more do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from robustkt import certlog
from robustkt.catalog import CERTIFIERS
from robustkt.certificates import drive, lower_bound
from robustkt.certificates.recounting import Counted, Procedure, follows
from robustkt.certificates.sequential import LOOKS, look_sizes, sizes
from tests.conftest import l2

BALL, ALPHA, N, N0 = l2(0.25), 0.001, 1_000, 50
RADII = (0.0, 0.1, 0.2, 0.3)
THRESHOLDS = tuple(BALL.needed(r) for r in RADII)
MODES = CERTIFIERS.names()


def told(mode: str, n: int = N) -> Procedure:
    stops = mode in ("sequential", "looks")
    return Procedure(mode, n, N0, ALPHA, THRESHOLDS if stops else ())


def honest(mode: str, p: float, seed: int, n: int = N) -> Counted:
    """What a certification of a coin leaves in its log, written and read twice as a job of several processes does."""
    rng = np.random.default_rng(seed)
    more: dict[str, Any] = {"radii": list(RADII)} if mode in ("sequential", "looks") else {}
    more |= {"u": (seed % 10 + 1) / 10} if mode == "randomised" else {}

    def sample(count: int) -> list[int]:
        first = int(rng.binomial(count, p))
        return [first, count - first]

    made = drive(CERTIFIERS.get(mode)(ball=BALL, alpha=ALPHA, n0=N0, n=n, **more), sample)
    rows = [certlog.Row.of(0, 0, made)]
    for _ in range(2):
        rows = certlog.parse(certlog.text(rows))
    (row,) = rows
    return Counted(row.successes, row.trials, row.drawn, row.p_low, row.u)


@pytest.mark.parametrize("mode", MODES)
def test_honest_rows_follow(mode: str) -> None:
    shares = [0.0, 0.1, 0.49, 0.52, 0.6, 0.75, 0.9, 0.97, 0.999, 1.0]
    rows = [honest(mode, p, seed) for p in shares for seed in range(4)]
    assert all(follows(row, told(mode), row.u) for row in rows)
    assert len({row.p_low for row in rows}) > 20


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.6, 0.8, 0.95])
def test_rows_that_claim_more_do_not(mode: str, p: float) -> None:
    row = honest(mode, p, 3)
    assert follows(row, told(mode), row.u)
    higher = lower_bound(row.trials, row.trials, ALPHA)
    forged = [
        replace(row, p_low=row.p_low + 1e-6),
        replace(row, p_low=min(higher, row.p_low + 0.01)),
        replace(row, p_low=0.999_9),
        replace(row, successes=row.successes - 20),
        replace(row, successes=row.trials + 1),
        replace(row, drawn=row.drawn - 1),
        replace(row, trials=row.trials - 1, drawn=row.drawn - 1),
        replace(row, u=0.25 if row.u is None else None),
    ]
    assert [one for one in forged if follows(one, told(mode), row.u)] == []
    assert not follows(row, replace(told(mode), alpha=ALPHA / 10), row.u)
    assert not follows(row, told(mode, 2 * N), row.u) or mode in ("adaptive", "sequential")


def test_nobody_chooses_the_number_of_a_randomised_bound() -> None:
    row = honest("randomised", 0.8, 4)
    assert row.u == 0.5
    assert follows(row, told("randomised"), 0.5)
    assert not follows(row, told("randomised"), 0.1)


def test_a_bound_may_be_one_of_an_earlier_look() -> None:
    """Nearly all of the first copies and half of the others: the bound before stands."""
    *_, before, last = look_sizes(N)
    share = ALPHA / len(LOOKS)
    early = lower_bound(before - 5, before, share)
    row = Counted(before - 5 + (last - before) // 2, last, N0 + last, math.floor(early * 1e9) / 1e9)
    assert lower_bound(row.successes, last, share) < early
    assert follows(row, told("looks"))
    reachable = lower_bound(before, before, share)
    assert not follows(replace(row, p_low=reachable + 1e-6), told("looks"))
    trials = list(sizes(N))[3]
    kept = Counted(trials - 40, trials, N0 + trials, THRESHOLDS[2])
    assert follows(kept, told("sequential"))
    assert not follows(replace(kept, p_low=(THRESHOLDS[1] + THRESHOLDS[2]) / 2), told("sequential"))
    assert not follows(replace(kept, successes=20), told("sequential"))
