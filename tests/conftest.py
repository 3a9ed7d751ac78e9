"""Shared by all tests: a quiet machine, a registry of one's own, the command line as a function."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    COLUMNS="120",
    TERM="dumb",
    NO_COLOR="1",
    _TYPER_FORCE_DISABLE_TERMINAL="1",
    OMP_WAIT_POLICY="PASSIVE",
    OMP_NUM_THREADS="1",  # torch's too: it is not imported here, where the process that only shares out the tests would
)
os.environ.pop("FORCE_COLOR", None)
os.environ.update(  # read when huggingface_hub is imported: no test leaves this machine
    HF_ENDPOINT="http://127.0.0.1:9", HF_HOME="/nonexistent", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_DISABLE_PROGRESS_BARS="1", NO_PROXY="127.0.0.1,localhost",
)  # fmt: skip

from robustkt import api
from robustkt.certificates import Ball
from robustkt.noises.gaussian import Gaussian
from robustkt.registry import Registry
from tests.stores import commit, measure

SHARED = Path(os.environ.get("ROBUSTKT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
SMALL = {"epochs": 2, "batch_size": 128}  # enough to run, not to learn


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the registry, the caches or the trusted code of whoever runs it."""
    for name in ("ROBUSTKT_REGISTRY", "ROBUSTKT_DATA", "ROBUSTKT_DEBUG", "HF_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a power cut could show is left out; that fsync is called, the disks that refuse it show."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty place for a registry."""
    return Registry(tmp_path / "registry")


@pytest.fixture
def full(registry: Registry) -> Registry:
    """gen0 → gen1 → gen2, a network of the user's own, certificates: every kind of file there is."""
    gen0 = commit(registry, 0)
    gen1 = commit(registry, 1, teacher=gen0)
    gen2 = commit(registry, 2, teacher=gen1, source=b"class Net: ...")
    measure(registry, gen2)
    measure(registry, gen0, "ff00")
    return registry


def l2(sigma: float) -> Ball:
    """L2 balls under Gaussian noise; the images' shape does not matter."""
    return Ball(Gaussian(Fraction(sigma)), "l2", (1, 1, 1))


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Generations with modes; what is scored or estimated under attack here is attacked in two steps, not ten."""
    from robustkt.api import judging
    from tests.kitchens import cook, copied

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "STEPS", 2)
        yield copied(tmp_path_factory, "kitchen", cook)


def gaussian_digits(root: Path, *names: str, epochs: int = 2) -> Registry:
    """A registry of small networks trained under noise on the digits, seeds from 0; a process trains them once."""
    names = names or ("gen0",)
    if (root / "registry").exists():
        return _trained(root / "registry", names, epochs)
    place = Path(_kept(names, epochs).name) / "registry"
    return Registry(Path(shutil.copytree(place, root / "registry")))


@functools.cache
def _kept(names: tuple[str, ...], epochs: int) -> tempfile.TemporaryDirectory[str]:
    place = tempfile.TemporaryDirectory()
    _trained(Path(place.name) / "registry", names, epochs)
    return place


def _trained(root: Path, names: tuple[str, ...], epochs: int) -> Registry:
    registry, given = Registry(root), {"sigma": "0.25", "epochs": epochs}
    for seed, name in enumerate(names):
        api.train(
            method="gaussian", arch="smallcnn", data="digits", given=given, registry=registry, device="cpu", seed=seed,
            name=name,
        )  # fmt: skip
    return registry


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.out)


@functools.cache
def command_line() -> Callable[[], Any]:
    """What `robustkt` runs; a process of the user's builds it once, and a test's process too."""
    from typer.main import get_command

    from robustkt.cli import application

    return get_command(application())


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`cli("list", "--json")` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["robustkt", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command_line()()
        out, err = capsys.readouterr()
        return Ran(int(stop.value.code or 0), out, err)

    return run
