"""Handing a student to deployment: its network in a format of others, checked against the original after writing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import exports
from robustkt.api.loading import load_network, load_test_data, machine, spread
from robustkt.catalog import unknown
from robustkt.errors import IntegrityError, RobustKTError, UsageError, clip
from robustkt.exports import FORMATS
from robustkt.generation import Generation
from robustkt.numbers import canonical, digest, exact, noise_level
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.files import write_atomic

IMAGES = 64  # test images that the written file is compared on
BATCHES = (1, 7, 56)  # in batches of these sizes: the first dimension must be free
COPIES = 200  # of each of four images that a smoothed export votes on
TOLERANCE = 1e-3  # of the largest logit: what other orders of summing fp32 make, ten times over


def export(
    generation: str = "@latest",
    *,
    format: str = "safetensors",
    out: Path | None = None,
    smoothed: bool = False,
    sigma: str | float | Fraction | None = None,
    last: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a generation's network, normalisation inside, and compare what was written with the original.

    Args:
        generation: what is exported.
        format: safetensors, onnx, pt2 or torchscript.
        out: the file; `NAME.onnx` and so on in this folder by default, of a mode `NAME-clean.onnx`,
            `NAME-beta0.4.onnx`. Its facts go beside it, as `FILE.json`.
        smoothed: the smoothed classifier's vote instead: copies of an image to counts of classes. Noise is drawn inside
            the graph by torch (pt2, torchscript) or given as an input (onnx); of safetensors only the script does.
        sigma: of the noise; the generation's own by default.
        last: the last epoch's weights instead of the selected ones.
        data: another data set of the same shape and classes.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        progress: where to report.

    Returns:
        generation, id, domain (of a mode), files, format, smoothed, sigma, precision, opset, inputs, outputs, parity
        {images, batches, largest_difference, scale, disagreements, votes}.

    Raises:
        UsageError: a format, σ or file that cannot be.
        RobustKTError: anything else the user can fix; a file that computes something else is not left behind.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    kind, found = FORMATS[format], registry.mode(generation)
    level = _level(found, sigma) if smoothed else None
    if sigma is not None and not smoothed:
        raise UsageError("--sigma is the noise of a smoothed export", "Add --smoothed, or leave --sigma out.")
    spec = found.recipe.data
    network = load_network(registry, found, last=last).requires_grad_(False)
    images = _images(load_test_data(registry, found, data, data_dir).test)
    path = out or Path(f"{_stem(found)}{'-smoothed' if smoothed else ''}{kind.suffix}")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "Name a file with --out.")
    graph: nn.Module = network
    if level is not None and kind.votes is not None:
        graph = kind.votes(network, float(level), len(spec.classes)).eval()
    some = images[: exports.EXAMPLES]
    examples = (some, 1 - some) if isinstance(graph, exports.NoisedVotes) else (some,)  # one twice would be one input
    fresh = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}{kind.suffix}")
    progress.note(f"exporting {found.name} as {format}")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        _write(kind, graph, examples, fresh, format)
        parity = _votes_alike(graph, kind, fresh, images) if isinstance(graph, exports.Votes) else _alike(
            network, _reader(kind, fresh, found, registry), images
        )  # fmt: skip
        sha256 = digest(fresh.read_bytes())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    inputs = ["images"] + ["noise"] * (len(examples) - 1)
    facts = {
        "generation": found.name, "id": found.id, **found.domain, "file": path.name, "sha256": sha256, "format": format,
        "smoothed": smoothed, "sigma": None if level is None else exact(level), "precision": "fp32",
        "opset": kind.opset, "inputs": {name: ["batch", *spec.shape] for name in inputs}, "input_range": [0, 1],
        "outputs": {"votes": [len(spec.classes)]} if isinstance(graph, exports.Votes)
        else {"logits": ["batch", len(spec.classes)]},
        "classes": list(spec.classes), "architecture": found.recipe.arch, "parity": parity,
        "noise": _noise(format) if smoothed else None, "versions": machine(torch.device("cpu"))["versions"],
    }  # fmt: skip
    files = [path, path.with_name(path.name + ".json")]
    write_atomic(files[1], canonical(facts) + b"\n")
    if level is not None:
        files.append(path.with_name(path.name + ".py"))
        text = exports.script(format, path.name, float(level), spec.shape, len(spec.classes), found.recipe.arch)
        write_atomic(files[2], text.encode())
    return {**facts, "files": [str(file) for file in files]}


def _stem(found: Generation) -> str:
    """A file's name for a generation or a mode, without letters that a shell, a URL or a disk takes for its own."""
    name, _, mode = found.name.partition("@")
    told = mode.replace("=", "").replace(",", "-").replace("/", "_")
    return f"{name}-{told}" if told else name


def _level(found: Generation, sigma: str | float | Fraction | None) -> Fraction:
    level = found.sigma if sigma is None else noise_level(sigma)
    if level is None:
        raise UsageError(f"{found.name} was not trained for noise", "Add --sigma 0.25, or leave --smoothed out.")
    return level


def _images(test: Any) -> Tensor:
    """Test images (N, C, H, W) in [0, 1] from all over the set, at least as many as are compared."""
    step = spread(len(test), IMAGES)
    images: Tensor = test.images(torch.arange(0, len(test), step)[:IMAGES])
    return images.repeat(-(-IMAGES // len(images)), 1, 1, 1)[:IMAGES].contiguous()


def _write(kind: exports.Format, graph: nn.Module, examples: tuple[Tensor, ...], path: Path, name: str) -> None:
    try:
        kind.write(graph, examples, path)
    except (RobustKTError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # exporters raise whatever the user's own forward leads them to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RobustKTError(
            f"the network cannot be exported as {name}: {clip(reason)}",
            "Its forward must not depend on values or on the batch's size; safetensors takes every network.",
        ) from error


def _reader(kind: exports.Format, path: Path, found: Generation, registry: Registry) -> exports.Runs:
    """What the written file computes; of weights alone, in a network built anew."""
    if kind.read is not None:
        return kind.read(path)
    from safetensors.torch import load_file

    network = load_network(registry, found)
    for tensor in network.state_dict().values():
        tensor.zero_()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval()


def _batches(images: Tensor) -> Sequence[Tensor]:
    batches: Sequence[Tensor] = images.split(list(BATCHES))
    return batches


def _alike(network: nn.Module, written: exports.Runs, images: Tensor) -> dict[str, Any]:
    """The largest difference of a logit, over batches of several sizes.

    Raises:
        IntegrityError: it is more than rounding makes.
    """
    with torch.no_grad():
        expected = torch.cat([network(x) for x in _batches(images)])
        found = torch.cat([written(x) for x in _batches(images)])
    largest, scale = float((expected - found).abs().max()), float(expected.abs().max())
    differ = int((expected.argmax(dim=1) != found.argmax(dim=1)).sum())
    if not largest <= TOLERANCE * max(scale, 1e-6):
        raise IntegrityError(
            f"the exported network computes something else: a logit differs by {largest:.3g}",
            "Its forward depends on values or on the batch's size; safetensors takes every network.",
        )
    told = {"images": len(images), "batches": list(BATCHES), "largest_difference": largest, "scale": scale}
    return {**told, "disagreements": differ, "votes": None}


def _votes_alike(graph: exports.Votes, kind: exports.Format, path: Path, images: Tensor) -> dict[str, Any]:
    """How many votes differ when both draw the same noise.

    Raises:
        IntegrityError: more than rounding decides.
    """
    if kind.read is None:
        raise RuntimeError("a format with votes inside can be read")
    written, moved = kind.read(path), 0
    chosen = images[:: len(images) // 4][:4]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for number, image in enumerate(chosen):
            copies = image.expand(COPIES + number, *image.shape).contiguous()
            torch.manual_seed(number)
            noise = (torch.randn_like(copies),) if isinstance(graph, exports.NoisedVotes) else ()
            torch.manual_seed(number)
            expected = graph(copies, *noise)
            torch.manual_seed(number)
            moved += int((expected - written(copies, *noise)).abs().sum()) // 2
    total = sum(COPIES + number for number in range(len(chosen)))
    if moved > total // 100:
        raise IntegrityError(
            f"the exported classifier votes otherwise: {moved} of {total} votes differ with the same noise",
            "Export without --smoothed and draw the noise yourself.",
        )
    told = {"images": len(chosen), "batches": [COPIES + number for number in range(len(chosen))]}
    return {**told, "largest_difference": None, "scale": None, "disagreements": moved, "votes": total}


def _noise(name: str) -> str:
    """What makes a certificate from these votes sound."""
    if name == "onnx":
        return "an input: standard normal, fresh for every call, from a generator of your choice"
    if name == "safetensors":
        return "not in the file: the script beside it draws it, fresh for every call"
    return "drawn inside by torch's generator, fresh for every call: torch.seed() first, and never a fixed seed"
