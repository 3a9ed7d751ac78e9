"""The field's certification log: tab-separated rows, ours with the counts behind each radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from robustkt.certificates import GRID, Certificate
from robustkt.numbers import exact

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "nA", "n", "p_low", "drawn")
HEADER = "\t".join(COLUMNS) + "\n"


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

    idx: int
    label: int
    predict: int  # -1 = abstained
    radius: float  # rounded down
    correct: bool
    seconds: float
    successes: int  # nA
    trials: int  # n of the estimation
    p_low: float
    drawn: int  # noisy copies spent, selection included

    @classmethod
    def of(cls, idx: int, label: int, certificate: Certificate, seconds: float) -> Row:
        """The row of a certificate."""
        return cls(
            idx,
            label,
            -1 if certificate.label is None else certificate.label,
            certificate.radius,
            certificate.label == label,
            seconds,
            certificate.successes,
            certificate.trials,
            certificate.p_low,
            certificate.n,
        )

    def radius_reaches(self, r: Fraction) -> bool:
        """Whether the radius is at least `r`, compared on the grid that radii are rounded down to."""
        return Fraction(round(self.radius * GRID), GRID) >= r

    def line(self) -> str:
        """The row as text; six decimals hold a radius on its grid exactly."""
        minutes, seconds = divmod(round(self.seconds * 1e6), 60_000_000)
        took = f"{minutes // 60}:{minutes % 60:02d}:{seconds / 1e6:09.6f}"
        return (
            f"{self.idx}\t{self.label}\t{self.predict}\t{self.radius:.6f}\t{int(self.correct)}\t{took}"
            f"\t{self.successes}\t{self.trials}\t{math.floor(self.p_low * 1e9) / 1e9:.9f}\t{self.drawn}\n"
        )


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
    if len(fields) != len(COLUMNS) or not line.endswith("\n"):
        raise ValueError("not a whole row")
    idx, label, predict, radius, correct, took, successes, trials, p_low, drawn = fields
    hours, minutes, seconds = took.split(":")
    return Row(
        idx=int(idx),
        label=int(label),
        predict=int(predict),
        radius=float(radius),
        correct=correct == "1",
        seconds=int(hours) * 3600 + int(minutes) * 60 + float(seconds),
        successes=int(successes),
        trials=int(trials),
        p_low=float(p_low),
        drawn=int(drawn),
    )


def summarise(rows: Sequence[Outcome], radii: Sequence[Fraction]) -> dict[str, Any]:
    """images, abstain_rate, acr, certified_accuracy with 95 % Wilson intervals, over all rows; radius ≥ r counts."""
    from statsmodels.stats.proportion import proportion_confint

    right = {exact(r): sum(row.correct and row.radius_reaches(r) for row in rows) for r in radii}
    intervals = {r: [float(x) for x in proportion_confint(k, len(rows), method="wilson")] for r, k in right.items()}
    return {
        "images": len(rows),
        "abstain_rate": sum(row.predict == -1 for row in rows) / len(rows),
        "acr": math.fsum(row.radius * row.correct for row in rows) / len(rows),
        "certified_accuracy": {r: k / len(rows) for r, k in right.items()},
        "intervals": intervals,
    }
