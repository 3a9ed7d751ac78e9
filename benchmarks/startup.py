"""How fast the command line answers: --help, and list and show on a registry of many generations.

    python benchmarks/startup.py --generations 1000

Writes benchmarks/records/startup.json: whole-process seconds, the median of --runs after one warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from robustkt.generation import DataSpec, Generation, Recipe, Training
from robustkt.registry import Registry

RECORDS = Path(__file__).resolve().parent / "records"


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
    parents: dict[str, str] = {}
    for seed in range(count):
        recipe = Recipe(
            method="crt", settings={"sigma": "0.25"}, arch="resnet20", data=data, training=Training(), seed=seed
        )
        made = Generation(name="", recipe=recipe, weights=weights, last_weights=weights, parents=parents)
        added = registry.add(made, {"seconds": 1.0, "started": "2026-01-01T00:00:00+00:00", "epochs": []})
        common = {"images": 500, "skip": 1, "seed": 0, "weights": weights, "data": data.fingerprint}
        settings = {"sigma": "0.25", "mode": "fixed", "n": 10_000, "n0": 100, "alpha": 0.001, "noise": "gaussian"}
        settings |= {"norm": "l2", "precision": "fp32", **common}
        figures = {"certified_accuracy": {"0.25": 0.8}, "intervals": {"0.25": [0.7, 0.9]}, "acr": 0.4}
        figures |= {"abstain_rate": 0.02, "images": 500}
        content = {"settings": settings, "figures": figures}
        registry.put_result(added.id, "certificate", "0" * 16, content, b"log")
        settings = {"attacks": ["pgd-sat"], "norm": "linf", "eps": "8/255", **common}
        attack = {"accuracy": 0.6, "interval": [0.5, 0.7], "norm": "linf", "eps": "8/255"}
        worst = {"accuracy": 0.6, "interval": [0.5, 0.7]}
        figures = {"attacks": {"clean": attack, "pgd-sat": attack}, "warnings": [], "worst": worst}
        content = {"settings": settings, "figures": figures}
        registry.put_result(added.id, "evaluation", "0" * 16, content, b"log")
        parents = {"teacher": added.id}


def seconds(command: list[str], runs: int) -> dict[str, Any]:
    """Whole-process wall time."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    kept = sorted(times[1:])
    return {"median": statistics.median(kept), "lowest": kept[0], "highest": kept[-1]}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", type=int, default=1_000)
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
