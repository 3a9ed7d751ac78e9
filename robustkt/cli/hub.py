"""push, pull, copy: publishing generations, taking over published ones, sharing them with a team."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import hubtables, tables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command()(guarded(push))
    app.command()(guarded(pull))
    app.command()(guarded(copy))


def push(
    generation: o.Gen = "@latest",
    repo: Annotated[
        str | None, typer.Option("--repo", help="The Hub repository: ORG/NAME.", show_default="you, its name")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="A folder of the same form instead.")] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is for you alone.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="The branch.", show_default="main")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Tag the commit, as v3.")] = None,
    message: Annotated[str | None, typer.Option("--message", help="The commit's message.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    collection: Annotated[
        str | None, typer.Option("--collection", help="Title or slug of a collection to put it into.")
    ] = None,
    with_ancestors: Annotated[
        bool, typer.Option("--with-ancestors", help="The ancestors' weights and measurements too.")
    ] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="As apache-2.0.", show_default="the ancestors'")
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option("--sign", metavar="MEANS", help="key:PRIVATE.pem, cert:CERT.pem,KEY.pem[,CA.pem], or sigstore."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would be sent.")] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Publish a generation with its ancestry, certificates and a model card on the Hugging Face Hub, in one commit.

    Examples: `robustkt push --dry-run`, `robustkt push gen2 --repo me/gen2 --tag v3`, `robustkt push gen2 --to out`,
    `robustkt push gen2 --sign key:private.pem`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    if generation == "@latest":
        output.note(f"@latest is {where.get(generation).name}")
    result = api.push(
        generation, to=to, repo=repo, private=private, revision=revision, tag=tag, message=message,
        create_pr=create_pr, collection=collection, with_ancestors=with_ancestors, license=license, sign=sign,
        dry_run=dry_run, registry=where, progress=output,
    )  # fmt: skip
    output.answer(result, hubtables.pushed)


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REV]", help="ORG/NAME, ORG/NAME@v3, @commit, or ./DIR.")],
    name: o.Name = None,
    require_signature: Annotated[
        str | None,
        typer.Option(
            "--require-signature", metavar="WHOSE", help="key:PUBLIC.pem, cert:CA.pem, or sigstore:IDENTITY,ISSUER."
        ),
    ] = None,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Take over a published generation and its ancestors; every hash is re-derived, nothing is run or believed.

    Its figures are marked as claimed until they are measured or audited here.

    Examples: `robustkt pull org/gen2`, `robustkt pull org/gen2@v3 --require-signature key:theirs.pem`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    result = api.pull(
        repo, name=name, require_signature=require_signature, registry=o.registry_of(registry), progress=output
    )
    output.answer(result, hubtables.pulled)


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
