"""How often `gate` errs, on simulated pairs: passes of models that lost exactly the margin, alarms, and power.

    python -m benchmarks.gate --sets 20000

Writes benchmarks/records/gate.json.
"""

from __future__ import annotations

import argparse
import functools
import json
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.written import RECORDS
from robustkt import paired
from robustkt.paired import Pairs

ALPHA, MARGIN = 0.05, 0.02
SIZES, DISCORDANCES = (100, 500, 2000), (0.02, 0.05, 0.1, 0.3)
CLASSES, OF_A_CLASS, CLASS_MARGIN = 10, (36, 100), 0.1


def drawn(sets: int, images: int, discordance: float, difference: float, seed: int) -> np.ndarray:
    """(sets, 2) counts of won and lost images of two models that differ so."""
    won, lost = (discordance + difference) / 2, (discordance - difference) / 2
    shares = [won, lost, 1 - won - lost]
    return np.random.default_rng([seed, images]).multinomial(images, shares, size=sets)[:, :2]


@functools.cache
def _p_loss(won: int, lost: int, images: int, margin: float) -> float:
    return paired.shown_loss(Pairs(won, lost, images), margin)


def passing(counts: np.ndarray, images: int, margin: float) -> int:
    """How many of the data sets pass; p-values fall as scores rise, so that the first that passes is searched for."""
    found, times = np.unique(counts, axis=0, return_counts=True)
    order = np.argsort(paired.score(found[:, 0], found[:, 1], images, -margin))
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        won, lost = found[order[middle]].tolist()
        passes = paired.non_inferior(Pairs(won, lost, images), margin) <= ALPHA
        low, high = (low, middle) if passes else (middle + 1, high)
    return int(times[order[low:]].sum())


def normal(counts: np.ndarray, images: int, margin: float) -> int:
    """How many would pass by the score's normal approximation."""
    z = NormalDist().inv_cdf(1 - ALPHA)
    return int((paired.score(counts[:, 0], counts[:, 1], images, -margin) >= z).sum())


def false_alarms(sets: int, images: int, discordance: float, seed: int) -> int:
    """In how many data sets any class is reported although each has lost exactly its margin."""
    each = [drawn(sets, images, max(discordance, CLASS_MARGIN), -CLASS_MARGIN, 100 * seed + k) for k in range(CLASSES)]
    alarms = 0
    for row in np.stack(each, axis=1).tolist():
        p_values = {k: _p_loss(won, lost, images, CLASS_MARGIN) for k, (won, lost) in enumerate(row)}
        alarms += min(paired.holm(p_values).values()) <= ALPHA
    return alarms


def at_the_margin(sets: int) -> list[dict[str, Any]]:
    """Passes of models that lost exactly the margin, with the exact test and with the normal approximation."""
    rows = []
    for images in SIZES:
        for discordance in DISCORDANCES:
            counts = drawn(sets, images, max(discordance, MARGIN), -MARGIN, 1)
            passed = passing(counts, images, MARGIN)
            rows.append(
                {
                    "images": images, "discordance": discordance, "passed": passed / sets,
                    "normal": normal(counts, images, MARGIN) / sets,
                    "p_above_alpha": binomtest(passed, sets, ALPHA, alternative="greater").pvalue,
                }
            )  # fmt: skip
    return rows


def of_equals(sets: int) -> list[dict[str, Any]]:
    """Passes of equally good models, beside the probability that `gate` states."""
    rows = []
    for images in SIZES:
        for discordance in DISCORDANCES:
            passed = passing(drawn(sets, images, discordance, 0.0, 2), images, MARGIN) / sets
            rows.append(
                {
                    "images": images, "discordance": discordance, "passed": passed,
                    "stated": paired.power(images, discordance, MARGIN, ALPHA),
                    "images_needed": paired.images_needed(discordance, MARGIN, ALPHA),
                }
            )  # fmt: skip
    return rows


def at_the_size_needed(sets: int) -> list[dict[str, Any]]:
    """Passes of equally good models measured on as many images as `gate` recommends: 80 % is promised."""
    rows = []
    for discordance in DISCORDANCES:
        images = paired.images_needed(discordance, MARGIN, ALPHA)
        passed = passing(drawn(sets, images, discordance, 0.0, 3), images, MARGIN) / sets
        rows.append({"images": images, "discordance": discordance, "passed": passed})
    return rows


def at_the_resolution(sets: int) -> list[dict[str, Any]]:
    """How often the loss that `gate` calls seen 80 % of the time is shown."""
    rows = []
    for images in SIZES:
        for discordance in DISCORDANCES:
            loss = paired.resolution(images, discordance, ALPHA)
            counts = drawn(sets, images, max(discordance, loss), -loss, 5)
            scores = paired.score(counts[:, 1], counts[:, 0], images, 0.0)
            seen = float((scores >= paired.critical(images, 0.0, ALPHA)).mean())
            rows.append({"images": images, "discordance": discordance, "loss": loss, "seen": seen})
    return rows


def of_classes(sets: int) -> list[dict[str, Any]]:
    """Data sets with any class reported, of models that lost exactly the class margin in each."""
    return [
        {
            "classes": CLASSES, "images": images, "discordance": discordance,
            "alarms": false_alarms(sets, images, discordance, 4) / sets,
        }
        for images in OF_A_CLASS
        for discordance in (0.1, 0.3)
    ]  # fmt: skip


def main() -> None:
    """Simulate and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=20_000)
    sets = parser.parse_args().sets
    found = {
        "command": f"python -m benchmarks.gate --sets {sets}",
        "sets": sets,
        "alpha": ALPHA,
        "margin": MARGIN,
        "class_margin": CLASS_MARGIN,
        "at_the_margin": at_the_margin(sets),
        "of_equals": of_equals(sets),
        "at_the_size_needed": at_the_size_needed(sets),
        "at_the_resolution": at_the_resolution(sets),
        "of_classes": of_classes(sets),
    }
    (RECORDS / "gate.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
