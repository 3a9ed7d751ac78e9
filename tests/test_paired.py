"""Paired tests: published examples, an independent search, whole enumerations, and simulated error rates."""

from __future__ import annotations

import importlib
import math
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, multinomial
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from robustkt import paired
from robustkt.paired import Pairs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("benchmarks.gate")


def searched_score(b: int, c: int, n: int, d: float) -> float:
    """The score from its definition: the likelihood under the difference maximised by a search."""

    def minus_likelihood(q: float) -> float:
        p = q + d
        terms = [(b, p), (c, q), (n - b - c, 1 - p - q)]
        return -sum(k * math.log(max(share, 1e-300)) for k, share in terms if k)

    low, high = max(0.0, -d), (1 - d) / 2
    found = minimize_scalar(minus_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    q = min((low, high, found.x), key=minus_likelihood)
    return (b - c - n * d) / math.sqrt(n * (2 * q + d - d * d))


@pytest.mark.parametrize(
    ("won", "lost", "images", "low", "high"),
    [
        (1, 7, 21, -0.517, -0.026),  # airway hyper-responsiveness, in Fagerland, Lydersen & Laake (2014)
        (0, 1, 44, -0.118, 0.059),  # contact lenses, in Tango (1998)
    ],
)
def test_tangos_interval_is_the_published_one(won: int, lost: int, images: int, low: float, high: float) -> None:
    assert paired.interval(Pairs(won, lost, images)) == pytest.approx((low, high), abs=5e-4)


def test_the_score_of_the_lenses_is_nams_and_tangos() -> None:
    assert float(paired.score(0, 1, 44, -0.1)) == pytest.approx(1.709, abs=5e-4)


@pytest.mark.parametrize("seed", range(30))
def test_score_and_interval_agree_with_an_independent_search(seed: int) -> None:
    source = random.Random(seed)
    n = source.choice([20, 100, 1000])
    b, c = source.randint(1, n // 3), source.randint(1, n // 3)
    for d in (-0.2, -0.01, 0.0, 0.05, 0.3):
        assert float(paired.score(b, c, n, d)) == pytest.approx(searched_score(b, c, n, d), abs=1e-5)
    low, high = paired.interval(Pairs(b, c, n))
    z = 1.959963984540054
    assert low == pytest.approx(brentq(lambda d: searched_score(b, c, n, d) - z, -0.999, (b - c) / n), abs=1e-6)
    assert high == pytest.approx(brentq(lambda d: searched_score(b, c, n, d) + z, (b - c) / n, 0.999), abs=1e-6)


def test_the_ends_of_the_scale() -> None:
    assert paired.interval(Pairs(20, 0, 20))[1] == 1.0
    assert paired.interval(Pairs(0, 20, 20))[0] == -1.0
    assert paired.interval(Pairs(0, 0, 50)) == pytest.approx((-0.0713, 0.0713), abs=1e-3)
    assert float(paired.score(0, 0, 50, 0.0)) == 0.0


def test_the_score_grows_with_images_won_and_falls_with_images_lost() -> None:
    for n in (12, 60):
        for d in (-0.3, -0.02, 0.0, 0.1):
            table = paired.score(np.arange(n + 1)[:, None], np.arange(n + 1)[None, :], n, d)
            inside = np.add.outer(np.arange(n + 1), np.arange(n + 1)) <= n
            for axis, sign in ((0, 1), (1, -1)):
                steps = sign * np.diff(table, axis=axis)
                both = inside[1:, :] if axis == 0 else inside[:, 1:]
                assert np.all(steps[both] > -1e-9)


@pytest.mark.parametrize(("b", "c", "d"), [(1, 2, -0.2), (0, 0, -0.1), (5, 1, 0.0), (6, 0, 0.1), (3, 3, -0.3)])
def test_the_exact_p_value_is_the_whole_enumerations(b: int, c: int, d: float) -> None:
    n = 14
    cells = [(i, j) for i in range(n + 1) for j in range(n + 1 - i)]
    scores = {cell: float(paired.score(*cell, n, d)) for cell in cells}
    extreme = [cell for cell in cells if scores[cell] >= scores[b, c] - 1e-9]
    points = np.array([[i, j, n - i - j] for i, j in extreme])
    largest = max(
        float(multinomial.pmf(points, n, [q + d, q, max(0.0, 1 - 2 * q - d)]).sum())
        for q in np.linspace(max(0.0, -d), (1 - d) / 2, 2001)
    )
    assert paired.p_above(Pairs(b, c, n), d) == pytest.approx(largest, abs=2e-5)


@pytest.mark.parametrize(("n", "d"), [(40, -0.05), (100, -0.02), (36, 0.1), (100, 0.0), (360, -0.02)])
def test_no_discordance_and_no_smaller_difference_is_worse_than_the_p_value(n: int, d: float) -> None:
    """The search for the worst case misses none that a dense grid finds, and smaller differences are no worse."""
    for z in (1.645, 2.3):
        needed = paired._thresholds(n, d, z)
        told = paired._largest(n, d, z)
        for true in (d, d - 0.01, d - 0.05):
            grid = np.linspace(max(0.0, -true), (1 - true) / 2, 1501)
            assert max(paired._tail(n, true, q, needed) for q in grid) <= told + 1e-5


def test_no_discordance_needs_as_many_images_as_the_margin_says() -> None:
    """Nothing lost of n images excludes a loss of m exactly if (1 − m)^n ≤ α; the normal approximation says less."""
    assert paired.non_inferior(Pairs(0, 0, 270), 0.01) == pytest.approx(0.99**270, abs=1e-6)
    assert paired.non_inferior(Pairs(0, 0, 298), 0.01) > 0.05 > paired.non_inferior(Pairs(0, 0, 299), 0.01)


def test_the_bound_agrees_with_the_test() -> None:
    for b, c, n, m in [(10, 10, 360, 0.02), (3, 4, 500, 0.02), (0, 0, 100, 0.02), (0, 0, 200, 0.02), (40, 9, 300, 0.1)]:
        counts = Pairs(b, c, n)
        bound = paired.lower_bound(counts, 0.05, m)
        assert (bound >= -m) == (paired.non_inferior(counts, m) <= 0.05)
        assert bound <= counts.difference
        assert paired.p_above(counts, bound) <= 0.05 + 1e-9
        assert paired.p_above(counts, bound + 2e-5) > 0.05 - 1e-4


def test_loss_beyond_a_margin_is_the_test_turned_round() -> None:
    assert paired.shown_loss(Pairs(2, 20, 100), 0.05) == paired.p_above(Pairs(20, 2, 100), 0.05)
    assert paired.shown_loss(Pairs(2, 7, 100), 0.05) == 1.0
    assert paired.shown_loss(Pairs(9, 2, 100)) == 1.0


def test_mcnemar_and_holm_are_those_of_statsmodels() -> None:
    for b, c in [(0, 0), (1, 7), (6, 16), (5, 5)]:
        told = mcnemar([[10, b], [c, 10]], exact=True).pvalue if b + c else 1.0
        assert paired.mcnemar(Pairs(b, c, 100)) == pytest.approx(told)
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    theirs = multipletests(list(p_values.values()), method="holm")[1]
    assert list(paired.holm(p_values).values()) == pytest.approx(list(theirs))
    assert list(paired.holm(p_values)) == list(p_values)
    assert paired.holm({}) == {}


def test_counts_of_two_verdicts() -> None:
    counts = paired.pairs([True, True, False, False], [True, False, True, True])
    assert counts == Pairs(won=1, lost=2, images=4)
    assert counts.difference == -0.25
    assert counts.discordance == 1.0
    assert Pairs(0, 0, 50).discordance == 0.02


@pytest.mark.parametrize(("images", "discordance"), [(100, 0.02), (100, 0.05), (100, 0.3), (500, 0.02), (500, 0.1)])
def test_models_that_lost_the_margin_pass_with_at_most_alpha(
    bench: ModuleType, images: int, discordance: float
) -> None:
    for margin in (0.02, 0.01):
        counts = bench.drawn(10_000, images, max(discordance, margin), -margin, 7)
        passed = bench.passing(counts, images, margin)
        assert binomtest(passed, 10_000, bench.ALPHA, alternative="greater").pvalue > 1e-4


def test_the_normal_approximation_would_pass_too_often(bench: ModuleType) -> None:
    """Why the exact test: with few discordant images the score alone passes 6.6 % at a stated 5 %."""
    counts = bench.drawn(10_000, 271, 0.01, -0.01, 7)
    assert bench.normal(counts, 271, 0.01) > 600
    assert bench.passing(counts, 271, 0.01) <= 500


@pytest.mark.slow
@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("images", [50, 100, 500, 2000])
def test_models_that_lost_the_margin_pass_with_at_most_alpha_everywhere(
    bench: ModuleType, images: int, discordance: float
) -> None:
    counts = bench.drawn(20_000, images, max(discordance, bench.MARGIN), -bench.MARGIN, 8)
    passed = bench.passing(counts, images, bench.MARGIN)
    assert binomtest(passed, 20_000, bench.ALPHA, alternative="greater").pvalue > 1e-4


@pytest.mark.parametrize(("images", "discordance"), [(500, 0.03), (700, 0.05)])
def test_power_is_as_stated(bench: ModuleType, images: int, discordance: float) -> None:
    passed = bench.passing(bench.drawn(10_000, images, discordance, 0.0, 9), images, 0.02)
    stated = paired.power(images, discordance, 0.02, bench.ALPHA)
    assert binomtest(passed, 10_000, stated).pvalue > 1e-4


@pytest.mark.parametrize("discordance", [0.03, 0.06, 0.15, 0.4])
@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05])
def test_the_recommended_number_of_images_gives_the_promised_power(discordance: float, margin: float) -> None:
    images = paired.images_needed(discordance, margin, 0.05)
    assert 0.77 <= paired.power(images, discordance, margin, 0.05) <= 0.88


def test_a_loss_of_the_stated_resolution_is_seen_four_times_in_five(bench: ModuleType) -> None:
    assert paired.resolution(500, 0.0292, 0.05) == pytest.approx(0.019, abs=1e-3)  # 1.9 points by Connor's formula
    for images, discordance in ((500, 0.06), (360, 0.1)):
        loss = paired.resolution(images, discordance, 0.05)
        counts = bench.drawn(10_000, images, discordance, -loss, 11)
        seen = paired.score(counts[:, 1], counts[:, 0], images, 0.0) >= paired.critical(images, 0.0, 0.05)
        assert 0.76 <= seen.mean() <= 0.83


def test_any_class_is_wrongly_reported_with_at_most_alpha(bench: ModuleType) -> None:
    for images, discordance in ((36, 0.1), (36, 0.3)):
        alarms = bench.false_alarms(10_000, images, discordance, 5)
        assert binomtest(alarms, 10_000, bench.ALPHA, alternative="greater").pvalue > 1e-4
