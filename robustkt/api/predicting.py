"""The smoothed class of image files with a certified radius, in as many copies as the answer needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from robustkt import data as datasets
from robustkt import inference, smooth
from robustkt.api.loading import load_network, pick_device
from robustkt.api.smoothing import (
    SAMPLES,
    certifier,
    check_options,
    check_reach,
    noise_for,
)
from robustkt.certificates import Ball, Certifying, lower_bound
from robustkt.noises import spelled
from robustkt.noises.gaussian import LEVELS
from robustkt.numbers import digest
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.streams import noise_seed

FINE = 24  # radii between which a mode that stops decides
BATCH = 128  # an image alone asks for little at a time; the same for many, so that none depends on the others


def predict(
    generation: str = "@latest",
    *,
    images: Sequence[Path],
    sigma: str | float | Fraction | None = None,
    mode: str = "sequential",
    n: int = SAMPLES,
    n0: int = 100,
    alpha: float = 0.001,
    noise: str = "gaussian",
    norm: str | None = None,
    seed: int = 0,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The smoothed class of image files with its certified radius, or an abstention.

    Args:
        generation: whose network is smoothed.
        images: files; they are brought to the network's channels and size.
        sigma: of the noise; the generation's own by default.
        mode: the statistical procedure; `sequential` takes as many copies as the answer needs.
        n: noisy copies that bound the probability, at most.
        n0: further ones that select the class.
        alpha: largest probability that an answer is wrong, for each image.
        noise: as in certify.
        norm: as in certify.
        seed: of the noise, which also depends on the image's pixels.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, id, sigma, alpha, mode, n, n0, noise, norm, seed, precision, batch_size, device, predictions [{file,
        class, label, radius, levels, abstained, drawn, resized}]; `levels` is the k of "every pixel value may change by
        up to k/255", where the norm allows one.

    Raises:
        RobustKTError: anything the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    check_options(mode, n, n0, alpha)
    check_reach(mode, n, alpha)
    found = registry.mode(generation)
    kind, norm = noise_for(found, noise, sigma, norm)
    target = pick_device(device)
    spec = found.recipe.data
    pixels = [datasets.read_image(path, spec.shape) for path in images]
    resized = set()
    for path in images:
        with Image.open(path) as image:
            if image.size != (spec.shape[2], spec.shape[1]):
                resized.add(path)
                size = f"{image.size[0]}x{image.size[1]} to {spec.shape[2]}x{spec.shape[1]}"
                progress.note(f"{path}: resized from {size}; the radius is one of the resized image")
    ball = Ball(kind, norm, spec.shape)
    stream = noise_seed(seed, mode, n, n0)
    largest = ball.radius(lower_bound(n, n, alpha))
    grid = [largest * step / FINE for step in range(FINE)]  # one image is worth a finer answer than a table
    model = inference.prepare(load_network(registry, found), spec.shape, target, "fp32")

    def program(key: str) -> Certifying:
        return certifier(mode, ball, alpha, n0, n, grid, (f"{found.id} {stream}", key))

    def keyed() -> Iterator[tuple[str, torch.Tensor]]:
        for x in pixels:
            yield digest(x.numpy().tobytes()), datasets.to_float(x)

    with progress.bar(f"predicting with {found.name}", len(pixels) * (n + n0)) as bar:
        results = []
        certified = smooth.certify(
            model,
            keyed(),
            program,
            classes=len(spec.classes),
            noise=kind,
            seed=stream,
            device=target,
            batch_size=BATCH,
            advance=bar.advance,
        )
        for _, certificate in certified:
            results.append(certificate)
            bar.advance(max(0, n + n0 - certificate.n))
    return {
        "generation": found.name,
        "id": found.id,
        "sigma": float(level) if (level := getattr(kind, "sigma", None)) else None,
        **{"alpha": alpha, "mode": mode, "n": n, "n0": n0, "noise": spelled(kind), "norm": norm, "seed": seed},
        **{"precision": "fp32", "batch_size": BATCH, "device": target.type},
        "predictions": [
            {
                "file": str(path),
                "class": None if c.label is None else spec.classes[c.label],
                "label": c.label,
                "radius": c.radius,
                "levels": grey_levels(c.radius, norm, spec.shape),
                "abstained": c.label is None,
                "drawn": c.n,
                "resized": path in resized,
                **({} if c.u is None else {"u": c.u}),
            }
            for path, c in zip(images, results, strict=True)
        ],
    }


def grey_levels(radius: float, norm: str, shape: tuple[int, ...]) -> int | None:
    """The largest k for which every pixel value may change by up to k/255 inside a ball of `radius`; None for L0."""
    if norm == "l0":
        return None
    order = math.inf if norm == "linf" else float(norm[1:])
    exact: float = radius * LEVELS / math.prod(shape) ** (1 / order)
    return math.floor(exact * (1 - 1e-12))
