"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from robustkt.errors import IntegrityError, RobustKTError

TEMPORARY = ".tmp-"  # what an unfinished write is called; never read, removed by nobody but its writer


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    Raises:
        RobustKTError: the disk is full, or the place cannot be written.
    """
    with replacing(path) as file:
        file.write(data)


def copy_atomic(source: Path, path: Path) -> None:
    """Put a copy of the file `source` at `path` as `write_atomic` does, a mebibyte of it in memory at a time.

    Raises:
        RobustKTError: the disk is full, or the place cannot be written.
    """
    with replacing(path) as new, source.open("rb") as old:
        shutil.copyfileobj(old, new, 2**20)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that is at `path`, whole and synced, once the block has ended well."""
    with writing(path), temporary(path) as (name, file):
        yield file
        finish(file)
        os.replace(name, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, removed at the end unless it has been renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with name.open("xb") as file:
            yield name, file
    finally:
        name.unlink(missing_ok=True)


def finish(file: BinaryIO) -> None:
    """Wait until what was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def digest_file(path: Path) -> str:
    """The SHA-256 of a file of any size, as `numbers.digest` spells it."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def whole_object(path: Path, identity: str) -> int:
    """The size of a stored object whose bytes are checked without being held in memory.

    Raises:
        IntegrityError: it is missing or damaged.
    """
    mend = "Restore it from a copy, or run the command that made the generation again."
    if not path.is_file():
        raise IntegrityError(f"the weight file {path} is missing", mend)
    if digest_file(path) != identity:
        raise IntegrityError(f"the weight file {path} is damaged: its SHA-256 is not its name", mend)
    return path.stat().st_size


def append_synced(path: Path, data: bytes) -> None:
    """Append lines to `path` and wait until they are on the disk; what a crash tore of the last line is cut off first.

    A crash leaves at most a torn last line, and what comes after one begins a line of its own.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(data)
            finish(file)


def start_of(path: Path, most: int) -> bytes | None:
    """At most the first `most` bytes of a plain file; None of anything else, which might never end, or be elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into an error with a next step."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = (
            "Free some space and type the same command again: it continues."
            if full
            else ("Make it writable, or name another place with --registry DIR (or --out, --to).")
        )
        raise RobustKTError(f"cannot write {path}: {error.strerror or error}", fix) from error
