"""Files that are there whole or not at all, and the lock that writers take in turn."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from robustkt.errors import RobustKTError

if TYPE_CHECKING:
    from filelock import BaseFileLock

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


@contextlib.contextmanager
def locked(path: Path, doing: str, timeout: float = 60.0) -> Iterator[None]:
    """Hold the lock file `path`; who holds it stands beside it, for the error of those who wait in vain.

    A job's lock, `jobs/KIND-KEY.lock`, goes with its job. Who takes or removes one holds the registry's own lock for
    that moment: nobody can come to hold a file that has been removed while he opened it.

    Raises:
        RobustKTError: somebody else held it for `timeout` seconds.
    """
    from filelock import FileLock

    owner = path.with_name(path.name + ".owner")
    lock = FileLock(path)
    of_job = path.suffix == ".lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        while not (_taken_in_turn(lock, path) if of_job else _taken(lock, timeout)):
            if time.monotonic() >= deadline:
                raise RobustKTError(f"{doing} is held by {_read_owner(owner)}", "Wait until it has ended, or stop it.")
            time.sleep(0.05)
    try:
        name = Path(sys.argv[0]).name
        command = shlex.join(["robustkt" if name == "__main__.py" else name, *sys.argv[1:]])
        with contextlib.suppress(OSError):
            owner.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "command": command}))
        yield
    finally:
        if of_job:
            with contextlib.suppress(RobustKTError, OSError), _in_turn(path):
                _remove(path)
                lock.release()
                for left in path.parent.glob("*.lock"):  # of jobs that were killed, and of earlier versions
                    stale = FileLock(left)
                    if _taken(stale, 0):
                        _remove(left)
                        stale.release()
        lock.release()


def _taken(lock: BaseFileLock, timeout: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=timeout)
    except Timeout:  # an OSError too
        return False
    return True


def _taken_in_turn(lock: BaseFileLock, path: Path) -> bool:
    with _in_turn(path):
        return _taken(lock, 0)


def _in_turn(path: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of the registry in whose `jobs` the lock file `path` lies."""
    return locked(path.parent.with_name("lock"), f"the registry {path.parent.parent}")


def _remove(path: Path) -> None:
    path.with_name(path.name + ".owner").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _read_owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']} ({owner['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
