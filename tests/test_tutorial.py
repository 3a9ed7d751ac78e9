"""The tutorial is walked as it stands, in an empty folder, and prints what it says it prints."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import tutorial
from tests.conftest import Ran
from tests.test_pages_run import shortened

NUMBER = re.compile(r"[<+−-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{6,}\b…?")
BY_CHANCE = re.compile(r"is better|is shown|would be seen")  # lines that hang on a few images
CLOSE = 8.0  # points by which another machine's accuracy may differ from the page's


def lines(printed: str) -> list[str]:
    """What was printed, with hashes, numbers, heights of curves and widths taken out."""
    plain = (
        NUMBER.sub("0", HASH.sub("H", re.sub("[▁-█]", "▁", line)))
        for line in printed.splitlines()
        if not BY_CHANCE.search(line)
    )
    return [re.sub(r"\b0 (min|s|h)( 0 s)?\b", "TIME", " ".join(line.split())) for line in plain]


def shares(printed: str) -> list[float]:
    """Every percentage."""
    return [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) ?%", printed)]


@pytest.fixture(scope="module")
def steps() -> list[dict[str, str]]:
    return list(json.loads(tutorial.RECORD.read_text())["steps"])


def test_the_page_shows_what_its_record_holds(steps: list[dict[str, str]]) -> None:
    page = tutorial.PAGE.read_text()
    assert tutorial.rendered(page, {"steps": steps}) == page, "stale: python -m benchmarks.tutorial"
    commands = [block.commands for block in tutorial.blocks(tutorial.PAGE) if block.language == "bash"][1:]
    assert [step["commands"] for step in steps] == commands, "the record is of other commands"
    assert len(tutorial.PRINTED.findall(page)) == len(steps) - 1  # the script prints nothing


def test_what_the_page_claims_is_in_what_was_printed(steps: list[dict[str, str]]) -> None:
    certified = dict(re.findall(r"certified@(\S+) +([\d.]+)%", steps[5]["printed"]))
    attacked = re.search(r"^smoothadv +([\d.]+)%", steps[6]["printed"], re.MULTILINE)
    assert attacked
    assert float(attacked[1]) >= float(certified["0.25"]) - CLOSE
    assert steps[5]["printed"].splitlines()[-1].startswith("passed")
    assert "claimed" in steps[8]["printed"]
    assert "\n└── student" in steps[9]["printed"]


def test_a_shorter_walk(tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in its order with fewer epochs, images and copies: the path, not the quality."""
    said: dict[str, str] = {}

    def run(command: str, folder: Path) -> str:
        monkeypatch.chdir(folder)
        if command.startswith("python "):
            runpy.run_path(command.removeprefix("python "))
            return ""
        words = shortened(command)
        ran = cli(*words)
        assert ran.code == 0 or (words[0] == "gate" and ran.code in (1, 3)), f"{command}\n{ran.err}"
        said[words[0]] = ran.out
        return ran.out

    walked = tutorial.walk(tmp_path, run)
    assert len(walked) == 10
    assert set(said) >= {"train", "certify", "distill", "compare", "evaluate", "predict", "push", "pull", "lineage"}
    assert len(list((tmp_path / "photos").rglob("*.png"))) == 1797
    assert lines(said["verify"])[0].endswith("0 generations, sound")


@pytest.mark.slow
def test_the_whole_walk(tmp_path: Path, steps: list[dict[str, str]]) -> None:
    folder = tmp_path / "my-photos"
    folder.mkdir()
    for told, found in zip(steps, tutorial.walk(folder, tutorial.in_a_shell), strict=True):
        assert lines(found.printed) == lines(told["printed"]), told["commands"]
        for ours, theirs in zip(shares(found.printed), shares(told["printed"]), strict=False):
            assert abs(ours - theirs) <= CLOSE or "gate" in told["commands"][0], told["commands"]
