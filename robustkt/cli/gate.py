"""compare, gate: two generations by the same images, without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import gatefiles, gatetables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.cli.registry import FOUND
from robustkt.errors import UsageError

Radii = Annotated[str | None, typer.Option("--radii", help="Of certified accuracy, such as 0.25,0.5.")]
OneSigma = Annotated[str | None, typer.Option("--sigma", help="Only certificates of this noise level.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (compare, gate):
        app.command()(guarded(command, keeps=False))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", autocompletion=o._generations, help="A generation.")],
    second: Annotated[str, typer.Argument(metavar="B", autocompletion=o._generations, help="Another.")],
    sigma: OneSigma = None,
    radii: Radii = None,
    confidence: Annotated[str, typer.Option("--confidence", help="Of intervals and verdicts.")] = "0.95",
    registry: o.ReadWhere = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Two generations side by side: recipes, and measurements of the same images under the same settings.

    Differences come with paired intervals, images won and lost, and the classes that lose. Certificates are compared
    σ by σ, never as the best of several.

    Examples: `robustkt compare gen1 gen2`, `robustkt compare gen0 gen2 --sigma 0.25 --json`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    result = api.compare(
        first,
        second,
        sigma=sigma,
        radii=[fraction(r, "a radius") for r in radii.split(",")] if radii is not None else None,
        confidence=float(fraction(confidence, "--confidence")),
        registry=o.readable(registry),
    )
    Output(as_json=as_json, quiet=quiet, verbose=verbose).answer(result, gatetables.compared)


def gate(
    generation: o.Gen = "@latest",
    against: Annotated[
        str | None, typer.Option("--against", autocompletion=o._generations, help="The generation to be as good as.")
    ] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", help="What may be lost: 0.01, or clean=0.005.", show_default="0.02"),
    ] = None,
    class_margin: Annotated[
        str | None, typer.Option("--class-margin", help="What a class may lose.", show_default="0.1")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option("--confidence", help="That a pass is right.", show_default="0.95")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option("--attack", autocompletion=o._attacks, help="Attacks, or none.", show_default="all of both"),
    ] = None,
    radii: Annotated[
        str | None, typer.Option("--radii", help="Of certified accuracy, or none.", show_default="the table's")
    ] = None,
    sigma: OneSigma = None,
    min_images: Annotated[
        int | None, typer.Option("--min-images", help="Refuse to decide by fewer.", show_default="100")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", help="A loss not-excluded, or one shown.", show_default="not-excluded"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Where margins and checks stand.", show_default="the nearest robustkt.toml"),
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the answer there as Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML there.")] = None,
    registry: o.ReadWhere = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Pass a generation that is shown not to be worse than another by more than a margin; exit status 3 otherwise.

    Figures of the same images under the same settings: clean accuracy, accuracy under attack, certified accuracy,
    abstentions. Each must be shown to have lost less than its margin; a class fails when it is shown to have lost more
    than the class margin. Margins are shares: 0.01 is one point.

    Examples: `robustkt gate gen1 --against gen0`, `robustkt gate gen1 --against @production --margin 0.02
    --margin certified@0.5=0.03 --junit gate.xml`
    """
    from robustkt import api
    from robustkt.api import gateconfig

    if markdown is not None and markdown == junit:
        raise UsageError(f"--markdown and --junit both name {markdown}", "Give each a file of its own.")
    default, named = gateconfig.margins_of(margin or [])
    options = {
        "against": against, "margin": default, "margins": named or None, "class_margin": class_margin,
        "confidence": confidence, "attacks": attack, "radii": radii, "sigma": sigma, "min_images": min_images,
        "fail_on": fail_on,
    }  # fmt: skip
    told = gateconfig.given(gateconfig.read(config), options)
    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if told.file is not None:
        output.note(f"with the [gate] table of {told.file}")
    where = o.readable(registry)
    if generation == "@latest":
        output.note(f"@latest is {where.get(generation).name}")
    result = api.gate(generation, config=told, registry=where)
    gatefiles.write({markdown: gatefiles.markdown, junit: gatefiles.junit}, result)
    output.answer(result, gatetables.gated)
    if not result["passed"]:
        raise typer.Exit(FOUND)
