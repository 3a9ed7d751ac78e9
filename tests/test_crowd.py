"""Many processes at one registry: no update is lost, nothing is read half-written.

Run as a script it is one of them: `python -m tests.test_crowd write|read ROOT NUMBER SECONDS`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustkt import api
from robustkt.registry import Registry
from tests.stores import commit, damage, measure, weights

ROOT = Path(__file__).resolve().parents[1]


def write(registry: Registry, number: int, until: float) -> dict[str, object]:
    """Adds, measures, tags, renames, removes and collects; what must be there in the end."""
    rng, names, tag, removed = random.Random(number), dict[str, str](), f"tag{number}", 0
    tagged = None
    made = 0
    while time.monotonic() < until:
        kind = rng.choice(["add", "add", "measure", "tag", "rename", "rm", "gc"])
        own = sorted(set(names) - {tagged})
        if kind == "add" or not own:
            made += 1
            added = commit(registry, number * 10**6 + made, f"w{number}-{made}")
            names[added.name] = added.id
        elif kind == "measure":
            measure(registry, registry.get(rng.choice(own)), accuracy=rng.choice([0.25, 0.5, 0.75]))
        elif kind == "tag":
            tagged = rng.choice(own)
            api.tag(tag, tagged, registry)
        elif kind == "rename":
            old = rng.choice(own)
            made += 1
            new = f"w{number}-{made}"
            api.rename(old, new, registry)
            names[new] = names.pop(old)
        elif kind == "rm":
            gone = rng.choice(own)
            api.rm([gone], registry=registry)
            del names[gone]
            removed += 1
        else:
            api.gc(grace="1h", registry=registry)
    return {"names": names, "tag": tag, "tagged": tagged, "made": made, "removed": removed}


def read(registry: Registry, until: float) -> dict[str, object]:
    """Reads everything, over and over."""
    reads = 0
    while time.monotonic() < until:
        for generation in registry.all():
            if registry.has(generation.id):  # else it has just been removed
                assert registry.object(generation.weights) == weights(generation.recipe.seed)
                assert registry.record(generation.id)["seed"] == generation.recipe.seed
                for result in registry.results(generation.id):
                    assert registry.log(result) == b"idx\tlabel\n%r\n" % result.content["figures"]["acr"]
        api.list_generations(registry)
        assert damage(registry) == []
        reads += 1
    return {"reads": reads}


def crowd(root: Path, writers: int, readers: int, seconds: float) -> None:
    registry = Registry(root)
    commit(registry, 0, "first")
    commands = [("write", k) for k in range(1, writers + 1)] + [("read", k) for k in range(readers)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_crowd", doing, str(root), str(number), str(seconds)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for doing, number in commands
    ]  # fmt: skip
    told = []
    for worker in workers:
        out, complaints = worker.communicate(timeout=seconds + 240)
        assert worker.returncode == 0, complaints
        told.append(json.loads(out))
    refs = registry.refs()
    expected = {"first": refs["names"]["first"]}
    for one in told[:writers]:
        expected |= one["names"]
        assert one["made"]
        if one["tagged"]:
            assert refs["tags"][one["tag"]] == refs["names"][one["tagged"]]
    assert refs["names"] == expected
    assert all(one["reads"] for one in told[writers:])
    assert damage(registry) == []
    assert api.gc(grace="0", registry=registry)["files"]
    assert api.verify(registry=registry)["notes"] == []


def test_a_small_crowd(tmp_path: Path) -> None:
    crowd(tmp_path / "registry", 3, 1, 3)


@pytest.mark.slow
def test_eight_writers_and_two_readers_for_a_minute(tmp_path: Path) -> None:
    crowd(tmp_path / "registry", 8, 2, 60)


if __name__ == "__main__":
    doing, place, which, length = sys.argv[1:]
    os.fsync = lambda descriptor: None  # type: ignore[assignment,misc]  # what only a power cut could show
    end = time.monotonic() + float(length)
    print(
        json.dumps(
            write(Registry(Path(place)), int(which), end) if doing == "write" else read(Registry(Path(place)), end)
        )
    )
