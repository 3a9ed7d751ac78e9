"""Names move, generations go, space is freed, damage is moved aside; and nothing that anybody needs is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from robustkt import api
from robustkt.api.keeping import duration
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.registry import Registry, locks, refs, upkeep, verify
from robustkt.registry.files import TEMPORARY, write_atomic
from robustkt.registry.locks import locked, owner_of, taken
from robustkt.registry.repair import repair
from robustkt.registry.seal import sealed, unsealed
from robustkt.registry.verify import QUARANTINE
from tests.conftest import Ran
from tests.stores import commit, damage, notes, stored_files

Cli = Callable[..., Ran]
DAY = 86_400


def age(root: Path, days: float) -> None:
    """Everything below is so old."""
    then = time.time() - days * DAY
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


# -- tags and names ----------------------------------------------------------------------------------------------------


def test_a_tag_moves_and_remembers(full: Registry) -> None:
    assert api.tag("production", "gen0", full)["before"] is None
    assert api.tag("production", "gen2", full)["before"] == "gen0"
    assert api.tag("production", "gen2", full)["before"] == "gen2"
    (told,) = api.tags(registry=full)["tags"]
    assert (told["tag"], told["generation"]) == ("production", "gen2")
    assert [move["generation"] for move in told["history"]] == ["gen0", "gen2"], "staying is no move"
    assert full.get("@production").name == "gen2"
    assert api.untag("production", full)["generation"] == "gen2"
    (told,) = api.tags("production", full)["tags"]
    assert told["generation"] is None
    assert [move["generation"] for move in told["history"]] == ["gen0", "gen2", None]
    assert damage(full) == notes(full) == []


@pytest.mark.parametrize("name", ["latest", "", "a b", "../x", "-x", "x" * 101])
def test_tags_that_cannot_be(full: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        api.tag(name, "gen0", full)


def test_tags_of_nothing(full: Registry, registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="unknown generation 'gen9'"):
        api.tag("production", "gen9", full)
    for ask in (lambda: api.untag("nope", full), lambda: api.tags("nope", full)):
        with pytest.raises(NotFoundError, match="there is no tag 'nope'"):
            ask()
    assert api.tags(registry=full) == {"tags": []}


def test_a_generation_is_renamed_in_its_place(full: Registry) -> None:
    before = full.get("gen1")
    api.tag("production", "gen1", full)
    assert api.rename("gen1", "mobile", full) == {"generation": "mobile", "id": before.id, "before": "gen1"}
    assert list(full.refs()["names"]) == ["gen0", "mobile", "gen2"]
    assert full.get("gen2~1").name == full.get("@production").name == "mobile"
    assert api.rename("mobile", "mobile", full)["before"] == "mobile"
    with pytest.raises(RobustKTError, match="the name gen2 belongs to another"):
        api.rename("mobile", "gen2", full)
    with pytest.raises(UsageError, match="cannot be a generation's name"):
        api.rename("mobile", "latest", full)
    assert damage(full) == notes(full) == []


def test_a_registry_of_format_1_is_read_and_becomes_2_with_the_first_write(full: Registry) -> None:
    names = full.refs()["names"]
    (full.root / "registry.json").write_text('{"format":1}\n')
    (full.root / refs.FILE).write_text(json.dumps({"names": names, "tags": {"old": names["gen0"]}, "colour": "red"}))
    before = stored_files(full.root)
    assert full.get("@old").name == "gen0"
    assert api.tags(registry=full)["tags"][0]["history"] == []
    assert damage(full) == notes(full) == []
    assert stored_files(full.root) == before, "reading changes nothing"
    api.tag("production", "gen1", full)
    assert json.loads((full.root / "registry.json").read_text()) == {"format": 2}
    after = json.loads((full.root / refs.FILE).read_text())
    assert (after["names"], after["tags"]["old"], after["colour"]) == (names, names["gen0"], "red")
    changed = {path for path, data in stored_files(full.root).items() if before[path] != data}
    assert changed == {"registry.json", "refs.json"}
    assert damage(full) == notes(full) == []


# -- rm ----------------------------------------------------------------------------------------------------------------


def test_what_others_descend_from_is_not_removed_unless_told(full: Registry) -> None:
    with pytest.raises(RobustKTError, match=r"others descend from gen0\n.*--descendants.*--name-only"):
        api.rm(["gen0"], registry=full)
    with pytest.raises(RobustKTError, match="others descend from gen0, gen1\n"):
        api.rm(["gen0", "gen1"], registry=full)
    assert list(full.refs()["names"]) == ["gen0", "gen1", "gen2"]
    with pytest.raises(UsageError, match="opposite"):
        api.rm(["gen0"], descendants=True, name_only=True, registry=full)
    assert api.rm(["gen1"], name_only=True, registry=full) == {"removed": ["gen1"], "ancestors": ["gen1"]}
    tree = api.lineage(registry=full)["generations"]
    assert [row["named"] for row in tree] == [True, False, True]
    with pytest.raises(RobustKTError, match="others descend from gen0"):
        api.rm(["gen0"], registry=full)  # through one that has no name
    assert api.rm(["gen0"], descendants=True, registry=full)["removed"] == ["gen0", "gen2"]
    assert full.refs()["names"] == {}


def test_the_last_of_several_names_decides(full: Registry) -> None:
    with full.changing() as table:
        table["names"]["alias"] = full.get("gen0").id
    assert api.rm(["gen0"], registry=full) == {"removed": ["gen0"], "ancestors": []}
    with pytest.raises(RobustKTError, match="others descend from alias"):
        api.rm([full.get("alias").id], registry=full)


def test_what_a_tag_points_at_is_not_removed(full: Registry) -> None:
    api.tag("production", "gen2", full)
    with pytest.raises(RobustKTError, match="@production points at gen2\nMove it"):
        api.rm(["gen2"], registry=full)
    with pytest.raises(RobustKTError, match="@production points at gen2"):
        api.rm(["gen0"], descendants=True, registry=full)
    assert len(full.refs()["names"]) == 3


def test_what_was_removed_comes_back(full: Registry) -> None:
    gone = full.get("gen2")
    api.rm(["gen2"], registry=full)
    assert notes(full) == ["a generation without a name"]
    assert api.gc(registry=full)["files"] == []
    assert full.get(gone.id[:15]).id == gone.id
    api.rename(gone.id, "again", full)
    assert (full.get("again").id, damage(full), notes(full)) == (gone.id, [], [])


# -- gc ----------------------------------------------------------------------------------------------------------------


def test_what_nothing_reaches_goes_when_its_grace_is_over(full: Registry) -> None:
    kept = {path for path in stored_files(full.root) if full.get("gen2").id[7:] not in path}
    own = {full.object_path(full.get("gen2").weights), full.object_path(full.get("gen2").last_weights)}
    source = full.get("gen2").recipe.arch_source
    assert source
    age(full.root, 30)
    api.rm(["gen2"], registry=full)
    (full.root / "objects" / "00").mkdir()
    assert api.gc(registry=full)["files"] == [], "the grace begins with rm"
    age(full.root, 13)
    assert api.gc(registry=full)["files"] == []
    age(full.root, 15)
    told = api.gc(dry_run=True, registry=full)
    assert all(path.is_file() for path in own)
    done = api.gc(registry=full)
    assert (done["files"], done["bytes"]) == (told["files"], told["bytes"])
    assert done["bytes"] > 0
    left = set(stored_files(full.root))
    assert left == kept - {p.relative_to(full.root).as_posix() for p in (*own, full.object_path(source))}
    assert damage(full) == notes(full) == []
    assert api.gc(grace="0", registry=full)["files"] == []


def test_a_dry_run_is_a_readers(full: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    age(full.root, 30)
    api.rm(["gen2"], registry=full)
    idle, busy = (full.job_path("train", key) for key in ("0" * 16, "1" * 16))
    for job in (idle, busy):
        job.mkdir(parents=True)
        (job / "needs.json").write_text("[]")
    busy.with_suffix(".lock").touch()  # nobody's, but a reader cannot find that out
    age(full.root, 30)
    before = {path: path.stat().st_mtime_ns for path in full.root.rglob("*")}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "lock", refuse)
        patch.setattr(upkeep, "taken", refuse)
        told = api.gc(dry_run=True, registry=full)["files"]
    assert {path: path.stat().st_mtime_ns for path in full.root.rglob("*")} == before
    assert f"jobs/{idle.name}" in told
    assert f"jobs/{busy.name}" not in told
    assert set(told) < set(api.gc(registry=full)["files"])


def test_a_young_one_keeps_all_that_it_needs(full: Registry) -> None:
    age(full.root, 30)
    api.rm(["gen0"], descendants=True, registry=full)
    age(full.root, 30)
    young = sorted((full.root / "generations").iterdir())[0]
    os.utime(young)
    before = stored_files(full.root)
    api.gc(registry=full)
    found = full.by_id(f"sha256:{young.stem}", "it")
    for generation in [found, *full.ancestors(found)]:
        assert full.object(generation.weights)
        assert full.record(generation.id)
    assert damage(full) == []
    assert set(stored_files(full.root)) <= set(before)


def test_what_an_unfinished_job_needs_stays(full: Registry) -> None:
    teacher = full.get("gen2")
    folder = full.job_path("train", "cafe")
    with contextlib.suppress(KeyboardInterrupt), full.working(folder, "it", [teacher.id]):
        half = full.put_object(b"a student's weights, not named yet")
        api.rm(["gen2"], registry=full)
        assert api.gc(grace="0", registry=full)["files"] == [], "the job runs"
        raise KeyboardInterrupt
    assert api.gc(grace="0s", registry=full)["files"] != []
    assert folder.exists() is False, "nobody is at it, and no grace was asked for"
    assert not full.object_path(half).exists()


def test_the_job_of_a_killed_process_stays_for_its_grace(full: Registry) -> None:
    teacher, folder = full.get("gen2"), full.job_path("train", "cafe")
    with pytest.raises(KeyboardInterrupt), full.working(folder, "it", [teacher.id]):
        raise KeyboardInterrupt
    api.rm(["gen2"], registry=full)
    age(full.root / "generations", 30)
    age(full.root / "objects", 30)
    assert api.gc(registry=full)["files"] == []
    age(full.root, 15)
    gone = api.gc(registry=full)["files"]
    assert gone[0].startswith("generations/")
    assert gone[-1] == "jobs/train-cafe"


def test_leftovers_go(full: Registry) -> None:
    for place in ("", "objects/ab", "results/" + full.get("gen0").id[7:]):
        write_atomic(full.root / place / "x", b"")
        (full.root / place / "x").rename(full.root / place / f"{TEMPORARY}7-cafe")
    write_atomic(full.root / "records" / f"{'0' * 64}.json", b"{}")
    write_atomic(full.results_path(full.get("gen0").id) / "certificate-aa-bb.tsv", b"")
    age(full.root, 20)
    assert len(api.gc(registry=full)["files"]) == 5
    assert damage(full) == notes(full) == []


def test_a_damaged_registry_is_not_collected(full: Registry) -> None:
    path = full.manifest_path(full.get("gen0").id)
    path.write_bytes(path.read_bytes() + b" ")
    before = stored_files(full.root)
    with pytest.raises(IntegrityError, match="is damaged"):
        api.gc(grace="0", registry=full)
    assert stored_files(full.root) == before


@pytest.mark.parametrize(
    ("text", "seconds"), [("14d", 14 * DAY), ("1.5h", 5_400), ("0", 0), (" 2w ", 14 * DAY), ("30m", 1_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "14", "d", "-1d", "1y", "1 d", "nan", "1e3s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration"):
        duration(text)


# -- repair ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])


def everything(root: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in root.rglob("*") if path.is_file() and "lock" not in path.name)


@pytest.mark.parametrize("kind", ["objects", "generations", "records", "results", "refs.json", "registry.json"])
def test_repair_moves_damage_aside_and_loses_no_byte(full: Registry, kind: str) -> None:
    place = full.root / kind
    paths = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    for path in paths:
        renew = shutil.copytree(full.root, full.root.with_name("copy"))
        registry = Registry(renew)
        broken = renew / path.relative_to(full.root)
        broken.write_bytes(b"\x00half") if kind.endswith("json") else flip(broken)
        before = everything(renew)
        assert damage(registry)
        done = repair(registry)
        assert broken.relative_to(renew).as_posix() in [source for source, _ in done.moved]
        after = everything(renew)
        assert not [data for data in before if after.count(data) < before.count(data)], "every byte is still there"
        lost = [text for text in damage(registry) if " is missing" not in text]
        assert lost == [], "what remains says what a copy must bring back"
        if kind not in ("objects", "generations"):
            assert damage(registry) == []
        assert repair(registry).moved == []
        shutil.rmtree(renew)


def test_lost_names_come_from_the_records(full: Registry) -> None:
    api.rename("gen1", "mobile", full)
    names = full.refs()["names"]
    (full.root / refs.FILE).unlink()
    for write in (lambda: commit(full, 7), lambda: api.tag("production", "gen0", full)):
        with pytest.raises(
            RobustKTError, match=r"the names of all generations|unknown generation|there is no generation"
        ):
            write()
    done = repair(full)
    assert done.moved == []
    assert set(full.refs()["names"]) == {"gen0", "gen1", "gen2"}, "the names at their birth"
    assert set(full.refs()["names"].values()) == set(names.values())
    assert damage(full) == []


def test_a_name_of_nothing_is_dropped(full: Registry) -> None:
    last = full.get("gen2")
    full.manifest_path(last.id).unlink()
    before = (full.root / refs.FILE).read_bytes()
    assert "dropped" in repair(full).mended[0]
    assert list(full.refs()["names"]) == ["gen0", "gen1"]
    assert before in everything(full.root / QUARANTINE)
    assert damage(full) == []


def test_a_newer_registry_is_not_repaired(full: Registry) -> None:
    (full.root / "registry.json").write_text('{"format":99}')
    before = everything(full.root)
    with pytest.raises(RobustKTError, match="registry format 99"):
        repair(full)
    assert everything(full.root) == before


def test_strangers_and_orphans_are_named(full: Registry) -> None:
    (full.root / "notes.txt").write_text("mine")
    (full.root / "objects" / "loose").write_text("mine")
    (full.root / "generations" / "README").write_text("mine")
    full.put_object(b"nobody's")
    write_atomic(full.root / "records" / f"{'0' * 64}.json", b"{}")
    told = sorted(f"{f.what}: {f.path.name[:9]}" for f in verify(full) if not f.damage)
    assert [text.partition(":")[0] for text in told] == [
        *["a file that is none of the registry's"] * 3,
        "a run record without a generation",
        "an object that no generation names",
    ]
    assert damage(full) == []


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_commands(cli: Cli, full: Registry) -> None:
    assert cli("tag").out == "no tags; set one with `robustkt tag production GEN`\n"
    assert cli("tag", "production", "gen1").out == "@production is gen1\n"
    assert cli("tag", "production", "gen2").out == "@production is gen2, before gen1\n"
    assert "gen2" in cli("tag", "production").out
    assert json.loads(cli("tag", "--json").out)["tags"][0]["tag"] == "production"
    assert cli("rename", "gen2", "mobile").out == "gen2 is mobile now\n"
    ran = cli("rm", "mobile")
    assert (ran.code, ran.err.splitlines()[0]) == (1, "error: @production points at mobile")
    assert cli("tag", "--delete", "production").out == "@production is taken away; it was mobile\n"
    assert cli("tag", "--delete", "production", "gen0").code == 2
    assert cli("rm", "mobile").out.startswith("removed mobile")
    assert "too young to go" in cli("gc", "--dry-run").out
    ran = cli("gc", "--grace", "0")
    assert "freed" in ran.out
    assert cli("verify").out.endswith("2 generations, sound\n")
    (full.root / "refs.json").write_text("half")
    assert cli("verify").code == 3
    assert cli("verify", "--repair").code == 0
    assert cli("gc", "--grace", "14").code == 2


@pytest.mark.parametrize("command", ["tag", "rename a b", "rm a", "gc", "verify --repair"])
def test_where_there_is_no_registry(cli: Cli, command: str) -> None:
    ran = cli(*command.split())
    assert ran.code == 1
    assert ran.err.startswith("error: there is no ")
    assert not Path("registry").exists()


# -- what a reviewer found ---------------------------------------------------------------------------------------------


def test_removing_by_id_takes_all_names_and_latest_is_the_name_made_last(full: Registry) -> None:
    last = full.get("gen2")
    with full.changing() as table:
        table["names"]["second"] = last.id
    assert full.get("@latest").name == "second"
    assert api.rename("@latest", "newest", full)["before"] == "second"
    assert api.rm([last.id], registry=full)["removed"] == ["gen2", "newest"]


def test_names_that_nothing_tells_are_made_up_and_said_to_be(full: Registry) -> None:
    for generation in full.all():
        path = full.record_path(generation.id)
        content = unsealed(path, "")
        del content["name"]
        path.write_bytes(sealed(content))
    (full.root / refs.FILE).write_text("<<<<<<< ours")
    (told,) = repair(full).mended
    assert "made up: recovered-0, recovered-1, recovered-2" in told
    assert set(full.refs()["names"]) == {"recovered-0", "recovered-1", "recovered-2"}


def test_what_cannot_be_read_hides_nothing_else(full: Registry) -> None:
    (full.root / "generations" / f"{'a' * 64}.json").mkdir()
    (full.results_path(full.get("gen0").id) / "certificate-dir.json").mkdir()
    (full.root / "objects" / "ab").mkdir(exist_ok=True)
    (full.root / "objects" / "ab" / ("ab" * 32)).symlink_to("nowhere")
    flip(full.record_path(full.get("gen1").id))
    assert len(damage(full)) == 4
    repair(full)
    assert damage(full) == []


def test_a_lost_marker_is_written_anew(cli: Cli, full: Registry) -> None:
    (full.root / "registry.json").unlink()
    assert cli("verify", "--registry", full.root).code == 3
    assert cli("verify", "--repair", "--registry", full.root).code == 0
    assert full.get("gen2").name == "gen2"


def test_latest_is_nobodys_name(full: Registry) -> None:
    with pytest.raises(UsageError, match="'latest' cannot be a generation's name"):
        commit(full, 9, "latest")


def test_a_job_whose_teacher_went_before_it_began_says_so(full: Registry) -> None:
    folder, gone = full.job_path("train", "ab"), "sha256:" + "0" * 64
    with pytest.raises(NotFoundError, match="has just been removed"), full.working(folder, "it", [gone]):
        raise AssertionError("it began")
    assert not folder.exists()
    api.rm(["gen1"], name_only=True, registry=full)
    with full.working(folder, "it", [full.get("gen2").parents["teacher"]]):
        assert folder.exists(), "one without a name is there"


def test_a_registry_stays_where_it_was(full: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(full.root.parent)
    relative = Registry(Path(full.root.name))
    monkeypatch.chdir(tmp_path.parent)
    assert relative.get("gen1") == full.get("gen1")


# -- leases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`elsewhere("b")`: this process is on machine b, on a file system whose locks do not reach further."""

    def be(machine: str) -> None:
        monkeypatch.setattr(locks, "_boot", lambda: machine)

        monkeypatch.setattr("filelock.FileLock.acquire", Mock(side_effect=NotImplementedError("no locks here")))

    return be


def test_machines_take_turns(tmp_path: Path, elsewhere: Callable[[str], None]) -> None:
    path = tmp_path / "lock"
    elsewhere("a")
    held = taken(path)
    assert held is not None
    elsewhere("b")
    assert taken(path) is None
    with pytest.raises(RobustKTError, match="is held by process"), locked(path, "it", timeout=0.05):
        raise AssertionError("two hold it")
    elsewhere("a")
    held.release()
    elsewhere("b")
    with locked(path, "it", timeout=0.05) as second:
        second.check()


def test_a_lease_without_a_heartbeat_is_taken_over_and_its_holder_commits_nothing(
    registry: Registry, elsewhere: Callable[[str], None]
) -> None:
    commit(registry, 0)

    def sleeps_while_another_works() -> None:
        elsewhere("a")
        with registry.changing() as slept:
            slept["tags"]["mine"] = next(iter(slept["names"].values()))
            then = time.time() - locks.STALE - 1
            os.utime(owner_of(registry.root / "lock"), (then, then))
            elsewhere("b")
            with registry.changing() as other:
                other["tags"]["theirs"] = next(iter(other["names"].values()))
            elsewhere("a")

    with pytest.raises(RobustKTError, match=r"was taken over.*\nNothing of it was committed"):
        sleeps_while_another_works()
    assert list(registry.refs()["tags"]) == ["theirs"]


def test_a_heartbeat_keeps_a_lease(
    tmp_path: Path, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    elsewhere("a")
    with locked(tmp_path / "lock", "it") as held:
        then = time.time() - locks.STALE - 1
        os.utime(owner_of(tmp_path / "lock"), (then, then))
        for _ in range(200):
            time.sleep(0.02)
            if owner_of(tmp_path / "lock").stat().st_mtime > then + 1:
                break
        elsewhere("b")
        assert taken(tmp_path / "lock") is None
        elsewhere("a")
        held.check()


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path, elsewhere: Callable[[str], None]) -> None:
    elsewhere("a")
    assert taken(tmp_path / "lock")
    owner = owner_of(tmp_path / "lock")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "pid": dead.pid}))
    assert taken(tmp_path / "lock") is not None


def test_whoever_clears_an_old_lease_spares_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path / "lock.owner"
    fresh = {"pid": 1, "host": "c", "boot": "c", "command": "x", "nonce": "new"}
    owner.write_text(json.dumps(fresh))
    monkeypatch.setattr(
        locks, "_read", lambda path, real=locks._read: {"nonce": "old"} if path == owner else real(path)
    )
    locks._clear(owner)
    assert json.loads(owner.read_text()) == fresh
    assert [path.name for path in tmp_path.iterdir()] == ["lock.owner"]
