"""list, show, lineage, verify: what there is, without importing torch."""

from __future__ import annotations

from typing import Annotated

import typer

from robustkt.cli import inventory, tables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded

FOUND = 3  # exit status of a check that found something


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("list")(guarded(list_generations))
    for command in (show, lineage, verify):
        app.command()(guarded(command))


def list_generations(registry: o.Where = None, as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """Every generation, the oldest first.

    Example: `robustkt list --json`
    """
    from robustkt import api

    Output(as_json=as_json, verbose=verbose).answer(api.list_generations(o.registry_of(registry)), inventory.listed)


def show(
    generation: o.Gen = "@latest", registry: o.Where = None, as_json: o.Json = False, verbose: o.Verbose = False
) -> None:
    """One generation: its recipe, how it came about, and what was measured.

    Example: `robustkt show gen2`
    """
    from robustkt import api

    Output(as_json=as_json, verbose=verbose).answer(api.show(generation, o.registry_of(registry)), inventory.shown)


def lineage(
    generation: Annotated[
        str | None, typer.Argument(metavar="[GEN]", autocompletion=o._generations, help="Only its family.")
    ] = None,
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Ancestors and descendants as a tree.

    Example: `robustkt lineage gen2`
    """
    from robustkt import api

    Output(as_json=as_json, verbose=verbose).answer(api.lineage(generation, o.registry_of(registry)), inventory.descent)


def verify(registry: o.Where = None, as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """Re-derive every hash and follow every pointer; exit status 3 when something is damaged.

    Example: `robustkt verify`
    """
    from robustkt import api

    result = api.verify(o.registry_of(registry))
    Output(as_json=as_json, verbose=verbose).answer(result, tables.verified)
    if not result["ok"]:
        raise typer.Exit(FOUND)
