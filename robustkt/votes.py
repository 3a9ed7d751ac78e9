"""The votes of a certification on disk, as they fall: an interrupted run goes on where it was."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from robustkt.numbers import digest
from robustkt.registry.files import writing
from robustkt.smooth import Share

SYNC_SECONDS = 1.0  # how often the file is forced to the disk; a killed process loses nothing of what it wrote


class Votes:
    """A file of lines `image, first chunk, chunks, draws, counts, seconds, seal`, read at the start and appended to.

    The files of other processes on the same job are read too, so that a run may go on with another number of them. A
    line whose seal does not fit, as a crash or a bad disk leaves it, is drawn again, to the same votes.
    """

    def __init__(self, path: Path, others: Iterable[Path] = (), *, job: str) -> None:
        self._job = job  # so that lines of another job are not taken for this one's
        self._kept: dict[int, dict[int, Share]] = defaultdict(dict)  # image -> first chunk -> votes
        for file in others:
            if file.is_file():
                self._read(file)
        self.seconds = self._read(path) if path.is_file() else 0.0  # that this process's runs so far have taken
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._file.write(b"\n")  # a crash may have left half a line
        self._since = self._synced = time.monotonic()

    def before(self, key: int) -> list[Share]:
        """What is known of an image, in the order in which it was drawn."""
        found = sorted(self._kept.pop(key, {}).items())
        return [share for _, share in found]

    def known(self, keys: Iterable[int]) -> int:
        """How many of these images have votes."""
        return sum(key in self._kept for key in keys)

    def add(self, found: Sequence[tuple[int, Share]]) -> None:
        """Append one forward pass."""
        now = time.monotonic()
        took, self._since = now - self._since, now
        self.seconds += took
        lines = []
        for key, share in found:
            counts = ",".join(map(str, share.counts))
            line = f"{key}\t{share.first}\t{share.chunks}\t{share.draws}\t{counts}\t{took:.6f}"
            lines.append(f"{line}\t{self._seal(line)}\n")
            took = 0.0  # once a pass
        with writing(Path(self._file.name)):
            self._file.write("".join(lines).encode())
            if now - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now

    def close(self) -> None:
        """Wait until everything is on the disk."""
        with writing(Path(self._file.name)), self._file:
            os.fsync(self._file.fileno())

    def _read(self, path: Path) -> float:
        total = 0.0
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            try:
                told, _, seal = line.rstrip("\n").rpartition("\t")
                key, first, chunks, draws, counts, seconds = told.split("\t")
                share = Share(int(first), int(chunks), int(draws), [int(count) for count in counts.split(",")])
                image, took = int(key), float(seconds)
                if seal != self._seal(told):
                    continue
            except ValueError:
                continue
            self._kept[image][share.first] = share
            total += took
        return total

    def _seal(self, line: str) -> str:
        return digest(f"{self._job} {line}".encode())[7:15]
