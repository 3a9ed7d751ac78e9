"""What `list` draws from the files is kept, and never shown when a file has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from robustkt import api, places
from robustkt.errors import IntegrityError
from robustkt.generation import Generation
from robustkt.numbers import digest
from robustkt.registry import Registry, derived

A, B = (digest(name) for name in (b"a", b"b"))


@pytest.fixture
def files(registry: Registry) -> Registry:
    """Files where those of two generations would be; `derived` looks at nothing else."""
    for identity in (A, B):
        for path in (registry.manifest_path(identity), registry.record_path(identity)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(identity)
    return registry


class Draw:
    """Counts what is drawn anew."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, identity: str) -> dict[str, Any]:
        self.asked.append(identity)
        return {"of": identity}


def drawn(registry: Registry) -> list[str]:
    draw = Draw()
    assert derived(registry, [A, B, A], draw) == {A: {"of": A}, B: {"of": B}}
    return draw.asked


def cached() -> Path:
    (path,) = (places.cache() / "registries").glob("*.json")
    return path


def test_what_has_not_changed_is_drawn_once(files: Registry) -> None:
    assert drawn(files) == [A, B]
    assert drawn(files) == []


def test_every_kind_of_change_is_seen(files: Registry) -> None:
    drawn(files)
    files.record_path(A).write_text("more than before")
    assert drawn(files) == [A]
    os.utime(files.manifest_path(B), ns=(1, 1))
    assert drawn(files) == [B]
    same = files.record_path(A).read_text()
    files.record_path(A).unlink()
    files.record_path(A).with_name("other").write_text(same)
    assert drawn(files) == [A]
    folder = files.results_path(B)
    folder.mkdir(parents=True)
    (folder / "certificate-1.json").write_text("{}")
    assert drawn(files) == [B]
    (folder / "certificate-1.json").unlink()
    assert drawn(files) == [B]
    assert drawn(files) == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"entries":3}', b"\xff"])
def test_a_damaged_cache_is_made_again(files: Registry, damage: bytes) -> None:
    drawn(files)
    cached().write_bytes(damage)
    assert drawn(files) == [A, B]
    assert drawn(files) == []


def test_a_cache_of_another_version_is_not_read(files: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(files)
    monkeypatch.setattr("robustkt.__version__", "999")
    assert drawn(files) == [A, B]


def test_an_altered_cache_is_not_believed(files: Registry) -> None:
    drawn(files)
    content = json.loads(cached().read_bytes())
    content["entries"][A]["facts"] = {"of": "somebody else"}
    cached().write_text(json.dumps(content))
    assert drawn(files) == [A, B]


def test_what_cannot_be_read_is_left_out_and_tried_again(files: Registry) -> None:
    def refuse(identity: str) -> dict[str, Any]:
        if identity == A:
            raise IntegrityError("damaged", "Restore it.")
        return {"of": identity}

    assert derived(files, [A, B], refuse) == {B: {"of": B}}
    assert drawn(files) == [A]


def test_a_home_that_cannot_be_written_only_costs_time(files: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = files.root / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert drawn(files) == [A, B]
    assert drawn(files) == [A, B]


def test_list_shows_a_manifest_that_was_damaged_after_it_was_listed(registry: Registry) -> None:
    made = api.train(
        method="natural", arch="smallcnn", data="digits", registry=registry, given={"epochs": 1, "batch_size": 512}
    )
    assert [row["generation"] for row in api.list_generations(registry)["generations"]] == ["gen0"]
    whole: Generation = registry.get("gen0")
    registry.manifest_path(made["id"]).write_bytes(whole.manifest() + b" ")
    assert api.list_generations(registry)["unreadable"] == ["gen0"]
    assert api.list_generations(registry)["generations"] == []
