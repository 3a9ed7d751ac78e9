"""A generation made again is identical on this machine, and what differs is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustkt import api
from robustkt.errors import RobustKTError, UsageError
from robustkt.registry import Registry
from robustkt.registry.seal import sealed, unsealed
from tests.conftest import Ran, gaussian_digits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = gaussian_digits(tmp_path_factory.mktemp("reproducing"))
    given = {"epochs": 2, "batch_size": 256}
    api.distill(teacher="gen0", arch="resnet8", name="student", given=given, registry=registry, device="cpu")
    return registry


def files(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and "lock" not in p.name}


@pytest.mark.parametrize("name", ["gen0", "student"])
def test_the_same_comes_out_and_nothing_is_changed(trained: Registry, name: str) -> None:
    before = files(trained.root)
    found = api.reproduce(name, registry=trained, device="cpu")
    assert (found["verdict"], found["distance"], found["first"]) == ("identical", 0.0, None)
    assert found["selected"]["then"] == found["selected"]["now"]
    assert files(trained.root) == before


def test_what_differs_is_named(trained: Registry, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    found = trained.get("gen0")
    other = replace(found, name="other", recipe=replace(found.recipe, seed=7))  # these weights are not of that seed
    trained.add(other, trained.record(found.id))
    path = trained.record_path(other.id)
    path.write_bytes(sealed({**unsealed(path, ""), "threads": 99}))
    told = api.reproduce("other", registry=trained, device="cpu")
    assert told["verdict"] == "different"
    assert told["distance"] > 0.01
    assert (told["first"]["epoch"], told["circumstances"]["threads"]) == (0, [99, torch.get_num_threads()])
    ran = cli("reproduce", "other", "--registry", trained.root, "--device", "cpu")
    assert ran.code == 3
    assert re.search("not as recorded: threads.*; other bits may come of that", ran.err)
    assert "OMP_NUM_THREADS=99" in ran.err
    assert "other: different" in ran.out
    assert "threads was 99" in ran.out
    ran = cli("reproduce", "other", "--registry", trained.root, "--device", "cpu", "--tolerance", "10")
    assert ran.code == 0
    assert "equal within 10" in ran.out


def test_another_image_and_lock_are_told_before_and_after(
    trained: Registry, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    name, path = "sha256:" + "ab" * 32, trained.record_path(trained.get("gen0").id)
    monkeypatch.setenv("ROBUSTKT_IMAGE", name)
    kept = path.read_bytes()
    found = api.reproduce("gen0", registry=trained, device="cpu")
    assert found["verdict"] == "identical"
    assert found["circumstances"]["image"] == [None, {"digest": name}]
    lock = {"file": "requirements.lock", "hash": "sha256:" + "cd" * 32}
    path.write_bytes(sealed({**unsealed(path, ""), "image": {"digest": "sha256:" + "00" * 32}, "lock": lock}))
    ran = cli("reproduce", "gen0", "--registry", trained.root, "--device", "cpu")
    path.write_bytes(kept)
    assert ran.code == 0
    before = next(line for line in ran.err.splitlines() if "not as recorded" in line)
    assert {"lock", "image"} <= set(before.partition(": ")[2].split(", "))
    assert "image was" in ran.out
    assert name in ran.out


def test_a_record_of_a_version_that_told_less_is_not_compared_in_what_it_lacks(
    trained: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.record_path(trained.get("gen0").id)
    kept = path.read_bytes()
    monkeypatch.setenv("ROBUSTKT_IMAGE", "sha256:" + "ab" * 32)
    path.write_bytes(
        sealed(
            {k: v for k, v in unsealed(path, "").items() if k not in ("environment", "lock", "git", "deterministic")}
        )
    )
    found = api.reproduce("gen0", registry=trained, device="cpu")
    path.write_bytes(kept)
    assert found["circumstances"] == {}


def test_what_cannot_be_reproduced(trained: Registry) -> None:
    with pytest.raises(UsageError, match="--tolerance must be"):
        api.reproduce("gen0", tolerance=-1, registry=trained)
    with pytest.raises(RobustKTError, match="unknown generation"):
        api.reproduce("nobody", registry=trained)


def test_an_interrupted_reproduction_continues(trained: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkt import checkpoint

    kept, saved = checkpoint.save, []

    def once(*arguments: object) -> None:
        kept(*arguments)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", once)
    with pytest.raises(KeyboardInterrupt):
        api.reproduce("gen0", registry=trained, device="cpu")
    assert api.reproduce("gen0", registry=trained, device="cpu")["verdict"] == "identical"
    assert len(saved) == 2, "one epoch was done before"
