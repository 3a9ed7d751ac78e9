"""Training in bf16 against training in fp32: the same networks, seed by seed, measured in fp32.

    python -m benchmarks.precision --registry DIR [--seeds 4]

On the digits: Gaussian training and its certificates, adversarial training (SAT) and its students (RSLAD) under attack.
What differs is `precision` alone. benchmarks/records/precision.json is written after every network.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Rows
from benchmarks.shared import RADII
from robustkt import api
from robustkt.registry import Registry

ROWS = Rows("precision", "rows")
ARCH, SIGMA, EPS, EPOCHS = "smallcnn", "0.25", "0.1", 12
ATTACKS = ("clean", "pgd-sat", "apgd-ce")
PRECISIONS = ("fp32", "bf16")


def made(registry: Registry, method: str, seed: int, precision: str) -> dict[str, Any]:
    """The network of this method; RSLAD's teacher is the one that SAT made in the same precision."""
    given: dict[str, Any] = {"epochs": EPOCHS}
    shared: dict[str, Any] = {"registry": registry, "seed": seed, "device": "cpu", "precision": precision}
    name = f"{method}-{precision}-{seed}"
    if method == "rslad":
        shared |= {"given": {"steps": 5, **given}, "teacher": f"sat-{precision}-{seed}"}
        return api.distill(arch=ARCH, method=method, name=name, **shared)
    given |= {"sigma": SIGMA} if method == "gaussian" else {"eps": EPS, "steps": 5}
    return api.train(method=method, arch=ARCH, data="digits", name=name, given=given, **shared)


def measured(registry: Registry, method: str, name: str) -> dict[str, Any]:
    """What counts for a method, in percent of the test images, computed in fp32."""
    common: dict[str, Any] = {"registry": registry, "device": "cpu"}
    if method == "gaussian":
        found = api.certify(
            name, sigma=SIGMA, mode="fixed", n=1_000, radii=RADII, precision="fp32", compile="off", **common
        )
        figures = {f"certified at {r}": share for r, share in found["certified_accuracy"].items()}
    else:
        found = api.evaluate(name, attacks=ATTACKS, eps=EPS, **common)
        figures = {attack: told["accuracy"] for attack, told in found["attacks"].items()}
    return {"images": found["images"], "figures": figures}


def main() -> None:
    """Measure what the record lacks, network by network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--registry", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry = Registry(options.registry)
    for seed in range(options.seeds):
        for method in ("gaussian", "sat", "rslad"):
            for precision in PRECISIONS:
                if not ROWS.known("rows", method=method, seed=seed, precision=precision):
                    one = made(registry, method, seed, precision)
                    found = measured(registry, method, one["generation"])
                    ROWS.keep("rows", {"method": method, "seed": seed, "precision": precision, **found})


if __name__ == "__main__":
    main()
