"""The field's log: the first six columns are everybody's, nothing is rounded up, a torn line is left out."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkt import certlog
from robustkt.certificates import GRID, Certificate

ROW = replace(certlog.Row.of(3, 8, Certificate(8, 0.48, 0.001, 1_100, 990, 1_000, 0.978)), seconds=14.037966)


def test_row_reads_as_the_fields_readers_expect() -> None:
    (read,) = csv.DictReader(io.StringIO(certlog.text([ROW])), delimiter="\t")
    assert list(read)[:6] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert (read["idx"], read["label"], read["predict"], read["correct"]) == ("3", "8", "8", "1")
    assert float(read["radius"]) == 0.48
    assert read["time"] == "0:00:14.037966"
    assert (read["nA"], read["n"]) == ("990", "1000")


def test_abstention_is_minus_one_and_never_correct() -> None:
    row = certlog.Row.of(0, 1, Certificate(None, 0.0, 0.001, 110, 60, 100, 0.4))
    assert row.line().split("\t")[2:5] == ["-1", "0.000000", "0"]


@given(
    radius=st.integers(0, 5 * GRID).map(lambda k: k / GRID),
    seconds=st.floats(0, 200_000).map(lambda s: round(s, 6)),
    label=st.one_of(st.none(), st.integers(0, 999)),
    p=st.floats(0, 1),
)
def test_round_trip(radius: float, seconds: float, label: int | None, p: float) -> None:
    certificate = Certificate(label, radius if label is not None else 0.0, 0.001, 110, 99, 100, p)
    row = replace(certlog.Row.of(5, 7, certificate), seconds=seconds)
    (read,) = certlog.parse(certlog.text([]) + row.line())
    assert read.radius == row.radius
    assert (read.idx, read.label, read.predict, read.correct) == (row.idx, row.label, row.predict, row.correct)
    assert read.seconds == pytest.approx(row.seconds, abs=1e-5)
    assert read.p_low == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("cut", range(1, len(ROW.line()) + 1))
def test_a_torn_last_line_is_left_out(cut: int) -> None:
    text = certlog.text([]) + ROW.line() + ROW.line()
    assert len(certlog.parse(text[:-cut])) == 1


def test_a_time_that_was_not_measured_is_nan_and_a_uniform_number_is_kept() -> None:
    row = certlog.Row.of(3, 8, Certificate(8, 0.48, 0.001, 1_100, 990, 1_000, 0.978, 0.123456789))
    text = certlog.text([row])
    assert text.splitlines()[0].endswith("drawn\tu")
    assert text.splitlines()[1].split("\t")[5] == "nan"
    assert certlog.parse(text) == [row]


def test_header_alone_holds_no_rows() -> None:
    assert certlog.parse(certlog.text([])) == []
