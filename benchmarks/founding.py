"""The founding comparison at a small scale: six objectives, six attacks, best and last epoch, one teacher a seed.

    python -m benchmarks.founding --data fashion-mnist --train-images 10000 --registry DIR

SAT, TRADES and MART learn from labels, ARD, IAD and RSLAD from a TRADES teacher of the same seed; all students are the
same network with the same budget. Everything goes through `robustkt.api` into a registry of its own (--registry), so an
interrupted run continues. Epochs are selected on held-out training images. Writes records/founding-DATA.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.shared import machine, shown, subset
from benchmarks.written import RECORDS
from robustkt import api
from robustkt.catalog import METHODS
from robustkt.registry import Registry

ATTACKS = ("clean", "fgsm", "pgd-sat", "pgd-trades", "cw", "autoattack")


def students(options: argparse.Namespace, registry: Registry, seed: int) -> list[dict[str, Any]]:
    """The teacher and its seed's students."""
    shared: dict[str, Any] = {"registry": registry, "seed": seed, "data_dir": options.data_dir}
    given = {"eps": options.eps, "epochs": options.epochs, "steps": options.steps, "batch_size": options.batch_size}
    made = [
        api.train(
            method="trades", arch=options.teacher, data=options.data, name=f"teacher-{seed}",
            given={**given, "epochs": options.teacher_epochs}, **shared,
        )
    ]  # fmt: skip
    for method in options.methods:
        name, start = f"{method}-{seed}", {**given}
        if method == "iad":
            start["begin_epoch"] = options.epochs * 3 // 10  # the paper's 60 of 200
        if METHODS.get(method).__dataclass_fields__.get("teacher"):
            one = api.distill(
                teacher=f"teacher-{seed}", arch=options.student, method=method, name=name, given=start, **shared
            )
        else:
            one = api.train(
                method=method, arch=options.student, data=options.data, name=name, given=start, **shared
            )  # fmt: skip
        made.append(one)
        print(json.dumps({k: one[k] for k in ("generation", "wall_seconds", "selected")}), file=sys.stderr, flush=True)
    return made


def measured(options: argparse.Namespace, registry: Registry, one: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Both checkpoints of one generation under every attack."""
    rows = []
    for last in (False, True):
        found = api.evaluate(
            one["generation"], attacks=ATTACKS, max_images=options.images, last=last, registry=registry,
            data_dir=options.data_dir,
        )  # fmt: skip
        figures = {name: {k: a[k] for k in ("accuracy", "interval")} for name, a in found["attacks"].items()}
        rows.append(
            {"seed": seed, **{k: one[k] for k in ("generation", "id", "method", "arch", "cost")},
             "train_seconds": one["wall_seconds"], "checkpoint": "last" if last else "best", "images": found["images"],
             "attacks": figures, "worst": found["worst"], "warnings": found["warnings"]}
        )  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Train, attack, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--train-images", type=int, help="only so many training images")
    parser.add_argument("--teacher", default=str(Path(__file__).with_name("tinycnn.py")) + ":Teacher")
    parser.add_argument("--student", default=str(Path(__file__).with_name("tinycnn.py")) + ":TinyCNN")
    parser.add_argument("--methods", default="sat,trades,mart,ard,iad,rslad", type=lambda text: text.split(","))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--eps", default="0.1")
    parser.add_argument("--seeds", default="0,1", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--registry", type=Path, required=True)
    options = parser.parse_args()
    name = options.data
    options.data = subset(options) if options.train_images else options.data
    registry = Registry(options.registry)
    made = [(seed, one) for seed in options.seeds for one in students(options, registry, seed)]
    rows = [row for seed, one in made for row in measured(options, registry, one, seed)]
    record = {
        "command": "python -m benchmarks.founding " + shown(sys.argv[1:]),
        "machine": machine(),
        "eps": options.eps,
        "rows": rows,
    }
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"founding-{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
