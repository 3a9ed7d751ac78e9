"""Put, get, resolve and trace generations; every write is atomic and the refs file is the one commit point."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import HASH, Generation, check_name, read_manifest
from robustkt.numbers import canonical, digest, parse_json
from robustkt.registry import claims
from robustkt.registry import refs as refs_file
from robustkt.registry.files import write_atomic, writing
from robustkt.registry.locks import Held, for_a_job, lock_of, locked
from robustkt.registry.measurements import Result, checked
from robustkt.registry.records import check_record, read_record
from robustkt.registry.refs import Refs, name_taken
from robustkt.registry.seal import sealed, unsealed

FORMAT = 2  # of the folder; what was written by format 1 is read as it is, and becomes 2 with the first write
RECORD = 1  # of run records and results
MARKER = "registry.json"
NEEDS = "needs.json"  # of a job
MEND = "Restore it from a copy, or run the command that made the generation again."
MEASURE = "Restore it from a copy, or measure again with --fresh."


class Registry:
    """A folder of generations. Reading takes no lock; writing takes one."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # whoever changes the folder afterwards
        self._seen: tuple[tuple[int, int, int], Refs] | None = None  # the refs as they were last read
        self.label = str(root)  # what answers and errors call it
        self.problems: list[tuple[str, Path]] = []  # what a copy of a remote registry could not take over

    @classmethod
    def locate(cls, given: Path | None = None) -> Registry:
        """`given`, or `$ROBUSTKT_REGISTRY`, or the nearest `registry/` from here upwards, or `./registry`."""
        named = given or (Path(os.environ["ROBUSTKT_REGISTRY"]) if os.environ.get("ROBUSTKT_REGISTRY") else None)
        if named is not None:
            return cls(named.expanduser())
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / "registry" / MARKER).is_file():
                return cls(folder / "registry")
        return cls(here / "registry")

    @property
    def exists(self) -> bool:
        """Whether the folder is a registry already."""
        return (self.root / MARKER).is_file()

    def create(self) -> bool:
        """Make the folder a registry; False when it was one.

        Raises:
            RobustKTError: the place cannot be written, or holds a registry of a newer format.
        """
        if self.exists:
            self.check_format()
            return False
        write_atomic(self.root / MARKER, canonical({"format": FORMAT}) + b"\n")
        return True

    # -- generations ---------------------------------------------------------------------------------------------

    def add(self, generation: Generation, record: Mapping[str, Any]) -> Generation:
        """Commit a generation whose objects are stored: run record, then manifest, the name last.

        An id that is there already keeps its first record and gets the further name. An empty name is the one that
        the id has already, else `genN`.

        Raises:
            RobustKTError: the name belongs to another generation, or the disk refused.
            IntegrityError: an object or a parent that it names is not stored.
        """
        if generation.name:
            check_name(generation.name)
        read_manifest(generation.manifest(), generation.name, "this generation")  # nothing unreadable is stored
        check_record(parse_json(canonical(record), "it"), "the run record")
        with self.changing() as refs:
            for stored in generation.objects:
                if not self.object_path(stored).is_file():
                    raise IntegrityError(f"{generation.name}: object {stored} is not stored", "Run the job again.")
            known = [name for name, identity in refs["names"].items() if identity == generation.id]
            generation = replace(generation, name=generation.name or next(iter(known), "") or self.next_name())
            taken = refs["names"].get(generation.name)
            if taken not in (None, generation.id):
                raise name_taken(generation.name)
            for parent in generation.parents.values():
                self.by_id(parent, parent)
            if not self.record_path(generation.id).is_file():
                write_atomic(
                    self.record_path(generation.id), sealed({**record, "format": RECORD, "name": generation.name})
                )
            write_atomic(self.manifest_path(generation.id), generation.manifest())
            refs["names"][generation.name] = generation.id
        return generation

    def mode(self, reference: str) -> Generation:
        """The generation behind a reference, and of one with adapters the mode behind a further `@`: `gen2@clean`.

        Raises:
            NotFoundError: nothing of that name, or no such mode.
            UsageError: shares that are none.
            IntegrityError: its manifest is damaged.
        """
        base, _, mode = reference.rpartition("@")
        return self.get(base).in_mode(mode) if base else self.get(reference)

    def get(self, reference: str) -> Generation:
        """The generation behind a name, an id or its prefix, `@tag`, `@latest`, or any of them with `~n`.

        Raises:
            NotFoundError: nothing of that name; the message gives the nearest.
            UsageError: one mode of a generation, where all of it is meant.
            IntegrityError: its manifest is damaged.
        """
        base, *ups = reference.split("~")
        if base.rpartition("@")[0] or "@" in "".join(ups):
            raise UsageError(f"{reference} names one mode; here a generation is meant with all", "Leave @… out.")
        generation = self.by_id(refs_file.resolve(self.refs(), self.stored, base, self.label))
        names = self.refs()["names"]
        base = list(names)[-1] if base == "@latest" else base
        generation = replace(generation, name=base) if base in names else generation
        for up in ups:
            if not re.fullmatch(r"[0-9]{0,9}", up):
                raise UsageError(f"'{reference}' names no generation: '~{up}' counts no teachers", "Write GEN~1.")
            for _ in range(int(up or 1)):
                teacher = generation.parents.get("teacher")
                if teacher is None:
                    raise NotFoundError(
                        f"{generation.name} has no teacher", f"See `robustkt lineage {generation.name}`."
                    )
                generation = self.by_id(teacher)
        return generation

    def by_id(self, identity: str, name: str = "") -> Generation:
        """The generation with this whole id, its manifest checked against it; `name` saves looking one up."""
        return self._read(identity, name or self.names_of(identity)[0])

    def all(self) -> list[Generation]:
        """Every named generation that can be read, the oldest first: one damaged manifest hides no others."""
        names = self.refs()["names"].items()
        return [found for name, identity in names if (found := self._readable(identity, name)) is not None]

    def stored(self) -> list[str]:
        """The ids of all manifests, in their order; those without a name among them."""
        try:
            names = sorted(os.listdir(self.root / "generations"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [i for name in names if name.endswith(".json") and HASH.fullmatch(i := f"sha256:{name[:-5]}")]

    def has(self, identity: str) -> bool:
        """Whether a name points at this id."""
        return identity in self.refs()["names"].values()

    def names_of(self, identity: str) -> list[str]:
        """The names that point at an id, or a short form of the id when none does."""
        found = [name for name, target in self.refs()["names"].items() if target == identity]
        return found or [identity.removeprefix("sha256:")[:12]]

    def next_name(self) -> str:
        """`genN` with the first N above all that are taken."""
        numbers = [int(m[1]) for name in self.refs()["names"] if (m := re.fullmatch(r"gen(\d{1,9})", name))]
        return f"gen{max(numbers, default=-1) + 1}"

    def ancestors(self, generation: Generation) -> Iterator[Generation]:
        """The generation's parents and theirs, each once, nearest first."""
        seen: set[str] = set()
        queue = list(generation.parents.values())
        while queue:
            identity = queue.pop(0)
            if identity not in seen:
                seen.add(identity)
                parent = self.by_id(identity)
                yield parent
                queue.extend(parent.parents.values())

    # -- objects -------------------------------------------------------------------------------------------------

    def put_object(self, data: bytes) -> str:
        """Store bytes under their SHA-256; storing them again mends a damaged copy and is otherwise free."""
        identity = digest(data)
        path = self.object_path(identity)
        if path.is_file() and digest(path.read_bytes()) == identity:
            with writing(path):
                os.utime(path)  # `gc` spares what is young: a job may be about to name it
        else:
            write_atomic(path, data)
        return identity

    def object(self, identity: str) -> bytes:
        """The bytes with this hash.

        Raises:
            IntegrityError: they are missing or damaged.
        """
        path = self.object_path(identity)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"the weight file {path} is missing", MEND) from None
        if digest(data) != identity:
            raise IntegrityError(f"the weight file {path} is damaged: its SHA-256 is not its name", MEND)
        return data

    # -- records and results -------------------------------------------------------------------------------------

    def record(self, identity: str) -> dict[str, Any]:
        """How a generation came about: times, machine, versions, cost, the log of its epochs; {} when unknown."""
        path = self.record_path(identity)
        return read_record(path) if path.is_file() else {}

    def put_result(self, identity: str, kind: str, key: str, content: Mapping[str, Any], log: bytes) -> Result:
        """Store a measurement beside its generation; its log first, so that a header never names a missing one.

        The log of an earlier measurement with the same settings stays, for those who read its header at the moment.
        """
        path = self.result_path(identity, kind, key)
        with self.lock() as held:
            self.by_id(identity, identity)
            held.check()
            place = path.with_name(f"{path.stem}-{_hex(digest(log))[:8]}.tsv")
            content = {**content, "log": place.name, "log_hash": digest(log)}
            checked(Result(kind, key, content, path))  # nothing is stored that could not be read
            write_atomic(place, log)
            write_atomic(path, sealed({"format": RECORD, "kind": kind, "generation": identity, **content}))
            claims.settle(self.root, identity, path.stem)
            return self._result(kind, key, path)

    def results(self, identity: str, kind: str | None = None) -> list[Result]:
        """The measurements of a generation, sorted by kind and key."""
        folder = self.results_path(identity)
        found = [(path, path.stem.partition("-")) for path in sorted(folder.glob("*-*.json"))]
        return [self._result(k, key, path) for path, (k, _, key) in found if kind in (None, k)]

    def result(self, identity: str, kind: str, key: str) -> Result | None:
        """The measurement with these settings, if it has been made."""
        path = self.result_path(identity, kind, key)
        return self._result(kind, key, path) if path.is_file() else None

    def log(self, result: Result) -> bytes:
        """The log behind a measurement.

        Raises:
            IntegrityError: it is missing or damaged.
        """
        path = self.log_path(result)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"the log {path} is missing", MEASURE) from None
        if digest(data) != result.content.get("log_hash"):
            raise IntegrityError(f"the log {path} is damaged: its SHA-256 is another", MEASURE)
        return data

    # -- places --------------------------------------------------------------------------------------------------

    def object_path(self, identity: str) -> Path:
        """Where an object's bytes lie."""
        return self.root / "objects" / _hex(identity)[:2] / _hex(identity)

    def manifest_path(self, identity: str) -> Path:
        """Where a generation's manifest lies."""
        return self.root.joinpath("generations", f"{_hex(identity)}.json")

    def record_path(self, identity: str) -> Path:
        """Where a generation's run record lies."""
        return self.root.joinpath("records", f"{_hex(identity)}.json")

    def results_path(self, identity: str) -> Path:
        """The folder of a generation's measurements."""
        return self.root.joinpath("results", _hex(identity))

    def result_path(self, identity: str, kind: str, key: str) -> Path:
        """Where a measurement lies."""
        return self.results_path(identity) / f"{kind}-{key}.json"

    def log_path(self, result: Result) -> Path:
        """Where the log of a measurement lies."""
        return result.path.with_name(Path(str(result.content.get("log"))).name or "no-log")

    def job_path(self, kind: str, key: str) -> Path:
        """Where an unfinished job keeps what it has done so far."""
        return self.root / "jobs" / f"{kind}-{key}"

    def lock(self) -> AbstractContextManager[Held]:
        """The writers' lock."""
        return locked(self.root / "lock", f"the registry {self.root}")

    @contextmanager
    def working(self, folder: Path, doing: str, needs: Iterable[str], *, fresh: bool = False) -> Iterator[None]:
        """Hold the job of `folder`, which goes when the block ends well; `fresh` forgets what earlier runs left there.

        The ids that it needs stand in the folder, so that `gc` keeps those generations.

        Raises:
            RobustKTError: another process is at this very job.
        NotFoundError: what it needs has been removed just now.
        """
        needed = sorted(needs)
        with locked(lock_of(folder), doing, timeout=for_a_job()):
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            write_atomic(folder / NEEDS, canonical(needed))
            for identity in needed:  # from here on `gc` keeps them; before, it may have taken one
                if not self.manifest_path(identity).is_file():
                    shutil.rmtree(folder, ignore_errors=True)
                    raise NotFoundError(f"generation {identity[7:19]} has just been removed", "Name another one.")
            yield
            shutil.rmtree(folder, ignore_errors=True)

    def refs(self) -> Refs:
        """Names and tags, the oldest first, and where the tags have been."""
        path = self.root / refs_file.FILE
        if not path.is_file():
            return refs_file.empty()
        self.check_format()
        told = path.stat()
        stamp = told.st_ino, told.st_size, told.st_mtime_ns  # every write makes another file
        if self._seen is None or self._seen[0] != stamp:
            self._seen = stamp, refs_file.read(path)
        refs = self._seen[1]
        history = {tag: list(moves) for tag, moves in refs["history"].items()}
        return {**refs, "names": dict(refs["names"]), "tags": dict(refs["tags"]), "history": history}

    @contextmanager
    def changing(self) -> Iterator[Refs]:
        """The refs, to be changed in place under the writers' lock; written when the block ends well.

        Raises:
            RobustKTError: the lock was not to be had, or was lost; the disk refused.
        """
        self.create()
        with self.lock() as held:
            refs, path = self.refs(), self.root / refs_file.FILE
            before = refs_file.text(refs)
            if not path.is_file():
                if any((self.root / "generations").glob("*.json")):
                    raise IntegrityError(f"{path} is missing: the names of all generations", refs_file.FIX)
                write_atomic(path, before)  # before any manifest, so that manifests without it are damage
            if self._format() != FORMAT:
                write_atomic(self.root / MARKER, canonical({"format": FORMAT}) + b"\n")
            yield refs
            held.check()
            if refs_file.text(refs) != before:
                write_atomic(path, refs_file.text(refs))

    # -- inner ---------------------------------------------------------------------------------------------------

    def _readable(self, identity: str, name: str) -> Generation | None:
        try:
            return self._read(identity, name)
        except RobustKTError:
            return None

    def _result(self, kind: str, key: str, path: Path) -> Result:
        claimed = claims.read(self.root, f"sha256:{path.parent.name}")
        source = claimed.source if claimed and path.stem in claimed.results else None
        return checked(Result(kind, key, unsealed(path, MEASURE), path, source))

    def _read(self, identity: str, name: str) -> Generation:
        path = self.manifest_path(identity)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError(f"the manifest {path} of {name} is missing", "Restore it from a copy.") from None
        if digest(data) != identity:
            raise IntegrityError(f"the manifest {path} of {name} is damaged", "Restore it from a copy.")
        return read_manifest(data, name, str(path))

    def check_format(self) -> None:
        """Raise a RobustKTError unless this version reads the registry's format."""
        found = self._format()
        if type(found) is not int or not 1 <= found <= FORMAT:
            raise RobustKTError(
                f"{self.root} has registry format {found}; this version reads up to {FORMAT}", "Upgrade robustkt."
            )

    def _format(self) -> Any:
        path = self.root / MARKER
        content = parse_json(path.read_bytes(), str(path))
        if not isinstance(content, dict):
            raise IntegrityError(f"{path} does not hold a JSON object", "Restore it from a copy.")
        return content.get("format")


def _hex(identity: str) -> str:
    if not HASH.fullmatch(identity):
        raise IntegrityError(f"'{identity[:80]}' is not a SHA-256 hash", "Run `robustkt verify`.")
    return identity.removeprefix("sha256:")
