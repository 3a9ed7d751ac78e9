"""Facts drawn from a generation's files, kept until one of the files changes; losing them costs only time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import robustkt
from robustkt import places
from robustkt.errors import RobustKTError
from robustkt.numbers import digest
from robustkt.registry.files import write_atomic
from robustkt.registry.seal import sealed, unsealed_bytes
from robustkt.registry.store import Registry

LAYOUT = 4  # raise it when what `derived` is asked for changes its shape

Facts = dict[str, Any]


def derived(registry: Registry, identities: Iterable[str], draw: Callable[[str], Facts]) -> dict[str, Facts]:
    """`draw(identity)` for each generation that can be read, from the cache where its files are as they were.

    A file counts as unchanged while inode, size and time of modification are: `verify` reads the bytes themselves.
    """
    maker = f"{robustkt.__version__}/{LAYOUT}"
    kept = _load(registry, maker)
    found: dict[str, Facts] = {}
    changed, root = False, str(registry.root)
    for identity in dict.fromkeys(identities):
        stamp = _stamp(root, identity)
        entry = kept.get(identity)
        if not (isinstance(entry, dict) and entry.get("stamp") == stamp):
            changed = True
            try:
                entry = {"stamp": stamp, "facts": draw(identity)}
            except RobustKTError:
                continue  # `verify` names it
        found[identity] = entry["facts"]
        kept[identity] = entry
    if changed:
        content = {"maker": maker, "entries": {i: kept[i] for i in found}}
        with contextlib.suppress(RobustKTError):  # a home that cannot be written
            write_atomic(_place(registry), sealed(content))
    return found


def _place(registry: Registry) -> Path:
    """In the user's cache, not in the registry: reading a registry writes nothing into it."""
    mark = digest(os.fsencode(registry.root.resolve())).removeprefix("sha256:")[:16]
    return places.cache() / "registries" / f"{mark}.json"


def _load(registry: Registry, maker: str) -> dict[str, Any]:
    try:
        data = _place(registry).read_bytes()  # this user's own file, megabytes of it
        content = unsealed_bytes(data, "", "It is made again.", parse=lambda body, source: json.loads(body))
    except (RobustKTError, OSError, ValueError):
        return {}
    entries = content.get("entries")
    return entries if content.get("maker") == maker and isinstance(entries, dict) else {}


def _stamp(root: str, identity: str) -> str:
    """What the operating system says of the generation's manifest, record and results; strings, as there are many."""
    stem = identity.removeprefix("sha256:")
    marks = []
    for path in (f"{root}/generations/{stem}.json", f"{root}/records/{stem}.json", f"{root}/claims/{stem}.json"):
        try:
            marks.append(_told(os.stat(path)))
        except OSError:
            marks.append("-")
    with contextlib.suppress(OSError), os.scandir(f"{root}/results/{stem}") as entries:
        marks += sorted([f"{e.name}:{_told(e.stat())}" for e in entries if e.name.endswith(".json")])
    return " ".join(marks)


def _told(status: os.stat_result) -> str:
    return f"{status.st_ino:x}.{status.st_size:x}.{status.st_mtime_ns:x}"
