"""A job that dies at any of its calls, or is refused the disk, leaves a sound registry; repeating it finishes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
JOBS = ("train", "distill", "certify", "evaluate", "push", "gc", "rename")


def struck(doing: str, mode: str, stride: int, first: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults", doing, mode, str(stride), str(first)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return list(json.loads(ran.stdout))


@pytest.mark.parametrize(
    ("doing", "mode", "first"),
    [("train", "kill", 29), pytest.param("certify", "fail", 17, marks=pytest.mark.slow)],
)
def test_some_moments(doing: str, mode: str, first: int) -> None:
    for found in struck(doing, mode, 97, first):
        assert found["attempts"]
        assert found["wrong"] == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize("doing", JOBS)
def test_every_moment(doing: str, mode: str) -> None:
    (found,) = struck(doing, mode, 1, 0)
    assert found["attempts"] == found["calls"]
    assert found["wrong"] == []
