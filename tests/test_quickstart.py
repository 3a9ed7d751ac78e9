"""The main job: everything is made once, may be killed at any moment, and ends with the same ids."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.api import judging
from robustkt.api import quickstarting as module
from robustkt.progress import Silent
from robustkt.registry import Registry


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch a stage, few samples of few images, one deep network: the path, not the quality."""
    stages = tuple(
        replace(
            s, arch="resnet8" if s.name == "gen0" else "smallcnn",
            given={**s.given, "epochs": 1, "batch_size": 128} | ({"steps": 1} if "steps" in s.given else {}),
        )
        for s in module.STAGES
    )  # fmt: skip
    monkeypatch.setattr(module, "STAGES", stages)
    monkeypatch.setattr(judging, "STEPS", 2)
    monkeypatch.setattr(module, "SAMPLES", 40)
    for measure in ("certify", "evaluate"):
        monkeypatch.setattr(module, measure, functools.partial(getattr(module, measure), max_images=60))


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.usefixtures("short")
def test_quickstart_makes_everything_once(registry: Registry, tmp_path: Path) -> None:
    first = api.quickstart(registry=registry, out=tmp_path / "out")
    assert set(first) >= {"generations", "table", "seconds", "report", "published", "speedup"}
    names = [row["generation"] for row in api.list_generations(registry)["generations"]]
    assert names == [stage.name for stage in module.STAGES]
    assert names[-1] == "gen2"  # so that @latest is a certified student
    assert first["report"] == str(tmp_path / "out" / "report.html")
    assert "Robustness of" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "gen2" / "README.md").is_file()
    for row in first["table"]:
        assert 0 <= row["robust_accuracy"] <= row["clean_accuracy"] <= 1
        assert ("certified_accuracy" in row) == ("adv" not in row["generation"])
    assert [dict(g.parents) for g in registry.all() if g.name == "gen2"] == [{"teacher": registry.get("gen1").id}]
    assert api.verify(registry)["ok"]

    notes = Notes()
    again = api.quickstart(registry=registry, out=tmp_path / "out", progress=notes)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert sum("nothing to do" in line for line in notes.lines) == len(module.STAGES)
    assert len(registry.all()) == len(module.STAGES)


@pytest.mark.usefixtures("short")
def test_a_name_that_is_taken_is_said_before_anything_is_trained(registry: Registry, tmp_path: Path) -> None:
    from robustkt.errors import RobustKTError

    api.train(
        method="natural", arch="smallcnn", data="digits", name="gen0", registry=registry,
        given={"epochs": 1, "batch_size": 256},
    )  # fmt: skip
    with pytest.raises(RobustKTError, match="gen0 belongs to another generation"):
        api.quickstart(registry=registry, out=tmp_path / "out")
    assert [g.name for g in registry.all()] == ["gen0"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "robustkt", "quickstart", "--json", "--registry", "registry"]
    with (folder / "out.json").open("wb") as out:  # the child has its own copy
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.DEVNULL)


def finish(folder: Path) -> dict[str, Any]:
    assert start(folder).wait(timeout=1_200) == 0
    return dict(json.loads((folder / "out.json").read_text()))


@pytest.mark.slow
def test_quickstart_survives_ten_kills_and_ends_with_the_same_ids(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    began = time.monotonic()
    undisturbed = finish(whole)
    took = time.monotonic() - began
    rng = random.Random(0)
    for _ in range(10):
        process = start(broken)
        time.sleep(rng.uniform(0.05, 0.3) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (broken / "registry" / "registry.json").is_file():
            assert api.verify(Registry(broken / "registry"))["ok"]
    mended = finish(broken)
    ids = [{g.name: g.id for g in Registry(f / "registry").all()} for f in (whole, broken)]
    assert ids[0] == ids[1]
    assert api.verify(Registry(broken / "registry"))["ok"]
    for a, b in zip(undisturbed["table"], mended["table"], strict=True):
        assert {k: v for k, v in a.items() if k != "train_seconds"} == {
            k: v for k, v in b.items() if k != "train_seconds"
        }


def test_a_place_that_cannot_be_written_is_said_before_anything_is_trained(registry: Registry, tmp_path: Path) -> None:
    from robustkt.errors import RobustKTError

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RobustKTError, match="cannot write"):
        api.quickstart(registry=registry, out=tmp_path / "file" / "out")
    assert not registry.exists
