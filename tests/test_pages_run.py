"""What the pages tell a reader to type is typed here, in their order; what is not says why in a remark above it."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from benchmarks import tutorial
from docs.blocks import Block, blocks
from tests.conftest import Ran
from tests.test_docs import PAGES, ROOT

FOUND = (3,)  # the exit status of a command that answers no, which is an answer
ANSWERS = ("gate", "audit")
SHORTER = {
    "train": "--epochs 1 --batch-size 500",
    "distill": "--epochs 1 --batch-size 500",
    "certify": "--n 100 --max-images 20",
    "evaluate": "--max-images 20",
    "audit": "--images 3 --copies 100",
    "predict": "--n 200",
    "soup": "--max-images 20",
    "doctor": "--seconds 0.5",
}  # options behind those of the page, of which the last counts: enough to run, not to learn
SMALLER = {"autoattack": "square:queries=20", "resnet18": "resnet8", "mobilenetv2": "smallcnn", "resnet20": "resnet8"}
NAMES = {"digits-smoothmix": "gen0", "digits-crt-1": "gen1", "digits-crt-2": "gen2", "digits-rslad": "gen3"}
QUICK = ("own-architecture.md", "gate-in-ci.md")  # the others are slow


def run_here(page: Path) -> list[Block]:
    """The blocks of a page that are commands or programs and do not say why they are not run."""
    return [b for b in blocks(page) if (b.language in ("", "bash", "python") or b.file) and not b.why_not]


def shortened(command: str) -> list[str]:
    """The words of a command that does less of the same."""
    for long, short in SMALLER.items():
        command = re.sub(rf"\b{long}\b(?!-)", short, command)
    _, *words = shlex.split(command)
    if words[0] == "evaluate":
        words = [word.replace("smoothadv", "smoothadv:draws=2:steps=2") for word in words]
    if words[:2] == ["soup", "make"]:
        return words
    learnt = ["--min-clean", "0"] if "--min-clean" in words else []  # nobody has learnt anything here
    return [*words, *learnt, *SHORTER.get(words[0], "").split()]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader may have it: a registry with gen0 to gen3, images of three classes, a photo."""
    from robustkt import api
    from robustkt.registry import Registry

    place = tmp_path_factory.mktemp("reader")
    api.copy(["digits-crt-2", "digits-rslad"], source=str(ROOT / "registry"), registry=Registry(place / "registry"))
    for old, new in NAMES.items():
        api.rename(old, new, registry=Registry(place / "registry"))
    _photos(place / "photos")
    _foggy(place / "foggy")
    shutil.copy(next((place / "photos").rglob("*.png")), place / "photo.png")
    return place


def _photos(root: Path) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    digits, named = load_digits(return_X_y=True)
    grey = (digits.reshape(-1, 8, 8) * 255 / 16).round().astype("uint8")
    parts = {"train_images": grey[:300], "train_labels": named[:300], "test_images": grey[300:400]}
    np.savez(root.with_suffix(".npz"), test_labels=named[300:400], **parts)
    pictures, labels = load_digits(n_class=3, return_X_y=True)
    for number, (picture, label) in enumerate(zip(pictures[:200], labels[:200], strict=True)):
        folder = root / ("test" if number % 5 == 0 else "train") / f"digit-{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.reshape(8, 8) * 255 / 16).round().astype("uint8")).save(folder / f"{number:04}.png")


def _foggy(root: Path) -> None:
    """A few of the digits in less contrast, in folders of the names of their classes."""
    from sklearn.datasets import load_digits

    for number, (picture, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if number < 30:
            (root / str(label)).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((96 + picture.reshape(8, 8) * 4).round().astype("uint8"))
            image.save(root / str(label) / f"{number:04}.png")


def test_commands_stand_in_fences_that_say_so() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language, f"{page.name}, line {block.line}: say bash, text, python, …"


@pytest.mark.parametrize("page", [p for p in PAGES if p != tutorial.PAGE], ids=lambda p: p.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in run_here(page):
        foreign = [c for c in block.commands if block.language == "bash" and not c.startswith("robustkt ")]
        assert not foreign, f"{page.name}, line {block.line}: {foreign} can only be run by hand: say so above the block"
    for block in blocks(page):
        assert block.why_not is None or len(block.why_not) > 10
        if block.language == "python":
            ast.parse(block.text)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=() if p.name in QUICK else (pytest.mark.slow,), id=p.name)
        for p in PAGES
        if p != tutorial.PAGE and any(not b.file for b in run_here(p))
    ],
)
def test_the_commands_of_a_page_run(
    page: Path, ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(ground, folder)
    monkeypatch.chdir(folder)
    for block in run_here(page):
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), {"__name__": "a_page"})
        else:
            for command in block.commands:
                words = shortened(command)
                ran = cli(*words)
                allowed = (0, *FOUND) if words[0] in ANSWERS else (0,)
                assert ran.code in allowed, f"{page.name}, line {block.line}: {command}\n{ran.err}"


def _parsed(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def test_yaml_toml_and_json_in_the_pages_are_such() -> None:
    assert _parsed("yaml")
    assert _parsed("toml")
    for block in _parsed("yaml"):
        assert all(isinstance(one, dict) for one in yaml.safe_load_all(block.text)), block
    for block in _parsed("toml"):
        assert tomllib.loads(block.text), block
    for block in _parsed("json"):
        json.loads(block.text)


def test_steps_of_ci_use_what_runs_have() -> None:
    pipelines = [block for block in _parsed("yaml") if "apiVersion:" not in block.text]  # not a cluster's
    for told in (yaml.safe_load(block.text) for block in pipelines):
        jobs = told.get("jobs") or {name: job for name, job in told.items() if isinstance(job, dict)}
        for job in jobs.values():
            steps = [step.get("run") or step.get("uses") for step in job.get("steps", [])] or job["script"]
            assert all(isinstance(step, str) and step for step in steps)
            assert sum("robustkt gate" in step for step in steps) == 1
