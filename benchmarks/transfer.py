"""Certified robustness carried from a SmoothMix teacher to CRT students: quality, and cost against Gaussian training.

    python -m benchmarks.transfer --data digits --teacher resnet8 --students smallcnn,resnet20 --seeds 3
    python -m benchmarks.transfer --data fashion-mnist --train-images 8000 --teacher resnet20 --students resnet20 \
        --epochs 3,6 --batch-size 64 --seeds 1 --n 500 --images 200

Everything goes through `robustkt.api` into a registry of its own (--registry), so an interrupted run continues and a
second one re-uses what is there. The record is written to benchmarks/records/transfer-DATA.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.shared import RADII, machine, shown, subset
from benchmarks.written import RECORDS
from robustkt import api, models, objectives
from robustkt import data as datasets
from robustkt.api.loading import load_network, pick_device, ready
from robustkt.api.recipes import defaults
from robustkt.core import seed_of
from robustkt.engine import Trainer
from robustkt.generation import Training
from robustkt.progress import Silent
from robustkt.registry import Registry


def quality(options: argparse.Namespace, registry: Registry, seed: int) -> list[dict[str, Any]]:
    """Teacher, CRT students and their Gaussian twins for one seed, certified on the same images and noise."""
    teacher_epochs, student_epochs = options.epochs
    shared: dict[str, Any] = {"registry": registry, "seed": seed, "data_dir": options.data_dir}
    made = [
        api.train(
            method="smoothmix", arch=options.teacher, data=options.data, name=f"teacher-{seed}",
            given={"sigma": options.sigma, **teacher_epochs}, **shared,
        )
    ]  # fmt: skip
    for arch in options.students:
        made.append(
            api.distill(teacher=f"teacher-{seed}", arch=arch, name=f"crt-{arch}-{seed}", given=student_epochs, **shared)
        )
        made.append(
            api.train(
                method="gaussian", arch=arch, data=options.data, name=f"gaussian-{arch}-{seed}",
                given={"sigma": options.sigma, **student_epochs}, **shared,
            )
        )  # fmt: skip
    rows = []
    for one in made:
        certified = api.certify(
            one["generation"], sigma=options.sigma, mode=options.mode, n=options.n, max_images=options.images,
            radii=RADII, registry=registry, data_dir=options.data_dir,
        )  # fmt: skip
        keys = ("certified_accuracy", "intervals", "acr", "abstain_rate", "images", "n", "alpha")
        rows.append(
            {"seed": seed, **{k: one[k] for k in ("generation", "id", "method", "arch", "cost")},
             "train_seconds": one["wall_seconds"], **{k: certified[k] for k in keys},
             "certify_seconds": certified["seconds"]}
        )  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def cost_ratio(options: argparse.Namespace, registry: Registry, arch: str) -> dict[str, Any]:
    """Seconds of CRT against Gaussian training of the same student, in turn in one process, pair by pair."""
    device = pick_device("auto")
    dataset = datasets.load(options.data, data_dir=options.data_dir)
    teacher = load_network(registry, registry.get("teacher-0")).requires_grad_(False)
    training = Training(**{**defaults(dataset), "epochs": 1})
    count = min(len(dataset.train), options.cost_images)
    images = datasets.Split(dataset.train.x[:count], dataset.train.y[:count])
    settings = {"sigma": options.sigma}

    def seconds(method: str) -> float:
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(seed_of(0, "weights"))
            student = models.build(arch, dataset.spec).to(device).to(memory_format=torch.channels_last)
            trainer = Trainer(
                student=student,
                objective=objectives.build(method, settings, ready(teacher, device, "fp32")),
                images=images,
                training=training,
                score=lambda model: 0.0,
                folder=Path(folder),
                progress=Silent(),
                device=device,
            )
            return trainer.run().history.seconds

    pairs = [(seconds("gaussian"), seconds("crt")) for _ in range(options.pairs + 1)][1:]  # the first warms up
    ratios = [crt / gaussian for gaussian, crt in pairs]
    return {"arch": arch, "pairs": pairs, "median_ratio": statistics.median(ratios), "ratios": ratios, "images": count}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--teacher", default="resnet8")
    parser.add_argument("--students", default="smallcnn,resnet20", type=lambda text: text.split(","))
    parser.add_argument("--epochs", default="", help="of the teacher and of the students, such as 1,3")
    parser.add_argument("--sigma", default="0.25")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=1_000)
    parser.add_argument("--mode", default="fixed", help="of certification; ACR is comparable within one mode only")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--cost-images", type=int, default=1_280)
    parser.add_argument("--train-images", type=int, help="only so many training images")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--registry", type=Path, required=True)
    options = parser.parse_args()
    epochs = [{"epochs": int(e)} for e in options.epochs.split(",")] if options.epochs else [{}, {}]
    options.epochs = epochs if len(epochs) == 2 else epochs * 2
    if options.batch_size:
        options.epochs = [{**e, "batch_size": options.batch_size} for e in options.epochs]
    name = options.data
    options.data = subset(options) if options.train_images else options.data
    registry = Registry(options.registry)
    rows = [row for seed in range(options.seeds) for row in quality(options, registry, seed)]
    costs = [cost_ratio(options, registry, arch) for arch in options.students]
    record = {
        "command": "python -m benchmarks.transfer " + shown(sys.argv[1:]),
        "machine": machine(),
        "rows": rows,
        "costs": costs,
    }
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"transfer-{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    for cost in costs:
        print(f"{cost['arch']}: CRT / Gaussian seconds, median of {options.pairs} pairs: {cost['median_ratio']:.3f}")


if __name__ == "__main__":
    main()
