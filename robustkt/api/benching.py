"""Speed of training and of AutoAttack on this machine, against limits and plain loops, in one run."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from robustkt import bench as timing
from robustkt import data as datasets
from robustkt import inference, models
from robustkt.api.benchsteps import AUTOATTACK, USUAL, Steps, timeable
from robustkt.api.loading import load_network, machine, pick_compile, pick_device, pick_precision, ready
from robustkt.api.training import train
from robustkt.attacks._rolling import hunt
from robustkt.attacks.autoattack import standard
from robustkt.core import ThreatModel, generator
from robustkt.numbers import check_counts
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

EPS = Fraction(1, 10)  # of the network that AutoAttack is timed on


def bench_train(
    *,
    methods: Sequence[str] | None = None,
    arch: str = "resnet20",
    batch_size: int = 128,
    image_size: int = 32,
    images: int = 64,
    repeats: int = 5,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time training steps against plain training, their arithmetic minimum and plain loops, in turn in this process.

    Args:
        methods: objectives, and `autoattack`; None = the field's usual ones.
        arch: of student and teacher.
        batch_size: images a step.
        image_size: their side, in pixels; three channels, ten classes.
        images: test images of the digits that AutoAttack is run on.
        repeats: rounds in which every step is taken once.
        device: auto, cpu, cuda or mps.
        precision: of our side; `auto` is the fastest of the device. Plain loops run in fp32.
        compile: `on`, `off`, or `auto`: torch.compile on CUDA and in bf16, where there is a compiler.
        progress: where to report.

    Returns:
        ratios {METHOD_cost: times a step of plain training, METHOD_of_minimum: share of the arithmetic minimum's speed
        that is reached, METHOD_times_plain_loop: times faster}, figures, machine.

    Raises:
        UsageError: an unknown method or architecture, one whose training is not timed, or a count below 1.
    """
    check_counts({"--batch-size": batch_size, "--image-size": image_size, "--images": images, "--repeats": repeats})
    progress, target = progress or Silent(), pick_device(device)
    models.known(arch)
    chosen = timeable(methods or USUAL)
    fastest = pick_precision(precision, target)
    compiled = pick_compile(compile, target, inference.pays(target, fastest))
    steps = [method for method in chosen if method != AUTOATTACK]
    figures: dict[str, Any] = {}
    rates: dict[str, float] = {}
    if steps:
        shape = (3, image_size, image_size)
        run = Steps(steps, arch, shape, batch_size, target, fastest, compiled, progress)
        rates, figures = run.measure(repeats)
    if AUTOATTACK in chosen:
        progress.note(f"AutoAttack on {images} images of the digits")
        figures[AUTOATTACK] = _autoattack(images, target)
    return {
        "ratios": {
            (f"{name}_{key}" if name != AUTOATTACK else f"{name}_times_plain_loop"): figure[key]
            for name, figure in figures.items()
            for key in ("cost", "of_minimum", "times_plain_loop", "ratio")
            if figure.get(key) is not None
        },
        "figures": figures,
        "rates": rates,
        "arch": arch,
        "batch_size": batch_size,
        "image_size": image_size,
        "images": images,
        "precision": fastest,
        "compiled": compiled,
        "repeats": repeats,
        "machine": machine(target),
    }


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
