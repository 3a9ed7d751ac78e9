"""The lock that writers take in turn: one of the operating system's, and a lease that other machines see too.

Where several machines share a file system its own locks may not reach from one to the other. So who holds the lock also
owns a small file beside it, created exclusively, whose time a heartbeat renews. A lease without a heartbeat is taken
over, by the file system's clock; whoever slept so long finds out before it commits anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkt.errors import RobustKTError
from robustkt.registry.files import TEMPORARY, start_of, writing
from robustkt.texts import is_printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

BEAT = 5.0  # seconds between two signs of life
STALE = 30.0  # seconds without one after which a lease is nobody's
LEASE = 2**16  # bytes that are read of one


def for_a_job() -> float:
    """Seconds to wait for a job's lock; ranks that torchrun has started again outwait the lease of a killed machine."""
    return STALE + 2 * BEAT if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" else 1.0


@dataclass
class Held:
    """A lock while it is held."""

    path: Path
    nonce: str
    system: BaseFileLock | None  # None where the file system has no locks
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise a RobustKTError when another has taken the lease: this process slept, or was cut off, too long."""
        if _read(owner_of(self.path)).get("nonce") != self.nonce:
            raise RobustKTError(
                f"the lock {self.path} was taken over: this process gave no sign of life for {STALE:.0f} s",
                "Nothing of it was committed; type the same command again: it continues.",
            )

    def beat(self) -> None:
        """Signs of life until the lock is released."""
        while not self.stop.wait(BEAT):
            with contextlib.suppress(OSError, RobustKTError):
                self.check()
                os.utime(owner_of(self.path))

    def release(self, *, remove: bool = False) -> None:
        """Let others in; `remove` takes the lock file away, which only its holder may."""
        self.stop.set()
        with contextlib.suppress(OSError):
            if _read(owner_of(self.path)).get("nonce") == self.nonce:
                owner_of(self.path).unlink(missing_ok=True)
            if remove:
                self.path.unlink(missing_ok=True)
        if self.system is not None:
            self.system.release()


@contextlib.contextmanager
def locked(path: Path, doing: str, timeout: float = 60.0) -> Iterator[Held]:
    """Hold the lock file `path`; who holds it stands beside it, for the error of those who wait in vain.

    A job's lock, `jobs/KIND-KEY.lock`, goes with its job. Who takes or removes one holds the registry's own lock for
    that moment: nobody can come to hold a file that has been removed while he opened it.

    Raises:
        RobustKTError: somebody else held it for `timeout` seconds.
    """
    of_job = path.suffix == ".lock"
    take: Callable[[Path], Held | None] = _taken_in_turn if of_job else taken
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline, pause = time.monotonic() + timeout, 0.002
        while (held := take(path)) is None:
            if time.monotonic() >= deadline:
                raise RobustKTError(f"{doing} is held by {_told(path)}", "Wait until it has ended, or stop it.")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
    threading.Thread(target=held.beat, daemon=True).start()
    try:
        yield held
    finally:
        if of_job:
            with contextlib.suppress(RobustKTError, OSError), _in_turn(path):
                held.release(remove=True)
                for left in path.parent.glob("*.lock"):  # of jobs that were killed, and of earlier versions
                    if stale := taken(left):
                        stale.release(remove=True)
        held.release()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, by what stands beside it."""

    pid: int
    host: str
    command: str
    seen: float  # Unix time of the last sign of life
    gone: bool  # its process has ended, as far as this machine can tell


def holder(path: Path) -> Holder | None:
    """Who holds the lock `path`, for those who only look; None when nobody does, or says so in a way that is none."""
    told = _parsed(start_of(owner_of(path), LEASE) or b"")
    try:
        seen = owner_of(path).stat().st_mtime
        pid, host, command = int(told["pid"]), str(told["host"]), str(told["command"])
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return None
    if not 0 < pid < 2**31 or not is_printable(host) or not is_printable(command, LEASE):
        return None
    here = told.get("boot") == _boot() and host == platform.node()  # a container has processes of its own
    return Holder(pid, host, command, seen, gone=here and not _alive(pid))


def lock_of(folder: Path) -> Path:
    """The lock of the job in `folder`."""
    return folder.with_suffix(".lock")


def owner_of(path: Path) -> Path:
    """Where the holder of a lock stands."""
    return path.with_name(path.name + ".owner")


def taken(path: Path) -> Held | None:
    """The lock, if nobody else holds it at this moment."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    system: BaseFileLock | None = lock
    try:
        lock.acquire(timeout=0)
    except Timeout:  # an OSError too
        return None
    except NotImplementedError:  # what filelock raises where the file system has no locks: the lease alone decides
        system = None
    nonce = None
    try:
        nonce = _lease(path, alone=system is not None)
    finally:
        if nonce is None and system is not None:
            system.release()
    return Held(path, nonce, system) if nonce else None


def _lease(path: Path, *, alone: bool) -> str | None:
    """Own the file beside the lock; None while another machine does. `alone`: no other process here can."""
    name, nonce = Path(sys.argv[0]).name, secrets.token_hex(8)
    command = shlex.join(["robustkt" if name == "__main__.py" else name, *sys.argv[1:]])
    told = {"pid": os.getpid(), "host": platform.node(), "boot": _boot(), "command": command, "nonce": nonce}
    owner = owner_of(path)
    draft = path.with_name(f"{TEMPORARY}{os.getpid()}-{nonce}")
    try:
        draft.write_text(json.dumps(told))
        for _ in range(2):
            try:
                _place(draft, owner)
                return nonce
            except FileExistsError:
                if not _abandoned(owner, draft, alone=alone):
                    return None
                _clear(owner)
    finally:
        draft.unlink(missing_ok=True)
    return None


def _place(draft: Path, owner: Path) -> None:
    """The whole file or none, unless there is one: a FileExistsError."""
    try:
        os.link(draft, owner)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        with owner.open("x") as file:
            file.write(draft.read_text())


def _abandoned(owner: Path, fresh: Path, *, alone: bool) -> bool:
    """Whether nobody lives behind a lease; `fresh` has just been written, by the clock of the file system."""
    told = _read(owner)
    if told.get("boot") == _boot() and (alone or not _alive(told["pid"])):
        return True
    try:
        return not told or fresh.stat().st_mtime - owner.stat().st_mtime > STALE
    except FileNotFoundError:
        return True


def _clear(owner: Path) -> None:
    """Remove an abandoned lease, but none that another has put in its place in the meantime."""
    before = _read(owner).get("nonce")
    aside = owner.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(owner, aside)
        if _read(aside).get("nonce") != before:
            with contextlib.suppress(FileExistsError):
                _place(aside, owner)
        aside.unlink()


def _alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        return True
    return True


def _boot() -> str:
    """What machine this is, since when: process numbers and the system's locks mean something within it only."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else platform.node()


def _taken_in_turn(path: Path) -> Held | None:
    with _in_turn(path):
        return taken(path)


def _in_turn(path: Path) -> contextlib.AbstractContextManager[Held]:
    """The lock of the registry in whose `jobs` the lock file `path` lies."""
    return locked(path.parent.with_name("lock"), f"the registry {path.parent.parent}")


def _read(owner: Path) -> dict[str, Any]:
    """What the owner of a lock told; {} when that cannot be read."""
    try:
        return _parsed(owner.read_bytes())
    except OSError:
        return {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and {"pid", "host", "command", "nonce"} <= told.keys() else {}


def _told(path: Path) -> str:
    told = _read(owner_of(path))
    return f"process {told['pid']} on {told['host']} ({told['command']})" if told else "another process"
