"""The one file of a registry that changes: names, tags and where the tags have been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from robustkt.errors import IntegrityError
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
