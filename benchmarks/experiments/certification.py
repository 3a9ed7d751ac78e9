"""What a certificate is worth: coverage of every mode, agreement between the modes, and what bf16 changes.

    python -m benchmarks.experiments.certification --registry registry [--only PART …]

Coverage: coins of known probability through the real certifiers; a certificate is false when its radius is larger than
the coin's. Modes and precision: shipped generations, one certified on the same test images by every mode, another by
the fixed procedure in fp32 and in bf16 on the same noise. benchmarks/records/certification.json grows row by row.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.rows import Rows
from benchmarks.sequential import coin
from robustkt import api
from robustkt.api.results import CertificateSet
from robustkt.catalog import CERTIFIERS
from robustkt.certificates import Ball, drive
from robustkt.certlog import Row
from robustkt.noises.gaussian import Gaussian
from robustkt.registry import Registry

ROWS = Rows("certification", "coverage", "modes", "precision", command="python -m benchmarks.experiments.certification")
COINS = {0.05: (10_000, 20, 200), 0.001: (10_000, 100, 1_000)}  # alpha -> coins, n0, n
CHANCES = (0.5, 0.6, 0.8, 0.95, 0.99)
RADII = [Fraction(r) for r in ("0", "0.25", "0.5")]
GENERATION, SIGMA = "digits-smoothmix", "0.25"
HALVED = "digits-crt-1"  # the smaller network: without bf16 in the processor it is emulated


def coverage(mode: str, alpha: float, p: float) -> dict[str, Any]:
    """How many of many coins got a certificate that is false."""
    coins, n0, n = COINS[alpha]
    ball, certifier, rng = (
        Ball(Gaussian(Fraction(1)), "l2", (3, 32, 32)),
        CERTIFIERS.get(mode),
        np.random.default_rng(0),
    )
    truth, known = float(stats.norm.ppf(p)), inspect.signature(certifier).parameters
    more: dict[str, Any] = {"radii": [0.1, 0.2, 0.5, 0.8, 1.2, 1.6, 2.3]} if "radii" in known else {}
    false = certified = 0
    for _ in range(coins):
        luck = {"u": 1 - float(rng.random())} if "u" in known else {}
        found = drive(certifier(ball=ball, alpha=alpha, n0=n0, n=n, **more, **luck), coin(p, rng))
        certified += found.label is not None
        false += (found.label == 1 and p > 0.5) or (found.label is not None and found.radius > truth)
    low, high = stats.binomtest(false, coins).proportion_ci(0.99)
    return {
        "mode": mode, "alpha": alpha, "p": p, "coins": coins, "n0": n0, "n": n, "certified": certified, "false": false,
        "interval": [low, high],
    }  # fmt: skip


def certified(registry: Registry, name: str, **told: Any) -> CertificateSet:
    """A certification of all test images."""
    return api.certify(
        name, sigma=SIGMA, radii=RADII, max_images=360, registry=registry, device="cpu", compile="off", **told
    )


def agreement(registry: Registry, name: str, mode: str) -> dict[str, Any]:
    """A mode's table beside that of the fixed procedure, image by image at each radius."""
    plain = certified(registry, name, mode="fixed", n=10_000, precision="fp32")
    found = certified(registry, name, mode=mode, n=10_000, precision="fp32")

    def holds(row: Row, radius: Fraction) -> bool:
        return bool(row.correct and row.radius >= radius)

    pairs = list(zip(plain.rows, found.rows, strict=True))
    differ = {str(float(r)): sum(holds(one, r) != holds(two, r) for one, two in pairs) for r in RADII}
    kept = {key: found[key] for key in ("certified_accuracy", "acr", "images", "n", "alpha")}
    return {
        "name": name, "mode": mode, **kept,
        "copies": found["samples_per_image"], "differ": differ,
        "other_class": sum(-1 != one.predict != two.predict != -1 for one, two in pairs),
    }  # fmt: skip


def half(registry: Registry, name: str) -> dict[str, Any]:
    """What bf16 changes of a certification on the same noise."""
    exact, short = (
        certified(registry, name, mode="fixed", n=1_000, precision=precision) for precision in ("fp32", "bf16")
    )
    pairs = list(zip(exact.rows, short.rows, strict=True))
    return {
        "name": name, "images": exact["images"], "n": 1_000, "alpha": exact["alpha"],
        "fp32": exact["certified_accuracy"], "bf16": short["certified_accuracy"],
        "other_class": sum(-1 != one.predict != two.predict != -1 for one, two in pairs),
        "abstained_in_one": sum((one.predict == -1) != (two.predict == -1) for one, two in pairs),
        "votes": max(abs(one.successes - two.successes) for one, two in pairs if one.predict == two.predict),
        "radius": max(abs(one.radius - two.radius) for one, two in pairs if one.predict == two.predict),
    }  # fmt: skip


def main() -> None:
    """Measure what the record lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, required=True)
    parts = ("coverage", "modes", "precision")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry, parts = Registry(options.registry), options.only
    if "coverage" in parts:
        for alpha, p, mode in itertools.product(COINS, CHANCES, CERTIFIERS.names()):
            if not ROWS.known("coverage", mode=mode, alpha=alpha, p=p):
                ROWS.keep("coverage", coverage(mode, alpha, p), mode=mode, alpha=alpha, p=p)
    for mode in CERTIFIERS.names() if "modes" in parts else ():
        if not ROWS.known("modes", name=GENERATION, mode=mode):
            ROWS.keep("modes", agreement(registry, GENERATION, mode), name=GENERATION, mode=mode)
    if "precision" in parts and not ROWS.known("precision", name=HALVED):
        ROWS.keep("precision", half(registry, HALVED), name=HALVED)


if __name__ == "__main__":
    main()
