"""Facts drawn from a generation's files, kept until one of the files changes; losing them costs only time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import robustkt
from robustkt import places
from robustkt.errors import RobustKTError
from robustkt.numbers import digest
from robustkt.registry.files import write_atomic
from robustkt.registry.seal import sealed, unsealed_bytes
from robustkt.registry.store import Registry

LAYOUT = 7  # raise it when what `derived` is asked for changes its shape

Facts = dict[str, Any]


def derived(registry: Registry, identities: Iterable[str], draw: Callable[[str], Facts]) -> dict[str, Facts]:
    """`draw(identity)` for each generation that can be read, from the cache where its files are as they were.

    A file counts as unchanged while inode, size and time of modification are: `verify` reads the bytes themselves.
    """
    maker = f"{robustkt.__version__}/{LAYOUT}"
    kept = _load(registry, maker)
    found: dict[str, Facts] = {}
    changed, files = False, _Files(registry.root)
    for identity in dict.fromkeys(identities):
        entry = kept.get(identity)
        known = entry if isinstance(entry, dict) else {}
        seen = files.seen(identity, known)
        if any(known.get(key) != value for key, value in seen.items()):
            changed = True
            try:
                known = {**seen, "facts": draw(identity)}
            except RobustKTError:
                continue  # `verify` names it
        found[identity] = known["facts"]
        kept[identity] = known
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


class _Files:
    """What the operating system says of manifests, records, claims and results, asked as little as can be."""

    def __init__(self, root: Path) -> None:
        self.results = f"{root}/results"
        self.single = [_marks(f"{root}/{kind}") for kind in ("generations", "records", "claims")]

    def seen(self, identity: str, known: Mapping[str, Any]) -> Facts:
        """The mark of the folder of results, the results in it, and one mark of all files of the generation."""
        stem = identity.removeprefix("sha256:")
        place = f"{self.results}/{stem}"
        marks = [single.get(f"{stem}.json") for single in self.single]
        try:
            folder = _mark(os.stat(place))
            names = known.get("results")
            if known.get("folder") != folder or not isinstance(names, list):
                names = sorted(name for name in os.listdir(place) if name.endswith(".json"))
            marks += [_mark(os.stat(f"{place}/{name}")) for name in names]
        except OSError:  # none, or one that goes at this moment
            folder, names = 0, []
        return {"folder": folder, "results": names, "files": marks}


def _marks(folder: str) -> dict[str, int]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return {entry.name: _mark(entry.stat()) for entry in entries}
    return {}


def _mark(status: os.stat_result) -> int:
    """One number for inode, size and time; Python hashes numbers alike in every process."""
    return hash((status.st_ino, status.st_size, status.st_mtime_ns))
