"""The field's certification log: tab-separated rows, ours with the counts behind each radius."""

from __future__ import annotations

from dataclasses import dataclass

from robustkt.certificates import Certificate

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "nA", "n", "p_low")
HEADER = "\t".join(COLUMNS) + "\n"


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
        )

    def line(self) -> str:
        """The row as text; six decimals hold a radius on its grid exactly."""
        minutes, seconds = divmod(round(self.seconds * 1e6), 60_000_000)
        took = f"{minutes // 60}:{minutes % 60:02d}:{seconds / 1e6:09.6f}"
        return (
            f"{self.idx}\t{self.label}\t{self.predict}\t{self.radius:.6f}\t{int(self.correct)}\t{took}"
            f"\t{self.successes}\t{self.trials}\t{self.p_low:.9f}\n"
        )


def parse(text: str) -> list[Row]:
    """The whole rows of our own log, a torn last line left out."""
    rows = []
    for line in text.splitlines(keepends=True)[1:]:
        fields = line.rstrip("\n").split("\t")
        if len(fields) != len(COLUMNS) or not line.endswith("\n"):
            break
        idx, label, predict, radius, correct, took, successes, trials, p_low = fields
        hours, minutes, seconds = took.rsplit(":", 2)
        time = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        rows.append(
            Row(
                int(idx), int(label), int(predict), float(radius), correct == "1", time,
                int(successes), int(trials), float(p_low),
            )
        )  # fmt: skip
    return rows
