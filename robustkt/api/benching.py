"""Speed on this machine against plain reference loops, in one run."""

from __future__ import annotations

import copy
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from robustkt import bench as timing
from robustkt import data as datasets
from robustkt import models, objectives
from robustkt.api.loading import load_network, machine, pick_device, ready
from robustkt.api.training import train
from robustkt.attacks._rolling import hunt
from robustkt.attacks.autoattack import standard
from robustkt.core import Batch, ThreatModel, generator
from robustkt.engine import sgd
from robustkt.generation import DataSpec, Training
from robustkt.numbers import check_counts
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

EPS = Fraction(1, 10)  # of the network that AutoAttack is timed on
COLOUR = DataSpec(
    name="noise", fingerprint="", classes=tuple("0123456789"), shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3,
    held_out=0,
)  # fmt: skip


def bench_train(
    *,
    arch: str = "resnet20",
    batch_size: int = 128,
    images: int = 64,
    repeats: int = 5,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time training and attacks against plain loops as the papers' scripts write them, in turn in this process.

    One RSLAD step of `arch` on 32×32 images, and one AutoAttack run on a small robust network.

    Args:
        arch: of student and teacher in the RSLAD step.
        batch_size: images a step.
        images: test images of the digits that AutoAttack is run on.
        repeats: pairs of RSLAD steps.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        ratios {name: times faster than the plain loop}, figures {name: seconds of both}, machine.

    Raises:
        UsageError: an unknown architecture, or a count below 1.
    """
    check_counts({"--batch-size": batch_size, "--images": images, "--repeats": repeats})
    progress, target = progress or Silent(), pick_device(device)
    models.known(arch)
    progress.note(f"one RSLAD step of {arch}, {repeats} pairs")
    figures = {"rslad_step": _rslad(arch, batch_size, repeats, target)}
    progress.note(f"AutoAttack on {images} images of the digits")
    figures["autoattack"] = _autoattack(images, target)
    return {
        "ratios": {name: figure["ratio"] for name, figure in figures.items()},
        "figures": figures,
        "arch": arch,
        "batch_size": batch_size,
        "images": images,
        "machine": machine(target),
    }


def _rslad(arch: str, batch_size: int, repeats: int, device: torch.device) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student, teacher = models.build(arch, COLOUR).to(device), models.build(arch, COLOUR).to(device)
    rng = generator(device, 0, "bench")
    x = torch.rand(batch_size, 3, 32, 32, generator=rng, device=device)
    y = torch.zeros(batch_size, dtype=torch.int64, device=device)
    theirs, frozen = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    student = student.to(memory_format=torch.channels_last)
    objective = objectives.build("rslad", {"norm": "linf", "eps": "8/255"}, ready(teacher, device, "fp32"))
    ours_optimizer = sgd(student, Training())
    theirs_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batch = Batch(x, y, 0, rng)
    return timing.pairs(
        lambda: timing.our_step(student, objective, batch, ours_optimizer),
        lambda: timing.plain_rslad_step(theirs, frozen, x, theirs_optimizer, eps=8 / 255, steps=10),
        repeats,
        device,
    )


def _autoattack(images: int, device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        given = {"eps": EPS, "epochs": 5}
        train(method="sat", arch="smallcnn", data="digits", registry=registry, given=given, device=str(device))
        network = load_network(registry, registry.get("gen0"))
    test = datasets.load("digits").test
    x, y = datasets.to_float(test.x[:images].to(device)), test.y[:images].to(device)
    threat, plain = ThreatModel("linf", EPS), copy.deepcopy(network).to(device)
    model = ready(network, device, "fp32")
    batch_size = max(1, images // 4)  # so that batches run empty, as they do on a whole test set
    searches = standard(10)
    broken: dict[str, torch.Tensor] = {}

    def ours() -> None:
        rng = generator("cpu", 0, "bench")
        x_adv = hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size)
        with torch.no_grad():
            broken["ours"] = model(x_adv).argmax(dim=1) != y

    def theirs() -> None:
        broken["plain"] = ~timing.plain_ensemble(plain, x, y, threat, searches, batch_size)

    figure = timing.pairs(ours, theirs, 1, device)
    shares = {f"{side}_robust_accuracy": 1 - float(fell.double().mean()) for side, fell in broken.items()}
    return {**figure, **shares}
