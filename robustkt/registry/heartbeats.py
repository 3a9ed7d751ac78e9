"""How far a job is, kept beside it for `robustkt status`: a small file, replaced every few seconds while it works."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from robustkt.progress import Bar, Progress
from robustkt.registry.files import TEMPORARY

FILE = "progress.json"
EVERY = 5.0  # seconds between two writes
SHARE = 100  # of the time since the last write that the next may take: one in so many
WINDOW = 24  # writes that the present speed is taken over: two minutes


class Heartbeat:
    """Reports to a job's progress, and writes what it was told into the job's folder.

    It is no part of the job: what cannot be written is left out, nothing is synced, and where writing is slow it is
    done less often. Without a folder, as at all ranks but the first, nothing is written.

    Args:
        progress: where the job reports to.
        folder: the job's own, which is there.
        facts: what the job is at: texts, numbers, lists of texts.
    """

    def __init__(self, progress: Progress, folder: Path | None, **facts: Any) -> None:
        self.progress, self.folder = progress, folder
        self.told: dict[str, Any] = {"argv": [Path(sys.argv[0]).name, *sys.argv[1:]], "facts": facts}
        with contextlib.suppress(OSError):  # the working folder may have been removed
            self.told["cwd"] = os.getcwd()
        self.told["processes"] = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        self.marks: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # moments, and the units done by then
        self.due = 0.0
        self.write()

    def count(self, **facts: Any) -> None:
        """Facts that have changed; written with the next beat."""
        self.told["facts"].update(facts)

    def note(self, text: str) -> None:
        """One line for a person."""
        self.progress.note(text)

    def bar(self, title: str, total: float, done: float = 0) -> AbstractContextManager[Bar]:
        """A bar over `total` units, `done` of them behind us already."""
        return self._bar(title, total, done)

    @contextmanager
    def _bar(self, title: str, total: float, done: float) -> Iterator[Bar]:
        self.told.update(title=title, total=total, done=done, text=[])
        self.marks.clear()
        self.write()
        with self.progress.bar(title, total, done) as bar:
            try:
                yield _Beating(self, bar)
            finally:
                self.write()

    def advance(self, amount: float, text: str) -> None:
        """So much more is done."""
        self.told["done"] += amount
        if text:
            self.told["text"] = text.splitlines()
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Replace the file, if that can be done."""
        if self.folder is None:
            return
        began = time.monotonic()
        if "done" in self.told:
            self.marks.append((began, self.told["done"]))
            # the first interval has what an earlier run left, and compiling; it counts only while there is no other
            (first, before), (last, after) = self.marks[len(self.marks) > 2], self.marks[-1]
            self.told["rate"] = (after - before) / (last - first) if last > first else None
        draft = self.folder / f"{TEMPORARY}progress"
        with contextlib.suppress(OSError, ValueError, TypeError):
            draft.write_text(json.dumps({**self.told, "time": time.time()}, allow_nan=False))
            os.replace(draft, self.folder / FILE)
        ended = time.monotonic()
        self.due = ended + max(EVERY, SHARE * (ended - began))


class _Beating:
    """A bar whose advances are kept."""

    def __init__(self, heart: Heartbeat, bar: Bar) -> None:
        self.heart, self.inner = heart, bar

    def advance(self, amount: float, text: str = "") -> None:
        """Move the bar."""
        self.heart.advance(amount, text)
        self.inner.advance(amount, text)

    def line(self, text: str) -> None:
        """A milestone."""
        self.heart.advance(0, text)
        self.inner.line(text)
