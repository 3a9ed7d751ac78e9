"""A record that is written row by row, so that an interrupted benchmark continues."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.shared import machine
from benchmarks.written import RECORDS


class Rows:
    """benchmarks/records/NAME.json: lists of rows, each with the machine it comes from."""

    def __init__(self, name: str, *kinds: str, command: str | None = None) -> None:
        self.path: Path = RECORDS / f"{name}.json"
        self.command = command or f"python -m benchmarks.{name}"
        self.empty: dict[str, Any] = {kind: [] for kind in kinds}

    def read(self) -> dict[str, Any]:
        """What has been measured so far; ends where that was with another budget, which rows of one table share."""
        found = json.loads(self.path.read_text()) if self.path.is_file() else {}
        if found.get("command", self.command) != self.command:
            raise SystemExit(f"{self.path} is of another budget:\n  {found['command']}\nmove it away, or run that")
        return {**self.empty, **found}

    def known(self, kind: str, /, **told: Any) -> bool:
        """Whether the record has a row that says this."""
        return any(all(row.get(key) == value for key, value in told.items()) for row in self.read()[kind])

    def keep(self, kind: str, row: dict[str, Any]) -> None:
        """Add a row; other processes may be adding theirs."""
        print(json.dumps({key: value for key, value in row.items() if key != "seconds"}), flush=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            told = self.read()
            told[kind].append({**row, "machine": machine()})
            written = self.path.with_suffix(".new")
            written.write_text(json.dumps({**told, "command": self.command}, indent=1) + "\n")
            os.replace(written, self.path)
        finally:
            os.close(folder)
