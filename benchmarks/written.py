"""What the tables and values that are written into the pages are made of: records, Markdown, figures over seeds."""

from __future__ import annotations

import fcntl
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"


def record(name: str) -> Any:
    """A record by its name."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def exists(name: str) -> bool:
    """Whether there is such a record."""
    return (RECORDS / f"{name}.json").is_file()


@contextmanager
def changed(path: Path) -> Iterator[dict[str, Any]]:
    """What the record in a file holds, to be changed; it is written back whole while other processes wait."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        yield found
        written = path.with_suffix(".new")
        written.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(written, path)
    finally:
        os.close(folder)


def again(command: str, more: str = "", needs: str = "--registry DIR") -> str:
    """How to make a record again, as code: its command, the part of it, and the folders that it needs."""
    return f"`{' '.join(filter(None, [command, more, needs]))}`"


def rows(*table: list[str]) -> str:
    """A Markdown table; the first row is the header."""
    head, *body = table
    return "\n".join(["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *body)])


def percent(value: float | None) -> str:
    """93.4, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def over_seeds(rows_: list[dict[str, Any]], *path: str) -> str:
    """The mean of a figure over the seeds and half its range, in %; a dash where no row has it."""
    values = [row for row in rows_ if path[0] in row]
    for key in path:
        values = [value[key] for value in values]
    if not values:
        return "–"
    return f"{percent(statistics.fmean(values))} ± {percent((max(values) - min(values)) / 2)}"


def paired(one: Mapping[int, float], two: Mapping[int, float]) -> list[float]:
    """One less the other, for every seed that both have."""
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def span(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the lowest and the highest where there are several."""

    def shown(value: float) -> str:
        text = f"{value:.{digits}f}"
        return text if float(text) else text.lstrip("-")

    if len(values) == 1:
        return shown(values[0])
    to = " to " if min(values) < 0 else "–"
    return f"{shown(statistics.fmean(values))} ({shown(min(values))}{to}{shown(max(values))})"
