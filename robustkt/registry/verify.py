"""Re-derive every hash of a registry and follow every pointer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustkt.errors import RobustKTError
from robustkt.generation import HASH, Generation
from robustkt.numbers import digest
from robustkt.registry.files import TEMPORARY
from robustkt.registry.measurements import Result, checked
from robustkt.registry.refs import Refs
from robustkt.registry.seal import unsealed
from robustkt.registry.store import MARKER, MEASURE, Registry, objects_of


@dataclass(frozen=True)
class Finding:
    """Something that verify found: damage, or a harmless leftover of an interrupted write."""

    what: str
    path: Path
    damage: bool = True


def verify(registry: Registry) -> list[Finding]:
    """Everything that is not as its hash, name or pointer says; an empty list is a sound registry."""
    if not registry.exists:
        raise RobustKTError(f"there is no registry in {registry.root}", "Name one with --registry DIR.")
    try:
        registry.check_format()
    except RobustKTError as error:
        return [Finding(error.what, registry.root / MARKER)]
    try:
        refs = registry.refs()
    except RobustKTError as error:
        return [Finding(error.what, registry.root / "refs.json")]
    return [
        *_lost_names(registry),
        *_pointers(registry, refs),
        *_generations(registry, set(refs["names"].values())),
        *_objects(registry),
        *_results(registry),
        *(Finding("an unfinished write", p, damage=False) for p in registry.root.rglob(f"{TEMPORARY}*")),
    ]


def _lost_names(registry: Registry) -> Iterator[Finding]:
    if not (registry.root / "refs.json").is_file() and any((registry.root / "generations").glob("*.json")):
        yield Finding("the names of all generations are missing", registry.root / "refs.json")


def _pointers(registry: Registry, refs: Refs) -> Iterator[Finding]:
    for kind, table in (("names", refs["names"]), ("tags", refs["tags"])):
        for name, identity in table.items():
            if not registry.manifest_path(identity).is_file():
                yield Finding(
                    f"{kind[:-1]} {name} points at a manifest that is missing", registry.manifest_path(identity)
                )


def _generations(registry: Registry, named: set[str]) -> Iterator[Finding]:
    for path in sorted((registry.root / "generations").glob("*.json")):
        identity = f"sha256:{path.stem}"
        if not HASH.fullmatch(identity) or digest(path.read_bytes()) != identity:
            yield Finding("a manifest whose SHA-256 is not its name", path)
            continue
        try:
            yield from _links(registry, registry.by_id(identity))
        except RobustKTError as error:
            yield Finding(error.what, path)
        if identity not in named:
            yield Finding("a generation without a name", path, damage=False)


def _links(registry: Registry, generation: Generation) -> Iterator[Finding]:
    for role, parent in sorted(generation.parents.items()):
        if not registry.manifest_path(parent).is_file():
            yield Finding(f"the {role} of {generation.name} is missing", registry.manifest_path(parent))
    for stored in objects_of(generation):
        if not registry.object_path(stored).is_file():
            yield Finding(f"an object of {generation.name} is missing", registry.object_path(stored))
    record = registry.record_path(generation.id)
    if not record.is_file():
        yield Finding(f"the run record of {generation.name} is missing", record)
        return
    try:
        registry.record(generation.id)
    except RobustKTError as error:
        yield Finding(error.what, record)


def _objects(registry: Registry) -> Iterator[Finding]:
    for path in sorted((registry.root / "objects").glob("*/*")):
        if not path.name.startswith(TEMPORARY) and digest(path.read_bytes()) != f"sha256:{path.name}":
            yield Finding("an object whose SHA-256 is not its name", path)


def _results(registry: Registry) -> Iterator[Finding]:
    logs = set((registry.root / "results").glob("*/*.tsv"))
    for path in sorted((registry.root / "results").glob("*/*.json")):
        try:
            content = unsealed(path, MEASURE)
        except RobustKTError as error:
            yield Finding(error.what, path)
            continue
        if content.get("generation") != f"sha256:{path.parent.name}":
            yield Finding("a result that belongs to another generation", path)
        elif not (registry.root / "generations" / f"{path.parent.name}.json").is_file():
            yield Finding("a result whose generation is missing", path)
        kind, _, key = path.stem.partition("-")
        result = Result(kind, key, content, path)
        place = path
        try:
            place = registry.log_path(checked(result))
            logs.discard(place)
            registry.log(result)
        except RobustKTError as error:
            yield Finding(error.what, place)
    for path in sorted(logs):
        yield Finding("a log that no result names", path, damage=False)
