"""Move damage aside and mend what follows from the rest; nothing is ever deleted."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robustkt.errors import RobustKTError
from robustkt.generation import NAME, Generation
from robustkt.numbers import canonical
from robustkt.registry import refs as refs_file
from robustkt.registry.files import sync_folder, write_atomic, writing
from robustkt.registry.refs import Refs
from robustkt.registry.seal import sealed, unsealed
from robustkt.registry.store import FORMAT, MARKER, RECORD, Registry
from robustkt.registry.verify import QUARANTINE, Finding, verify

MADE_UP = "recovered-"  # how names begin that nothing tells
ROUNDS = 5  # what is moved aside can leave pointers behind, which are seen in the next


@dataclass(frozen=True)
class Repaired:
    """What `repair` did: files moved (from, to; relative to the registry) and mends in words."""

    moved: list[tuple[str, str]]
    mended: list[str]


def repair(registry: Registry) -> Repaired:
    """Make a registry as sound as its files allow.

    Damaged files go to `quarantine/TIME/`; pointers at manifests that are gone are dropped; lost names are taken from
    the run records, or made up where these do not tell; a lost run record is replaced by one that says so. What only a
    copy can bring back stays damage.

    Raises:
        RobustKTError: there is no registry, one of a newer version, or the disk refused.
    """
    done = Repaired([], [])
    _mend_marker(registry, done)
    for _ in range(ROUNDS):
        damaged = [f for f in verify(registry) if f.damage]
        before = len(done.moved) + len(done.mended)
        with registry.lock() as held:
            held.check()
            _mend(registry, damaged, done)
        if len(done.moved) + len(done.mended) == before:
            break
    return done


def _mend_marker(registry: Registry, done: Repaired) -> None:
    """A marker that cannot be read says nothing; one that names a newer format is left alone."""
    path = registry.root / MARKER
    try:
        registry.check_format()
    except FileNotFoundError:
        pass
    except RobustKTError as error:
        if re.search(r"format [0-9]+;", error.what):
            raise
        _aside(registry, path, done)
    else:
        return
    write_atomic(path, canonical({"format": FORMAT}) + b"\n")
    done.mended.append(f"{MARKER} is written anew")


def _mend(registry: Registry, damaged: Iterable[Finding], done: Repaired) -> None:
    refs_path = registry.root / refs_file.FILE
    for finding in damaged:
        if finding.path == refs_path:
            _aside(registry, refs_path, done)
            refs = _recovered(registry)
            write_atomic(refs_path, refs_file.text(refs))
            made_up = [name for name in refs["names"] if name.startswith(MADE_UP)]
            told = f"{len(refs['names']) - len(made_up)} names are taken from the run records; tags are lost"
            lost = f"; unknown, and made up: {', '.join(made_up)} (`robustkt rename` mends that)" if made_up else ""
            done.mended.append(told + lost)
        elif finding.pointer:
            _drop(registry, finding, done)
        elif finding.path.parent.name == "records" and not finding.path.is_file():
            _new_record(registry, finding.path, done)
        else:
            for path in (finding.path, *finding.with_it):
                _aside(registry, path, done)


def _aside(registry: Registry, path: Path, done: Repaired) -> None:
    """Into quarantine, under the same path."""
    if not os.path.lexists(path):
        return
    told = path.relative_to(registry.root)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = registry.root / QUARANTINE / stamp / told
    with writing(target):
        target.parent.mkdir(parents=True)
        os.rename(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    done.moved.append((told.as_posix(), target.relative_to(registry.root).as_posix()))


def _drop(registry: Registry, finding: Finding, done: Repaired) -> None:
    """A name or tag that points at nothing; the refs as they were go to quarantine."""
    kind, _, name = finding.pointer.partition(" ")
    refs, path = registry.refs(), registry.root / refs_file.FILE
    table = refs["names"] if kind == "names" else refs["tags"]
    if table.pop(name, None) is None:
        return
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    write_atomic(registry.root / QUARANTINE / stamp / refs_file.FILE, path.read_bytes())
    write_atomic(path, refs_file.text(refs))
    done.mended.append(f"{finding.what}: dropped")


def _new_record(registry: Registry, path: Path, done: Repaired) -> None:
    write_atomic(path, sealed({"format": RECORD, "lost": "the run record was damaged and is in quarantine, or gone"}))
    done.mended.append(f"records/{path.name}: replaced by one that says it was lost")


def _recovered(registry: Registry) -> Refs:
    """Names for all generations, the oldest first: those in the run records, else `genN`."""
    found: list[tuple[str, str, str]] = []
    for path in sorted((registry.root / "generations").glob("*.json")):
        identity = f"sha256:{path.stem}"
        try:
            generation: Generation = registry.by_id(identity, path.stem[:12])
        except RobustKTError:
            continue
        try:
            record = unsealed(registry.record_path(generation.id), "")
        except (RobustKTError, OSError):
            record = {}
        found.append((str(record.get("started", "")), identity, str(record.get("name", ""))))
    refs = refs_file.empty()
    for _, identity, name in sorted(found):
        free = NAME.fullmatch(name) and name not in refs["names"]
        refs["names"][name if free else _numbered(refs, {n for *_, n in found})] = identity
    return refs


def _numbered(refs: Refs, wanted: set[str]) -> str:
    """No `genN`: an earlier one of that name may still be meant somewhere."""
    number = 0
    while (name := f"{MADE_UP}{number}") in refs["names"] or name in wanted:
        number += 1
    return name
