"""The store keeps what it was given, names what is damaged, and survives full disks, kills and company.

Run as a script it is the other process of these tests: `python test_registry.py add ROOT FIRST COUNT`.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import Generation, Recipe, Training
from robustkt.numbers import canonical, digest
from robustkt.registry import Registry, verify
from robustkt.registry import refs as refs_file
from robustkt.registry.files import TEMPORARY, append_synced, write_atomic
from robustkt.registry.locks import locked
from robustkt.registry.seal import sealed
from tests.stores import DATA, RECORD, commit, damage, measure, notes, stored_files, weights

# -- where it is -------------------------------------------------------------------------------------------------------


def test_where_the_registry_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert Registry.locate().root == deep / "registry"
    (tmp_path / "a" / "registry").mkdir()
    assert Registry.locate().root == deep / "registry", "a folder of that name is not yet a registry"
    Registry(tmp_path / "registry").create()
    assert Registry.locate().root == tmp_path / "registry"
    Registry(tmp_path / "a" / "b" / "registry").create()
    assert Registry.locate().root == tmp_path / "a" / "b" / "registry", "the nearest"
    monkeypatch.setenv("ROBUSTKT_REGISTRY", str(tmp_path / "named"))
    assert Registry.locate().root == tmp_path / "named"
    assert Registry.locate(Path("given")).root == Path("given").absolute()
    monkeypatch.setenv("ROBUSTKT_REGISTRY", "")
    assert Registry.locate().root == tmp_path / "a" / "b" / "registry"


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Registry.locate(Path("~/mine")).root == tmp_path / "mine"
    monkeypatch.setenv("ROBUSTKT_REGISTRY", "~/theirs")
    assert Registry.locate().root == tmp_path / "theirs"


def test_it_is_made_once(registry: Registry) -> None:
    assert not registry.exists
    assert registry.create()
    assert not registry.create()
    assert registry.exists
    assert damage(registry) == notes(registry) == []


def test_a_newer_format_is_refused(full: Registry) -> None:
    (full.root / "registry.json").write_text('{"format":3}')
    for refused in (full.create, full.refs, full.all, lambda: full.get("gen0"), lambda: commit(full, 9)):
        with pytest.raises(RobustKTError, match="has registry format 3; this version reads up to 2\nUpgrade robustkt"):
            refused()
    assert len(damage(full)) == 1


# -- objects -----------------------------------------------------------------------------------------------------------


def test_objects_go_in_and_come_out(registry: Registry) -> None:
    identity = registry.put_object(b"weights")
    assert identity == digest(b"weights")
    assert registry.object(identity) == b"weights"
    path = registry.object_path(identity)
    assert path.relative_to(registry.root).as_posix() == f"objects/{identity[7:9]}/{identity[7:]}"
    before = path.stat().st_ino
    registry.put_object(b"weights")
    assert path.stat().st_ino == before, "storing it again writes nothing"


def test_a_damaged_object_is_refused_named_and_mended(full: Registry) -> None:
    generation = full.get("gen1")
    path = full.object_path(generation.weights)
    path.write_bytes(weights(7))
    with pytest.raises(IntegrityError, match="is damaged: its SHA-256 is not its name") as error:
        full.object(generation.weights)
    assert str(path) in error.value.what
    assert damage(full) == [f"an object whose SHA-256 is not its name: {path.relative_to(full.root)}"]
    full.put_object(weights(1))
    assert full.object(generation.weights) == weights(1)
    assert damage(full) == []
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        full.object(generation.weights)
    assert damage(full) == [f"an object of gen1 is missing: {path.relative_to(full.root)}"]


@pytest.mark.parametrize("identity", ["../x", "sha256:../../x", "", "sha256:" + "A" * 64, digest(b"") + "\n"])
def test_only_hashes_become_paths(registry: Registry, identity: str) -> None:
    for place in (registry.object_path, registry.manifest_path, registry.record_path, registry.by_id, registry.object):
        with pytest.raises(IntegrityError, match="is not a SHA-256 hash"):
            place(identity)
    with pytest.raises(IntegrityError, match="is not a SHA-256 hash"):
        registry.result_path(identity, "certificate", "ab")


# -- adding ------------------------------------------------------------------------------------------------------------


def test_what_was_added_is_read_back(full: Registry) -> None:
    first, second, third = full.all()
    assert [g.name for g in full.all()] == ["gen0", "gen1", "gen2"]
    assert full.record(second.id) == {**RECORD, "seed": 1}
    assert [g.id for g in full.ancestors(third)] == [second.id, first.id]
    assert full.record(digest(b"nobody")) == {}
    assert damage(full) == notes(full) == []


def test_names_are_numbered_above_the_highest(registry: Registry) -> None:
    assert registry.next_name() == "gen0"
    for name in ("gen3", "gen10", "genius", "gen", "gen99x", "gen12345678901", "best"):
        commit(registry, len(registry.refs()["names"]), name)
    assert registry.next_name() == "gen11"
    assert commit(registry, 77).name == "gen11"


@pytest.mark.parametrize("name", ["a b", "-x", "gen2~1", "@tag", "sha256:ab", "../x", "x" * 101, "é", "a\n", ".hidden"])
def test_names_that_cannot_be(registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a generation's name"):
        commit(registry, 0, name)
    assert not registry.refs()["names"]


def test_a_name_is_given_once(full: Registry) -> None:
    before = stored_files(full.root)
    with pytest.raises(RobustKTError, match="the name gen1 belongs to another generation\nChoose another"):
        commit(full, 99, "gen1")
    after = {path: data for path, data in stored_files(full.root).items() if not path.startswith("objects/")}
    assert after.items() <= before.items()
    assert commit(full, 99).name == "gen3"


def test_the_same_generation_gets_a_further_name_and_keeps_its_record(full: Registry) -> None:
    first = full.get("gen0")
    full.add(replace(first, name="baseline"), {"seconds": 99.0})
    assert full.get("baseline").id == first.id
    assert full.get("baseline").name == "baseline"
    assert full.names_of(first.id) == ["gen0", "baseline"]
    assert full.record(first.id) == {**RECORD, "seed": 0}
    full.add(first, {})
    assert full.names_of(first.id) == ["gen0", "baseline"]
    assert damage(full) == []


def test_nothing_is_added_without_its_objects_and_parents(full: Registry) -> None:
    before = stored_files(full.root)
    lonely = replace(full.get("gen0"), name="x", weights=digest(b"never stored"))
    with pytest.raises(IntegrityError, match=f"x: object {lonely.weights} is not stored"):
        full.add(lonely, RECORD)
    orphan = replace(full.get("gen0"), name="x", parents={"teacher": digest(b"nobody")})
    with pytest.raises(IntegrityError, match="is missing"):
        full.add(orphan, RECORD)
    assert stored_files(full.root) == before


# -- pointers ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_pointer(full: Registry) -> None:
    first, second, third = full.all()
    full.add(replace(first, name="base"), RECORD)
    refs = full.refs()
    refs["tags"]["production"] = second.id
    write_atomic(full.root / "refs.json", refs_file.text(refs))
    expected = {
        "gen1": second,
        "base": first,
        second.id: second,
        second.id[7:]: second,
        second.id[:20]: second,
        second.id[7:15]: second,
        "@production": second,
        "@latest": first,
        "gen2~": second,
        "gen2~1": second,
        "gen2~2": first,
        "gen2~~": first,
        "gen2~1~1": first,
        "gen2~0": third,
        "@production~1": first,
        f"{third.id[7:19]}~2": first,
    }
    assert {pointer: full.get(pointer).id for pointer in expected} == {p: g.id for p, g in expected.items()}
    assert full.get("base").name == "base"
    assert full.get(first.id).name == "gen0"
    assert full.get("gen2~2").name == "gen0"


@pytest.mark.parametrize(
    ("pointer", "kind", "what"),
    [
        ("gen7", NotFoundError, "unknown generation 'gen7': did you mean 'gen"),
        ("Gen2", NotFoundError, "unknown generation 'Gen2': did you mean 'gen2'?"),
        ("@producton", NotFoundError, "unknown generation '@producton': did you mean '@production'?"),
        ("@last", NotFoundError, "unknown generation '@last': did you mean '@latest'?"),
        ("", NotFoundError, "unknown generation ''"),
        ("ffff0000ffff", NotFoundError, "unknown generation 'ffff0000ffff'"),
        ("sha256:zz", NotFoundError, "unknown generation 'sha256:zz'"),
        ("../gen1", NotFoundError, "unknown generation '../gen1'"),
        ("gen0~1", NotFoundError, "gen0 has no teacher"),
        ("gen2~3", NotFoundError, "gen0 has no teacher"),
        ("gen2~999999999", NotFoundError, "gen0 has no teacher"),
        ("gen2~x", UsageError, "'gen2~x' names no generation: '~x' counts no teachers"),
        ("gen2~-1", UsageError, "'gen2~-1' names no generation"),
        ("gen2~²", UsageError, "'gen2~²' names no generation"),
        ("gen2~1 ", UsageError, "'gen2~1 ' names no generation"),
        ("gen2~12345678901234567890", UsageError, "names no generation"),
    ],
)
def test_pointers_to_nothing(full: Registry, pointer: str, kind: type[RobustKTError], what: str) -> None:
    refs = full.refs()
    refs["tags"]["production"] = refs["names"]["gen1"]
    write_atomic(full.root / "refs.json", refs_file.text(refs))
    with pytest.raises(kind) as error:
        full.get(pointer)
    assert error.value.what.startswith(what) or what in error.value.what
    assert error.value.fix


def test_a_prefix_of_two_ids_is_refused(registry: Registry) -> None:
    seen: dict[str, Generation] = {}
    for seed in range(10_000):  # 4 hex digits: two of a few hundred ids begin alike
        generation = Generation(
            name="",
            recipe=Recipe(method="sat", settings={}, arch="a", data=DATA, training=Training(), seed=seed),
            weights=registry.put_object(b""),
            last_weights=registry.put_object(b""),
        )
        other = seen.setdefault(generation.id[7:11], generation)
        if other is not generation:
            break
    registry.add(generation, RECORD)
    registry.add(other, RECORD)
    prefix = generation.id[7:11]
    with pytest.raises(UsageError, match=f"'{prefix}' begins 2 ids\nGive more of its characters"):
        registry.get(prefix)
    assert registry.get(generation.id[:40]).id == generation.id


def test_an_empty_registry_says_how_to_begin(registry: Registry) -> None:
    for pointer in ("gen0", "@latest", "gen0~1"):
        with pytest.raises(NotFoundError, match=r"there is no generation in .*registry\nMake one with `robustkt quick"):
            registry.get(pointer)
    assert registry.all() == []


def test_many_generations_are_not_all_listed_in_an_error(registry: Registry) -> None:
    generation = commit(registry, 0)
    refs = {"names": {f"g{i}": generation.id for i in range(200)}, "tags": {}}
    write_atomic(registry.root / "refs.json", refs_file.text(refs))
    with pytest.raises(NotFoundError) as error:
        registry.get("nobody")
    assert error.value.fix == "`robustkt list` shows them."


# -- verify ------------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_named(full: Registry) -> None:
    """Every stored file, at five places each; only the spelling of a name is nobody's hash."""
    count = 0
    for relative, data in stored_files(full.root).items():
        for place in sorted({0, 1, len(data) // 2, len(data) - 2, len(data) - 1} & set(range(len(data)))):
            flipped = bytearray(data)
            flipped[place] ^= 1
            (full.root / relative).write_bytes(flipped)
            found = [str(f.path.relative_to(full.root)) for f in verify(full) if f.damage]
            assert relative in found or relative == "refs.json", f"byte {place} of {relative}"
            assert found, f"byte {place} of {relative}"
            count += 1
        (full.root / relative).write_bytes(data)
    assert count > 60
    assert damage(full) == []


def test_a_flipped_byte_of_the_names_is_noticed_or_is_a_name(registry: Registry) -> None:
    identity = commit(registry, 0).id
    path = registry.root / "refs.json"
    data = path.read_bytes()
    unnoticed = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if not damage(registry):
            unnoticed += registry.refs()["names"].items()
    unnoticed = [pair for pair in unnoticed if pair != ("gen0", identity)]  # a key that only a later version knows
    assert unnoticed == [(name, identity) for name in ("fen0", "gdn0", "geo0", "gen1")]


def test_a_missing_file_is_named(full: Registry) -> None:
    for relative, data in stored_files(full.root).items():
        if relative == "registry.json":
            continue
        path = full.root / relative
        path.unlink()
        found = verify(full)
        if relative.startswith("results/") and relative.endswith(".json"):
            assert [f.what for f in found] == ["a log that no result names"]
        else:
            assert relative in [str(f.path.relative_to(full.root)) for f in found if f.damage]
        path.write_bytes(data)
    assert verify(full) == []
    (full.root / "registry.json").unlink()
    assert damage(full) == ["registry.json is missing: registry.json"]
    (full.root / "refs.json").unlink()
    with pytest.raises(RobustKTError, match="there is no registry in"):
        verify(full)


def test_leftovers_are_notes(full: Registry) -> None:
    (full.root / "objects" / "ab").mkdir(exist_ok=True)
    (full.root / "objects" / "ab" / f"{TEMPORARY}7-cafe").write_bytes(b"half")
    (full.root / f"{TEMPORARY}7-cafe").write_bytes(b"")
    measure(full, full.get("gen2"), accuracy=0.75)
    refs = full.refs()
    del refs["names"]["gen2"]
    write_atomic(full.root / "refs.json", refs_file.text(refs))
    assert damage(full) == []
    assert sorted(notes(full)) == [
        "a generation without a name",
        "a log that no result names",
        "an unfinished write",
        "an unfinished write",
    ]


def test_files_that_hold_something_else_are_named(full: Registry) -> None:
    second, third = full.get("gen1"), full.get("gen2")
    strange: dict[Path, bytes] = {
        full.result_path(third.id, "certificate", "aa00"): b"[]",
        full.result_path(third.id, "certificate", "aa01"): b"",
        full.result_path(third.id, "certificate", "aa02"): sealed({"generation": second.id}),
        full.result_path(third.id, "certificate", "aa03"): sealed({"generation": 3, "log": 4}),
        full.result_path(third.id, "certificate", "aa04"): result_like(full, log="../../refs.json"),
        full.result_path(digest(b"x"), "certificate", "aa05"): sealed({"generation": digest(b"x")}),
        full.root / "results" / "nowhere" / "certificate-aa06.json": sealed({"generation": "sha256:nowhere"}),
        full.root / "generations" / "short.json": b"{}",
        full.manifest_path(digest(b"{}")): b"{}",
        full.root / "objects" / "zz" / "zz": b"",
    }
    for path, data in strange.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = {f.path for f in verify(full) if f.damage}
    assert set(strange) <= found


def result_like(registry: Registry, **path: Any) -> bytes:
    """gen2's certificate with values replaced (`figures__acr=1`) or left out (...), its seal whole."""
    (result,) = registry.results(registry.get("gen2").id)
    content = json.loads(canonical(result.content))
    for keys, value in path.items():
        *folders, last = keys.split("__")
        place = content
        for folder in folders:
            place = place[folder]
        place[last] = value
        if value is ...:
            del place[last]
    return sealed(content)


def at(radius: str) -> dict[str, Any]:
    """Figures at this radius alone."""
    return {"figures__certified_accuracy": {radius: 0.5}, "figures__intervals": {radius: [0.0, 1.0]}}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings__sigma": ...}, "settings.sigma is missing"),
        ({"settings__sigma": 0.25}, "settings.sigma is not a valid str"),
        ({"settings__n": "50"}, "settings.n is not a valid int"),
        ({"figures": []}, "figures is not a valid CertificateFigures"),
        ({"figures__acr": "[bold]"}, "figures.acr is not a valid float"),
        ({"figures__certified_accuracy": {"0": "all"}}, "figures.certified_accuracy.0 is not a valid float"),
        ({"figures__certified_accuracy": {"far": 0.5}}, "radii and intervals do not agree"),
        ({"figures__intervals": {"0": [0.5]}}, "radii and intervals do not agree"),
        ({"figures__intervals": {}, "figures__certified_accuracy": {"0": 1.0}}, "radii and intervals do not agree"),
        ({"settings__sigma": "0.25\r"}, "settings.sigma has unprintable characters"),
        ({"settings__sigma": " 0.25"}, "is not in its one spelling"),
        ({"settings__sigma": "1e99"}, "is not in its one spelling"),
        ({"settings__sigma": "1000"}, "sigma 1000 is no noise"),
        ({"settings__precision": "fp32 | 99 %"}, "the precision 'fp32 | 99 %' is none that is known"),
        ({"settings__mode": "<script>"}, "'<script>' cannot be a mode"),
        ({"settings__noise": "a](b)"}, "'a](b)' cannot be a noise"),
        ({"settings__norm": "l2|"}, "'l2|' cannot be a norm"),
        ({"settings__n": 10**400}, "settings.n is not a valid int"),
        ({"settings__radii": "0.25"}, "settings.radii is not a valid tuple"),
        ({"settings__radii": ["-5"]}, "the radius -5 is below 0"),
        ({"settings__radii": ["0." + 250 * "1"]}, "is not in its one spelling"),
        ({"settings__radii": ["0." + 4_200 * "1"]}, "settings.radii is too long"),
        ({"settings__radii": ["1"] * 10_001}, "10,001 radii are more than 10,000"),
        ({"settings__later": [{"a": "\x9b2J"}]}, "settings.later.a has unprintable characters"),
        ({"device": "\x1b[2J"}, "device has unprintable characters"),
        (at("-1"), "the radius -1 is below 0"),
        (at("0.250"), "is not in its one spelling"),
        (at("0.3\n\n"), "has unprintable characters"),
        (at("1e-400"), "is too large or too small"),
        (at("0." + 4_200 * "1"), "is too long"),
        ({"log": ...}, "log is missing"),
        ({"log": "../../refs.json"}, "names a log that cannot be one"),
        ({"log": "/etc/passwd"}, "names a log that cannot be one"),
        ({"log_hash": None}, "log_hash is not a valid str"),
        ({"log_hash": "sha256:0"}, "is damaged: its SHA-256 is another"),
    ],
)
def test_a_result_of_anybodys_making_is_refused_by_field(full: Registry, change: dict[str, Any], what: str) -> None:
    third = full.get("gen2")
    (result,) = full.results(third.id)
    result.path.write_bytes(result_like(full, **change))
    assert [f for f in verify(full) if f.damage and what in f.what]
    with pytest.raises(IntegrityError, match=re.escape(what)) as error:
        full.log(full.results(third.id)[0])
    assert "\n" not in error.value.what
    assert error.value.fix


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{", b'{"names":[]}', b'{"names":{"a b":"x"}}', b'{"names":{"gen0":"../x"}}', b'{"tags":{"t":1}}'],
)
def test_names_that_point_nowhere_are_damage(full: Registry, content: bytes) -> None:
    (full.root / "refs.json").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"refs\.json"):
        full.refs()
    assert [f.path.name for f in verify(full) if f.damage] == ["refs.json"]


def test_damaged_records_results_and_logs_are_refused_on_reading(full: Registry) -> None:
    third = full.get("gen2")
    result = full.result(third.id, "certificate", "ab12")
    assert result is not None
    assert full.log(result) == b"idx\tlabel\n0.5\n"
    full.log_path(result).write_bytes(b"idx\tlabel\n0.9\n")
    with pytest.raises(IntegrityError, match=r"the log .* is damaged"):
        full.log(result)
    full.log_path(result).unlink()
    with pytest.raises(IntegrityError, match=r"the log .* is missing"):
        full.log(result)
    result.path.write_bytes(result.path.read_bytes().replace(b"0.5", b"0.9"))
    for read in (lambda: full.result(third.id, "certificate", "ab12"), lambda: full.results(third.id)):
        with pytest.raises(IntegrityError, match=f"{result.path} is damaged"):
            read()
    record = full.record_path(third.id)
    record.write_bytes(record.read_bytes().replace(b"1.5", b"0.5"))
    with pytest.raises(IntegrityError, match=f"{record} is damaged"):
        full.record(third.id)
    manifest = full.manifest_path(third.id)
    manifest.write_bytes(manifest.read_bytes().replace(b"0.25", b"0.50"))
    with pytest.raises(IntegrityError, match=f"the manifest {manifest} of gen2 is damaged"):
        full.get("gen2")


def test_results_are_kept_apart_by_kind_and_key(full: Registry) -> None:
    third = full.get("gen2")
    settings = {"attacks": ["clean"], "norm": "linf", "eps": "0.1", "images": 2, "skip": 1, "seed": 0}
    settings |= {"weights": third.weights, "data": DATA.fingerprint}
    attacks = {"clean": {"accuracy": 0.5, "interval": [0.0, 1.0], "norm": None, "eps": None}}
    figures = {"attacks": attacks, "warnings": [], "worst": {"accuracy": 0.5, "interval": [0.0, 1.0]}}
    content = {"settings": settings, "figures": figures}
    full.put_result(third.id, "evaluation", "cd34", content, log=b"idx\tlabel\tclean\n")
    assert [(r.kind, r.key) for r in full.results(third.id)] == [("certificate", "ab12"), ("evaluation", "cd34")]
    assert [r.key for r in full.results(third.id, "evaluation")] == ["cd34"]
    assert full.result(third.id, "certificate", "cd34") is None
    measure(full, third, accuracy=0.75)
    (again,) = full.results(third.id, "certificate")
    assert again.content["figures"]["acr"] == 0.75
    assert full.log(again) == b"idx\tlabel\n0.75\n"
    assert damage(full) == []


# -- disks that refuse -------------------------------------------------------------------------------------------------


class Faults:
    """Lets the k-th call that writes fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.error, self.fatal, self.calls = error, -1, 0
        for name in ("fsync", "replace", "mkdir", "open"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wxa+"):
                self.count()
            return real(file, mode, *args, **kwargs)

        monkeypatch.setattr(io, "open", opened)

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return real(*args, **kwargs)

        return call

    def count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fatal:
            raise self.error


def every_fault(monkeypatch: pytest.MonkeyPatch, error: BaseException, work: Callable[[], object]) -> Any:
    """Runs `work` with its first writing call failing, then with its second, …; yields what each attempt raised."""
    for fatal in range(1000):
        with monkeypatch.context() as patch:
            faults = Faults(patch, error)
            faults.fatal = fatal
            try:
                work()
            except BaseException as raised:
                caught: BaseException | None = raised
            else:
                caught = None
        if faults.calls <= fatal:
            return
        yield fatal, caught


ERRORS = {
    "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "forbidden": OSError(errno.EACCES, os.strerror(errno.EACCES)),
    "read-only": OSError(errno.EROFS, os.strerror(errno.EROFS)),
    "ctrl-c": KeyboardInterrupt(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_disk_that_refuses_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    origin = Registry(tmp_path / "origin")
    teacher = commit(origin, 0)
    wanted = commit(Registry(tmp_path / "elsewhere"), 1)
    registry = Registry(tmp_path / "registry")

    def renew() -> None:
        shutil.rmtree(registry.root, ignore_errors=True)
        shutil.copytree(origin.root, registry.root)

    renew()
    refused = 0
    for fatal, caught in every_fault(monkeypatch, ERRORS[kind], lambda: commit(registry, 1)):
        where = f"{kind} at call {fatal}"
        if kind == "ctrl-c":
            assert caught is None or isinstance(caught, KeyboardInterrupt), where
        elif caught is not None:
            assert isinstance(caught, RobustKTError), f"{where}: {caught!r}"
            assert caught.what.startswith("cannot write "), where
            assert str(ERRORS[kind].args[1]) in caught.what, where
            assert ("Free some space" in caught.fix) == (kind == "full"), where
        refused += caught is not None
        assert damage(registry) == [], where
        assert not list(registry.root.rglob(f"{TEMPORARY}*")), where
        assert registry.get("gen0") == teacher
        assert [g.id for g in registry.all()] in ([teacher.id], [teacher.id, wanted.id]), where
        again = commit(registry, 1)
        assert (again.id, [g.id for g in registry.all()]) == (wanted.id, [teacher.id, wanted.id]), where
        assert damage(registry) == notes(registry) == [], where
        renew()
    assert refused >= 12


@pytest.mark.parametrize("kind", ["full", "ctrl-c"])
def test_a_disk_that_refuses_a_new_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    root = tmp_path / "registry"
    refused = 0
    for _, caught in every_fault(monkeypatch, ERRORS[kind], lambda: commit(Registry(root), 1)):
        assert caught is None or isinstance(caught, (RobustKTError, KeyboardInterrupt))
        refused += caught is not None
        commit(Registry(root), 1)
        assert verify(Registry(root)) == []
        shutil.rmtree(root)
    assert refused >= 12


def test_a_disk_that_refuses_a_result(full: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    third = full.get("gen2")
    refused = 0
    for _, caught in every_fault(monkeypatch, ERRORS["full"], lambda: measure(full, third, accuracy=0.75)):
        assert caught is None or isinstance(caught, RobustKTError)
        refused += caught is not None
        assert damage(full) == []
        (result,) = full.results(third.id)
        assert full.log(result) == b"idx\tlabel\n%r\n" % result.content["figures"]["acr"]
        measure(full, third, accuracy=0.5)
    assert refused >= 5


@pytest.mark.parametrize("blocked", ["objects", "generations", "records", "lock", "refs.json"])
def test_something_in_the_way(registry: Registry, blocked: str) -> None:
    registry.create()
    path = registry.root / blocked
    if blocked in ("lock", "refs.json"):
        path.mkdir()
    else:
        path.write_bytes(b"a file where a folder should be")
    with pytest.raises(RobustKTError, match=f"cannot write .*{blocked}") as error:
        commit(registry, 0)
    assert "Make it writable, or name another place with --registry DIR" in error.value.fix
    assert registry.all() == []
    path.rmdir() if path.is_dir() else path.unlink()
    assert commit(registry, 0).name == "gen0"
    assert damage(registry) == []


def test_a_registry_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "registry"):
        with pytest.raises(RobustKTError, match="cannot write"):
            Registry(root).create()
        with pytest.raises(NotFoundError, match="there is no generation"):
            Registry(root).get("gen0")


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    for _, caught in every_fault(monkeypatch, ERRORS["full"], lambda: write_atomic(path, b"new")):
        assert path.read_bytes() in (b"old", b"new")
        assert isinstance(caught, RobustKTError) or path.read_bytes() == b"new"
        assert [p.name for p in path.parent.iterdir()] == ["file"]
        write_atomic(path, b"old")
    write_atomic(path, b"old\n")
    append_synced(path, b"more\n")
    assert path.read_bytes() == b"old\nmore\n"
    for torn, kept in ((b"old\nmo", b"old\n"), (b"o", b""), (b"", b"")):
        write_atomic(path, torn)
        append_synced(path, b"new\n")
        assert path.read_bytes() == kept + b"new\n", "what a crash tore off is cut, and hides nothing after it"


# -- company -----------------------------------------------------------------------------------------------------------


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_registry", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ten_kills_lose_nothing(registry: Registry) -> None:
    teacher = commit(registry, 0, "teacher")
    told = {teacher.name: teacher.id}
    moment = random.Random(0)
    for round_ in range(10):
        worker = start("add", registry.root, 1 + 1000 * round_, 1000)
        assert worker.stdout
        lines = [worker.stdout.readline()]
        time.sleep(moment.random() / 20)
        worker.send_signal(signal.SIGKILL)
        rest, complaints = worker.communicate()
        assert worker.returncode == -signal.SIGKILL, complaints
        told |= dict(json.loads(line) for line in [*lines, *rest.splitlines()] if line.strip().endswith("]"))
        assert damage(registry) == []
        names = registry.refs()["names"]
        assert told.items() <= names.items()
        assert len(names) <= len(told) + 1 + round_, "at most the one that was being told"
    assert len(told) > 10
    assert all(registry.object(g.weights) and registry.record(g.id) for g in registry.all())
    assert commit(registry, 10**6, teacher=teacher).name == registry.all()[-1].name


def test_four_writers_lose_no_update(registry: Registry) -> None:
    each = 6
    workers = [start("add", registry.root, 1 + each * i, each) for i in range(4)]
    told: dict[str, str] = {}
    for worker in workers:
        out, complaints = worker.communicate(timeout=60)
        assert worker.returncode == 0, complaints
        told |= dict(json.loads(line) for line in out.splitlines())
    assert len(told) == 4 * each, "every one has a name of its own"
    assert registry.refs()["names"] == told
    assert sorted(told, key=lambda name: int(name[3:])) == [f"gen{i}" for i in range(4 * each)]
    assert len({g.recipe.seed for g in registry.all()}) == 4 * each
    assert damage(registry) == notes(registry) == []


def test_a_reader_beside_a_writer_never_sees_a_part(registry: Registry) -> None:
    commit(registry, 0)
    worker = start("churn", registry.root, 1, 25)
    seen, reads = 1, 0
    while worker.poll() is None:
        everything = registry.all()
        assert len(everything) >= seen
        seen = len(everything)
        for generation in everything[-3:]:
            assert registry.record(generation.id)["seed"] == generation.recipe.seed
            assert registry.object(generation.weights) == weights(generation.recipe.seed)
            for result in registry.results(generation.id):
                assert registry.log(result) == b"idx\tlabel\n%r\n" % result.content["figures"]["acr"]
        assert registry.get("@latest").name
        assert damage(registry) == []
        reads += 1
    assert worker.communicate()[1] == ""
    assert len(registry.all()) == 26
    assert reads > 3


def test_who_holds_the_lock_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/robustkt", "train", "--seed", "1"])
    lock = registry.root / "lock"
    with locked(lock, "the registry", timeout=0.1):
        monkeypatch.setattr(sys, "argv", ["robustkt", "list"])
        with (
            pytest.raises(
                RobustKTError, match=r"^the registry is held by process (\d+) on .* \(robustkt train --seed 1\)"
            ),
            locked(lock, "the registry", timeout=0.1),
        ):
            raise AssertionError("two hold it")
        (registry.root / "lock.owner").write_text("half a fi")
        with pytest.raises(RobustKTError, match="is held by another process\nWait"), locked(lock, "it", timeout=0.1):
            raise AssertionError("two hold it")
    with locked(lock, "the registry", timeout=0.1):
        assert json.loads((registry.root / "lock.owner").read_text())["pid"] == os.getpid()


CONTEND = """
import sys
from pathlib import Path
from robustkt.registry.locks import locked
place = Path(sys.argv[1])
for _ in range(150):
    with locked(place / "jobs" / "train-1.lock", "it", timeout=60):
        (place / "inside").touch(exist_ok=False)
        (place / "inside").unlink()
"""


def test_the_lock_of_a_job_goes_with_it_and_never_lets_two_in(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTEND, str(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(worker.communicate(timeout=120)[1], worker.returncode) for worker in both] == [("", 0)] * 2
    assert list((tmp_path / "jobs").iterdir()) == []


def test_locks_that_killed_jobs_left_are_swept_but_none_that_is_held(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    with locked(jobs / "certify-1.lock", "it"):
        for name in ("train-2.lock", "train-2.lock.owner"):
            (jobs / name).touch()
        with locked(jobs / "train-3.lock", "it"):
            pass
        assert sorted(path.name for path in jobs.iterdir()) == ["certify-1.lock", "certify-1.lock.owner"]
        with pytest.raises(RobustKTError, match="is held by process"), locked(jobs / "certify-1.lock", "it", timeout=0):
            raise AssertionError("two hold it")
    assert list(jobs.iterdir()) == []


def test_the_lock_is_released_when_work_fails(registry: Registry) -> None:
    with pytest.raises(ZeroDivisionError), registry.lock():
        _ = 1 // 0
    with locked(registry.root / "lock", "the registry", timeout=0.1):
        pass


def test_reading_takes_no_lock_and_writes_nothing(full: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch, AssertionError("wrote"))
    with locked(full.root / "lock", "the registry"):
        faults.fatal = faults.calls
        third = full.get("@latest")
        assert (full.all()[-1], full.record(third.id)["seed"]) == (third, 2)
        assert list(full.ancestors(third))
        assert full.results(third.id)
        assert damage(full) == []
        faults.fatal = -1


def test_canonical_records_are_sealed(full: Registry) -> None:
    content = {"b": 1, "a": "8/255"}
    seal = digest(canonical(content))
    assert sealed(content) == b'{"a":"8/255","b":1,"digest":"' + seal.encode() + b'"}'
    assert json.loads(sealed(content)) == {**content, "digest": seal}


if __name__ == "__main__":
    doing, place, first, count = sys.argv[1:]
    store = Registry(Path(place))
    parent = store.get("teacher") if "teacher" in store.refs()["names"] else None
    for number in range(int(first), int(first) + int(count)):
        made = commit(store, number, teacher=parent)
        if doing == "churn":
            for figure in (0.25, 0.5, 0.75):
                measure(store, made, accuracy=figure)
        print(json.dumps([made.name, made.id]), flush=True)
