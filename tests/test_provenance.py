"""A record says what a run was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from robustkt import api
from robustkt.errors import UsageError
from robustkt.numbers import digest
from robustkt.provenance import circumstances, environment
from robustkt.registry import Registry


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_a_working_copy_and_its_lock_file(tmp_path: Path) -> None:
    inside = tmp_path / "experiments" / "one"
    inside.mkdir(parents=True)
    (tmp_path / "uv.lock").write_text("torch==2")
    assert set(circumstances(inside)) == {"environment"}, "a lock file above that belongs to nothing"
    git(tmp_path, "init", "-q")
    assert circumstances(inside)["lock"] == {"file": "uv.lock", "hash": digest(b"torch==2")}
    assert "git" not in circumstances(inside), "no commit yet"
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert circumstances(inside)["git"] == {"commit": head, "dirty": False}
    (tmp_path / "uv.lock").write_text("torch==3")
    assert circumstances(inside)["git"] == {"commit": head, "dirty": True}


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert circumstances(tmp_path) == {"environment": environment()}


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "named", [f"sha256:{HEX}", f"robustkt@sha256:{HEX}", f"ghcr.io:443/me/robustkt:1.0@sha256:{HEX}"]
)
def test_an_image_is_named_by_its_digest(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTKT_IMAGE", named)
    assert circumstances(tmp_path)["image"] == {"digest": named}


@pytest.mark.parametrize(
    "named", ["robustkt", "robustkt:latest", "sha256:1234", f"sha256:{HEX}\n", f"a b@sha256:{HEX}", f"@sha256:{HEX}"]
)
def test_an_image_named_otherwise_is_refused_before_any_work(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTKT_IMAGE", named)
    registry = Registry(tmp_path / "registry")
    with pytest.raises(UsageError, match="must be an image's digest"):
        api.train(method="gaussian", arch="smallcnn", data="digits", given={"sigma": "0.25"}, registry=registry)
    assert not registry.exists


def test_a_run_is_told_but_its_id_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "requirements.lock").write_text(place)
        monkeypatch.chdir(tmp_path / place)
        registry = Registry(tmp_path / place / "registry")
        given = {"sigma": "0.25", "epochs": 1, "batch_size": 1_000}
        made = api.train(
            method="gaussian", arch="smallcnn", data="digits", given=given, registry=registry, device="cpu"
        )
        record = registry.record(made["id"])
        assert record["lock"]["hash"] == digest(place.encode())
        assert record["environment"].startswith("sha256:")
        assert record["deterministic"] is False
        assert str(tmp_path) not in str(record)
        ids.add(made["id"])
    assert len(ids) == 1


def test_copies_that_an_import_puts_on_the_path_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = environment.__wrapped__()
    place = tmp_path / "_vendor"
    for name in ("_vendor", "more"):
        told = tmp_path / name / "borrowed-1.0.dist-info" / "METADATA"
        told.parent.mkdir(parents=True)
        told.write_text("Metadata-Version: 2.1\nName: borrowed\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(place))
    assert environment.__wrapped__() == found
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    assert environment.__wrapped__() != found
