"""Certificates by randomized smoothing, of a test set or of image files; results are kept and re-used."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from robustkt import certlog, smooth
from robustkt import data as datasets
from robustkt.api.loading import load_data, load_network, pick_device, pick_precision, ready, spread
from robustkt.api.training import machine
from robustkt.catalog import CERTIFIERS, unknown
from robustkt.certificates import lower_bound, radius_l2
from robustkt.errors import UsageError
from robustkt.generation import Generation
from robustkt.numbers import canonical, digest, exact
from robustkt.objectives import noise_level
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry, Result
from robustkt.registry.files import append_synced, locked, write_atomic

SAMPLES = 10_000  # the papers' 100,000 takes ten times as long; --n 100000 gives their table
TELL_SECONDS = 60.0  # how often a line is written where no bar is drawn
FLUSH_SECONDS = 1.0  # how much certified work a crash may cost


def certify(
    generation: str = "@latest",
    *,
    sigma: str | float | Fraction,
    mode: str = "fixed",
    n: int = SAMPLES,
    n0: int = 100,
    alpha: float = 0.001,
    radii: Sequence[Fraction] | None = None,
    skip: int | None = None,
    max_images: int = 500,
    noise: str = "gaussian",
    norm: str = "l2",
    seed: int = 0,
    out: Path | None = None,
    last: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = smooth.BATCH,
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Certificates of the smoothed classifier on test images; an interrupted run continues, a finished one is re-used.

    Args:
        generation: whose network is smoothed.
        sigma: standard deviation of the Gaussian noise, in [0, 1] pixel units.
        mode: the statistical procedure; `fixed` is CERTIFY of 1902.02918; `sequential` and `looks` decide the radii and
            stop; `adaptive` comes within 1 % of the radius of `fixed`.
        n: noisy copies that bound the probability; at most so many in the other modes.
        n0: further ones that select the class.
        alpha: largest probability that a certificate is wrong, for each image.
        radii: where certified accuracy is reported, in [0, 1] pixel units; by default a grid up to the largest.
        skip: take every skip-th test image; by default as many as give `max_images` spread over the test set.
        max_images: at most so many.
        noise: only `gaussian` so far.
        norm: only `l2` so far.
        seed: of the noise.
        out: also write the log there.
        last: the last epoch's weights instead of the selected ones.
        data: another data set of the same shape and classes, instead of the generation's own.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        precision: of the forward pass; noise is drawn and added in fp32 in any case.
        batch_size: noisy images a forward pass; does not change the noise.
        fresh: measure again although a result is there.
        progress: where to report.

    Returns:
        generation, id, sigma, alpha, mode, n, n0, images, abstain_rate, acr, certified_accuracy {radius: value},
        intervals {radius: [low, high]}, samples_per_image, seconds, log, reused.

    Raises:
        RobustKTError: anything the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    level = noise_level(sigma)
    _check_options(mode, n, n0, alpha, noise, norm, skip, max_images, batch_size)
    if radii is not None and (not radii or min(radii) < 0):
        raise UsageError("--radii must be numbers from 0 up", "For instance --radii 0,0.25,0.5.")
    _check_reach(n, alpha)
    found = registry.get(generation)
    target = pick_device(device)
    dataset = load_data(registry, found, data, data_dir)
    step = skip or spread(len(dataset.test), max_images)
    indices = list(range(0, len(dataset.test), step))[:max_images]
    settings: dict[str, Any] = {
        "sigma": exact(level), "mode": mode, "n": n, "n0": n0, "alpha": alpha, "noise": noise, "norm": norm,
        "seed": seed, "images": len(indices), "skip": step, "weights": found.last_weights if last else found.weights,
        "data": dataset.spec.fingerprint, "precision": pick_precision(precision),
    }  # fmt: skip
    grid = list(radii or default_radii(level, n, alpha))
    if _takes(mode, "radii"):
        settings["radii"] = [exact(r) for r in grid]  # they decide when an image is done
    key = digest(canonical(settings))[7:23]
    # a device draws other noise from the same seed, so that a run is continued on the kind it began on
    folder = registry.job_path("certify", digest(canonical([found.id, key, target.type]))[7:23])

    def there() -> Result | None:
        unfinished = (folder / "log.tsv").is_file()  # also of an interrupted --fresh, beside the earlier result
        return None if fresh or unfinished else registry.result(found.id, "certificate", key)

    stored = there()
    if stored is None:
        with locked(folder.with_suffix(".lock"), "this very certification", timeout=1.0):
            stored = there()  # by the process that held the lock before
            if stored is None:
                model = ready(load_network(registry, found, last=last), target, settings["precision"])
                if fresh:
                    (folder / "log.tsv").unlink(missing_ok=True)
                _run(model, found, settings, dataset, indices, folder, target, batch_size, progress)
                _store(registry, found, key, settings, folder, target)
                shutil.rmtree(folder, ignore_errors=True)
    else:
        progress.note(f"{found.name} has this very certificate already; --fresh measures it again")
    result = stored or registry.result(found.id, "certificate", key)
    assert result is not None  # it has just been stored
    log = registry.log(result)
    if out is not None:
        write_atomic(out, log)
    rows = certlog.parse(log.decode())
    return {
        "generation": found.name,
        "id": found.id,
        **{name: settings[name] for name in ("alpha", "mode", "n", "n0", "norm", "noise", "precision")},
        "sigma": float(level),
        **certlog.summarise(rows, grid),
        "samples_per_image": sum(row.drawn for row in rows) / len(rows),
        "seconds": sum(row.seconds for row in rows),
        "log": str(out or registry.log_path(result)),
        "reused": stored is not None,
    }


def _run(
    model: nn.Module,
    found: Generation,
    settings: Mapping[str, Any],
    dataset: datasets.Dataset,
    indices: Sequence[int],
    folder: Path,
    device: torch.device,
    batch_size: int,
    progress: Progress,
) -> None:
    """Certify the images that the log in `folder` lacks, appending to it."""
    log = folder / "log.tsv"
    done = certlog.parse(log.read_text()) if log.is_file() else []
    write_atomic(log, (certlog.HEADER + "".join(row.line() for row in done)).encode())  # without a torn line
    remaining = indices[len(done) :]
    certifier = CERTIFIERS.get(settings["mode"])
    arguments = {"sigma": float(Fraction(settings["sigma"])), **{k: settings[k] for k in ("alpha", "n0", "n")}}
    if "radii" in settings:
        arguments["radii"] = [float(Fraction(r)) for r in settings["radii"]]
    per_image = settings["n"] + settings["n0"]
    if done:
        progress.note(f"continuing after {len(done)} of {len(indices)} images")
    title = f"certifying {len(indices)} images of {found.name}"
    with progress.bar(title, len(indices) * per_image, len(done) * per_image) as bar:
        certified = smooth.certify(
            model,
            ((i, datasets.to_float(dataset.test.x[i])) for i in remaining),
            lambda: certifier(**arguments),
            classes=len(dataset.spec.classes),
            sigma=Fraction(settings["sigma"]),
            seed=settings["seed"],
            device=device,
            batch_size=batch_size,
            advance=bar.advance,
        )
        waiting: list[str] = []
        flushed = told = time.monotonic()
        for idx, certificate, seconds in certified:
            row = certlog.Row.of(idx, int(dataset.test.y[idx]), certificate, seconds)
            bar.advance(max(0, per_image - row.drawn))  # what was not needed
            done.append(row)
            waiting.append(row.line())
            now = time.monotonic()
            if now - flushed > FLUSH_SECONDS or len(done) == len(indices):
                append_synced(log, "".join(waiting).encode())
                waiting, flushed = [], now
                right = sum(row.correct for row in done) / len(done)
                text = f"right and certified {right:.1%} of {len(done)}"
                bar.advance(0, text)
                if now - told > TELL_SECONDS:
                    bar.line(f"{len(done)} of {len(indices)} images  {text}")
                    told = now


def _store(
    registry: Registry, found: Generation, key: str, settings: Mapping[str, Any], folder: Path, device: torch.device
) -> None:
    log = (folder / "log.tsv").read_bytes()
    rows = certlog.parse(log.decode())
    level = Fraction(settings["sigma"])
    asked = [Fraction(r) for r in settings.get("radii", ())]
    figures = certlog.summarise(rows, asked or default_radii(level, settings["n"], settings["alpha"]))
    figures["samples_per_image"] = sum(row.drawn for row in rows) / len(rows)
    content = {"settings": dict(settings), "figures": figures, **machine(device)}
    registry.put_result(found.id, "certificate", key, content, log)


def default_radii(sigma: Fraction, n: int, alpha: float) -> list[Fraction]:
    """0, then steps of ¼ (σ where that is smaller, σ/4 where larger) up to the largest radius n samples can certify."""
    largest = radius_l2(lower_bound(n, n, alpha), float(sigma))
    step = max(min(Fraction(1, 4), sigma), sigma / 4)
    return [step * i for i in range(int(Fraction(largest) / step) + 1)]


def predict(
    generation: str = "@latest",
    *,
    images: Sequence[Path],
    sigma: str | float | Fraction | None = None,
    n: int = SAMPLES,
    n0: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The smoothed class of image files with its certified L2 radius, or an abstention.

    Args:
        generation: whose network is smoothed.
        images: files; they are brought to the network's channels and size.
        sigma: of the noise; the generation's own by default.
        n: noisy copies that bound the probability.
        n0: further ones that select the class.
        alpha: largest probability that an answer is wrong.
        seed: of the noise, which also depends on the image's pixels.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, sigma, alpha, n, predictions [{file, class, label, radius, abstained}].

    Raises:
        RobustKTError: anything the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    found = registry.get(generation)
    chosen = sigma if sigma is not None else found.recipe.sigma
    if chosen is None:
        raise UsageError(
            f"{found.name} was not trained under noise, so it has no σ of its own",
            "Add --sigma 0.25, or take another GEN.",
        )
    level = noise_level(chosen)
    _check_options("fixed", n, n0, alpha, "gaussian", "l2", None, 1, smooth.BATCH)
    _check_reach(n, alpha)
    target = pick_device(device)
    spec = found.recipe.data
    pixels = [datasets.read_image(path, spec.shape) for path in images]
    for path in images:
        with Image.open(path) as image:
            if image.size != (spec.shape[2], spec.shape[1]):
                size = f"{image.size[0]}x{image.size[1]} to {spec.shape[2]}x{spec.shape[1]}"
                progress.note(f"{path}: resized from {size}; the radius is one of the resized image")
    model = ready(load_network(registry, found), target, "fp32")
    certifier = CERTIFIERS.get("fixed")

    def keyed() -> Iterator[tuple[str, torch.Tensor]]:
        for x in pixels:
            yield digest(x.numpy().tobytes()), datasets.to_float(x)

    with progress.bar(f"predicting with {found.name}", len(pixels) * (n + n0)) as bar:
        results = list(
            smooth.certify(
                model,
                keyed(),
                lambda: certifier(sigma=float(level), alpha=alpha, n0=n0, n=n),
                classes=len(spec.classes),
                sigma=level,
                seed=seed,
                device=target,
                advance=bar.advance,
            )
        )
    return {
        "generation": found.name,
        "id": found.id,
        "sigma": float(level),
        "alpha": alpha,
        "n": n,
        "predictions": [
            {
                "file": str(path),
                "class": None if c.label is None else spec.classes[c.label],
                "label": c.label,
                "radius": c.radius,
                "abstained": c.label is None,
            }
            for path, (_, c, _) in zip(images, results, strict=True)
        ],
    }


def _takes(mode: str, argument: str) -> bool:
    return argument in inspect.signature(CERTIFIERS.get(mode)).parameters


def _check_reach(n: int, alpha: float) -> None:
    if lower_bound(n, n, alpha) < 0.5:
        least = math.ceil(math.log(alpha) / math.log(0.5))
        raise UsageError(
            f"--n {n} can certify nothing at α = {alpha:g}", f"Give at least --n {least}; the field uses 100000."
        )


def _check_options(
    mode: str,
    n: int,
    n0: int,
    alpha: float,
    noise: str,
    norm: str,
    skip: int | None,
    max_images: int,
    batch_size: int,
) -> None:
    if not CERTIFIERS.has(mode):
        raise unknown("mode", mode, CERTIFIERS.names())
    if noise != "gaussian":
        raise unknown("noise", noise, ["gaussian"])
    if norm != "l2":
        raise unknown("norm for certificates", norm, ["l2"])
    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha must lie between 0 and ½, not {alpha}", "The field uses 0.001.")
    counts = {"--n": n, "--n0": n0, "--max-images": max_images, "--batch-size": batch_size}
    counts |= {} if skip is None else {"--skip": skip}
    for option, value in counts.items():
        if value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}", f"Leave {option} out for the default.")
