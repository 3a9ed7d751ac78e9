"""compare, gate: two generations by the same images, without importing torch."""

from __future__ import annotations

from typing import Annotated

import typer

from robustkt.cli import gatetables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded

Radii = Annotated[str | None, typer.Option("--radii", help="Of certified accuracy, such as 0.25,0.5.")]
OneSigma = Annotated[str | None, typer.Option("--sigma", help="Only certificates of this noise level.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(guarded(compare))


def compare(
    first: Annotated[str, typer.Argument(metavar="A", autocompletion=o._generations, help="A generation.")],
    second: Annotated[str, typer.Argument(metavar="B", autocompletion=o._generations, help="Another.")],
    sigma: OneSigma = None,
    radii: Radii = None,
    confidence: Annotated[str, typer.Option("--confidence", help="Of intervals and verdicts.")] = "0.95",
    registry: o.Where = None,
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
        registry=o.registry_of(registry),
    )
    Output(as_json=as_json, quiet=quiet, verbose=verbose).answer(result, gatetables.compared)
