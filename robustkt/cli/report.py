"""report: one page with everything that has been measured, and the figures and tables of it for papers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import early
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 6  # of what has not been measured


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(guarded(report, keeps=False))


def report(
    generations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GEN…]",
            autocompletion=o._generations,
            help="Which; GEN@MODE for one of its modes.",
            show_default="@latest and what it comes from",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that report.html goes to.")] = Path("report"),
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="Also svg, pdf, png: the figures; latex, markdown: the tables. Several with commas."
        ),
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples/--no-examples", help="Show images, where the data are here.")
    ] = True,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.ReadWhere = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Make one HTML page of what has been measured; it needs no network, and nothing is measured for it.

    Examples: `robustkt report --out report`, `robustkt report gen0 gen1 gen2 --out report --format pdf,latex`
    """  # fmt: skip
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device)
    formats = [part.strip() for part in form.split(",")] if form is not None else []
    result = api.report(
        generations or (), out=out, formats=formats, examples=examples, data=data, data_dir=data_dir,
        registry=o.readable(registry), device=device, progress=output,
    )  # fmt: skip
    output.answer(result, _made)


def _made(console: Console, result: Mapping[str, Any]) -> None:
    size, figures = f"{result['bytes'] / 1e6:.1f} MB", counted(len(result["figures"]), "figure")
    lines = [f"{result['files'][0]}  {size}, {figures}: {result['shown']}"]
    folders = dict.fromkeys(str(Path(path).parent) for path in result["files"][1:])
    lines += [
        f"{folder}/  {counted(sum(str(Path(p).parent) == folder for p in result['files']), 'file')}"
        for folder in folders
    ]
    if result["missing"]:
        lines.append("not measured yet:")
        lines += [f"  {one['text']} → {one['command']}" for one in result["missing"][:SHOWN]]
        more = len(result["missing"]) - SHOWN
        lines += [f"  and {more} more, which the page names"] if more > 0 else []
    console.print("\n".join(lines), markup=False, soft_wrap=True, emoji=False)
