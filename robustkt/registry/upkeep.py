"""Moving names and tags, taking generations away, and collecting what nothing reaches any more."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError
from robustkt.generation import check_name
from robustkt.numbers import parse_json
from robustkt.registry import replays
from robustkt.registry.files import TEMPORARY, writing
from robustkt.registry.locks import Held, lock_of, owner_of, taken
from robustkt.registry.refs import name_taken
from robustkt.registry.store import NEEDS, Registry


def tag(registry: Registry, name: str, identity: str) -> str | None:
    """Let a tag point at a generation; returns the id that it pointed at before."""
    check_name(name, "a tag")
    with registry.changing() as refs:
        registry.by_id(identity)
        before = refs["tags"].get(name)
        if before != identity:
            refs["tags"][name] = identity
            refs["history"].setdefault(name, []).append({"id": identity, "at": _now()})
    return before


def untag(registry: Registry, name: str) -> str:
    """Take a tag away; its history stays. Returns the id that it pointed at.

    Raises:
        NotFoundError: there is no such tag.
    """
    with registry.changing() as refs:
        if name not in refs["tags"]:
            raise NotFoundError(f"there is no tag '{name[:80]}'", "`robustkt tag` lists them.")
        before = refs["tags"].pop(name)
        refs["history"].setdefault(name, []).append({"id": "", "at": _now()})
    return before


def rename(registry: Registry, reference: str, new: str) -> str | None:
    """Give a generation another name in the place of the old, which is returned; None when it had lost its own.

    Raises:
        RobustKTError: the new name belongs to another generation.
    """
    check_name(new, "a generation's name")
    with registry.changing() as refs:
        found = registry.get(reference)
        old = found.name if found.name in refs["names"] else None
        if refs["names"].get(new, found.id) != found.id:
            raise name_taken(new, "Choose another name.")
        if old is None:
            refs["names"][new] = found.id
        elif old != new:
            order = [(new if name == old else name, i) for name, i in refs["names"].items() if name != new]
            refs["names"].clear()
            refs["names"].update(order)
    return old


@dataclass(frozen=True)
class Removed:
    """What `remove` did: names that are gone, and those among them whose generation stays as an ancestor."""

    names: list[str]
    ancestors: list[str]


def remove(
    registry: Registry, references: Iterable[str], *, descendants: bool = False, name_only: bool = False
) -> Removed:
    """Take names away; `gc` frees the space when nothing reaches a generation any more and its time of grace is over.

    Args:
        registry: where.
        references: names, or anything else that names a generation: then all its names go.
        descendants: remove what descends from them too.
        name_only: let the descendants be; the generation stays as their ancestor, without a name.

    Raises:
        RobustKTError: others descend from one of them and neither is said, or a tag points at one.
    """
    with registry.changing() as refs:
        names = refs["names"]
        going: dict[str, str] = {}
        for reference in references:
            found = registry.get(reference)
            own = [n for n, i in names.items() if i == found.id]
            going |= dict.fromkeys([found.name] if reference in (found.name, "@latest") else own, found.id)
        if descendants:
            below = _below(registry, set(going.values()))
            going |= {name: identity for name, identity in names.items() if identity in below}
        staying = set(names.values()) - set(going.values())
        staying |= {identity for name, identity in names.items() if name not in going}
        gone = {identity: name for name, identity in going.items() if identity not in staying}
        tagged = [f"@{tag} points at {gone[i]}" for tag, i in refs["tags"].items() if i in gone]
        if tagged:
            raise RobustKTError(
                "; ".join(tagged), "Move it with `robustkt tag NAME GEN`, or `robustkt tag --delete NAME`."
            )
        ancestors = sorted(_above(registry, staying) & set(gone), key=list(gone).index)
        if ancestors and not name_only:
            raise RobustKTError(
                f"others descend from {', '.join(gone[i] for i in ancestors)}",
                "Remove them too with --descendants, or take the name alone with --name-only.",
            )
        for name in going:
            del names[name]
        for identity in gone:
            with contextlib.suppress(FileNotFoundError), writing(registry.root):
                os.utime(registry.manifest_path(identity))  # its time of grace begins now
    return Removed(list(going), [gone[i] for i in ancestors])


def _above(registry: Registry, identities: Iterable[str]) -> set[str]:
    """All ancestors of these generations.

    Raises:
        IntegrityError: a manifest among them is missing or damaged: nobody knows what it needs.
    """
    found: set[str] = set()
    queue = sorted(identities)
    while queue:
        parents = set(registry.by_id(queue.pop(), "an ancestor").parents.values()) - found
        found |= parents
        queue += sorted(parents)
    return found


def _below(registry: Registry, identities: set[str]) -> set[str]:
    """All descendants of these generations."""
    manifests = (registry.root / "generations").glob("*.json")
    parents = {f"sha256:{p.stem}": set(registry.by_id(f"sha256:{p.stem}", p.name).parents.values()) for p in manifests}
    found: set[str] = set()
    while fresh := {i for i, above in parents.items() if above & (identities | found)} - found:
        found |= fresh
    return found


@dataclass(frozen=True)
class Collected:
    """What `collect` took away, or would: paths relative to the registry, and their bytes."""

    paths: list[str]
    size: int
    spared: int  # files that nothing reaches, too young to go


def collect(registry: Registry, *, grace: float, dry_run: bool = False) -> Collected:
    """Remove what nothing reaches and what has not changed for `grace` seconds.

    Reached are generations with a name or a tag, those that an unfinished job needs, and all their ancestors; what is
    younger than a job under way stays whatever the grace, as the job may be about to name it. Kept logits of a teacher
    go with it, or when no student has used them for `grace` seconds.

    Raises:
        IntegrityError: a manifest is damaged, so that nobody knows what it needs.
    """
    if not registry.exists:
        raise NotFoundError(f"there is no registry in {registry.root}", "Name one with --registry DIR.")
    with contextlib.nullcontext() if dry_run else registry.lock() as held:  # who only asks may be a mere reader
        now = time.time() if held is None else _clock(registry)
        jobs = [path for path in sorted((registry.root / "jobs").glob("*/")) if path.is_dir()]
        active = [job for job in jobs if now - _youngest(job) <= grace or not _idle(job)]
        limit = min([now - grace, *(_changed(job / NEEDS) for job in active)])
        candidates, kept = _unreached(registry, active, limit)
        candidates += [job for job in jobs if job not in active]
        old = [path for path in candidates if _youngest(path) <= limit or path in jobs]
        spared = len(candidates) - len(old)
        old += _unused(registry, kept, limit)
        size = sum(_size(path) for path in old)
        if held is not None:
            _delete(old, held)
    paths = [path.relative_to(registry.root).as_posix() for path in old]
    return Collected(paths, size, spared)


def _unreached(registry: Registry, jobs: Iterable[Path], limit: float) -> tuple[list[Path], set[str]]:
    """Files that nothing reaches, and the ids of the generations that are.

    Of a generation the manifest comes first, so that a half-done removal leaves orphans only. A generation that is
    younger than `limit` keeps all that it needs.
    """
    refs = registry.refs()
    manifests = {f"sha256:{path.stem}": path for path in sorted((registry.root / "generations").glob("*.json"))}
    roots = {*refs["names"].values(), *refs["tags"].values()}
    roots |= {identity for job in jobs for identity in _needs(job)}
    kept = roots | _above(registry, roots)
    young = {identity for identity, path in manifests.items() if identity not in kept and _changed(path) > limit}
    kept |= young | _above(registry, young)
    found = [path for identity, path in manifests.items() if identity not in kept or identity in young]
    return [*found, *_beside(registry, kept)], kept


def _beside(registry: Registry, kept: set[str]) -> Iterator[Path]:
    """Files that belong to none of the generations `kept`."""
    stems = {identity.removeprefix("sha256:") for identity in kept}
    objects = {registry.object_path(stored) for i in sorted(kept) for stored in registry.by_id(i, i).objects}
    for beside in ("records", "claims"):
        yield from (p for p in sorted((registry.root / beside).glob("*.json")) if p.stem not in stems)
    yield from (p for p in sorted((registry.root / "results").glob("*/")) if p.name not in stems)
    for folder in sorted((registry.root / "results").glob("*/")):
        if folder.name in stems:
            named = {registry.log_path(r) for r in registry.results(f"sha256:{folder.name}")}
            yield from sorted(set(folder.glob("*.tsv")) - named)
    yield from sorted(set((registry.root / "objects").glob("*/*")) - objects)
    yield from (p for p in sorted(registry.root.rglob(f"{TEMPORARY}*")) if p.parent.parent.name != "objects")


def _unused(registry: Registry, kept: set[str], limit: float) -> list[Path]:
    """Kept logits whose teacher is none of the generations `kept`, or that no student has read since `limit`."""
    found = [path for path in replays.files(registry.root) if not path.is_dir()]  # `verify` names a folder
    return [path for path in found if _changed(path) <= limit or replays.teacher_of(path) not in kept]


def _needs(job: Path) -> list[str]:
    """The generations that a job needs; none when it was killed before it could say so."""
    path = job / NEEDS
    if not path.is_file():
        return []
    content = parse_json(path.read_bytes(), str(path))
    if not isinstance(content, list) or not all(isinstance(identity, str) for identity in content):
        raise IntegrityError(
            f"{path} does not list what the job needs", "Run the job to its end, or move its folder away."
        )
    return content


def _idle(job: Path) -> bool:
    """Whether nobody is at a job."""
    lock = lock_of(job)
    if not lock.exists():
        return True
    try:
        held = taken(lock)
    except OSError:  # a registry that this user can only read
        return False
    if held is not None:
        held.release(remove=True)
    return held is not None


def _delete(paths: Iterable[Path], held: Held) -> None:
    for path in paths:
        held.check()
        with writing(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # the last of its folder


def _clock(registry: Registry) -> float:
    """Now, by the clock of the file system, which may be another machine's."""
    return owner_of(registry.root / "lock").stat().st_mtime


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _youngest(path: Path) -> float:
    """When the youngest file at or below a path was written."""
    inside = [_changed(p) for p in path.rglob("*")] if path.is_dir() else []
    return max(inside, default=_changed(path))


def _size(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.lstat().st_size for p in files if p.exists())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
