"""Run records of anybody's making: of the shape of one, or refused with a reason before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.errors import IntegrityError
from robustkt.numbers import digest
from robustkt.registry import Registry, verify
from robustkt.registry.seal import sealed
from tests.stores import RECORD, commit, stored_files

ESCAPE = "\x1b[2J\x1b]0;owned\x07"
JUNK = {
    "seconds in words": ({"seconds": "long"}, "record.seconds is not a valid float"),
    "no seconds that a float holds": ({"seconds": 10**400}, "record.seconds is not a valid float"),
    "a list of costs": ({"cost": [1]}, "record.cost is not a valid"),
    "a word for a cost": ({"cost": {"student_forward": "much"}}, "record.cost.student_forward is not a valid int"),
    "a word for the epoch": ({"selected": "x"}, "record.selected is not a valid Selected"),
    "half a selection": ({"selected": {"epoch": 1}}, "record.selected.metric is missing"),
    "a table of epochs": ({"epochs": {"a": 1}}, "record.epochs is not a valid"),
    "an epoch that is none": ({"epochs": [{"epoch": 0, "loss": "low"}]}, "record.epochs[0].loss is not a valid float"),
    "a number for a time": ({"started": 5}, "record.started is not a valid str"),
    "nothing for a count": ({"parameters": None}, "record.parameters is not a valid int"),
    "a list of versions": ({"versions": [1]}, "record.versions is not a valid"),
    "a word for the commit": ({"git": "main"}, "record.git is not a valid WorkingCopy"),
    "an escape for a device": ({"device": ESCAPE}, "device has unprintable characters: '\\x1b[2J"),
    "an escape among versions": ({"versions": {"torch": ESCAPE}}, "versions.torch has unprintable characters"),
    "an escape for a key": ({"versions": {ESCAPE: "1"}}, "versions has unprintable characters"),
    "an escape in what is not known": ({"later": [{"a": ESCAPE}]}, "later.a has unprintable characters"),
    "an escape for a path's name": ({"paths": {ESCAPE: 5}}, "is not a valid str"),
    "a novel": ({"machine": "x" * 5_000}, "machine is too long: 'xxx"),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generation as a folder, without measurements."""
    home = tmp_path_factory.mktemp("published")
    registry = Registry(home / "registry")
    commit(registry, 0)
    api.push("gen0", to=home / "gen0", registry=registry)
    return home / "gen0"


def forged(folder: Path, change: dict[str, Any]) -> Path:
    """With another record, and an index that fits."""
    for path, content in (("record.json", {"format": 1, "name": "gen0", **RECORD, **change}), ("robustkt.json", None)):
        if content is None:
            (folder / "provenance.json").unlink()
            content = json.loads((folder / path).read_bytes())
            del content["digest"], content["files"]["provenance.json"]
            data = (folder / "record.json").read_bytes()
            content["files"]["record.json"] = {"hash": digest(data), "size": len(data)}
        (folder / path).write_bytes(sealed(content))
    return folder


@pytest.mark.parametrize("case", JUNK)
def test_a_record_that_is_none_is_not_pulled(published: Path, registry: Registry, tmp_path: Path, case: str) -> None:
    change, what = JUNK[case]
    folder = forged(Path(shutil.copytree(published, tmp_path / "theirs")), change)
    with pytest.raises(IntegrityError, match=re.escape(what)) as error:
        api.pull(str(folder), registry=registry)
    assert error.value.what.isprintable()
    assert error.value.fix
    assert set(stored_files(registry.root)) <= {"registry.json"}


@pytest.mark.parametrize("case", JUNK)
def test_a_record_that_is_none_is_damage(registry: Registry, case: str) -> None:
    made = commit(registry, 0)
    change, what = JUNK[case]
    with pytest.raises(IntegrityError, match=re.escape(what)):
        registry.add(made, {**RECORD, **change})
    registry.record_path(made.id).write_bytes(sealed({"format": 1, **RECORD, **change}))
    assert [f for f in verify(registry) if f.damage and what in f.what]
    for ask in (
        lambda: api.show("gen0", registry),
        lambda: api.push("gen0", to=registry.root / "x", registry=registry),
    ):
        with pytest.raises(IntegrityError, match=re.escape(what)):
            ask()
    assert [row["generation"] for row in api.list_generations(registry)["generations"]] == ["gen0"]
    assert api.lineage(registry=registry)


def test_what_later_versions_record_is_kept(published: Path, registry: Registry, tmp_path: Path) -> None:
    later = {"energy": {"joule": 5.5}, "epochs": [{"epoch": 0, "loss": 1, "temperature": 300}], "seconds": None}
    folder = forged(Path(shutil.copytree(published, tmp_path / "theirs")), later)
    told = api.pull(str(folder), registry=registry)
    assert registry.record(told["id"]) == {**RECORD, **later}


def test_folders_of_this_machine_may_be_called_anything(registry: Registry) -> None:
    made = commit(registry, 0)
    record = {**RECORD, "paths": {"data": "/data/a\xa0b" + ESCAPE}}
    registry.record_path(made.id).write_bytes(sealed({"format": 1, **record}))
    assert registry.record(made.id) == record
    assert api.list_generations(registry)["generations"][0]["data"] == "digits"
