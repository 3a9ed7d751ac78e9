"""The field's certification log: tab-separated rows, ours with the counts behind each radius."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from robustkt.certificates import GRID, Certificate
from robustkt.numbers import exact, wilson

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "nA", "n", "p_low", "drawn")
RANDOMISED = "u"  # a last column of logs with randomised bounds


class Outcome(Protocol):
    """What figures are taken from: a row of ours, or of anybody's log."""

    @property
    def predict(self) -> int:
        """The class, −1 when abstaining."""

    @property
    def radius(self) -> float:
        """In [0, 1] pixel units."""

    @property
    def correct(self) -> bool:
        """Whether the class is the label."""

    def radius_reaches(self, r: Fraction) -> bool:
        """Whether the radius is at least `r`."""


@dataclass(frozen=True)
class Row:
    """One image's line; the first six columns are those of locuslab/smoothing (1902.02918)."""

    idx: int  # of the image in the test set
    label: int  # the true class
    predict: int  # -1 = abstained
    radius: float  # rounded down
    correct: bool  # whether the class is the label; 1 or 0 in the file
    seconds: float | None  # None = not measured: images share their batches, so that none has a time of its own
    successes: int  # nA
    trials: int  # n of the estimation
    p_low: float  # lower bound of the class's probability, rounded down to 10⁻⁹
    drawn: int  # noisy copies spent, selection included
    u: float | None = None  # of a randomised bound

    @classmethod
    def of(cls, idx: int, label: int, certificate: Certificate) -> Row:
        """The row of a certificate."""
        return cls(
            idx,
            label,
            -1 if certificate.label is None else certificate.label,
            certificate.radius,
            certificate.label == label,
            None,
            certificate.successes,
            certificate.trials,
            certificate.p_low,
            certificate.n,
            certificate.u,
        )

    def radius_reaches(self, r: Fraction) -> bool:
        """Whether the radius is at least `r`, compared on the grid that radii are rounded down to."""
        return Fraction(round(self.radius * GRID), GRID) >= r

    def line(self) -> str:
        """The row as text; six decimals hold a radius on its grid exactly."""
        took = "nan"
        if self.seconds is not None:
            minutes, seconds = divmod(round(self.seconds * 1e6), 60_000_000)
            took = f"{minutes // 60}:{minutes % 60:02d}:{seconds / 1e6:09.6f}"
        randomised = "" if self.u is None else f"\t{self.u:.9f}"
        return (
            f"{self.idx}\t{self.label}\t{self.predict}\t{self.radius:.6f}\t{int(self.correct)}\t{took}"
            f"\t{self.successes}\t{self.trials}\t{math.floor(self.p_low * 1e9) / 1e9:.9f}\t{self.drawn}{randomised}\n"
        )


def text(rows: Iterable[Row]) -> str:
    """A whole log with its head; the same rows give the same bytes."""
    rows = list(rows)
    randomised = bool(rows) and rows[0].u is not None
    return "\t".join([*COLUMNS, *([RANDOMISED] if randomised else [])]) + "\n" + "".join(row.line() for row in rows)


def parse(text: str) -> list[Row]:
    """The whole rows of our own log up to the first that is not one: a crash leaves a torn tail."""
    rows = []
    for line in text.splitlines(keepends=True)[1:]:
        try:
            rows.append(_row(line))
        except ValueError:
            break
    return rows


def _row(line: str) -> Row:
    fields = line.rstrip("\n").split("\t")
    if len(fields) == len(COLUMNS) - 1:  # an earlier version's, without the last column
        fields.append(fields[-2])
    if not len(COLUMNS) <= len(fields) <= len(COLUMNS) + 1 or not line.endswith("\n"):
        raise ValueError("not a whole row")
    idx, label, predict, radius, correct, took, successes, trials, p_low, drawn, *randomised = fields
    hours, minutes, seconds = took.split(":") if took != "nan" else ("0", "0", "nan")
    return Row(
        idx=int(idx),
        label=int(label),
        predict=int(predict),
        radius=float(radius),
        correct=correct == "1",
        seconds=None if took == "nan" else int(hours) * 3600 + int(minutes) * 60 + float(seconds),
        successes=int(successes),
        trials=int(trials),
        p_low=float(p_low),
        drawn=int(drawn),
        u=float(randomised[0]) if randomised else None,
    )


def summarise(rows: Sequence[Outcome], radii: Sequence[Fraction]) -> dict[str, Any]:
    """images, abstain_rate, acr, certified_accuracy with 95 % Wilson intervals, over all rows; radius ≥ r counts."""
    right = {exact(r): sum(row.correct and row.radius_reaches(r) for row in rows) for r in radii}
    return {
        "images": len(rows),
        "abstain_rate": sum(row.predict == -1 for row in rows) / len(rows),
        "acr": math.fsum(row.radius * row.correct for row in rows) / len(rows),
        "certified_accuracy": {r: k / len(rows) for r, k in right.items()},
        "intervals": {r: wilson(k, len(rows)) for r, k in right.items()},
    }
