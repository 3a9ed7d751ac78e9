"""Two ranks on two cores against one process with one and with two threads: images a second, and the loss curves.

    python -m benchmarks.scale [--part speed|curves]

Every figure of speed is taken in turn, each way in processes of its own, several rounds; the warm-up steps are not
counted. The curves are of the same network on the same images without random numbers: two ranks with sync_bn against
one process with the whole batch, and two ranks against one that takes both parts in turn; in fp32 and in fp64, which
shows what is rounding, and so does the same process with another number of threads. Takes some minutes.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shared import machine
from benchmarks.written import RECORDS, ROOT
from robustkt import losses, models
from robustkt.core import Batch, Model, Terms
from robustkt.data import Split
from robustkt.engine import Trainer
from robustkt.generation import DataSpec, Training
from robustkt.progress import Silent
from robustkt.ranks import ranks

RECORD = RECORDS / "scale.json"
COLOUR = DataSpec(
    name="noise", fingerprint="", classes=tuple("0123456789"), shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3,
    held_out=0,
)  # fmt: skip
WARM = 2  # steps that are not timed
CURVE = 20  # steps of a loss curve
# name -> ranks, threads of each, parts of a step, sync_bn
SPEED = {"one process, 1 thread": (1, 1, 1, 0), "one process, 2 threads": (1, 2, 1, 0), "two ranks": (2, 1, 2, 0)}
CURVES = {
    "whole": (1, 1, 1, 0), "sync": (2, 1, 2, 1), "parts": (1, 1, 2, 0), "ranks": (2, 1, 2, 0), "threads": (1, 2, 1, 0),
}  # fmt: skip
PAIRS = {
    "two ranks with sync_bn against one process with the whole batch": ("sync", "whole"),
    "two ranks against one process in two parts": ("ranks", "parts"),
    "two ranks without sync_bn against one process with the whole batch": ("ranks", "whole"),
    "one process with two threads against one with one": ("threads", "whole"),
}


@dataclass(frozen=True)
class Natural:
    """Cross-entropy of the images as they are."""

    dtype: torch.dtype

    def perturb(self, student: Model, batch: Batch) -> Tensor:
        """The images."""
        return batch.x

    def loss(self, student: Model, batch: Batch, view: Tensor) -> Terms:
        """{"ce"}."""
        return {"ce": losses.ce(student(view.to(self.dtype)), batch.y).mean()}


@dataclass(kw_only=True)
class Watched(Trainer):
    """The product's own training, its steps timed and their losses kept."""

    told: list[tuple[float, float]] = field(default_factory=list)

    def step(self, *arguments: Any) -> dict[str, Tensor]:
        """A step, timed."""
        terms = super().step(*arguments)
        self.told.append((time.perf_counter(), float(terms["ce"])))
        return terms


def work(arch: str, rows: int, steps: int, parts: int, sync_bn: bool, double: bool, out: Path) -> None:
    """One process of a measurement; the first rank writes when its steps ended, and their losses."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (rows * steps, 3, 32, 32), generator=rng, dtype=torch.uint8)
    torch.manual_seed(0)
    dtype = torch.float64 if double else torch.float32
    student = models.build(arch, COLOUR).to(dtype=dtype, memory_format=torch.channels_last)
    plan = Training(epochs=1, batch_size=rows, lr=0.01, schedule="constant", sync_bn=sync_bn)
    with ranks() as group:
        run = Watched(
            student=student, objective=Natural(dtype), images=Split(x, torch.arange(len(x)) % 10), training=plan,
            score=lambda model: 0.0, folder=out.parent / "job", progress=Silent(), device=torch.device("cpu"),
            world_size=parts, group=group,
        )  # fmt: skip
        run.run()
    if group.rank == 0:
        out.write_text(json.dumps(run.told))


def measured(
    asked: argparse.Namespace, steps: int, way: tuple[int, int, int, int], *, double: bool = False
) -> list[tuple[float, float]]:
    """When each step ended, and its loss."""
    size, threads, parts, sync_bn = way
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "told.json"
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
        words = ["-m", "benchmarks.scale", "--work", str(out), "--steps", str(steps), "--parts", str(parts)]
        words += ["--arch", asked.arch, "--batch-size", str(asked.batch_size), *(["--sync-bn"] if sync_bn else [])]
        words += ["--double"] if double else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        subprocess.run([sys.executable, *launch, *words], cwd=ROOT, env=environment, check=True)
        return [(float(when), float(loss)) for when, loss in json.loads(out.read_text())]


def apart(one: list[tuple[float, float]], two: list[tuple[float, float]]) -> float:
    """The largest difference of two loss curves."""
    return max(abs(a - b) for (_, a), (_, b) in zip(one, two, strict=True))


def speed(asked: argparse.Namespace) -> dict[str, Any]:
    """Images a second of each way, in turn."""
    rates: dict[str, list[float]] = {name: [] for name in SPEED}
    for _ in range(asked.rounds):
        for name, way in SPEED.items():
            told = measured(asked, asked.steps + WARM, way)
            rates[name].append(asked.batch_size * asked.steps / (told[-1][0] - told[WARM - 1][0]))
            print(f"{name}: {rates[name][-1]:.0f} images/s", flush=True)
    return {name: {"images_per_second": found, "median": statistics.median(found)} for name, found in rates.items()}


def curves(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The largest difference of each pair of loss curves, by precision."""
    found = {}
    for precision in ("fp32", "fp64"):
        told = {name: measured(asked, CURVE, way, double=precision == "fp64") for name, way in CURVES.items()}
        found[precision] = {pair: apart(told[one], told[two]) for pair, (one, two) in PAIRS.items()}
        print(precision, found[precision], flush=True)
    return found


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--sync-bn", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["speed", "curves"], help="only this")
    asked = parser.parse_args()
    if asked.work:
        work(asked.arch, asked.batch_size, asked.steps, asked.parts, asked.sync_bn, asked.double, asked.work)
        return
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    record |= {"command": "python -m benchmarks.scale", "arch": asked.arch, "batch_size": asked.batch_size}
    if asked.part != "curves":
        record |= {"steps": asked.steps, "speed": speed(asked), "machine": {**machine(), "load": os.getloadavg()[0]}}
    if asked.part != "speed":
        record |= {"curve_steps": CURVE, "curves": curves(asked), "curves_machine": machine()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
