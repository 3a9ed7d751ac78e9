"""The statistics of certificates, tested with coins and never with a network."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from scipy import stats

from robustkt.catalog import CERTIFIERS
from robustkt.certificates import GRID, Certificate, drive, lower_bound
from robustkt.certificates.cohen import fixed, randomised, randomised_lower_bound
from tests.conftest import l2

ALPHA = 0.001


def independent_bound(k: int, n: int, alpha: float) -> float:
    """Clopper–Pearson by its definition: the p at which seeing k or more of n has probability alpha."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.binom.sf(k - 1, n, middle) < alpha else (low, middle)
    return low


@pytest.mark.parametrize("n", [10, 500, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.77, 0.95, 1.0])
@pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05])
def test_lower_bound_is_clopper_pearson(n: int, share: float, alpha: float) -> None:
    k = round(share * n)
    assert lower_bound(k, n, alpha) == pytest.approx(independent_bound(k, n, alpha), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "alpha", "largest"),
    [(10**3, 0.001, 2.463), (10**4, 0.001, 3.199), (10**5, 0.001, 3.811), (10**6, 0.001, 4.347), (10**5, 0.01, 3.911)],
)
def test_largest_radius_is_the_published_one(n: int, alpha: float, largest: float) -> None:
    assert l2(1.0).radius(lower_bound(n, n, alpha)) == pytest.approx(largest, abs=5.1e-4)


@pytest.mark.parametrize(("n", "share"), [(10**3, 0.550), (10**4, 0.5156), (10**5, 0.5049), (10**6, 0.5015)])
def test_lowest_share_that_does_not_abstain_is_the_published_one(n: int, share: float) -> None:
    least = next(k for k in range(n // 2, n) if lower_bound(k, n, ALPHA) >= 0.5)
    assert least / n == pytest.approx(share, abs=6e-5 if n > 1_000 else 6e-4)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("p", [0.5, 0.500001, 0.6, 0.9, 0.999, 0.99999])
def test_radius_is_rounded_down_to_the_grid(sigma: float, p: float) -> None:
    exact = sigma * stats.norm.ppf(p)
    radius = l2(sigma).radius(p)
    assert exact - 1.001 / GRID <= radius <= exact
    assert radius * GRID == pytest.approx(round(radius * GRID), abs=1e-6)


def coin(p: float, rng: np.random.Generator, classes: int = 3):  # type: ignore[no-untyped-def]
    """A sampler whose class 1 has probability p and whose class 2 has the rest."""
    return lambda n: list(rng.multinomial(n, [0.0, p, 1 - p][:classes]))


def test_fixed_spends_fresh_samples_on_the_bound() -> None:
    asked: list[int] = []

    def sample(n: int) -> list[int]:
        asked.append(n)
        return [0, n, 0] if len(asked) == 1 else [0, n - 10, 10]

    certificate = drive(fixed(ball=l2(0.5), alpha=ALPHA, n0=100, n=1_000), sample)
    assert asked == [100, 1_000]
    assert (certificate.label, certificate.successes, certificate.trials, certificate.n) == (1, 990, 1_000, 1_100)
    assert certificate.p_low == lower_bound(990, 1_000, ALPHA)
    assert certificate.radius == l2(0.5).radius(certificate.p_low)


def test_fixed_abstains_when_the_estimation_contradicts_the_selection() -> None:
    rounds = iter([[10, 0], [0, 1_000]])
    certificate = drive(fixed(ball=l2(0.5), alpha=ALPHA, n0=10, n=1_000), lambda n: next(rounds))
    assert certificate == Certificate(None, 0.0, ALPHA, 1_010, 0, 1_000, 0.0)


def test_selection_takes_the_first_of_equals() -> None:
    rounds = iter([[5, 5], [1_000, 0]])
    assert drive(fixed(ball=l2(0.5), alpha=ALPHA, n0=10, n=1_000), lambda n: next(rounds)).label == 0


@pytest.mark.parametrize("mode", CERTIFIERS.names())
@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.99])
def test_false_certificates_are_rarer_than_alpha(mode: str, p: float) -> None:
    """Of many coins with a known p, those whose radius exceeds σ·Φ⁻¹(p) are at most a share alpha."""
    rng, alpha, coins = np.random.default_rng(0), 0.05, 4_000
    truth = stats.norm.ppf(p)
    certifier = CERTIFIERS.get(mode)
    takes = inspect.signature(certifier).parameters
    radii = {"radii": [0.2, 0.8, 1.6]} if "radii" in takes else {}
    coins = coins if mode == "fixed" else 400  # test_sequential.py has 10⁵ for the others
    false = 0
    for _ in range(coins):
        more = radii | ({"u": 1 - rng.random()} if "u" in takes else {})
        c = drive(certifier(ball=l2(1.0), alpha=alpha, n0=20, n=200, **more), coin(p, rng))
        false += c.label == 2 or (c.label == 1 and c.radius > truth)
    assert stats.binomtest(false, coins, alpha, alternative="greater").pvalue > 1e-4
    if p == 0.9 and mode == "fixed":  # and it is not merely timid: the bound is exceeded nearly as often as it may be
        assert false > 0.2 * alpha * coins


def test_coverage_at_the_published_alpha() -> None:
    """10⁵ coins at α = .001 through the same bound: an exact binomial test of the error rate."""
    n, p, coins = 1_000, 0.8, 100_000
    counts, times = np.unique(np.random.default_rng(1).binomial(n, p, size=coins), return_counts=True)
    false = sum(t for k, t in zip(counts, times, strict=True) if lower_bound(int(k), n, ALPHA) > p)
    assert false > 0
    assert stats.binomtest(int(false), coins, ALPHA, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize(("n", "p"), [(1_000, 0.8), (200, 0.99), (10_000, 0.6914624612740131), (100, 0.5)])
def test_the_randomised_bound_errs_with_probability_alpha_exactly(n: int, p: float, alpha: float) -> None:
    """10⁵ coins, each with its own uniform number: the bound exceeds p in a share alpha, no more and no less."""
    coins, rng = 100_000, np.random.default_rng(4)
    hits, u = rng.binomial(n, p, size=coins), 1 - rng.random(coins)
    # the bound is above p exactly where P(X > k) + u·P(X = k) at p is below alpha
    false = int((stats.binom.sf(hits, n, p) + u * stats.binom.pmf(hits, n, p) < alpha).sum())
    assert stats.binomtest(false, coins, alpha).pvalue > 1e-3
    for k, draw in zip(hits[:200], u[:200], strict=True):
        exceeds = randomised_lower_bound(int(k), n, alpha, float(draw)) > p
        share = max(draw, 0.5) if k == n else draw  # a unanimous vote gets no luck
        assert exceeds == (stats.binom.sf(k, n, p) + share * stats.binom.pmf(k, n, p) < alpha)


@pytest.mark.parametrize(
    ("k", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (990, 1_000), (100_000, 100_000), (61_234, 100_000)]
)
@pytest.mark.parametrize("u", [1e-9, 0.25, 0.5, 1.0])
def test_the_randomised_bound_solves_its_equation(k: int, n: int, u: float) -> None:
    bound = randomised_lower_bound(k, n, ALPHA, u)
    share = max(u, 0.5) if k == n else u
    level = stats.binom.sf(k, n, bound) + share * stats.binom.pmf(k, n, bound)
    assert lower_bound(k, n, ALPHA) <= bound <= (lower_bound(k + 1, n, ALPHA) if k < n else 1)
    if 0 < bound < 1 - 1e-12:
        assert level == pytest.approx(ALPHA, rel=1e-5)
    if u == 1:
        assert bound == pytest.approx(lower_bound(k, n, ALPHA), abs=1e-11)
    certificate = drive(
        randomised(ball=l2(1.0), alpha=ALPHA, n0=5, n=n, u=u), lambda m: [0, m] if m == 5 else [n - k, k]
    )
    assert (certificate.p_low, certificate.u) == (bound, u)


def test_radius_of_a_bound_below_half_is_zero() -> None:
    assert l2(1.0).radius(0.3) == 0.0
    assert math.copysign(1, l2(1.0).radius(0.5)) == 1.0
