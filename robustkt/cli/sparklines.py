"""A curve in one line of text, for tables and for jobs that run."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#%"  # where the terminal has no blocks


def sparkline(values: Sequence[float | None], width: int = 20, *, scale: tuple[float, float] | None = None) -> str:
    """Values in order as marks of eight heights, from their least to their greatest; at most `width` marks.

    With `scale`, from its first to its second number instead, so that several curves can be compared.

    What is longer is divided into `width` runs, and each shows its mean. A value that is missing (None, or not finite)
    is a space, unless its run has others; a constant series has the lowest mark everywhere. Where stdout cannot carry
    the blocks, plain ASCII marks stand for them.
    """
    known = [None if v is None or not math.isfinite(v) else float(v) for v in values]
    runs = min(len(known), max(width, 0))
    cuts = [i * len(known) // runs for i in range(runs + 1)] if runs else [0]
    means = [_mean([v for v in known[a:b] if v is not None]) for a, b in itertools.pairwise(cuts)]
    there = [mean for mean in means if mean is not None]
    if not there:
        return " " * runs
    low, high = scale or (min(there), max(there))
    marks = _marks()
    return "".join(" " if mean is None else marks[_height(mean, low, high)] for mean in means)


def _mean(values: Sequence[float]) -> float | None:
    return sum(value / len(values) for value in values) if values else None  # divided first: the sum stays finite


def _height(value: float, low: float, high: float) -> int:
    """From 0 at `low` to 7 at `high`."""
    span = high / 2 - low / 2  # halves: the difference of two floats may overflow
    return max(0, min(int((value / 2 - low / 2) / span * len(BLOCKS)), len(BLOCKS) - 1)) if span > 0 else 0


def _marks() -> str:
    try:
        BLOCKS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return ASCII
    return BLOCKS
