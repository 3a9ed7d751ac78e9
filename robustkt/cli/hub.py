"""push: publishing generations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import options as o
from robustkt.cli import tables
from robustkt.cli.output import Output, guarded


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(guarded(push))


def push(
    generation: o.Gen = "@latest",
    to: Annotated[Path | None, typer.Option("--to", help="Folder that becomes the published form.")] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="The Hub repository it is meant for: ORG/NAME.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would be written.")] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Publish a generation with its ancestry, certificates and a model card, as a folder.

    The folder has the form of a Hugging Face Hub repository: `hf upload ORG/NAME DIR` puts it there.

    Examples: `robustkt push --dry-run`, `robustkt push gen2 --to published/gen2`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    if generation == "@latest":
        output.note(f"@latest is {where.get(generation).name}")
    output.answer(api.push(generation, to=to, repo=repo, dry_run=dry_run, registry=where), tables.pushed)
