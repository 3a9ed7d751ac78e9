"""What a certification is to measure, and how: the options of `certify` made exact, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustkt import corruptions, inference, smooth
from robustkt import data as datasets
from robustkt.api.loading import load_test_data, machine, pick_compile, pick_device, pick_precision, spread
from robustkt.api.smoothing import (
    COMPILE_FROM,
    certifier,
    check_options,
    check_reach,
    default_radii,
    noise_for,
    takes,
)
from robustkt.certificates import Ball, Certificate, Certifying
from robustkt.generation import Generation
from robustkt.noises import Noise, spelled
from robustkt.numbers import canonical, digest, exact
from robustkt.registry import Registry
from robustkt.registry.measurements import key_of
from robustkt.streams import noise_seed

STOPS_AT = 5  # what share of the copies a mode that stops takes, roughly


@dataclass(frozen=True)
class Plan:
    """One certification: what to measure and where its unfinished state lies."""

    found: Generation
    settings: dict[str, Any]
    ball: Ball
    dataset: datasets.Dataset
    indices: Sequence[int]
    grid: Sequence[Fraction]  # radii that are reported
    folder: Path
    device: torch.device

    @property
    def share(self) -> float:
        """α of an image."""
        return float(self.settings.get("alpha_image", self.settings["alpha"]))

    @property
    def most(self) -> int:
        """Noisy copies that an image may take."""
        return int(self.settings["n"] + self.settings["n0"])

    @property
    def seed(self) -> str:
        """Of the noise."""
        return noise_seed(*(self.settings[name] for name in ("seed", "mode", "n", "n0")))

    @property
    def noise(self) -> Noise:
        """What the copies are made by."""
        return self.ball.noise  # type: ignore[return-value]

    def prepared(self, plain: nn.Module, *, compiled: bool) -> nn.Module:
        """The network as it answers the noisy copies."""
        shape, precision = self.dataset.spec.shape, self.settings["precision"]
        return inference.prepare(plain, shape, self.device, precision, compiled=compiled)

    def certificates(
        self,
        model: nn.Module,
        images: Sequence[int],
        journal: smooth.Journal[int] | None,
        advance: Callable[[int], None],
    ) -> Iterator[tuple[int, Certificate]]:
        """Image by image, in order; `advance` is told the copies of each forward pass."""
        return smooth.certify(
            model,
            ((i, datasets.to_float(self.dataset.test.x[i])) for i in images),
            self._program,
            classes=len(self.dataset.spec.classes),
            noise=self.noise,
            seed=self.seed,
            device=self.device,
            batch_size=self.settings["batch_size"],
            journal=journal,
            advance=advance,
        )

    def _program(self, idx: int) -> Certifying:
        settings = self.settings
        radii = [float(Fraction(r)) for r in settings.get("radii", ())]
        random = f"{self.found.id} {self.seed}", idx
        return certifier(settings["mode"], self.ball, self.share, settings["n0"], settings["n"], radii, random)


def planned(
    registry: Registry,
    generation: str,
    *,
    sigma: str | float | Fraction | None,
    mode: str,
    n: int,
    n0: int,
    alpha: float,
    radii: Sequence[Fraction] | None,
    skip: int | None,
    max_images: int,
    noise: str,
    norm: str | None,
    simultaneous: bool,
    seed: int,
    last: bool,
    data: str | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    compile: str,
    batch_size: int | None,
    corruption: str | None,
) -> Plan:
    """The arguments of `certify`, checked, with the data loaded; nothing is measured.

    Raises:
        RobustKTError: anything the user can fix.
    """
    check_options(mode, n, n0, alpha, skip, max_images, batch_size, radii, compile)
    found = registry.mode(generation)
    kind, norm = noise_for(found, noise, sigma, norm)
    level = getattr(kind, "sigma", None)
    target = pick_device(device)
    dataset = load_test_data(registry, found, data, data_dir)
    step = skip or spread(len(dataset.test), max_images)
    indices = list(range(0, len(dataset.test), step))[:max_images]
    shift = corruptions.one(corruption) if corruption is not None else None
    if shift is not None:
        dataset = datasets.corrupted(dataset, shift, indices)
    share = alpha / len(indices) if simultaneous else alpha
    check_reach(mode, n, share)
    draws = len(indices) * (n + n0) // (STOPS_AT if takes(mode, "radii") else 1)
    settings: dict[str, Any] = {
        "sigma": exact(level) if level else "", "mode": mode, "n": n, "n0": n0,
        "alpha": alpha, "noise": spelled(kind), "norm": norm, "seed": seed, "images": len(indices), "skip": step,
        "weights": found.network(last=last), **found.domain, "data": dataset.spec.fingerprint,
        "precision": pick_precision(precision, target),
        "compiled": pick_compile(compile, target, draws >= COMPILE_FROM),
        "batch_size": batch_size or smooth.BATCH[target.type],
        **({"alpha_image": share} if simultaneous else {}),
        **({"corruption": str(shift)} if shift else {}),
    }  # fmt: skip
    ball = Ball(kind, norm, dataset.spec.shape)
    grid = list(radii or default_radii(ball, n, share))
    if takes(mode, "radii"):
        settings["radii"] = [exact(r) for r in grid]  # they decide when an image is done
    # half a run on another device or version would be half the votes of another network, in its last bits
    made_by = {name: value for name, value in machine(target).items() if name in ("device", "machine", "versions")}
    folder = registry.job_path("certify", digest(canonical([found.id, key_of(settings), target.type, made_by]))[7:23])
    return Plan(found, settings, ball, dataset, indices, grid, folder, target)
