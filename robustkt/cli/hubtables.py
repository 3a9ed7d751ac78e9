"""How the answers of push and pull look to a person."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustkt.cli.fitting import say
from robustkt.cli.tables import Columns, facts, program
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console


def pushed(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of push."""
    known = any(file["sent"] is not None for file in result["files"])
    table = Columns("file", "bytes", *(["on the Hub"] if known else []))
    sizes = [f"{file['size']:,}" for file in result["files"]]
    room = 80 - 2 - max(len("bytes"), *map(len, sizes)) - (2 + len("on the Hub") if known else 0)
    for file, size in zip(result["files"], sizes, strict=True):
        there = ["new" if file["sent"] else "the same"] if known else []
        table.add_row(short(file["path"], room), size, *there)
    table.show(console)
    for path in result["removed"]:
        say(console, f"of an earlier publication, removed: {path}")
    total = sum(file["size"] for file in result["files"])
    whole = f"{counted(len(result['files']), 'file')}, {total:,} bytes"
    if result["dry_run"]:
        console.print(result["card"], markup=False, soft_wrap=True)
        goal = result["to"] or result["repo"]
        told = f"it would go to {goal}" if goal else "name a place with --repo ORG/NAME or --to DIR"
        say(console, f"dry run: {whole}; nothing is written, {told}")
    elif result["to"]:
        signed = f", signed by {result['signed_by']}" if result["signed_by"] else ""
        say(console, f"{result['generation']}: {whole} in {result['to']}{signed}")
        command = shlex.join(["hf", "upload", result["repo"] or "ORG/NAME", result["to"]])
        console.print(f"to upload: {command}", markup=False, soft_wrap=True)
    else:
        _sent(console, result, whole)


def short(path: str, room: int) -> str:
    """A path of a publication for a person: its hashes cut, and if need be its middle left out."""
    path = re.sub(r"[0-9a-f]{16,}", lambda found: f"{found[0][:8]}…", path)
    half = (room - 1) // 2
    return path if len(path) <= room else f"{path[:half]}…{path[-half:]}"


def _sent(console: Console, result: Mapping[str, Any], whole: str) -> None:
    new = [file for file in result["files"] if file["sent"]]
    told = {
        "generation": f"{result['generation']}, {whole}",
        "sent": f"{counted(len(new), 'file')}, {sum(file['size'] for file in new):,} bytes"
        if result["created"]
        else "nothing: all of it is there",
        "commit": result["commit"],
        "at": result["pr"] or result["url"],
    }
    told |= {name: result[name] for name in ("tag", "collection", "signed_by") if result[name]}
    facts(console, told)
    if not result["pr"]:
        console.print(f"to take over: {program()} pull {result['repo']}", markup=False, soft_wrap=True)


def _claimed(new: int, still: int) -> str:
    if not new and not still:
        return "nothing"
    earlier = f", {still} still claimed" if still else ""
    return f"{new} new{earlier}" + f": {counted(new + still, 'measurement')} to be made again here"


def pulled(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of pull."""
    told = {
        "generation": result["generation"] + ("" if result["new"] else " (was there already)"),
        "id": result["id"],
        "from": f"{result['repo']}@{result['commit']}",
        "signed by": result["signed_by"] or "not asked (--require-signature)",
        "ancestors": ", ".join(result["ancestors"]) or "none that were not here",
        "claimed": _claimed(len(result["claimed"]), len(result["still_claimed"])),
    }
    if result["nameless"]:
        told["without a name"] = ", ".join(result["nameless"]) + ": the name belongs to another generation here"
    facts(console, told)
    if any(name.startswith("certificate") for name in result["claimed"]):
        console.print(f"to check   {program()} audit {result['generation']}", markup=False, soft_wrap=True)
