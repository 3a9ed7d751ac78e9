"""The jobs of a registry as their folders tell them, read by anybody at any moment; nothing is written or locked.

What lies there may be half written, of another version, or made to mislead: what does not check is left out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt.errors import IntegrityError, RobustKTError
from robustkt.generation import HASH
from robustkt.numbers import parse_json
from robustkt.registry import heartbeats
from robustkt.registry.files import start_of
from robustkt.registry.locks import STALE, Holder, holder, lock_of
from robustkt.registry.store import NEEDS
from robustkt.shapes import from_json
from robustkt.texts import check_printable

CHECKPOINT = "checkpoint.safetensors"  # of a training: its hash, a line of history, the tensors
JOB = re.compile(r"([a-z]{1,20})-([0-9a-f]{8,64})")  # what the folder of one is called
SMALL, HISTORY = 2**16, 2**22  # bytes of a file that are read
LONGEST = 4_000  # characters of an argument
FIX = "Run the job again: it writes a new one."


@dataclass(frozen=True)
class Facts:
    """What a job is at; each kind has its own."""

    method: str | None = None
    arch: str | None = None
    data: str | None = None
    name: str | None = None  # that the new generation is to have
    teacher: str | None = None  # a generation's name
    epochs: int | None = None
    metric: str | None = None  # that an epoch is selected by
    generation: str | None = None  # the name of the one that is measured
    mode: str | None = None  # of certification
    n: int | None = None  # noisy copies of an image, at most
    noise: str | None = None
    images: int | None = None
    certified: int | None = None  # images that are done
    attacks: tuple[str, ...] = ()
    points: int | None = None  # of a sweep
    source: str | None = None  # of a pull


@dataclass(frozen=True)
class Told:
    """What a job has told of itself."""

    time: float  # Unix time of writing
    argv: tuple[str, ...] = ()  # the command line of its process
    cwd: str | None = None  # the folder it was typed in
    processes: int = 1  # that share it
    facts: Facts = Facts()
    title: str = ""  # of the bar
    total: float | None = None  # units of the bar
    done: float | None = None
    rate: float | None = None  # units a second
    text: tuple[str, ...] = ()  # the latest figures, line by line


@dataclass(frozen=True)
class Underway:
    """A job that has begun and is not finished."""

    folder: Path
    kind: str  # train, certify …
    state: str  # running, silent (a lease without a sign of life), interrupted
    holder: Holder | None  # who holds its lock, or held it when it died
    since: float | None  # Unix time at which the latest run of it began
    changed: float | None  # Unix time of its latest sign
    needs: tuple[str, ...]  # ids of the generations that it builds on
    told: Told | None
    epochs: tuple[Mapping[str, Any], ...]  # of a training, as its checkpoint has them


def underway(root: Path) -> tuple[list[Underway], list[str]]:
    """The jobs in a registry's folder, the running first, then the latest; and the names of folders that are none.

    Raises:
        RobustKTError: this user may not read it.
    """
    found, strange = [], []
    for folder in _folders(root / "jobs"):
        named = JOB.fullmatch(folder.name)
        if named is None:
            strange.append(folder.name)
            continue
        if (job := _read(folder, named[1])) is not None:
            found.append(job)
    order = {"running": 0, "silent": 1, "interrupted": 2}
    found.sort(key=lambda job: (order[job.state], -(job.changed or 0), job.folder.name))
    return found, sorted(strange)


def _folders(jobs: Path) -> Iterator[Path]:
    try:
        with os.scandir(jobs) as entries:
            yield from [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RobustKTError(f"{jobs} cannot be read: {error.strerror}", "Ask its owner to let you read it.") from None


def _read(folder: Path, kind: str) -> Underway | None:
    """One job, or None when it has ended while it was read."""
    owner = holder(lock_of(folder))
    since, told = _changed(folder / NEEDS), _told(folder)
    checkpoint = _changed(folder / CHECKPOINT)
    signs = [sign for sign in (since, checkpoint, told.time if told else None, owner.seen if owner else None) if sign]
    if not signs and not folder.is_dir():
        return None
    state = "interrupted" if owner is None or owner.gone else "running"
    if state == "running" and owner is not None and time.time() - owner.seen > STALE:
        state = "silent"
    return Underway(
        folder=folder,
        kind=kind,
        state=state,
        holder=owner,
        since=since,
        changed=min(max(signs), time.time()) if signs else _changed(folder),
        needs=_needs(folder / NEEDS),
        told=told,
        epochs=_epochs(folder / CHECKPOINT) if checkpoint is not None else (),
    )


def _told(folder: Path) -> Told | None:
    path = folder / heartbeats.FILE
    data = start_of(path, SMALL)
    if data is None:
        return None
    try:
        content = parse_json(data, str(path))
        check_printable(content, str(path), FIX, longest=LONGEST)
        return from_json(Told, content, str(path))
    except IntegrityError:
        return None


def _epochs(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The log in a checkpoint's line of history; its tensors are neither read nor checked."""
    head = start_of(path, HISTORY)
    if head is None:
        return ()
    lines = head.split(b"\n", 2)
    if len(lines) < 3:
        return ()
    try:
        history = parse_json(lines[1], str(path))
    except IntegrityError:
        return ()
    entries = history.get("epochs") if isinstance(history, dict) else None
    if not isinstance(entries, list):
        return ()
    return tuple(entry for entry in entries if isinstance(entry, dict))


def _needs(path: Path) -> tuple[str, ...]:
    try:
        found = parse_json(start_of(path, SMALL) or b"", str(path))
    except IntegrityError:
        return ()
    return tuple(n for n in found if isinstance(n, str) and HASH.fullmatch(n)) if isinstance(found, list) else ()


def _changed(path: Path) -> float | None:
    try:
        return path.lstat().st_mtime
    except OSError:
        return None
