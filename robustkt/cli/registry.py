"""list, show: what there is, without importing torch."""

from __future__ import annotations

import typer

from robustkt.cli import inventory
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded

FOUND = 3  # exit status of a check that found something


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("list")(guarded(list_generations, keeps=False))
    app.command()(guarded(show, keeps=False))


def list_generations(registry: o.ReadWhere = None, as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """Every generation, the oldest first.

    Examples: `robustkt list --json`, `robustkt list --registry s3://bucket/team`
    """
    from robustkt import api

    Output(as_json=as_json, verbose=verbose).answer(api.list_generations(o.readable(registry)), inventory.listed)


def show(
    generation: o.Gen = "@latest", registry: o.ReadWhere = None, as_json: o.Json = False, verbose: o.Verbose = False
) -> None:
    """One generation: its recipe, how it came about, and what was measured.

    Example: `robustkt show gen2`
    """
    from robustkt import api

    Output(as_json=as_json, verbose=verbose).answer(api.show(generation, o.readable(registry)), inventory.shown)
