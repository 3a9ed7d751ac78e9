"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from robustkt.errors import RobustKTError

TEMPORARY = ".tmp-"  # what an unfinished write is called; never read, removed by nobody but its writer


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader, a crash or a full disk sees the old file or the new one, never a part.

    Raises:
        RobustKTError: the disk is full, or the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def append_synced(path: Path, data: bytes) -> None:
    """Append `data` to `path` and wait until it is on the disk; a crash leaves at most a torn last line."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


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
