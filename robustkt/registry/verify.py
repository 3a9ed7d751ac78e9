"""Re-derive every hash of a registry, follow every pointer, name what belongs to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustkt.errors import IntegrityError, RobustKTError
from robustkt.generation import HASH, Generation
from robustkt.numbers import digest
from robustkt.registry import claims, replays
from robustkt.registry import refs as refs_file
from robustkt.registry.binding import read_binding
from robustkt.registry.files import TEMPORARY
from robustkt.registry.measurements import Result, checked
from robustkt.registry.refs import Refs
from robustkt.registry.seal import unsealed
from robustkt.registry.store import MARKER, MEASURE, Registry

QUARANTINE = "quarantine"  # where `repair` puts what is damaged
KNOWN = {MARKER, refs_file.FILE, "lock", "lock.owner", "README.md", ".gitignore", ".gitattributes"}
# how deep the files of each folder lie
FOLDERS = {"objects": 2, "generations": 1, "records": 1, "claims": 1, "results": 2, replays.FOLDER: 1}


@dataclass(frozen=True)
class Finding:
    """Something that verify found: damage, or a harmless leftover of an interrupted write."""

    what: str
    path: Path
    damage: bool = True
    with_it: tuple[Path, ...] = ()  # files that mean nothing without that one
    pointer: str = ""  # the name or tag that points there, as "names gen0"


def verify(registry: Registry) -> list[Finding]:
    """Everything that is not as its hash, name or pointer says; an empty list is a sound registry."""
    if not registry.exists:
        if not looks_like_one(registry):
            raise RobustKTError(f"there is no registry in {registry.label}", "Name one with --registry DIR.")
        return [Finding(f"{MARKER} is missing", registry.root / MARKER)]
    try:
        registry.check_format()
    except RobustKTError as error:
        return [Finding(error.what, registry.root / MARKER)]
    try:
        refs = registry.refs()
    except RobustKTError as error:
        return [Finding(error.what, registry.root / refs_file.FILE), *_files(registry, {})]
    return [
        *(Finding(what, path) for what, path in registry.problems),
        *_lost_names(registry),
        *_pointers(registry, refs),
        *_files(registry, {i: n for n, i in refs["names"].items()}),
    ]


def looks_like_one(registry: Registry) -> bool:
    """Whether the folder is a registry that has lost its marker."""
    return (registry.root / refs_file.FILE).is_file() and (registry.root / "generations").is_dir()


def _files(registry: Registry, named: Mapping[str, str]) -> Iterator[Finding]:
    needed: dict[str, str] = {}  # objects and generations that some manifest names, and what adapters are called
    yield from _generations(registry, named, needed)
    yield from _records(registry)
    yield from _objects(registry, needed)
    yield from _results(registry)
    yield from _replays(registry)
    yield from _strangers(registry)


def _lost_names(registry: Registry) -> Iterator[Finding]:
    if not (registry.root / refs_file.FILE).is_file() and any((registry.root / "generations").glob("*.json")):
        yield Finding("the names of all generations are missing", registry.root / refs_file.FILE)


def _pointers(registry: Registry, refs: Refs) -> Iterator[Finding]:
    for kind, table in (("names", refs["names"]), ("tags", refs["tags"])):
        for name, identity in table.items():
            path = registry.manifest_path(identity)
            if not path.is_file():
                yield Finding(
                    f"{kind[:-1]} {name} points at a manifest that is missing", path, pointer=f"{kind} {name}"
                )


def _generations(registry: Registry, named: Mapping[str, str], needed: dict[str, str]) -> Iterator[Finding]:
    nameless = []
    for path in sorted((registry.root / "generations").glob("*.json")):
        identity = f"sha256:{path.stem}"
        if path.name.startswith(TEMPORARY):
            continue
        if not HASH.fullmatch(identity) or _hash(path) != identity:
            yield Finding("a manifest whose SHA-256 is not its name", path)
            continue
        try:
            generation = registry.by_id(identity, named.get(identity, identity[7:19]))
        except RobustKTError as error:
            yield Finding(error.what, path)
            continue
        needed |= dict.fromkeys((*generation.objects, *generation.parents.values()), "")
        needed |= {one.hash: f", the adapter {one.domain} of {generation.name}" for one in generation.bindings}
        yield from _links(registry, generation)
        if identity not in named:
            nameless.append((identity, path))
    for identity, path in nameless:
        if identity not in needed:
            yield Finding("a generation without a name", path, damage=False)


def _links(registry: Registry, generation: Generation) -> Iterator[Finding]:
    for role, parent in sorted(generation.parents.items()):
        if not registry.manifest_path(parent).is_file():
            yield Finding(f"the {role} of {generation.name} is missing", registry.manifest_path(parent))
    own = {one.hash: f"the adapter {one.domain}" for one in generation.bindings}
    for stored in dict.fromkeys(generation.objects):
        if not registry.object_path(stored).is_file():
            what = own.get(stored, "an object")
            yield Finding(f"{what} of {generation.name} is missing", registry.object_path(stored))
    yield from _bindings(registry, generation)
    record = registry.record_path(generation.id)
    if not record.is_file():
        yield Finding(f"the run record of {generation.name} is missing", record)
        return
    try:
        registry.record(generation.id)
    except (RobustKTError, OSError) as error:
        yield Finding(_told(error), record)


def _bindings(registry: Registry, generation: Generation) -> Iterator[Finding]:
    """Adapters that are whole but another network's: the manifest that names them is wrong, not the object."""
    for one in generation.bindings:
        path = registry.object_path(one.hash)
        if _hash(path) != one.hash:
            continue  # missing or damaged, and told so
        try:
            with path.open("rb") as file:
                read_binding(file, one, generation.name)
        except IntegrityError as error:
            yield Finding(error.what, registry.manifest_path(generation.id))


def _records(registry: Registry) -> Iterator[Finding]:
    for path in sorted((registry.root / "records").glob("*.json")):
        if not _has_generation(registry, path.stem) and not path.name.startswith(TEMPORARY):
            yield Finding("a run record without a generation", path, damage=False)
    for path in sorted((registry.root / claims.FOLDER).glob("*.json")):
        if path.name.startswith(TEMPORARY):
            continue
        try:
            claims.read(registry.root, f"sha256:{path.stem}")
        except RobustKTError as error:
            yield Finding(error.what, path)
        if not _has_generation(registry, path.stem):
            yield Finding("claims about no generation", path, damage=False)


def _objects(registry: Registry, needed: Mapping[str, str]) -> Iterator[Finding]:
    for path in sorted((registry.root / "objects").glob("*/*")):
        if path.name.startswith(TEMPORARY):
            continue
        if _hash(path) != f"sha256:{path.name}":
            yield Finding(f"an object whose SHA-256 is not its name{needed.get(f'sha256:{path.name}', '')}", path)
        elif f"sha256:{path.name}" not in needed:
            yield Finding("an object that no generation names", path, damage=False)


def _results(registry: Registry) -> Iterator[Finding]:
    logs = set((registry.root / "results").glob("*/*.tsv"))
    for path in sorted((registry.root / "results").glob("*/*.json")):
        if path.name.startswith(TEMPORARY):
            continue
        try:
            content = unsealed(path, MEASURE)
        except (RobustKTError, OSError) as error:
            yield Finding(_told(error), path)
            continue
        if content.get("generation") != f"sha256:{path.parent.name}":
            yield Finding("a result that belongs to another generation", path)
        elif not _has_generation(registry, path.parent.name):
            yield Finding("a result without a generation", path, damage=False)
        kind, _, key = path.stem.partition("-")
        result = Result(kind, key, content, path)
        place = path
        try:
            place = registry.log_path(checked(result))
            logs.discard(place)
            registry.log(result)
        except (RobustKTError, OSError) as error:
            yield Finding(_told(error), place, with_it=(path,))
    for path in sorted(logs):
        yield Finding("a log that no result names", path, damage=False)


def _replays(registry: Registry) -> Iterator[Finding]:
    for path in replays.files(registry.root):
        try:
            replays.checked(path)
        except IntegrityError as error:
            yield Finding(error.what, path)


def _strangers(registry: Registry) -> Iterator[Finding]:
    """Files that the registry's format does not know, half-written ones among them."""
    yield from (Finding("an unfinished write", p, damage=False) for p in sorted(registry.root.rglob(f"{TEMPORARY}*")))
    for path in sorted(registry.root.iterdir()):
        if path.name in FOLDERS:
            inside = (p for p in path.rglob("*") if not p.is_dir())
            deep = len(path.parts) + FOLDERS[path.name]
            found = [p for p in sorted(inside) if len(p.parts) != deep or p.suffix not in _suffixes(path.name)]
        else:
            found = [] if path.name in KNOWN | {"jobs", QUARANTINE} else [path]
        for stranger in found:
            if not stranger.name.startswith(TEMPORARY):
                yield Finding("a file that is none of the registry's", stranger, damage=False)


def _hash(path: Path) -> str:
    """The hash of a file's bytes; of one that cannot be read nothing that any has."""
    try:
        return digest(path.read_bytes())
    except OSError:
        return ""


def _told(error: Exception) -> str:
    return error.what if isinstance(error, RobustKTError) else f"a file that cannot be read: {error}"


def _suffixes(folder: str) -> set[str]:
    return {"objects": {""}, "results": {".json", ".tsv"}, replays.FOLDER: {replays.SUFFIX}}.get(folder, {".json"})


def _has_generation(registry: Registry, stem: str) -> bool:
    return (registry.root / "generations" / f"{stem}.json").is_file()
