"""tag, rename, rm, gc, verify: a registry's upkeep, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import options as o
from robustkt.cli.fitting import say
from robustkt.cli.output import Output, guarded
from robustkt.cli.registry import FOUND
from robustkt.cli.tables import Columns
from robustkt.errors import UsageError
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 20  # paths that gc names


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (tag, rename, rm, gc, verify):
        app.command()(guarded(command))


def tag(
    name: Annotated[str | None, typer.Argument(metavar="[TAG]", help="As production; GEN is @production then.")] = None,
    generation: Annotated[
        str | None, typer.Argument(metavar="[GEN]", autocompletion=o._generations, help="Where it is to point.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the tag away.")] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Let a tag point at a generation; without GEN, where tags point and have pointed.

    Examples: `robustkt tag production gen2`, `robustkt tag`, `robustkt tag --delete staging`
    """
    from robustkt import api

    output, where = Output(as_json=as_json, verbose=verbose), o.registry_of(registry)
    if delete:
        if name is None or generation is not None:
            raise UsageError("--delete takes a tag and nothing else", "For instance `robustkt tag --delete staging`.")
        output.answer(api.untag(name, where), _untagged)
    elif name is not None and generation is not None:
        output.answer(api.tag(name, generation, where), _tagged)
    else:
        output.answer(api.tags(name, where), _tags)


def rename(
    generation: Annotated[str, typer.Argument(metavar="GEN", autocompletion=o._generations, help="Which.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called from now on.")],
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Give a generation another name; its id, and what descends from it, stay.

    Example: `robustkt rename gen2 mobile-v3`
    """
    from robustkt import api

    result = api.rename(generation, name, o.registry_of(registry))
    Output(as_json=as_json, verbose=verbose).answer(result, _renamed)


def rm(
    generations: Annotated[list[str], typer.Argument(metavar="GEN…", autocompletion=o._generations, help="Which.")],
    descendants: Annotated[bool, typer.Option("--descendants", help="What descends from them too.")] = False,
    name_only: Annotated[
        bool, typer.Option("--name-only", help="Others descend from it: take the name, keep the ancestor.")
    ] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Take generations out of the registry; `gc` frees their space when the time of grace is over.

    Until then `robustkt rename ID NAME` brings one back.

    Example: `robustkt rm gen3 gen4`
    """
    from robustkt import api

    result = api.rm(generations, descendants=descendants, name_only=name_only, registry=o.registry_of(registry))
    Output(as_json=as_json, verbose=verbose).answer(result, _removed)


def gc(
    grace: Annotated[str, typer.Option("--grace", help="How long nothing has reached it: 14d, 12h, 0.")] = "14d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Free what no name, tag or unfinished job reaches any more.

    Example: `robustkt gc --dry-run`
    """
    from robustkt import api

    result = api.gc(grace=grace, dry_run=dry_run, registry=o.registry_of(registry))
    Output(as_json=as_json, verbose=verbose).answer(result, _collected)


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Move damage into the registry's quarantine and mend the rest.")
    ] = False,
    registry: o.ReadWhere = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Re-derive every hash and follow every pointer; exit status 3 when something is damaged.

    Examples: `robustkt verify`, `robustkt verify --repair`
    """
    from robustkt import api

    output, remote = Output(as_json=as_json, verbose=verbose), None if repair else o.remote_of(registry)
    if remote is not None:
        result = api.verify_remote(remote, output)
    else:
        result = api.verify(repair=repair, registry=o.registry_of(registry))
    output.answer(result, _verified)
    if not result["ok"]:
        raise typer.Exit(FOUND)


def _tagged(console: Console, result: Mapping[str, Any]) -> None:
    before = f", before {result['before']}" if result["before"] not in (None, result["generation"]) else ""
    say(console, f"@{result['tag']} is {result['generation']}{before}")


def _untagged(console: Console, result: Mapping[str, Any]) -> None:
    say(console, f"@{result['tag']} is taken away; it was {result['generation']}")


def _tags(console: Console, result: Mapping[str, Any]) -> None:
    if not result["tags"]:
        say(console, "no tags; set one with `robustkt tag production GEN`")
        return
    table = Columns("tag", "generation", "since", "before", left=4)
    for row in result["tags"]:
        past = [move["generation"] or "–" for move in row["history"][-4:-1]]
        since = row["history"][-1]["at"][:16].replace("T", " ") if row["history"] else "–"
        table.add_row(f"@{row['tag']}", row["generation"] or "–", since, ", ".join(reversed(past)) or "–")
    table.show(console)


def _renamed(console: Console, result: Mapping[str, Any]) -> None:
    say(console, f"{result['before'] or result['id'][:19]} is {result['generation']} now")


def _removed(console: Console, result: Mapping[str, Any]) -> None:
    say(console, f"removed {', '.join(result['removed'])}; `robustkt gc` frees the space, 14 days from now")
    if result["ancestors"]:
        say(console, f"without a name, as others descend from it: {', '.join(result['ancestors'])}")


def _collected(console: Console, result: Mapping[str, Any]) -> None:
    shown = result["files"] if len(result["files"]) <= SHOWN else result["files"][: SHOWN - 1]
    for path in shown:
        say(console, f"  {path}")
    if len(shown) < len(result["files"]):
        say(console, f"  … and {len(result['files']) - len(shown)} more; --json has all")
    done = "would free" if result["dry_run"] else "freed"
    young = f"; {counted(result['spared'], 'path')} too young to go" if result["spared"] else ""
    say(console, f"{result['registry']}: {done} {result['bytes']:,} bytes{young}")


def _verified(console: Console, result: Mapping[str, Any]) -> None:

    for source, target in result.get("moved", ()):
        say(console, f"moved  {source} → {target}")
    for mend in result.get("mended", ()):
        say(console, f"mended  {mend}")
    for problem in result["problems"]:
        say(console, f"{problem['what']}: {problem['path']}", "damaged  ")
    for note in result["notes"]:
        say(console, f"{note['what']}: {note['path']}", "note  ")
    verdict = "sound" if result["ok"] else counted(len(result["problems"]), "problem")
    say(console, f"{result['registry']}: {counted(result['generations'], 'generation')}, {verdict}")
