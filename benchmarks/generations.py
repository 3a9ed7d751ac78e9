"""What robustness costs when it is handed down: CRT over three generations against SmoothMix from scratch each time.

    python -m benchmarks.generations --registry DIR [--seeds 3] [--epochs SMOOTHMIX,CRT]

On the digits: a SmoothMix teacher, and after it three students, each taught by the one before it; for every student the
same network by SmoothMix from scratch, and by Gaussian training. All go through `robustkt.api` in one process and one
thread; a price is the CPU seconds of a whole call, checkpoints and selection among them. Certified on all test images.
benchmarks/records/generations.json is written after every network, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Rows
from benchmarks.shared import RADII
from robustkt import api
from robustkt.registry import Registry

ROWS = Rows("generations", "rows")
SIGMA = "0.25"
FIRST, STUDENTS = "resnet8", ("smallcnn", "resnet20", "resnet8")


def measured(
    registry: Registry, seed: int, kind: str, generation: int, arch: str, make: Callable[..., Any], **given: Any
) -> None:
    """A row: what the network of this name cost, and its certificates; nothing when the record has it."""
    if ROWS.known("rows", seed=seed, kind=kind, generation=generation):
        return
    name = f"{kind}-{generation}-{seed}"
    if name in registry.refs()["names"]:  # made by a run that ended before it was written down: its price is lost
        api.rm([name], registry=registry)
        api.gc(grace="0", registry=registry)
    began = time.process_time()
    made = make(arch=arch, name=name, registry=registry, seed=seed, device="cpu", **given)
    seconds = time.process_time() - began
    assert made["created"]
    found = api.certify(name, sigma=SIGMA, mode="fixed", n=2_000, radii=RADII, registry=registry, device="cpu")
    kept = ("certified_accuracy", "acr", "abstain_rate", "images", "n", "alpha")
    ROWS.keep("rows", {
        "seed": seed, "kind": kind, "generation": generation, "arch": arch, "id": made["id"], "cost": made["cost"],
        "cpu_seconds": seconds, **{key: found[key] for key in kept},
    })  # fmt: skip


def main() -> None:
    """Measure what the record lacks, network by network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", default="20,20", help="of SmoothMix and of the others")
    parser.add_argument("--registry", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    registry = Registry(options.registry)
    long, short = ({"epochs": int(e)} for e in options.epochs.split(","))
    scratch = {"data": "digits", "given": {"sigma": SIGMA, **long}, "method": "smoothmix"}
    plain = {"data": "digits", "given": {"sigma": SIGMA, **short}, "method": "gaussian"}
    for seed in range(options.seeds):
        measured(registry, seed, "smoothmix", 0, FIRST, api.train, **scratch)
        teacher = f"smoothmix-0-{seed}"
        for number, arch in enumerate(STUDENTS, 1):
            measured(registry, seed, "crt", number, arch, api.distill, teacher=teacher, method="crt", given=short)
            teacher = f"crt-{number}-{seed}"
            apart = seed + 100  # the third network is the first one's: another seed, or it would be found again
            for kind, told in (("smoothmix", scratch), ("gaussian", plain)):
                measured(registry, apart, kind, number, arch, api.train, **told)


if __name__ == "__main__":
    main()
