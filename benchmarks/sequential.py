"""What stopping early costs and saves, with coins that have the probabilities of a published model's images.

    python -m benchmarks.sequential LOG.tsv --sigma 0.5

Each image of the log is a coin whose probability is the share of agreeing votes that its published radius belongs to
(an abstention's is drawn below ½). Every mode certifies every coin; certified accuracy counts the images that the log
calls correct.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtr

from benchmarks.written import RECORDS
from robustkt import foreignlog
from robustkt.api.smoothing import default_radii, takes
from robustkt.catalog import CERTIFIERS
from robustkt.certificates import Ball, Certificate, drive
from robustkt.lattice import bounds
from robustkt.noises.gaussian import Gaussian


def coin(p: float, rng: np.random.Generator) -> Callable[[int], Sequence[int]]:
    """Votes of two classes, the first with probability p."""
    return lambda n: [hits := int(rng.binomial(n, p)), n - hits]


def run(mode: str, chances: Sequence[float], ball: Ball, n: int, alpha: float, grid: Sequence[float]) -> dict[str, Any]:
    """Certificates of all coins in one mode."""
    began = time.perf_counter()
    more: dict[str, Any] = {"radii": grid} if takes(mode, "radii") else {}
    found: list[Certificate] = []
    for i, p in enumerate(chances):
        extra = {"u": 1 - float(np.random.default_rng([7, i]).random())} if takes(mode, "u") else {}
        votes = coin(p, np.random.default_rng(i))
        found.append(drive(CERTIFIERS.get(mode)(ball=ball, alpha=alpha, n0=100, n=n, **more, **extra), votes))
    draws = [c.n for c in found]
    return {
        "mode": mode,
        "certificates": found,
        "draws": {"mean": statistics.fmean(draws), "median": statistics.median(draws), "most": max(draws)},
        "statistics_ms_per_image": 1e3 * (time.perf_counter() - began) / len(found),
    }


def main() -> None:
    """Certify all coins in all modes and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--sigma", type=Fraction, required=True)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--skip", type=int, default=1, help="every SKIP-th image of the log")
    args = parser.parse_args()
    lines = foreignlog.read(args.log).lines[:: args.skip]
    rng = np.random.default_rng(0)
    sigma = float(args.sigma)
    every = bounds(np.arange(args.n + 1, dtype=float), np.full(args.n + 1, float(args.n)), args.alpha)
    counts = [int(np.searchsorted(every, ndtr((line.radius - 0.005) / sigma))) for line in lines]
    chances = [
        0.5 * rng.random() if line.predict == -1 else min(count, args.n) / args.n
        for line, count in zip(lines, counts, strict=True)
    ]
    right = [line.correct for line in lines]
    ball = Ball(Gaussian(args.sigma), "l2", (3, 32, 32))
    grid = default_radii(ball, args.n, args.alpha)
    rows = []
    asked: list[tuple[str, str, list[Fraction]]] = [
        (mode, mode, grid) for mode in ("fixed", "randomised", "adaptive", "looks", "sequential")
    ]
    asked += [(f"sequential, r = {float(r):g} alone", "sequential", [r]) for r in grid[1:5]]
    for title, mode, radii in asked:
        found = run(mode, chances, ball, args.n, args.alpha, [float(r) for r in radii])
        certificates = found.pop("certificates")
        certified = {
            str(float(r)): sum(
                ok and c.label == 0 and c.radius >= float(r) for ok, c in zip(right, certificates, strict=True)
            )
            / len(lines)
            for r in radii
        }
        acr = statistics.fmean(c.radius * (c.label == 0 and ok) for ok, c in zip(right, certificates, strict=True))
        rows.append({"title": title, **found, "certified_accuracy": certified, "acr": acr})
        print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": f"python -m benchmarks.sequential {args.log.name} --sigma {float(args.sigma):g}"
        + (f" --skip {args.skip}" if args.skip > 1 else ""),
        "images": len(lines),
        "n": args.n,
        "alpha": args.alpha,
        "sigma": sigma,
        "rows": rows,
        "machine": {"processors": os.cpu_count(), "python": platform.python_version()},
    }
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / "sequential.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
