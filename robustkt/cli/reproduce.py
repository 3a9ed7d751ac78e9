"""reproduce: a generation made again from its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import early
from robustkt.cli import options as o
from robustkt.cli.fitting import say
from robustkt.cli.output import Output, guarded
from robustkt.cli.registry import FOUND
from robustkt.cli.tables import duration

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(guarded(reproduce))


def reproduce(
    generation: o.Gen = "@latest",
    tolerance: Annotated[
        str, typer.Option("--tolerance", help="Relative distance of the weights that counts as equal.")
    ] = "0.001",
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train a generation again from its manifest and compare; exit status 3 when something else came out.

    Says identical, equal within the tolerance, or different, and then where first. A soup is mixed again from its
    parents. The registry is not changed.

    Example: `robustkt reproduce gen1`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device)
    where = o.registry_of(registry)
    if generation == "@latest":
        output.note(f"@latest is {where.get(generation).name}")
    result = api.reproduce(
        generation, tolerance=float(fraction(tolerance, "--tolerance")), data=data, data_dir=data_dir, registry=where,
        device=device, fresh=fresh, progress=output,
    )  # fmt: skip
    output.answer(result, _told)
    if result["verdict"] == "different":
        raise typer.Exit(FOUND)


def _told(console: Console, result: Mapping[str, Any]) -> None:
    apart = max(result["distance"], result["last_distance"])
    verdicts = {
        "identical": "identical, bit by bit",
        "equal": f"equal within {result['tolerance']:g}",
        "different": "different",
    }
    say(console, f"{result['generation']}: {verdicts[result['verdict']]}; {duration(result['seconds'])}")
    if result["verdict"] != "identical":
        say(console, f"the weights differ by {apart:.2g} of their length")
        first = result["first"]
        if first:
            say(console, f"first in epoch {first['epoch'] + 1}: {first['key']} was {first['then']}, is {first['now']}")
        largest = result["largest"]
        say(console, f"largest difference of a weight: {largest['difference']:.2g} in {largest['name']}")
    for name, (then, now) in result["circumstances"].items():
        say(console, f"{name} was {json.dumps(then)}, is {json.dumps(now)}")
