"""A record that is written row by row, so that an interrupted benchmark continues, here or on another machine.

python -m benchmarks.rows FILE …       takes the rows of other machines' records into those of the same name here
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.shared import machine
from benchmarks.written import RECORDS, changed

# list of a record -> what tells its rows apart; rows of other lists are alike when they are equal
KEYS = {
    "networks": ("name", "seed"),
    "rows": ("name", "seed", "kind", "checkpoint", "sigma"),
    "unseen": ("name", "seed", "kind", "sigma"),
    "prices": ("arch",),
    "coverage": ("mode", "alpha", "p"),
    "modes": ("name", "mode"),
    "precision": ("name",),
}


class Rows:
    """benchmarks/records/NAME.json: lists of rows, each with the machine it comes from."""

    def __init__(self, name: str, *kinds: str, command: str | None = None) -> None:
        self.path: Path = RECORDS / f"{name}.json"
        self.added = 0
        self.command = command or f"python -m benchmarks.{name}"
        self.empty: dict[str, Any] = {kind: [] for kind in kinds}

    def read(self) -> dict[str, Any]:
        """What has been measured so far; ends where that was with another budget, which rows of one table share."""
        return {**self.empty, **self._mine(sound(self.path) if self.path.is_file() else {})}

    def _mine(self, found: dict[str, Any]) -> dict[str, Any]:
        if found.get("command", self.command) != self.command:
            raise SystemExit(f"{self.path} is of another budget:\n  {found['command']}\nmove it away, or run that")
        return found

    def known(self, kind: str, /, **told: Any) -> bool:
        """Whether the record has a row that says this."""
        return _has(self.read().get(kind, []), told)

    def keep(self, kind: str, row: dict[str, Any], /, **told: Any) -> None:
        """Add a row; where something is told the row says it, and is not added when another process has added one."""
        print(json.dumps({**told, **{key: value for key, value in row.items() if key != "seconds"}}), flush=True)
        with self._alone() as found:
            there = found.setdefault(kind, [])
            if not told or not _has(there, told):
                there.append({**told, **row, "machine": machine()})
                self.added += 1

    def merge(self, theirs: dict[str, Any]) -> int:
        """Add the rows of another machine that are not here; how many those were.

        What was measured of a network there that is another one here, made of the same recipe with other rounding, is
        left out.
        """
        added = 0
        with self._alone() as found:
            ours = {(row["name"], row["seed"]): row["id"] for row in found.get("networks", [])}
            others = {
                (row["name"], row["seed"])
                for row in theirs.get("networks", [])
                if ours.get((row["name"], row["seed"]), row["id"]) != row["id"]
            }
            for kind, rows in theirs.items():
                for row in rows if isinstance(rows, list) else ():
                    key = {name: row.get(name) for name in KEYS.get(kind, ())} or row
                    mine = found.setdefault(kind, [])
                    if not _has(mine, key) and (row.get("name"), row.get("seed")) not in others:
                        mine.append(row)
                        added += 1
        for name, seed in sorted(others):
            print(f"{name} of seed {seed} is another network there: its rows are left out")
        return added

    @contextmanager
    def _alone(self) -> Iterator[dict[str, Any]]:
        with changed(self.path) as found:
            self._mine(found)
            for kind in self.empty:
                found.setdefault(kind, [])
            yield found
            found["command"] = self.command


def _has(rows: list[dict[str, Any]], told: dict[str, Any]) -> bool:
    return any(all(row.get(key) == value for key, value in told.items()) for row in rows)


def sound(path: Path) -> dict[str, Any]:
    """What a file holds, if it is a record: lists of rows, and of networks with what tells them apart."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read: {error}") from None
    lists = [value for value in found.values() if isinstance(value, list)] if isinstance(found, dict) else [[None]]
    if not all(isinstance(row, dict) for rows in lists for row in rows) or not all(
        {"name", "seed", "id"} <= row.keys() for row in found.get("networks", [])
    ):
        raise SystemExit(f"{path} is no record of rows")
    return dict(found)


def main() -> None:
    """Merge the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="NAME.json, of a record that is here too")
    for file in parser.parse_args().files:
        here = RECORDS / file.name
        theirs, ours = sound(file), sound(here)
        if theirs.get("command") != ours.get("command"):
            told = theirs.get("command")
            raise SystemExit(f"{file} is of another budget than {here.name}:\n  {told}\n  {ours.get('command')}")
        print(f"{file}: {Rows(file.stem, command=ours['command']).merge(theirs)} new rows")


if __name__ == "__main__":
    main()
