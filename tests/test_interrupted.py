"""kill -9 at a hundred points of pushes and pulls, and half a gigabyte in little memory: minutes, so run on demand."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.generation import Generation, Recipe, Training
from robustkt.registry import Registry, verify
from tests.hubs import kept, lineage, names
from tests.hubstandin import HubStandIn
from tests.stores import DATA, RECORD
from tests.test_push import complete

pytestmark = pytest.mark.slow
POINTS = 50  # of pushes, and as many of pulls
MEGABYTES = 500
PRELOADED = ["robustkt.api.publishing", "robustkt.api.pulling", "huggingface_hub.hf_api", "robustkt.noises.gaussian",
             "vl_convert", "statsmodels.stats.proportion"]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return lineage(Registry(tmp_path_factory.mktemp("made") / "registry"))


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with HubStandIn() as found:
        yield found


def work(environment: dict[str, str], verb: str, root: str) -> None:
    """What a process of its own does."""
    os.environ.update(environment)
    registry = Registry(Path(root))
    if verb == "push":
        api.push("gen1", with_ancestors=True, registry=registry)
    else:
        api.pull("alice/gen1", registry=registry)


def started(hub: HubStandIn, home: Path, verb: str, root: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=work, args=(hub.env(home), verb, str(root)))
    process.start()
    return process


def finish(hub: HubStandIn, home: Path, verb: str, root: Path) -> float:
    began = time.monotonic()
    process = started(hub, home, verb, root)
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - began


def killer(hub: HubStandIn, number: int, process: list[Any]) -> Callable[[int], None]:
    def kill(request: int) -> None:
        if request == number and process:
            os.kill(process[0].pid, signal.SIGKILL)
            time.sleep(0.05)

    return kill


def test_a_push_killed_at_any_moment_is_repeatable(made: Registry, tmp_path: Path) -> None:
    with HubStandIn() as hub:
        finish(hub, tmp_path, "push", made.root)
        took, requests = finish(hub, tmp_path, "push", made.root), hub.count // 2
    rng, killed = random.Random(0), 0
    for point in range(POINTS):
        with HubStandIn() as hub:
            process: list[Any] = []
            hook = killer(hub, point // 2, process)
            if point < 2 * requests:
                setattr(hub, ("before", "after")[point % 2], hook)
            process.append(started(hub, tmp_path, "push", made.root))
            if point >= 2 * requests:
                time.sleep(rng.uniform(0, 2 * took))
                process[0].kill()
            process[0].join(120)
            killed += process[0].exitcode == -signal.SIGKILL
            hub.before = hub.after = lambda number: None
            complete(hub, "alice/gen1")
            finish(hub, tmp_path, "push", made.root)
            assert complete(hub, "alice/gen1")
            assert len(hub.repos["model", "alice/gen1"].commits) == 2
    assert killed > POINTS // 2


def test_a_pull_killed_at_any_moment_is_repeatable(hub: HubStandIn, made: Registry, tmp_path: Path) -> None:
    finish(hub, tmp_path, "push", made.root)
    took = finish(hub, tmp_path, "pull", tmp_path / "whole")
    wanted, rng, killed = kept(Registry(tmp_path / "whole")), random.Random(1), 0
    for point in range(POINTS):
        registry = Registry(tmp_path / f"r{point}")
        process = started(hub, tmp_path, "pull", registry.root)
        time.sleep(rng.uniform(0, 1.1 * took))
        process.kill()
        process.join(120)
        killed += process.exitcode == -signal.SIGKILL
        if registry.exists:
            assert not [f.what for f in verify(registry) if f.damage]
            assert set(names(registry)) in (set(), {"gen0", "gen1"})
        finish(hub, tmp_path, "pull", registry.root)
        assert kept(registry) == wanted
        assert list(names(registry)) == ["gen0", "gen1"]
        assert verify(registry) == []
    assert killed > POINTS // 2


MEASURED = """
import json, pathlib, re, sys
from robustkt import api
from robustkt.registry import Registry
registry = Registry(pathlib.Path(sys.argv[2]))
told = api.push("big", registry=registry) if sys.argv[1] == "push" else api.pull("alice/big", registry=registry)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(json.dumps({"mb": int(peak[1]) * 1024 / 1e6, "commit": told["commit"]}))
"""


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_half_a_gigabyte_in_less_than_300_mb(tmp_path: Path, xet: bool) -> None:
    registry = Registry(tmp_path / "registry")
    header = json.dumps({"w": {"dtype": "U8", "shape": [MEGABYTES * 10**6], "data_offsets": [0, MEGABYTES * 10**6]}})
    data = len(header).to_bytes(8, "little") + header.encode() + os.urandom(MEGABYTES * 10**6)
    weights = registry.put_object(data)
    del data
    recipe = Recipe(method="natural", settings={}, arch="smallcnn", data=DATA, training=Training())
    registry.add(Generation(name="big", recipe=recipe, weights=weights, last_weights=weights), RECORD)
    with HubStandIn(xet=xet) as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home")}
        environment.pop("HF_HUB_DISABLE_XET", None)
        if xet:
            environment["HF_HUB_DISABLE_XET"] = "0"
        for verb, root in (("push", registry.root), ("pull", tmp_path / "other")):
            began = time.monotonic()
            command = [sys.executable, "-c", MEASURED, verb, str(root)]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert ran.returncode == 0, ran.stderr
            peak = json.loads(ran.stdout)["mb"]
            print(
                f"{verb} of {MEGABYTES} MB, {'xet' if xet else 'lfs'}: {peak:.0f} MB, {time.monotonic() - began:.1f} s"
            )
            assert xet or peak < 300, f"{verb} took {peak:.0f} MB"  # xet's storage is in this very process
        assert any("xet-write-token" in call for call in hub.calls()) == xet
        assert sum("/commit/" in call for call in hub.calls()) == 1
    assert kept(Registry(tmp_path / "other")) == kept(registry)
