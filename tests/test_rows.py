"""Records of benchmarks that grow row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from benchmarks.rows import Rows
from benchmarks.shared import told_briefly
from benchmarks.written import RECORDS
from robustkt.errors import UsageError

GROWING = ("rslad", "certified", "certification")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "RECORDS", tmp_path)
    return tmp_path


def merge(monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    monkeypatch.setattr("sys.argv", ["rows", *map(str, files)])
    rows.main()


def test_a_row_is_kept_once(here: Path) -> None:
    record = Rows("some", "rows")
    assert not record.known("rows", name="a", seed=0)
    for score in (1, 2):
        record.keep("rows", {"score": score}, name="a", seed=0)
    (row,) = record.read()["rows"]
    assert (row["name"], row["seed"], row["score"]) == ("a", 0, 1)
    assert row["machine"]["processors"]
    assert record.known("rows", name="a")


def test_a_record_of_another_budget_is_left_alone(here: Path) -> None:
    Rows("some", "rows", command="python some --epochs 1").keep("rows", {}, name="a")
    before = (here / "some.json").read_bytes()
    with pytest.raises(SystemExit, match="of another budget"):
        Rows("some", "rows", command="python some --epochs 2").keep("rows", {}, name="b")
    assert (here / "some.json").read_bytes() == before


@pytest.mark.parametrize("name", GROWING)
def test_another_machine_s_rows_are_taken_in_once(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads((RECORDS / f"{name}.json").read_text())
    lists = {kind: told for kind, told in whole.items() if isinstance(told, list)}
    part: dict[str, Any] = {**whole, **{kind: told[::2] for kind, told in lists.items()}}
    (here / f"{name}.json").write_text(json.dumps(part))
    for _ in range(2):
        merge(monkeypatch, RECORDS / f"{name}.json")
        found = json.loads((here / f"{name}.json").read_text())
        for kind, told in lists.items():
            assert sorted(map(json.dumps, found[kind])) == sorted(map(json.dumps, told)), kind


def test_what_was_measured_of_another_network_is_left_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(identity: str, *kinds: str) -> dict[str, Any]:
        row = {"name": "a", "seed": 0}
        return {"command": "c", "networks": [{**row, "id": identity}], "rows": [{**row, "kind": k} for k in kinds]}

    (here / "some.json").write_text(json.dumps(told("one", "attacks")))
    other = here / "there" / "some.json"
    other.parent.mkdir()
    other.write_text(json.dumps(told("two", "attacks", "certificates")))
    merge(monkeypatch, other)
    assert json.loads((here / "some.json").read_text()) == told("one", "attacks")


@pytest.mark.parametrize("kept", ["{", "[1]", '{"networks": [1]}', '{"networks": [{"name": "a"}]}', '{"rows": ["a"]}'])
def test_a_damaged_record_is_named(kept: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "some.json").write_text(kept)
    (here / "there").mkdir()
    (here / "there" / "some.json").write_text('{"networks": [], "rows": []}')
    for asked in (lambda: Rows("some", "rows").read(), lambda: merge(monkeypatch, here / "there" / "some.json")):
        with pytest.raises(SystemExit, match=f"^{here / 'some.json'} (cannot be read|is no record)"):
            asked()
    assert (here / "some.json").read_text() == kept


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"command": "another"}'])
def test_a_file_that_is_no_such_record_is_named(text: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "some.json").write_text('{"command": "c", "rows": []}')
    other = here / "there" / "some.json"
    other.parent.mkdir()
    other.write_text(text)
    with pytest.raises(SystemExit, match=r"some\.json"):
        merge(monkeypatch, other)
    with pytest.raises(SystemExit, match="nothing"):
        merge(monkeypatch, here / "nothing.json")


def test_adapters_of_another_budget_are_replaced_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import modes

    kept = tmp_path / "modes.json"
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setitem(modes.PARTS, "strong", lambda bench: {"epochs": bench.epochs})  # type: ignore[misc]
    monkeypatch.setattr(modes, "Bench", lambda work, data_dir, images, epochs, *rest: type("", (), {"epochs": epochs}))

    def run(*words: str) -> None:
        given = ("--data-dir", str(tmp_path), "--work", str(tmp_path / "work"), "--record", str(kept))
        monkeypatch.setattr("sys.argv", ["modes", *given, "--only", "strong", *words])
        modes.main()

    run("--epochs", "1")
    run("--epochs", "1")
    with pytest.raises(SystemExit, match="another budget"):
        run("--epochs", "2")
    run("--epochs", "2", "--suffix", "2")
    run("--epochs", "3", "--replace")
    found = json.loads(kept.read_text())
    assert {name: one["found"]["epochs"] for name, one in found.items()} == {"strong": 3, "strong-2": 2}
    with pytest.raises(SystemExit, match="2"):
        run("--seeds", "0")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--data digits --train-images 200 --test-images 9 --epochs 1", "of another budget"),
        ("--data digits --train-images 300 --test-images 9 --epochs 2", "of another budget"),
        ("--data digits --train-images 200 --test-images 9 --epochs 2", "no record has sat of seed 0"),
    ],
)
def test_networks_come_from_records_of_the_same_images_and_epochs(
    command: str, told: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.experiments import study

    record = {"command": f"python -m benchmarks.experiments.rslad {command}", "networks": []}
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    monkeypatch.setattr(study, "exists", lambda name: name == "rslad-digits")
    monkeypatch.setattr(study, "record", lambda name: record)
    budget = ("--data", "digits", "--train-images", "200", "--test-images", "40", "--epochs", "2")
    monkeypatch.setattr("sys.argv", ["kinds", "--registry", str(here / "registry"), *budget])
    kinds = study.Study("kinds", "", parts=["all"], after=["rslad"], epochs=15)
    with pytest.raises(SystemExit, match=told):
        kinds.attacked("sat", 0, "0.1", ["clean"])


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (UsageError("what", "fix"), "error: what\n  → fix"), (OSError("disk"), "error: disk")],
)
def test_what_ends_a_benchmark_is_told_briefly(raised: BaseException, code: object) -> None:
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as caught:
        told_briefly(main)
    assert caught.value.code == code
