"""What kept logits cost and save: quality by the number of views over seeds, and an epoch's price, on the digits.

    python -m benchmarks.replay --registry DIR
    python -m benchmarks.replay --registry DIR --part crt    # or rslad, price: beside each other

Everything is trained through `robustkt.api` into a registry of its own, and benchmarks/records/replay.json is written
after every row, so an interrupted run continues. Prices are taken in turn in one process.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.rows import Rows
from benchmarks.shared import RADII
from robustkt import api, models, objectives
from robustkt import data as datasets
from robustkt.api.recipes import assemble
from robustkt.api.replaying import Teacher
from robustkt.core import generator, seed_of
from robustkt.engine import Meter, Trainer
from robustkt.generation import DataSpec, Recipe, Training
from robustkt.objectives import Replayed
from robustkt.progress import Silent
from robustkt.registry import Registry
from robustkt.replay import BLOCK, Replay

ROWS = Rows("replay", "rows", "prices", "memory")
SIGMA, EPS, EPOCHS = "0.25", "0.1", 32
VIEWS: tuple[int | None, ...] = (None, 1, 8, EPOCHS)  # none is a fresh one in every epoch
COMMON = {"epochs": EPOCHS, "batch_size": 64}
CPU = torch.device("cpu")
TEACHERS: dict[str, dict[str, Any]] = {
    "crt": {"method": "gaussian", "given": {"sigma": SIGMA, "epochs": 20}},
    "rslad": {"method": "trades", "given": {"eps": EPS, "steps": 3, "pad": 1, "epochs": 20}},
}
STUDENTS: dict[str, dict[str, Any]] = {"crt": COMMON, "rslad": {**COMMON, "steps": 3, "pad": 1}}


def quality(registry: Registry, method: str, seed: int, views: int | None) -> dict[str, Any]:
    """A student of this method with so many views, measured on the test images."""
    teacher, name = f"{method}-teacher-{seed}", f"{method}-{views or 'fresh'}-{seed}"
    shared: dict[str, Any] = {"registry": registry, "seed": seed, "device": "cpu"}
    api.train(arch="resnet8", data="digits", name=teacher, **TEACHERS[method], **shared)
    given = {**STUDENTS[method], "views": views}
    made = api.distill(teacher=teacher, arch="smallcnn", method=method, name=name, given=given, **shared)
    row = {"method": method, "seed": seed, "views": views, "cost": made["cost"], "replay": made["replay"]}
    return {**row, "id": made["id"], **measured(registry, name, method)}


def measured(registry: Registry, name: str, method: str) -> dict[str, Any]:
    """What counts for a method: certificates, or accuracy with and without an attack."""
    if method == "crt":
        keys = ("certified_accuracy", "acr", "images", "n", "alpha")
        found = api.certify(
            name, sigma=SIGMA, mode="fixed", n=500, max_images=500, radii=RADII, registry=registry, device="cpu"
        )
        return {key: found[key] for key in keys}
    found = api.evaluate(
        name, attacks=["clean", "pgd-sat", "apgd-ce"], eps=EPS, max_images=500, registry=registry, device="cpu"
    )
    accuracy = {attack: told["accuracy"] for attack, told in found["attacks"].items()}
    return {"accuracy": accuracy, "images": found["images"]}


def price(registry: Registry, arch: str, side: int, count: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of an epoch: Gaussian, CRT on kept logits, CRT that keeps them, CRT on fresh views, the teacher's."""
    dataset = datasets.load("digits", image_size=side)
    name = f"price-{arch}-{side}"
    api.train(
        method="gaussian", arch=arch, data="digits", name=name, image_size=side, registry=registry, device="cpu",
        given={"sigma": SIGMA, "epochs": 1, "batch_size": 128},
    )  # fmt: skip
    images = datasets.Split(dataset.train.x[:count], dataset.train.y[:count])
    scratch = Registry(registry.root / "jobs" / "price")

    def recipe_of(method: str, views: int | None) -> Recipe:
        given = {"sigma": SIGMA, "epochs": 1, "batch_size": 128, **({"views": views} if method == "crt" else {})}
        return assemble(
            method=method, arch=arch, arch_source=None, data=dataset, given=given, preset=None, precision="fp32", seed=0
        )

    teacher = Teacher(registry, registry.get(name), recipe_of("crt", 1), CPU, {})
    teacher.network(images.images(slice(0, BLOCK)))
    teacher.registry = scratch  # where its logits are kept

    def epoch(method: str, views: int | None) -> float:
        recipe = recipe_of(method, views)
        teacher.recipe = recipe
        objective = objectives.build(method, recipe.settings, teacher.network)
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(seed_of(0, "weights"))
            student = models.build(arch, dataset.spec).to(memory_format=torch.channels_last)
            run = Trainer(
                student=student, objective=objective, images=images, training=recipe.training or Training(),
                score=lambda model: 0.0, folder=Path(folder), progress=Silent(), device=CPU,
                meters={"student": Meter(student)}, replay=teacher.replay(objective, images, Silent()),
            )  # fmt: skip
            began = time.process_time()
            run.run()
            return time.process_time() - began

    def filling() -> float:
        shutil.rmtree(scratch.root, ignore_errors=True)
        return epoch("crt", 1)

    def forward() -> float:
        began = time.process_time()
        with torch.no_grad():
            for start in range(0, count, 128):
                teacher.network(images.images(slice(start, start + 128)))
        return time.process_time() - began

    kinds = {
        "filling": filling,
        "kept": lambda: epoch("crt", 1),
        "gaussian": lambda: epoch("gaussian", None),
        "fresh": lambda: epoch("crt", None),
        "teacher": forward,
    }
    turns = []
    for turn in range(rounds + 1):  # the first warms up
        order = list(kinds)[:1] + (list(kinds)[1:] if turn % 2 else list(kinds)[:0:-1])
        turns.append({kind: kinds[kind]() for kind in order})
    shutil.rmtree(scratch.root, ignore_errors=True)
    times = {kind: [turn[kind] for turn in turns[1:]] for kind in kinds}
    ratios = {kind: [a / b for a, b in zip(times[kind], times["gaussian"], strict=True)] for kind in kinds}
    told = {k: {"median": statistics.median(r), "lowest": min(r), "highest": max(r)} for k, r in ratios.items()}
    return {"arch": arch, "side": dataset.spec.shape[1], "images": count, "rounds": rounds, "seconds": times, **told}


def memory(images: int, classes: int) -> dict[str, Any]:
    """Bytes of a view, and how much memory of its own the process gains while it is written and read at random."""
    spec = DataSpec(
        name="noise", fingerprint="", classes=tuple(map(str, range(classes))), shape=(1, 8, 8), mean=(0.5,),
        std=(0.25,), held_out=0,
    )  # fmt: skip
    split = datasets.Split(torch.zeros(images, 1, 8, 8, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64))
    recipe = Recipe(method="rslad", settings={}, arch="linear", data=spec, training=Training())
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes)).eval()
    objective = objectives.build("rslad", {"eps": EPS, "views": 1}, linear)
    assert isinstance(objective, Replayed)
    held: list[int] = []

    def teacher(x: torch.Tensor) -> torch.Tensor:
        held.append(_own_memory())
        return linear(x)

    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(
            Registry(Path(folder)), teacher=teacher, identity="noise", objective=objective, views=1, recipe=recipe,
            training=Training(), images=split, device=CPU, circumstances=dict, progress=Silent(),
        )  # fmt: skip
        linear(torch.zeros(BLOCK, 1, 8, 8))
        replay.open(0)
        before = min(held)
        rng = generator("cpu", 0)
        for _ in range(50):
            picked = torch.randint(images, (128,), generator=rng)
            replay.batch(picked, split.x[picked], split.y[picked], 0, rng)
            held.append(_own_memory())
        gained = max(held) - before
        size = next(Path(folder).glob("replay/*")).stat().st_size
    return {"images": images, "classes": classes, "file": size, "gained": gained}


def _own_memory() -> int:
    """Bytes of the process that are no file's pages."""
    path = Path("/proc/self/status")
    if not path.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(next(line for line in path.read_text().splitlines() if "RssAnon" in line).split()[1]) * 1024


def main() -> None:
    """Measure what the record lacks, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--part", choices=["price", *STUDENTS])
    parser.add_argument("--registry", type=Path, required=True)
    options = parser.parse_args()
    registry = Registry(options.registry)

    def wanted(part: str) -> bool:
        return options.part in (None, part)

    for arch, side, count in (("smallcnn", 8, 1_150), ("resnet8", 8, 1_150), ("resnet20", 32, 640)):
        if wanted("price") and not ROWS.known("prices", arch=arch, side=side):
            ROWS.keep("prices", price(registry, arch, side, count, options.rounds))
    for images, classes in ((50_000, 10), (50_000, 1_000)):
        if wanted("price") and not ROWS.known("memory", images=images, classes=classes):
            ROWS.keep("memory", memory(images, classes))
    for seed in range(options.seeds):
        for method in filter(wanted, STUDENTS):
            for views in VIEWS:
                if not ROWS.known("rows", method=method, seed=seed, views=views):
                    ROWS.keep("rows", quality(registry, method, seed, views))


if __name__ == "__main__":
    main()
