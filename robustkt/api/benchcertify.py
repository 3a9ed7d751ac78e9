"""Speed of certification on this machine against the reference loop and the bare forward pass, in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import bench as timing
from robustkt import data as datasets
from robustkt import inference, models, smooth
from robustkt.api.benchsteps import COLOUR
from robustkt.api.loading import load_data, load_network, machine, pick_device, pick_precision, spread
from robustkt.api.smoothing import check_options, default_radii
from robustkt.certificates import Ball
from robustkt.certificates.cohen import fixed
from robustkt.certificates.sequential import sequential
from robustkt.core import generator
from robustkt.noises.gaussian import Gaussian
from robustkt.numbers import check_counts
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

PLAIN_BATCH = 400  # of the commands in the reference code's README
SIGMA = Fraction(1, 4)


def bench_certify(
    generation: str | None = None,
    *,
    arch: str = "resnet20",
    samples: int = 5_120,
    images: int = 50,
    n: int = 100_000,
    alpha: float = 0.001,
    repeats: int = 3,
    precision: str = "auto",
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the sampler against the reference's loop and against the network alone; with a generation, a whole table.

    Args:
        generation: whose network and test images are taken; without it `arch` on 32×32 images, without a table.
        arch: of the network when no generation is named.
        samples: noisy copies that each side votes on in each of the pairs.
        images: test images whose table of radii is decided by `sequential`.
        n: most copies an image; the reference takes all of them, which is extrapolated.
        alpha: failure probability of the table.
        repeats: pairs.
        precision: of our side; `auto` is the fastest of the device.
        data_dir: where the generation's data lie.
        registry: of the generation.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        ratios {reference_loop: times faster, bare_forward: share of its speed, table: times faster}, figures, machine.

    Raises:
        RobustKTError: anything the user can fix.
    """
    progress, target = progress or Silent(), pick_device(device)
    check_options("sequential", n, 1, alpha)
    check_counts({"--samples": samples, "--images": images, "--n": n, "--repeats": repeats})
    chosen = pick_precision(precision, target)
    compiled = inference.can_compile(target)
    sigma = SIGMA
    if generation is None:
        models.known(arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain: nn.Module = models.build(arch, COLOUR).eval()
        shape, classes = COLOUR.shape, len(COLOUR.classes)
        pictures = torch.rand(64, *shape, generator=generator("cpu", 0, "bench"))
    else:
        registry = registry or Registry.locate()
        found = registry.mode(generation)
        sigma = found.sigma or SIGMA
        plain, test = load_network(registry, found), load_data(registry, found, None, data_dir).test
        arch, shape, classes = found.recipe.arch, found.recipe.data.shape, len(found.recipe.data.classes)
        pictures = datasets.to_float(test.x[:: spread(len(test), images)][:images])
    fast = inference.prepare(plain, shape, target, chosen, compiled=compiled)
    plain = plain.to(target)
    batch = smooth.BATCH[target.type]
    samples = -(-samples // batch) * batch
    noise = Gaussian(sigma)
    ball = Ball(noise, "l2", shape)

    def sampler() -> None:
        each = batch // 2  # images take turns in a batch
        list(
            smooth.certify(
                fast, _numbered(pictures, samples // each), lambda key: fixed(ball=ball, alpha=0.4, n0=64, n=each - 64),
                classes=classes, noise=noise, seed=0, device=target,
            )
        )  # fmt: skip

    def reference() -> None:
        for start in range(0, samples, PLAIN_BATCH * 4):
            x = pictures[start % len(pictures)].to(target)
            timing.plain_counts(plain, x, min(PLAIN_BATCH * 4, samples - start), float(sigma), PLAIN_BATCH, classes)

    there = torch.randn(batch, *shape, generator=generator("cpu", 1, "bench")).to(target)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(samples // batch):
                fast(there)

    progress.note(f"{samples:,} noisy copies: the sampler and the reference's loop, {repeats} pairs")
    loop = timing.pairs(sampler, reference, repeats, target)
    progress.note("the sampler and the network alone")
    alone = timing.pairs(sampler, bare, repeats, target)
    figures: dict[str, Any] = {"reference_loop": loop, "bare_forward": alone}
    if generation is not None:
        progress.note(f"certified accuracy at all radii, {len(pictures)} images, n up to {n:,}")
        grid = [float(r) for r in default_radii(ball, n, alpha)]
        figures["table"] = _table(fast, pictures, ball, grid, n, alpha, classes, noise, target)
        per_sample = loop["plain_seconds"] / samples
        figures["table"]["plain_seconds"] = per_sample * (n + 100) * len(pictures)
        figures["table"]["ratio"] = figures["table"]["plain_seconds"] / figures["table"]["ours_seconds"]
    return {
        "ratios": {name: figure["ratio"] for name, figure in figures.items()},
        "figures": figures,
        **{
            "arch": arch,
            "shape": list(shape),
            "samples": samples,
            "batch_size": batch,
            "plain_batch_size": PLAIN_BATCH,
        },
        **{"precision": chosen, "compiled": compiled, "n": n, "alpha": alpha, "sigma": float(sigma)},
        "images": len(pictures) if generation is not None else 0,
        "samples_per_second": {
            "ours": samples / loop["ours_seconds"],
            "reference_loop": samples / loop["plain_seconds"],
            "bare_forward": samples / alone["plain_seconds"],
        },
        "machine": machine(target),
    }


def _numbered(pictures: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    for i in range(count):
        yield i, pictures[i % len(pictures)]


def _table(
    fast: nn.Module,
    pictures: Tensor,
    ball: Ball,
    grid: list[float],
    n: int,
    alpha: float,
    classes: int,
    noise: Gaussian,
    device: torch.device,
) -> dict[str, Any]:
    began = time.perf_counter()
    certificates = [
        certificate
        for _, certificate in smooth.certify(
            fast, _numbered(pictures, len(pictures)),
            lambda key: sequential(ball=ball, alpha=alpha, n0=100, n=n, radii=grid),
            classes=classes, noise=noise, seed=0, device=device,
        )
    ]  # fmt: skip
    return {
        "ours_seconds": time.perf_counter() - began,
        "samples_per_image": sum(c.n for c in certificates) / len(certificates),
        "radii": grid,
    }
