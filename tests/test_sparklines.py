"""A curve in one line: order, gaps, length, and terminals without blocks."""

from __future__ import annotations

import io
import math
import sys

import pytest

from robustkt.cli.sparklines import ASCII, BLOCKS, sparkline


@pytest.fixture(autouse=True)
def _utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))


def test_eight_even_steps_are_the_eight_marks() -> None:
    assert sparkline(range(8)) == BLOCKS
    assert sparkline(range(8)[::-1]) == BLOCKS[::-1]
    assert sparkline([-0.4, 0.4]) == "▁█"


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_missing_is_a_space(gap: float | None) -> None:
    assert sparkline([0.0, gap, 1.0]) == "▁ █"
    assert sparkline([gap, gap]) == "  "


def test_nothing_is_no_mark_and_a_constant_the_lowest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.7] * 5) == "▁▁▁▁▁"
    assert sparkline([3.0]) == "▁"


def test_a_long_series_shows_the_means_of_its_runs() -> None:
    assert sparkline([0, 0, 1, 3, 4, 4], width=3) == "▁▅█"
    assert sparkline([0, None, 8, 8, None, None], width=3) == "▁█ "
    assert len(sparkline([math.sin(i) for i in range(10_007)], width=20)) == 20
    assert sparkline([1, 2], width=0) == ""


def test_extreme_values_overflow_nothing() -> None:
    assert sparkline([-1.7e308, 0.0, 1.7e308]) == "▁▅█"
    assert sparkline([1.7e308] * 4, width=2) == "▁▁"
    assert sparkline([0.0, 5e-324]) in ("▁█", "▁▁")  # half of the least float is nothing


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_where_stdout_has_no_blocks_plain_marks_stand_for_them(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert sparkline(range(8)) == ASCII
