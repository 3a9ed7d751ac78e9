"""How fast the command line answers: --help, and list and show on a registry of many generations.

    python -m benchmarks.startup --generations 10000

Writes benchmarks/records/startup.json: whole-process seconds, the median of --runs after one warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.written import RECORDS
from robustkt.generation import DataSpec, Generation, Recipe, Training
from robustkt.numbers import digest
from robustkt.registry import Registry
from robustkt.registry.seal import sealed
from robustkt.registry.store import RECORD


def fill(registry: Registry, count: int) -> None:
    """A lineage of `count` generations, each with a record, a certificate and an evaluation."""
    weights = registry.put_object(b"no weights: listing never reads them")
    data = DataSpec(
        name="digits",
        fingerprint=weights,
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        mean=(0.3,),
        std=(0.3,),
        held_out=287,
    )
    common = {"images": 500, "skip": 1, "seed": 0, "weights": weights, "data": data.fingerprint}
    parents: dict[str, str] = {}
    with registry.changing() as refs:  # one commit for all; `add` would write the names so many times
        for seed in range(count):
            recipe = Recipe(
                method="crt", settings={"sigma": "0.25"}, arch="resnet20", data=data, training=Training(), seed=seed
            )
            made = Generation(name="", recipe=recipe, weights=weights, last_weights=weights, parents=parents)
            record = {"seconds": 1.0, "started": "2026-01-01T00:00:00+00:00", "epochs": []}
            put(registry.record_path(made.id), sealed({"format": RECORD, **record}))
            put(registry.manifest_path(made.id), made.manifest())
            settings = {"sigma": "0.25", "mode": "fixed", "n": 10_000, "n0": 100, "alpha": 0.001, "noise": "gaussian"}
            settings |= {"norm": "l2", "precision": "fp32", **common}
            figures = {"certified_accuracy": {"0.25": 0.8}, "intervals": {"0.25": [0.7, 0.9]}, "acr": 0.4}
            figures |= {"abstain_rate": 0.02, "images": 500}
            measured(registry, made, "certificate", {"settings": settings, "figures": figures})
            settings = {"attacks": ["pgd-sat"], "norm": "linf", "eps": "8/255", **common}
            attack = {"accuracy": 0.6, "interval": [0.5, 0.7], "norm": "linf", "eps": "8/255"}
            worst = {"accuracy": 0.6, "interval": [0.5, 0.7]}
            figures = {"attacks": {"clean": attack, "pgd-sat": attack}, "warnings": [], "worst": worst}
            measured(registry, made, "evaluation", {"settings": settings, "figures": figures})
            refs["names"][f"gen{seed}"] = made.id
            parents = {"teacher": made.id}


def measured(registry: Registry, made: Generation, kind: str, content: dict[str, Any]) -> None:
    path = registry.result_path(made.id, kind, "0" * 16)
    told = {"format": RECORD, "kind": kind, "generation": made.id, "log": f"{path.stem}-00000000.tsv"}
    put(path, sealed({**told, "log_hash": digest(b"log"), **content}))
    put(path.with_name(told["log"]), b"log")


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def seconds(command: list[str], runs: int) -> dict[str, Any]:
    """Whole-process wall time, and the most memory that the process held."""
    times, peak = [], 0
    for _ in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - began)
        if status:
            raise SystemExit(f"{command} failed")
        peak = max(peak, usage.ru_maxrss)
    kept = sorted(times[1:])
    told = {"median": statistics.median(kept), "lowest": kept[0], "highest": kept[-1], "first": times[0]}
    return {**told, "megabytes": peak / 1024}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    program = str(Path(sys.executable).parent / "robustkt")
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "registry")
        fill(registry, options.generations)
        where = ["--registry", str(registry.root)]
        figures = {
            "python -c pass": seconds([sys.executable, "-c", "pass"], options.runs),
            "robustkt --help": seconds([program, "--help"], options.runs),
            "robustkt list": seconds([program, "list", *where], options.runs),
            "robustkt show": seconds([program, "show", "gen7", *where], options.runs),
            "robustkt lineage": seconds([program, "lineage", "gen7", *where], options.runs),
        }
    record = {"generations": options.generations, "runs": options.runs, "seconds": figures}
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / "startup.json").write_text(json.dumps(record, indent=1) + "\n")
    for name, figure in figures.items():
        print(f"{name}: {figure['median']:.3f} s ({figure['lowest']:.3f} – {figure['highest']:.3f})")


if __name__ == "__main__":
    main()
