"""A registry in a store without locks: the files of a local one, but every name a file of its own, made once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustkt import places
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, clip
from robustkt.generation import HASH, NAME
from robustkt.numbers import MAX_JSON, canonical, digest, parse_json
from robustkt.registry import refs as refs_file
from robustkt.registry.files import TEMPORARY, writing
from robustkt.registry.location import Location, Stat, protocol_of
from robustkt.registry.locks import locked
from robustkt.registry.refs import Refs
from robustkt.registry.seal import sealed, unsealed_bytes
from robustkt.registry.store import FORMAT, MARKER, Registry

REMOTE = "remote 1"  # the format described in docs/registry.md; a version that knows no remotes refuses it
POINTER = 1  # the format of a name's file
HEX = "[0-9a-f]{64}"
LAYOUT = re.compile(
    rf"objects/([0-9a-f]{{2}})/\1[0-9a-f]{{62}}|(generations|records|claims)/{HEX}\.json"
    rf"|results/{HEX}/[a-z]+-[a-z0-9-]{{1,110}}\.(json|tsv)|(names|tags)/{NAME.pattern}\.json"
)
POINTERS = ("names", "tags")
FACTS = ("generations", "records", "claims", "results")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
MAX_POINTER, MAX_LOG, MAX_OBJECT = 4096, 2**30, 2**36  # bytes; more is no name, no log, no weights of a classifier


def remote_at(place: str) -> str | None:
    """The address of the remote registry that `place` names, by an address or by a folder with its layout, or None.

    Raises:
        UsageError: an address that cannot be one.
    """
    protocol = protocol_of(place)
    if protocol is None:
        folder = Path(place).expanduser()
        return f"file://{folder.absolute()}" if _layout(folder) else None
    if protocol == "file":
        folder = Path(place.partition("://")[2])
        return None if (folder / MARKER).is_file() and not _layout(folder) else place
    return place


def _layout(folder: Path) -> bool:
    try:
        with (folder / MARKER).open("rb") as file:
            content = parse_json(file.read(MAX_POINTER), MARKER)
    except (OSError, RobustKTError):
        return False
    return isinstance(content, dict) and str(content.get("format")).startswith("remote")


class Remote:
    """A remote registry as a place to copy to."""

    def __init__(self, url: str) -> None:
        self.location = Location(url)
        self.label = self.location.label
        self._listing: dict[str, Stat] | None = None

    def exists(self) -> bool:
        """Whether there is a registry, of a format that this version reads.

        Raises:
            RobustKTError: it has another format, or something else lies there.
        """
        data = self.location.small(MARKER, MAX_POINTER)
        if data is None:
            other = self.location.anything()
            if other is not None:
                raise RobustKTError(
                    f"{self.label} holds something that is not a registry: {clip(other, 60)}",
                    "Name a new prefix or folder.",
                )
            return False
        content = parse_json(data, f"{MARKER} in {self.label}")
        found = content.get("format") if isinstance(content, dict) else None
        if type(found) is int:
            raise RobustKTError(
                f"{self.label} holds a registry in the layout of a local folder",
                "Fetch the folder with the store's own tools, and name another prefix for a remote registry.",
            )
        if found != REMOTE:
            raise RobustKTError(
                f"{self.label} has registry format {clip(str(found), 20)}; this version reads '{REMOTE}'",
                "Upgrade robustkt.",
            )
        return True

    def create(self) -> None:
        """Make the place a registry; nothing when it is one."""
        self.location.create(MARKER, canonical({"format": REMOTE}) + b"\n")

    def refs(self) -> Refs:
        """Names and tags, the oldest first; those that cannot be read are left out."""
        found: dict[str, bytes] = {}
        for folder in POINTERS:
            sizes = {path: stat.size for path, stat in _known(self.location.files(folder)).items()}
            found |= dict(self.location.many({p: s for p, s in sizes.items() if s <= MAX_POINTER}, _most))
        return _pointers(found, lambda path, error: None)

    def state(self, path: str, size: int, content: Callable[[], bytes]) -> str:
        """`missing`, `same` or `other`, as far as the listing tells: nothing is read."""
        if self._listing is None:
            self._listing = self.location.files("")
        told = self._listing.get(path)
        if told is None or (path.startswith(("objects/", "generations/")) and told.size != size):
            return "missing"
        return "same" if told.size == size else "other"

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files."""
        self.location.write(files)

    def working(self, planned: object) -> AbstractContextManager[None]:
        """Nothing collects in a remote registry."""
        return contextlib.nullcontext()

    def claim(self, paths: Iterable[str]) -> None:
        """Nothing: no file of a remote registry is ever collected."""

    def committing(self) -> AbstractContextManager[None]:
        """No lock: names are made one by one, each only where there is none."""
        return contextlib.nullcontext()

    def point(self, refs: Refs) -> list[str]:
        """Make the names and tags; those that somebody else had made first are returned."""
        lost = [name for name, identity in refs["names"].items() if not self._made("names", name, identity, {})]
        for tag, identity in refs["tags"].items():
            if not self._made("tags", tag, identity, {"history": refs["history"].get(tag, [])}):
                lost.append(f"@{tag}")
        return lost

    def _made(self, folder: str, name: str, identity: str, more: Mapping[str, Any]) -> bool:
        path = f"{folder}/{name}.json"
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        wanted = sealed({**more, "at": moment, "format": POINTER, "generation": identity})
        there = _pointers({path: self.location.create(path, wanted)}, lambda path, error: None)
        return {**there["names"], **there["tags"]}.get(name) == identity


class Mirror(Registry):
    """A remote registry as a local one to read: its files in the user's cache, brought up to date when opened.

    What lies there is taken over as it is: whoever reads a registry checks every hash, and `verify` names the rest.
    """

    def __init__(self, url: str, *, anew: bool = False) -> None:
        self.location = Location(url)
        self.home = places.cache() / "remotes" / digest(self.location.label.encode())[7:23]
        super().__init__(self.home / "registry")
        self.label = self.location.label
        if not Remote(url).exists():
            raise NotFoundError(f"there is no registry in {self.location.label}", "Put one there with `robustkt copy`.")
        self._objects: dict[str, Stat] | None = None
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.home / "lock", f"the copy of {self.label} in {self.home}"):
            self._refresh(anew)

    def object_size(self, identity: str) -> int:
        """How many bytes an object has in the store.

        Raises:
            IntegrityError: it is missing or too large to be one.
        """
        path = self.object_path(identity).relative_to(self.root).as_posix()
        told = self._listed().get(path)
        if told is None:
            raise IntegrityError(f"{path} is missing in {self.label}", "Copy the generation there again.")
        if told.size > MAX_OBJECT:
            raise IntegrityError(
                f"{path} in {self.label} has {told.size:,} bytes, more than any network",
                "Do not trust this registry; ask who keeps it.",
            )
        return told.size

    def fetch(self, identities: Iterable[str], advance: Callable[[float], None]) -> None:
        """Bring objects into the cache, those that are there and whole aside.

        Raises:
            IntegrityError: one is missing, too large, or not what its name says.
        """
        for identity in dict.fromkeys(identities):
            size, place = self.object_size(identity), self.object_path(identity)
            if not (place.is_file() and place.stat().st_size == size and digest(place.read_bytes()) == identity):
                path = place.relative_to(self.root).as_posix()
                _keep(place, self.location.blocks(path, size), advance)
                if digest(place.read_bytes()) != identity:
                    place.unlink()
                    raise IntegrityError(
                        f"{path} in {self.label} is damaged: its SHA-256 is not its name",
                        "Nothing was taken over. Remove that file there, and copy the generation there again.",
                    )

    def fetch_all(self, advance: Callable[[float], None]) -> None:
        """Bring every object into the cache, whatever it holds: for `verify`."""
        for path, stat in self._listed().items():
            if stat.size <= MAX_OBJECT:
                _keep(self.root / path, self.location.blocks(path, stat.size), advance)
            else:
                self.problems.append((f"an object of {stat.size:,} bytes", self.root / path))

    def total(self) -> int:
        """The bytes of all objects."""
        return sum(stat.size for stat in self._listed().values() if stat.size <= MAX_OBJECT)

    @contextmanager
    def using_objects(self) -> Iterator[None]:
        """Hold the objects in the cache; their space is freed when the block ends well, else they serve the next try.

        Raises:
            RobustKTError: another process has been using them for a minute.
        """
        with locked(self.home / "objects-in-use", f"the copy of the weights of {self.label}"):
            yield
            for path in (self.root / "objects").glob("*/*"):
                path.unlink(missing_ok=True)

    def _listed(self) -> dict[str, Stat]:
        if self._objects is None:
            self._objects = _known(self.location.files("objects"))
        return self._objects

    def _refresh(self, anew: bool) -> None:
        """Names before all else: what they point at was whole before they were made."""
        there: dict[str, Stat] = {}
        for folder in (*POINTERS, *FACTS):
            there |= _known(self.location.files(folder))
        place = self.home / "stamps.json"
        kept = {} if anew else _stamps(place)
        for path, stat in list(there.items()):
            if stat.size > _most(path):
                self.problems.append(
                    (f"a file of {stat.size:,} bytes, too large to be what it is called", self.root / path)
                )
                del there[path]
        stale = {
            path: stat.size
            for path, stat in there.items()
            if not (stat.stamp and kept.get(path) == stat.stamp and self._place(path).is_file())
        }
        for path, data in self.location.many(stale, _most):
            _keep(self._place(path), [data], lambda amount: None)
        for folder in (*POINTERS, *FACTS):
            for found in self._place(folder).rglob("*.*"):
                if found.is_file() and found.relative_to(self._place(folder).parent).as_posix() not in there:
                    found.unlink()
        pointers = [path for path in there if path.startswith(POINTERS) and self._place(path).is_file()]
        refs = _pointers(
            {path: self._place(path).read_bytes() for path in pointers},
            lambda path, error: self.problems.append((error, self.root / path)),
        )
        _keep(self.root / refs_file.FILE, [refs_file.text(refs)], lambda amount: None)
        _keep(self.root / MARKER, [canonical({"format": FORMAT}) + b"\n"], lambda amount: None)
        stamps = json.dumps({path: stat.stamp for path, stat in there.items()})
        _keep(place, [stamps.encode()], lambda amount: None)

    def _place(self, path: str) -> Path:
        """Names and tags lie beside the registry that is made of them."""
        return (self.home if path.startswith(POINTERS) else self.root) / path


def _most(path: str) -> int:
    return MAX_POINTER if path.startswith(POINTERS) else MAX_LOG if path.endswith(".tsv") else MAX_JSON


def _known(files: Mapping[str, Stat]) -> dict[str, Stat]:
    """The files whose paths are those of a registry; another path may lead anywhere."""
    return {path: stat for path, stat in files.items() if LAYOUT.fullmatch(path)}


def _pointers(files: Mapping[str, bytes], complain: Callable[[str, str], Any]) -> Refs:
    """Names and tags from their files, in the order in which they were made."""
    refs, found = refs_file.empty(), []
    for path, data in files.items():
        try:
            content = unsealed_bytes(data, path, "Make it again with `robustkt copy`.")
        except RobustKTError as error:
            complain(path, error.what)
            continue
        moment, identity = content.get("at"), content.get("generation")
        if (
            isinstance(moment, str)
            and MOMENT.fullmatch(moment)
            and isinstance(identity, str)
            and HASH.fullmatch(identity)
        ):
            found.append((moment, path, identity, content.get("history", [])))
        else:
            complain(path, "a name or tag that does not point at an id")
    for _, path, identity, history in sorted(found, key=lambda row: row[:2]):
        folder, name = path.removesuffix(".json").split("/")
        if folder == "names":
            refs["names"][name] = identity
        elif not _is_history(history):
            complain(path, "a tag whose history is none")
        else:
            refs["tags"][name] = identity
            refs["history"] |= {name: [{"id": m["id"], "at": m["at"]} for m in history]} if history else {}
    return refs


def _is_history(moves: object) -> bool:
    return isinstance(moves, list) and all(
        isinstance(m, dict)
        and set(m) == {"id", "at"}
        and isinstance(m["at"], str)
        and m["at"].isprintable()
        and isinstance(m["id"], str)
        and (m["id"] == "" or HASH.fullmatch(m["id"]))
        for m in moves
    )


def _stamps(place: Path) -> dict[str, Any]:
    try:
        content = parse_json(place.read_bytes(), str(place))
    except (OSError, RobustKTError):
        return {}
    return content if isinstance(content, dict) else {}


def _keep(place: Path, blocks: Iterable[bytes], advance: Callable[[float], None]) -> None:
    """Write a file of the cache whole; it is not waited for until it is on the disk, as it can be made again."""
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                for block in blocks:
                    file.write(block)
                    advance(len(block))
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
