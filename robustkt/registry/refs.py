"""The one file of a registry that changes: names, tags and where the tags have been."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from robustkt.catalog import unknown
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import HASH, NAME
from robustkt.numbers import parse_json


class Refs(TypedDict):
    """Names and tags point at ids; where a tag has been stands in its history, the latest last."""

    names: dict[str, str]
    tags: dict[str, str]
    history: dict[str, list[dict[str, str]]]  # "id" and "at"; "id" is "" where the tag was taken away


FILE = "refs.json"
FIX = "Restore it from a copy, or run `robustkt verify --repair`."


def empty() -> Refs:
    """Those of a new registry."""
    return {"names": {}, "tags": {}, "history": {}}


def read(path: Path) -> Refs:
    """The refs in a file, of this format or the first; names and tags the oldest first.

    Raises:
        IntegrityError: it does not hold what it must.
    """
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, dict):
        raise IntegrityError(f"{path} does not hold a JSON object", FIX)
    refs: dict[str, Any] = {**content, "history": content.get("history", {})}  # format 1 has none; unknown keys stay
    if not all(isinstance(refs.get(kind), dict) for kind in empty()):
        raise IntegrityError(f"{path} lacks its tables of names and tags", FIX)
    pointers = [pair for kind in ("names", "tags") for pair in refs[kind].items()]
    for tag, moves in refs["history"].items():
        whole = isinstance(moves, list) and all(isinstance(m, dict) and isinstance(m.get("at"), str) for m in moves)
        if not whole:
            raise IntegrityError(f"{path}: the history of '{tag[:80]}' is none", FIX)
        pointers += [(tag, move.get("id")) for move in moves if move.get("id") != ""]
    for name, identity in pointers:
        if not NAME.fullmatch(name) or not isinstance(identity, str) or not HASH.fullmatch(identity):
            raise IntegrityError(f"{path}: '{name[:80]}' does not point at an id", FIX)
    return cast(Refs, refs)


def text(refs: Mapping[str, Any]) -> bytes:
    """The file: one name a line, in the order of creation, so that `@latest` is the last and diffs are short."""
    return (json.dumps(refs, indent=0, ensure_ascii=False) + "\n").encode()


def resolve(refs: Refs, stored: Callable[[], Sequence[str]], base: str, where: str) -> str:
    """The id behind a name, an id or its prefix, `@tag` or `@latest`; `stored` lists the ids of all manifests.

    Raises:
        NotFoundError: nothing of that name; the message gives the nearest.
        UsageError: a prefix of several ids.
    """
    if base == "@latest" and refs["names"]:
        return list(refs["names"].values())[-1]
    if base.startswith("@") and base[1:] in refs["tags"]:
        return refs["tags"][base[1:]]
    if base in refs["names"]:
        return refs["names"][base]
    prefix = base.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        whole = f"sha256:{prefix}"
        matches = {i for i in refs["names"].values() if i.startswith(whole)}
        matches = matches or {i for i in stored() if i.startswith(whole)}  # one that has lost its name
        if len(matches) > 1:
            raise UsageError(f"'{base}' begins {len(matches)} ids", "Give more of its characters.")
        if matches:
            return matches.pop()
    if not refs["names"]:
        raise NotFoundError(
            f"there is no generation in {where}",
            "Make one with `robustkt quickstart` or `robustkt train`, or name another place with --registry DIR.",
        )
    known = [*refs["names"], *(f"@{tag}" for tag in refs["tags"]), "@latest"]
    error = unknown("generation", base, known)
    raise NotFoundError(error.what, error.fix if len(known) <= 31 else "`robustkt list` shows them.")


def name_taken(name: str, fix: str = "Choose another with --name, or none.") -> RobustKTError:
    """The error for a name that points at something else."""
    return RobustKTError(f"the name {name} belongs to another generation", fix)
