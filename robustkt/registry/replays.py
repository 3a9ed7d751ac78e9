"""A teacher's logits on views of the training images, a file each, named by the hash of what decides them. No torch.

A file is a line of canonical JSON, the logits as fp16 (little-endian, row by row), and the SHA-256 of both. It is there
whole or not at all; losing it costs a pass of the teacher.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkt.errors import IntegrityError, RobustKTError
from robustkt.numbers import canonical, counted, digest, parse_json
from robustkt.registry.files import TEMPORARY, replacing
from robustkt.registry.locks import lock_of, locked

if TYPE_CHECKING:
    from robustkt.registry.store import Registry

FOLDER, SUFFIX = "replay", ".logits"
LINE = 2**14  # bytes that the first line has at most
SEAL = hashlib.sha256().digest_size
PATIENCE = 600.0  # seconds to wait for another process that fills the same view


@dataclass(frozen=True)
class Kept:
    """A file whose bytes have been checked."""

    path: Path
    content: Mapping[str, Any]  # what decides the logits
    offset: int  # where they begin
    size: int  # their bytes


def place(root: Path, content: Mapping[str, Any]) -> Path:
    """Where the logits lie that `content` decides."""
    return root / FOLDER / f"{digest(canonical(content)).removeprefix('sha256:')}{SUFFIX}"


def put(root: Path, content: Mapping[str, Any], blocks: Iterable[bytes]) -> None:
    """Write the logits block by block as they come; what is at their place before the last one is left alone.

    Raises:
        RobustKTError: the disk is full, or the place cannot be written; that a folder is there is told before the first
            block is asked for.
    """
    sha, path = hashlib.sha256(), place(root, content)
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty one means nothing
    if path.is_dir():
        raise RobustKTError(f"a folder is where they would lie: {path}", "Move it away.")
    with replacing(path) as file:
        for data in chain([canonical(content) + b"\n"], blocks):
            sha.update(data)
            file.write(data)
        file.write(sha.digest())


def find(root: Path, content: Mapping[str, Any], size: int) -> Kept | None:
    """The file of these logits (`size` bytes), checked; None when there is none. From now on `gc` sees it as used.

    Raises:
        IntegrityError: it is damaged, or cannot be read.
    """
    path = place(root, content)
    if not path.is_file():
        return None
    kept = checked(path, size)
    with contextlib.suppress(OSError):
        os.utime(path)
    return kept


def checked(path: Path, expected: int | None = None) -> Kept:
    """A file whose name and bytes are what its hashes say; one of another size than `expected` is not read.

    Raises:
        IntegrityError: they are not.
    """
    damaged = IntegrityError(f"the kept logits {path} are damaged", "They are made again where they are needed.")
    try:
        with path.open("rb") as file:
            line = file.readline(LINE)
            size = path.stat().st_size - len(line) - SEAL
            if expected not in (None, size):
                raise damaged
            sha, left = hashlib.sha256(line), size
            while left > 0 and (data := file.read(min(left, 2**20))):
                sha.update(data)
                left -= len(data)
            seal = file.read()
    except OSError as error:
        raise IntegrityError(f"the kept logits {path} cannot be read: {error.strerror}", "Make it readable.") from None
    if left or sha.digest() != seal or digest(line[:-1]).removeprefix("sha256:") != path.stem:
        raise damaged
    content = parse_json(line, str(path))
    if not isinstance(content, dict):
        raise damaged
    return Kept(path, content, len(line), size)


def teacher_of(path: Path) -> str | None:
    """The id of the generation whose logits a file holds; None when its first line does not say."""
    try:
        with path.open("rb") as file:
            content = parse_json(file.readline(LINE), str(path))
    except (OSError, RobustKTError):
        return None
    found = content.get("teacher") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def files(root: Path) -> list[Path]:
    """All files of kept logits, in their order; unfinished ones are none."""
    return [p for p in sorted((root / FOLDER).glob(f"*{SUFFIX}")) if not p.name.startswith(TEMPORARY)]


@contextlib.contextmanager
def filling(registry: Registry, content: Mapping[str, Any]) -> Iterator[None]:
    """One process at a time makes these logits; the others wait here, and look again.

    Raises:
        RobustKTError: the registry cannot be written, or whoever fills the view takes longer than `PATIENCE`.
    """
    lock = lock_of(registry.job_path("replay", place(registry.root, content).stem[:16]))
    with locked(lock, "this view of the teacher's logits", timeout=PATIENCE):
        yield


def told(record: Mapping[str, Any], teacher: str) -> str:
    """What a training took from kept logits, in one line, from its run record; nothing where none are kept."""
    replay, cost = record.get("replay"), record.get("cost") or {}
    if not replay:
        return ""
    views, passes = replay.get("views", 0), cost.get("teacher_forward", 0)
    return (
        f"re-used {replay.get('reused', 0)} of {counted(views, 'view')} of {teacher}'s logits, "
        f"{passes:,} teacher {'pass' if passes == 1 else 'passes'}"
    )
