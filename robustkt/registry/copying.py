"""Generations from one registry to another: with all they need, checked before anything is written, names last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.generation import Generation, check_name
from robustkt.numbers import canonical, digest
from robustkt.registry import claims
from robustkt.registry import refs as refs_file
from robustkt.registry.binding import read_binding
from robustkt.registry.files import write_atomic, writing
from robustkt.registry.location import batches
from robustkt.registry.measurements import Result
from robustkt.registry.refs import Refs
from robustkt.registry.seal import unsealed, unsealed_bytes
from robustkt.registry.store import Registry

DISTRUST = "Do not trust where it comes from."
STAGES = ("objects", "records", "generations", "logs", "results")  # nothing is there before what it needs


class Target(Protocol):
    """A registry that is copied to."""

    @property
    def label(self) -> str:
        """What it is called in answers and errors."""
        ...

    def refs(self) -> Refs:
        """Its names and tags."""
        ...

    def state(self, path: str, size: int, content: Callable[[], bytes]) -> str:
        """`missing` (damaged too, where that shows), `same` or `other`: what there is at the path."""
        ...

    def create(self) -> object:
        """Make it a registry, if it is none."""
        ...

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files whole."""
        ...

    def working(self, planned: Plan) -> AbstractContextManager[object]:
        """Held while files are written, so that none is collected before the names are made."""
        ...

    def claim(self, paths: Iterable[str]) -> None:
        """Keep what is there already from being collected before the names are made."""
        ...

    def committing(self) -> AbstractContextManager[object]:
        """Held from the first record to the last name."""
        ...

    def point(self, refs: Refs) -> list[str]:
        """Make names and tags, within `committing`; those that are taken are left alone and returned."""
        ...


@dataclass(frozen=True)
class File:
    """Something to copy."""

    path: str  # the same in both registries
    stage: str
    size: int
    read: Callable[[], bytes]  # its bytes, after every hash has been re-derived
    log: File | None = None  # of a measurement


@dataclass(frozen=True)
class Plan:
    """What a copy will do."""

    generations: tuple[Generation, ...]  # in the order of their names, those without one first
    new: frozenset[str]  # ids that the target lacks
    files: tuple[File, ...]  # what it lacks, in the order in which it is written
    there: tuple[str, ...]  # what it has
    bound: tuple[File, ...]  # the adapters of generations that it lacks, also those that it has: are they theirs?
    refs: Refs  # names and tags to be made
    kept: tuple[str, ...]  # files and tags that are other ones there, and stay

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.size for file in self.files)


class Folder:
    """A local registry as a place to copy to; what is damaged there counts as missing, and is mended."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.label = registry, registry.label
        self._refs = refs_file.empty()

    def refs(self) -> Refs:
        """Its names and tags."""
        return self.registry.refs()

    def state(self, path: str, size: int, content: Callable[[], bytes]) -> str:
        """By the bytes: a copy mends what is damaged."""
        place = self.registry.root / path
        if not place.is_file():
            return "missing"
        data = place.read_bytes()
        if path.startswith(("objects/", "generations/")):
            return "same" if digest(data) == f"sha256:{place.stem}" else "missing"
        if data == content():
            return "same"
        try:
            unsealed_bytes(data, path, "")
        except RobustKTError:
            return "missing"
        return "other"

    def create(self) -> bool:
        """Make it a registry, if it is none."""
        return self.registry.create()

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files."""
        for path, data in files.items():
            write_atomic(self.registry.root / path, data)

    def working(self, planned: Plan) -> AbstractContextManager[None]:
        """A job like others: `gc` spares what is younger."""
        key = digest(canonical(sorted(g.id for g in planned.generations)))[7:23]
        return self.registry.working(self.registry.job_path("copy", key), "this very copy", [])

    def claim(self, paths: Iterable[str]) -> None:
        """Make it young: `gc` spares that."""
        for path in paths:
            with writing(self.registry.root / path):
                os.utime(self.registry.root / path)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """The writers' lock; names are written when it is given back."""
        with self.registry.changing() as self._refs:
            yield

    def point(self, refs: Refs) -> list[str]:
        """Make all names and tags, or none when a name has been taken since the plan was made."""
        there = self._refs
        lost = [name for name, identity in refs["names"].items() if there["names"].get(name, identity) != identity]
        if not lost:
            there["names"] |= refs["names"]
            for tag, identity in refs["tags"].items():
                if tag not in there["tags"]:
                    there["tags"][tag] = identity
                    there["history"].setdefault(tag, []).extend(refs["history"].get(tag, []))
        return lost


def plan(
    source: Registry,
    target: Target,
    chosen: Sequence[str],
    *,
    sizes: Callable[[str], int],
    rename: str | None = None,
    suffix: str = "",
) -> Plan:
    """What is to be copied of `chosen` generations (all, when none is) and their ancestors; `sizes` is of objects.

    Raises:
        UsageError: `rename` or `suffix` cannot be (part of) a name, or there is no one generation to rename.
        NotFoundError: a generation is not in the source.
        IntegrityError: a manifest, record or result of the source is damaged.
        RobustKTError: a name belongs to another generation in the target.
    """
    found = [source.get(reference) for reference in chosen]
    if rename is not None and len(found) != 1:
        raise UsageError("--as names one generation", "Name one: `robustkt copy gen2 --as NAME …`, or use --suffix.")
    refs, there = source.refs(), target.refs()
    known = {*refs["names"].values(), *there["names"].values()}
    if rename is None and (lost := [g.id for g in found if g.id not in known]):
        raise RobustKTError(f"{lost[0][:19]} has lost its name, and would be found nowhere", "Give it one: --as NAME.")
    wanted = _family(source, refs, [g.id for g in found] or list(refs["names"].values()))
    renamed = {found[0].id: rename} if rename is not None else {}
    names = _names(refs["names"], there["names"], wanted, renamed, suffix, target.label)
    tags = {tag: i for tag, i in refs["tags"].items() if i in wanted}
    kept = [f"@{tag}" for tag, i in tags.items() if there["tags"].get(tag, i) != i]
    files, same, bound, new = [], [], [], set()
    for generation in wanted.values():
        adapters = {source.object_path(one.hash).name for one in generation.bindings}
        again = []
        for file in _files(source, generation, sizes):
            state = target.state(file.path, file.size, file.read)
            if state == "missing":
                files.append(file)
                new |= {generation.id} if file.stage == "generations" else set()
            elif state == "other":
                kept.append(file.path)
            elif file.stage == "objects":
                same.append(file.path)
            again += [file] if Path(file.path).name in adapters else []
            log = file.log if state != "other" else None
            if log is not None and target.state(log.path, log.size, log.read) != "same":
                files.append(log)
        bound += again if generation.id in new else []
    fresh = {tag: i for tag, i in tags.items() if tag not in there["tags"]}
    history = {tag: refs["history"][tag] for tag in fresh if tag in refs["history"]}
    made: Refs = {"names": names, "tags": fresh, "history": history}
    unique = {file.path: file for file in files}.values()
    return Plan(
        tuple(wanted.values()), frozenset(new), tuple(sorted(unique, key=lambda f: STAGES.index(f.stage))),
        tuple(dict.fromkeys(same)), tuple(bound), made, tuple(kept),
    )  # fmt: skip


def check(planned: Plan) -> None:
    """Re-derive every hash of what will be written, and whose adapters those are that it names.

    Raises:
        IntegrityError: something of the source is missing, damaged or another generation's.
    """
    for file in (*planned.files, *planned.bound):
        file.read()


def send(planned: Plan, target: Target, advance: Callable[[float], None]) -> None:
    """Write what is planned; until its name is there, nothing of a generation is seen.

    Raises:
        RobustKTError: the target refuses, or a name was taken meanwhile.
    """
    target.create()
    with target.working(planned):
        target.claim(planned.there)
        _put(planned, target, STAGES[:1], advance)
        with target.committing():
            _put(planned, target, STAGES[1:], advance)
            lost = target.point(planned.refs)
    if lost:
        raise RobustKTError(
            f"{', '.join(lost)} in {target.label} has been given to another generation meanwhile",
            "The files are there. Type the command again with --as NAME or --suffix TEXT.",
        )


def _family(source: Registry, refs: Refs, heads: Sequence[str]) -> dict[str, Generation]:
    """The generations with these ids and all ancestors, in the order of their names."""
    first = {identity: name for name, identity in reversed(list(refs["names"].items()))}
    found: dict[str, Generation] = {}
    queue = list(heads)
    while queue:
        identity = queue.pop()
        if identity not in found:
            found[identity] = source.by_id(identity, first.get(identity, identity[7:19]))
            queue.extend(found[identity].parents.values())
    order = {identity: place for place, identity in enumerate(first)}
    return dict(sorted(found.items(), key=lambda item: -order.get(item[0], len(order))))


def _names(
    source: Mapping[str, str],
    there: Mapping[str, str],
    wanted: Mapping[str, Generation],
    renamed: Mapping[str, str],
    suffix: str,
    label: str,
) -> dict[str, str]:
    """The names to be made; a generation that has one already gets no second where its own is taken."""
    pairs = [(name, identity) for name, identity in source.items() if identity in wanted and identity not in renamed]
    pairs += [(name, identity) for identity, name in renamed.items()]
    made: dict[str, str] = {}
    for name, identity in pairs:
        for choice in dict.fromkeys((name, name if identity in renamed else name + suffix)):
            check_name(choice, "a generation's name")
            if there.get(choice, made.get(choice, identity)) == identity:
                if choice not in there:
                    made[choice] = identity
                break
        else:
            if identity in renamed or identity not in there.values():
                fix = "Add --suffix -mine: every name that is taken gets it."
                if identity in renamed:
                    fix = "Give another one to --as."
                elif len(wanted) == 1:
                    fix = "Add --as NAME for this one, or --suffix -mine for every name that is taken."
                raise RobustKTError(
                    f"the name {choice} belongs to another generation in {label}", f"Nothing was copied. {fix}"
                )
    return made


def _files(source: Registry, generation: Generation, sizes: Callable[[str], int]) -> Iterator[File]:
    """Everything of one generation; what is small is checked here already."""
    tensors = {generation.weights, generation.last_weights, *(one.hash for one in generation.bindings)}
    for identity in dict.fromkeys(generation.objects):
        yield File(
            _relative(source, source.object_path(identity)), "objects", sizes(identity),
            lambda i=identity: _object(source, i, generation, tensors=i in tensors),  # type: ignore[misc]
        )  # fmt: skip
    yield _small(source, source.record_path(generation.id), "records", lambda path: unsealed(path, "Restore it."))
    claimed = claims.path_of(source.root, generation.id)
    if claimed.is_file():  # before the results that it is about
        yield _small(source, claimed, "records", lambda path: unsealed(path, claims.FIX))
    manifest = generation.manifest()
    yield File(_relative(source, source.manifest_path(generation.id)), "generations", len(manifest), lambda: manifest)
    for result in source.results(generation.id):
        _check_result(result, generation)
        log = source.log_path(result)
        yield _small(
            source, result.path, "results", lambda path: unsealed(path, "Measure again."),
            File(_relative(source, log), "logs", _size(log), lambda r=result: source.log(r)),  # type: ignore[misc]
        )  # fmt: skip


def _small(source: Registry, path: Path, stage: str, check: Callable[[Path], object], log: File | None = None) -> File:
    size = _size(path)

    def read() -> bytes:
        check(path)
        return path.read_bytes()

    read()
    return File(_relative(source, path), stage, size, read, log)


def _size(path: Path) -> int:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", "Run `robustkt verify`: it names what else is damaged.")
    return os.stat(path).st_size


def _object(source: Registry, identity: str, generation: Generation, *, tensors: bool) -> bytes:
    """An object's bytes; those of weights are safetensors through and through, and no pickle; adapters are bound.

    Raises:
        IntegrityError: they are not.
    """
    from safetensors import SafetensorError, deserialize

    data = source.object(identity)
    if tensors:
        try:
            deserialize(data)
        except SafetensorError as error:
            raise IntegrityError(
                f"the weights {identity[:19]} in {source.label} are not safetensors: {error}",
                DISTRUST,
            ) from None
    for one in generation.bindings:
        if one.hash == identity:
            read_binding(data, one, generation.name, DISTRUST)
    return data


def _check_result(result: Result, generation: Generation) -> None:
    told = (result.content.get("kind"), result.content.get("generation"))
    if told != (result.kind, generation.id):
        raise IntegrityError(f"{result.path} belongs to another generation", "Run `robustkt verify`.")


def _relative(source: Registry, path: Path) -> str:
    return path.relative_to(source.root).as_posix()


def _put(planned: Plan, target: Target, stages: Sequence[str], advance: Callable[[float], None]) -> None:
    for stage in stages:
        for batch in batches((file, file.size) for file in planned.files if file.stage == stage):
            target.put({file.path: file.read() for file in batch})
            advance(sum(file.size for file in batch))
