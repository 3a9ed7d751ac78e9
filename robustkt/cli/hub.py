"""push and copy: publishing generations, and sharing them with a team."""

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
    app.command()(guarded(copy))


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


def copy(
    generations: Annotated[
        list[str] | None,
        typer.Argument(metavar="[GEN...]", autocompletion=o._generations, help="Which generations; all by default."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="PLACE", help="A folder, or s3://bucket/prefix ….")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="PLACE", help="The same, to copy from.")] = None,
    rename: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The name that the one generation gets there.")
    ] = None,
    suffix: Annotated[str, typer.Option("--suffix", help="Goes behind every name that is taken there.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would be copied.")] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Copy generations with their ancestors, weights, records and measurements to or from another registry.

    PLACE is a registry's folder or the address of a remote registry: an S3-compatible store, a data set on the
    Hugging Face Hub, whatever fsspec reaches. What is there is not sent again; every hash is checked on the way.

    Examples: `robustkt copy gen2 --to s3://bucket/team`, `robustkt copy --from ../other/registry --dry-run`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    result = api.copy(
        generations or (), to=to, source=source, rename=rename, suffix=suffix, dry_run=dry_run,
        registry=o.registry_of(registry), progress=output,
    )  # fmt: skip
    output.answer(result, tables.copied)
