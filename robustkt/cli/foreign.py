"""import, export: foreign checkpoints in, networks for deployment out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import early
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.cli.tables import facts, percent
from robustkt.errors import UsageError
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("import")(guarded(import_))
    app.command()(guarded(export, keeps=False))


def _sources(incomplete: str) -> list[str]:
    from robustkt.imports.zoo import ENTRIES

    known = [*(f"robustbench:{name}" for name in ENTRIES), "hf:", "torchvision:", "timm:"]
    return [name for name in known if name.startswith(incomplete)]


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=_sources,
            help="A file, https://…, hf:OWNER/NAME/FILE@REV, robustbench:ID, torchvision:NAME, timm:NAME.",
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option("--arch", "-a", autocompletion=o._architectures, help="Its architecture, or file.py:Callable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", autocompletion=o._data_sets, help="What it was trained on.")
    ] = None,
    sigma: Annotated[str | None, typer.Option("--sigma", help="Noise it was trained for, as claimed.")] = None,
    norm: o.Norm = None,
    eps: Annotated[str | None, typer.Option("--eps", help="Ball it was trained against, as claimed: 8/255.")] = None,
    name: o.Name = None,
    license: Annotated[
        str | None, typer.Option("--license", help="Of the weights, such as MIT.", show_default="the source's")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="SOURCE, downloaded already.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Which weights of the file: ema.state_dict.")] = None,
    normalization: Annotated[
        str, typer.Option("--normalization", help="none, data, cifar10, imagenet … or MEAN,…/STD,….")
    ] = "auto",
    classes: Annotated[
        str | None, typer.Option("--classes", help="Rows of its last layer that are the data's classes: 0,217,….")
    ] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side that images are resized to.")] = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Take a foreign checkpoint over as a generation without parents; nothing in it is run.

    What its source says is recorded as claimed; `evaluate` and `certify` measure it.

    Examples: `robustkt import robustbench:Wong2020Fast`,
    `robustkt import best.pth --arch resnet110 --data cifar10 --sigma 0.25 --license MIT`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if arch is not None:
        o.check_names(None, arch, data)
    early.machine(device)
    result = api.import_generation(
        source, arch=arch, data=data, sigma=sigma, norm=norm, eps=eps, name=name, license=license, file=file, key=key,
        normalization=normalization, classes=_rows(classes), image_size=image_size, data_dir=data_dir,
        registry=o.registry_of(registry), device=device, progress=output,
    )  # fmt: skip
    output.answer(result, imported)


def _formats(incomplete: str) -> list[str]:
    return [name for name in ("safetensors", "onnx", "pt2", "torchscript") if name.startswith(incomplete)]


def export(
    generation: o.Gen = "@latest",
    format: Annotated[
        str, typer.Option("--format", "-f", autocompletion=_formats, help="safetensors, onnx, pt2 or torchscript.")
    ] = "safetensors",
    out: Annotated[Path | None, typer.Option("--out", help="The file.", show_default="NAME[-MODE].SUFFIX")] = None,
    smoothed: Annotated[
        bool, typer.Option("--smoothed", help="The smoothed classifier: copies of an image to votes.")
    ] = False,
    sigma: Annotated[str | None, typer.Option("--sigma", help="Noise of --smoothed.", show_default="its own")] = None,
    last: o.Last = False,
    data: o.OtherData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Write a network for deployment, images in [0, 1] to logits, and compare it with the original on test images.

    Examples: `robustkt export gen2 --format onnx`, `robustkt export gen2 --format pt2 --smoothed --out votes.pt2`,
    `robustkt export gen2@clean`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    if generation == "@latest":
        output.note(f"@latest is {where.get(generation).name}")
    result = api.export(
        generation, format=format, out=out, smoothed=smoothed, sigma=sigma, last=last, data=data, data_dir=data_dir,
        registry=where, progress=output,
    )  # fmt: skip
    output.answer(result, exported)


def exported(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of export."""
    parity = result["parity"]
    if parity["votes"]:
        alike = f"{parity['disagreements']} of {parity['votes']} votes differ with the same noise"
    else:
        alike = f"largest difference of a logit {parity['largest_difference']:.2g} (of {parity['scale']:.3g})"
        alike += f", {parity['disagreements']} of {counted(parity['images'], 'test image')} classified otherwise"
    opset = f", opset {result['opset']}" if result["opset"] else ""
    told = {
        "generation": result["generation"],
        "files": ", ".join(result["files"]),
        "format": f"{result['format']}, {result['precision']}{opset}, any batch size",
        "takes": ", ".join(f"{name} {shape}" for name, shape in result["inputs"].items()) + ", images in [0, 1]",
        "gives": ", ".join(f"{name} {shape}" for name, shape in result["outputs"].items()),
        "parity": alike,
    }
    facts(console, told | ({"noise": result["noise"]} if result["noise"] else {}))


def _rows(text: str | None) -> list[int] | None:
    if text is None:
        return None
    rows = text.split(",")
    if not all(row.strip().isascii() and row.strip().isdigit() for row in rows):
        raise UsageError(f"--classes takes whole numbers from 0, not '{text}'", "For instance --classes 0,217,482.")
    return [int(row) for row in rows]


def imported(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of import."""
    measured, normalization = result["measured"], result["normalization"]
    numbers = ["  ".join(f"{v:.4g}" for v in normalization[name]) for name in ("mean", "std")]
    facts(
        console,
        {
            "generation": result["generation"] + ("" if result["created"] else " (was there already)"),
            "id": result["id"][:19] + "…",
            "source": f"{result['source']}, {result['source_hash'][:19]}…",
            "network": f"{result['arch']} on {result['data']}",
            "license": result["license"] or "–",
            "claimed": ", ".join(f"{k.removeprefix('claimed_')} {v}" for k, v in result["claimed"].items())
            or "nothing",
            "normalised": f"mean {numbers[0]}, std {numbers[1]} ({normalization['from']})",
            "measured": f"{percent(measured['score'])} {measured['metric']}, {counted(measured['images'], 'image')}",
        },
    )
    for note in result["notes"]:
        console.print(f"[dim]note[/dim]  {_plain(note)}", soft_wrap=True)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
