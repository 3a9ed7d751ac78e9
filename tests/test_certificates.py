"""The statistics of certificates, tested with coins and never with a network."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from scipy import stats

from robustkt.catalog import CERTIFIERS
from robustkt.certificates import GRID, Certificate, drive, lower_bound, radius_l2
from robustkt.certificates.cohen import fixed

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
    assert radius_l2(lower_bound(n, n, alpha), 1.0) == pytest.approx(largest, abs=5.1e-4)


@pytest.mark.parametrize(("n", "share"), [(10**3, 0.550), (10**4, 0.5156), (10**5, 0.5049), (10**6, 0.5015)])
def test_lowest_share_that_does_not_abstain_is_the_published_one(n: int, share: float) -> None:
    least = next(k for k in range(n // 2, n) if lower_bound(k, n, ALPHA) >= 0.5)
    assert least / n == pytest.approx(share, abs=6e-5 if n > 1_000 else 6e-4)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("p", [0.5, 0.500001, 0.6, 0.9, 0.999, 0.99999])
def test_radius_is_rounded_down_to_the_grid(sigma: float, p: float) -> None:
    exact = sigma * stats.norm.ppf(p)
    radius = radius_l2(p, sigma)
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

    certificate = drive(fixed(sigma=0.5, alpha=ALPHA, n0=100, n=1_000), sample)
    assert asked == [100, 1_000]
    assert (certificate.label, certificate.successes, certificate.trials, certificate.n) == (1, 990, 1_000, 1_100)
    assert certificate.p_low == lower_bound(990, 1_000, ALPHA)
    assert certificate.radius == radius_l2(certificate.p_low, 0.5)


def test_fixed_abstains_when_the_estimation_contradicts_the_selection() -> None:
    rounds = iter([[10, 0], [0, 1_000]])
    certificate = drive(fixed(sigma=0.5, alpha=ALPHA, n0=10, n=1_000), lambda n: next(rounds))
    assert certificate == Certificate(None, 0.0, ALPHA, 1_010, 0, 1_000, 0.0)


def test_selection_takes_the_first_of_equals() -> None:
    rounds = iter([[5, 5], [1_000, 0]])
    assert drive(fixed(sigma=0.5, alpha=ALPHA, n0=10, n=1_000), lambda n: next(rounds)).label == 0


@pytest.mark.parametrize("mode", CERTIFIERS.names())
@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.99])
def test_false_certificates_are_rarer_than_alpha(mode: str, p: float) -> None:
    """Of many coins with a known p, those whose radius exceeds σ·Φ⁻¹(p) are at most a share alpha."""
    rng, alpha, coins = np.random.default_rng(0), 0.05, 4_000
    truth = stats.norm.ppf(p)
    certifier = CERTIFIERS.get(mode)
    radii = {"radii": [0.2, 0.8, 1.6]} if "radii" in inspect.signature(certifier).parameters else {}
    coins = coins if mode == "fixed" else 400  # test_sequential.py has 10⁵ for the others
    false = 0
    for _ in range(coins):
        c = drive(certifier(sigma=1.0, alpha=alpha, n0=20, n=200, **radii), coin(p, rng))
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


def test_radius_of_a_bound_below_half_is_zero() -> None:
    assert radius_l2(0.3, 1.0) == 0.0
    assert math.copysign(1, radius_l2(0.5, 1.0)) == 1.0
