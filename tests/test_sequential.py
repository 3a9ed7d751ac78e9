"""Sequential certificates with coins: error rates at every moment, draws saved, the e-process by integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import integrate, stats

from robustkt.certificates import drive, lower_bound
from robustkt.certificates.cohen import fixed
from robustkt.certificates.sequential import (
    LOOKS,
    adaptive,
    anytime_lower_bound,
    log_e,
    looks,
    sequential,
    sizes,
)
from tests.conftest import l2

ALPHA = 0.001
RADII = [0.25, 0.5, 0.75, 1.0]


def coin(p: float, seed: int = 0) -> Callable[[int], list[int]]:
    rng = np.random.default_rng(seed)
    return lambda n: [hit := int(rng.binomial(n, p)), n - hit]


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (10, 10), (3, 10), (0, 10), (90, 100), (55, 100), (100, 100)])
@pytest.mark.parametrize("p0", [0.5, 0.69, 0.9])
def test_the_e_process_is_its_integral(hits: int, n: int, p0: float) -> None:
    """The mixture of likelihood ratios over Jeffreys' prior, cut off at p0, by numerical integration."""

    def ratio(angle: float) -> float:
        """The likelihood ratio at q = sin² of the angle, in which Jeffreys' prior is uniform."""
        q = math.sin(angle) ** 2
        return (q / p0) ** hits * ((1 - q) / (1 - p0)) ** (n - hits)

    low, high = math.asin(math.sqrt(p0)), math.pi / 2
    above = integrate.quad(ratio, low, high, epsabs=0, epsrel=1e-12, limit=500)[0]
    assert float(log_e(hits, n, np.array([p0]))[0]) == pytest.approx(math.log(above / (high - low)), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(100, 128), (128, 128), (1_000, 1_100), (60, 128), (99_000, 100_000), (0, 50)])
def test_evidence_falls_with_the_null(hits: int, n: int) -> None:
    """So the nulls are nested, and one family serves all radii."""
    values = log_e(hits, n, np.linspace(0.001, 0.9999, 3_000))
    assert (np.diff(values[np.isfinite(values)]) <= 1e-9).all()


@pytest.mark.parametrize(("hits", "n"), [(70, 100), (990, 1_000), (1_000, 1_000), (99_999, 100_000), (52, 100)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_anytime_bound_inverts_the_e_process(hits: int, n: int, alpha: float) -> None:
    bound = anytime_lower_bound(hits, n, alpha)
    rejected, kept = log_e(hits, n, np.array([bound - 1e-7, bound + 1e-7]))
    assert rejected >= math.log(1 / alpha) - 1e-4
    assert kept < math.log(1 / alpha) + 1e-4
    assert 0 < bound < lower_bound(hits, n, alpha)  # the price of looking at any time


def test_bounds_of_nothing() -> None:
    assert anytime_lower_bound(0, 0, ALPHA) == 0
    assert anytime_lower_bound(0, 100, ALPHA) == 0
    assert 0 <= anytime_lower_bound(1, 100_000, ALPHA) < 1e-5


@pytest.mark.parametrize("radius", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_nobody_who_watches_every_look_is_wrong_more_often_than_alpha(radius: float, alpha: float) -> None:
    """10⁵ coins exactly at a threshold; whoever stops at the worst moment is still within alpha (Ville)."""
    coins, p0, sigma = 100_000, stats.norm.cdf(radius / 0.5), 0.5
    assert stats.norm.ppf(p0) * sigma == pytest.approx(radius)
    rng, hits, drawn = np.random.default_rng(1), np.zeros(coins, dtype=np.int64), 0
    wrong = np.zeros(coins, dtype=bool)
    for size in sizes(2_000):
        hits += rng.binomial(size - drawn, p0, size=coins)
        drawn = size
        possible, place = np.unique(hits, return_inverse=True)
        wrong |= (log_e(possible, drawn, np.array(p0)) >= math.log(1 / alpha))[place]
    assert stats.binomtest(int(wrong.sum()), coins, alpha, alternative="greater").pvalue > 1e-4
    assert wrong.any()  # and it does happen


def test_five_looks_are_wrong_no_more_often_than_alpha() -> None:
    """10⁵ coins at a threshold, all five looks taken by one who stops where it suits him."""
    coins, p0, alpha, n = 100_000, stats.norm.cdf(0.5), 0.05, 1_000
    rng, hits, drawn, wrong = np.random.default_rng(2), np.zeros(coins, dtype=np.int64), 0, np.zeros(coins, dtype=bool)
    for size in sorted({max(1, round(part * n)) for part in LOOKS}):
        hits += rng.binomial(size - drawn, p0, size=coins)
        drawn = size
        bounds = {int(k): lower_bound(int(k), drawn, alpha / len(LOOKS)) for k in np.unique(hits)}
        wrong |= np.array([bounds[int(k)] for k in hits]) >= p0
    assert stats.binomtest(int(wrong.sum()), coins, alpha, alternative="greater").pvalue > 1e-4


def test_the_second_stage_of_adaptive_is_fresh() -> None:
    """10⁵ coins: the size is chosen by the first stage, the bound is right at that size whatever it was chosen by."""
    p, alpha, n, coins = 0.85, 0.05, 2_000, 100_000
    rng, truth = np.random.default_rng(3), l2(1.0).radius(0.85)
    sizes: dict[int, int] = {}
    for hits in np.unique(firsts := rng.binomial(100, p, size=coins)):
        asked: list[int] = []

        def sample(size: int, hits: int = int(hits), asked: list[int] = asked) -> list[int]:
            asked.append(size)
            return [hits, 100 - hits] if len(asked) == 1 else [size, 0]

        drive(adaptive(ball=l2(1.0), alpha=alpha, n0=100, n=n), sample)
        assert asked[0] == 100
        sizes[int(hits)] = asked[1]
    assert len(set(sizes.values())) > 3  # the first stage does choose
    chosen = np.array([sizes[int(k)] for k in firsts])
    seconds = rng.binomial(chosen, p)
    pairs, times = np.unique(np.stack([seconds, chosen]), axis=1, return_counts=True)
    radii = [l2(1.0).radius(lower_bound(int(k), int(m), alpha)) for k, m in pairs.T]
    false = sum(int(t) for r, t in zip(radii, times, strict=True) if r > truth)
    assert stats.binomtest(false, coins, alpha, alternative="greater").pvalue > 1e-4
    assert false > 0.2 * alpha * coins


@pytest.mark.parametrize("p", [0.05, 0.5, 0.58, 0.9, 0.975, 0.999, 1.0])
@pytest.mark.parametrize("certifier", [sequential, looks])
def test_decisions_are_those_of_the_fixed_procedure_for_far_fewer_draws(
    certifier: Callable[..., object], p: float
) -> None:
    """At radii that are not within a hair of the truth."""
    n, share = 100_000, max(p, 1 - p)
    whole = drive(fixed(ball=l2(0.5), alpha=ALPHA, n0=100, n=n), coin(p))
    quick = drive(certifier(ball=l2(0.5), alpha=ALPHA, n0=100, n=n, radii=RADII), coin(p))  # type: ignore[arg-type]
    truth = 0.5 * stats.norm.ppf(min(share, 1 - 1e-12))
    for radius in RADII:
        if abs(truth - radius) > 0.02:
            assert (quick.radius >= radius) == (whole.radius >= radius) == (truth > radius)
    assert quick.n <= whole.n
    assert quick.label == (whole.label if whole.radius > RADII[0] else quick.label)  # r = 0 is not asked for
    if min(abs(truth - radius) for radius in RADII) > 0.1:
        assert quick.n < whole.n / 10


def test_giving_up_early_costs_little() -> None:
    """Coins just above a threshold, where it costs most: at least 97 of 100 that the whole run certifies are kept."""
    n, radius = 20_000, 0.25
    p0, rng, kept, whole = float(stats.norm.cdf(radius / 0.5)), np.random.default_rng(5), 0, 0
    for seed in range(200):
        p = p0 + rng.uniform(0.01, 0.02)
        draws, at = np.random.default_rng(seed).random(n) < p, 0

        def sample(k: int, draws: np.ndarray = draws) -> list[int]:  # type: ignore[type-arg]
            nonlocal at
            if k == 50:  # selection
                return [50, 0]
            hits, at = int(draws[at : at + k].sum()), at + k
            return [hits, k - hits]

        reached = lower_bound(int(draws.sum()), n, ALPHA / 2) >= p0
        made = drive(sequential(ball=l2(0.5), alpha=ALPHA, n0=50, n=n, radii=[radius]), sample)
        whole, kept = whole + reached, kept + (reached and made.radius >= radius)
    assert whole > 50
    assert kept >= 0.97 * whole


@pytest.mark.parametrize("radius", [0.0, 0.5])
def test_the_looks_and_the_end_are_wrong_no_more_often_than_alpha_together(radius: float) -> None:
    """10⁵ coins at a threshold, never given up: half of α on the way and half at the end, as `sequential` does."""
    coins, p0, alpha, n = 100_000, stats.norm.cdf(radius / 0.5), 0.02, 2_000
    rng, hits, drawn, wrong = np.random.default_rng(6), np.zeros(coins, dtype=np.int64), 0, np.zeros(coins, dtype=bool)
    for size in sizes(n):
        hits += rng.binomial(size - drawn, p0, size=coins)
        drawn = size
        possible, place = np.unique(hits, return_inverse=True)
        wrong |= (log_e(possible, drawn, np.array(p0)) >= math.log(2 / alpha))[place]
    way = int(wrong.sum())
    wrong |= np.array([lower_bound(int(k), n, alpha / 2) > p0 for k in possible])[place]
    assert stats.binomtest(int(wrong.sum()), coins, alpha, alternative="greater").pvalue > 1e-4
    assert int(wrong.sum()) > way > 0


def test_selection_draws_are_no_evidence() -> None:
    """The first answer chooses the class; however sure it is, all that counts comes after."""
    for certifier in (sequential, looks):
        asked: list[int] = []

        def sample(n: int, asked: list[int] = asked) -> list[int]:
            asked.append(n)
            return [n, 0] if len(asked) == 1 else [0, n]

        certificate = drive(certifier(ball=l2(0.5), alpha=ALPHA, n0=500, n=2_000, radii=RADII), sample)
        assert asked[0] == 500
        assert certificate.label is None
        assert certificate.successes == 0
        assert certificate.trials == sum(asked[1:])
        assert certificate.n == sum(asked)


@pytest.mark.parametrize("n", [1, 100, 128, 129, 5_000])
def test_no_more_is_drawn_than_was_allowed(n: int) -> None:
    """At p on a threshold nothing is ever decided."""
    for certifier, more in ((sequential, {"radii": [0.0]}), (looks, {"radii": [0.0]}), (adaptive, {})):
        drawn: list[int] = []

        def sample(k: int, drawn: list[int] = drawn) -> list[int]:
            drawn.append(k)
            return [k - k // 2, k // 2]

        certificate = drive(certifier(ball=l2(1.0), alpha=ALPHA, n0=10, n=n, **more), sample)
        assert all(k >= 1 for k in drawn)
        assert sum(drawn[1:]) <= n
        assert certificate.label is None


def test_adaptive_gives_up_one_per_cent_of_the_radius_at_most() -> None:
    for p in (0.7, 0.9, 0.99, 0.9999):
        pairs = [
            (
                drive(fixed(ball=l2(0.5), alpha=ALPHA, n0=100, n=100_000), coin(p, seed)),
                drive(adaptive(ball=l2(0.5), alpha=ALPHA, n0=100, n=100_000), coin(p, seed + 99)),
            )
            for seed in range(20)
        ]
        whole, quick = (float(np.mean([c.radius for c in side])) for side in zip(*pairs, strict=True))
        assert quick > 0.96 * whole  # 1 % by design, and the first stage's guess of p
        assert np.mean([quick.n for _, quick in pairs]) < 90_000


def test_a_bound_is_never_below_a_radius_it_certified() -> None:
    for seed in range(30):
        made = drive(sequential(ball=l2(0.5), alpha=ALPHA, n0=50, n=3_000, radii=RADII), coin(0.93, seed))
        reached: Sequence[float] = [r for r in RADII if made.radius >= r]
        assert made.p_low >= max((stats.norm.cdf(r / 0.5) for r in reached), default=0.0) - 1e-9
