"""Copies are whole or not seen, nothing foreign is believed, and a remote registry loses no name."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from robustkt import api
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.numbers import digest
from robustkt.registry import Registry, claims, copying, location
from robustkt.registry import remote as remote_module
from robustkt.registry import upkeep as keep
from robustkt.registry.location import Location
from robustkt.registry.remote import Mirror, Remote, remote_at
from robustkt.registry.seal import sealed
from tests.conftest import SHARED, Ran
from tests.stores import commit, damage, measure, modal, notes, stored_files

Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "PAUSES", ())


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def team(registry: Registry) -> Registry:
    """gen0 → gen1 → gen2 with a tag, alone; every kind of file there is."""
    gen0 = commit(registry, 0)
    gen1 = commit(registry, 1, teacher=gen0)
    commit(registry, 7, "alone")
    gen2 = commit(registry, 2, "gen2", teacher=gen1, source=b"class Net: ...")
    measure(registry, gen2)
    measure(registry, gen0, "ff00")
    keep.tag(registry, "best", gen1.id)
    keep.tag(registry, "best", gen2.id)
    return registry


def folder_copy(url: str) -> dict[str, bytes]:
    """What lies in a remote registry, by path."""
    where = Location(url)
    where.fs.invalidate_cache()
    return {path: bytes(where.fs.cat_file(f"{where.base}/{path}")) for path in where.files("")}


PLACES = ["folder", "file", "memory", "s3"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Somewhere to copy to: a local registry, a remote one in a folder, in memory, in an S3-compatible store."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/team"
    return {"folder": str(tmp_path / "there"), "file": f"file://{tmp_path}/remote", "memory": "memory://team"}[
        request.param
    ]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3-compatible server on a free port of this machine."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A bucket of one's own, its address and secret in the environment as a user has them."""
    import s3fs

    settings = {
        "AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "so-secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"team-{digest(str(tmp_path).encode())[7:19]}"
    s3fs.S3FileSystem().mkdir(name)  # the client of the test before, which takes a second to make
    return f"s3://{name}"


# -- there and back ----------------------------------------------------------------------------------------------------


def test_there_and_back_gives_the_same_bytes(team: Registry, place: str, tmp_path: Path) -> None:
    told = api.copy(to=place, registry=team)
    assert [g["generation"] for g in told["generations"]] == ["gen0", "gen1", "alone", "gen2"]
    assert all(g["new"] for g in told["generations"])
    assert told["tags"] == {"best": team.get("gen2").id}
    back = Registry(tmp_path / "back")
    api.copy(source=place, registry=back)
    assert stored_files(back.root) == stored_files(team.root)
    assert list(back.refs()["names"]) == list(team.refs()["names"]), "in the same order"
    assert damage(back) == notes(back) == []
    for again in (api.copy(to=place, registry=team), api.copy(source=place, registry=back)):
        assert (again["files"], again["bytes"], again["names"], again["tags"]) == (0, 0, {}, {})
        assert not any(g["new"] for g in again["generations"])


def test_adapters_come_back_as_the_same_bytes(team: Registry, place: str, tmp_path: Path) -> None:
    two = modal(team, 30, "two")
    told = api.copy(["two"], to=place, registry=team)
    assert {row["generation"] for row in told["generations"]} == {"two"}
    back = Registry(tmp_path / "back")
    api.copy(source=place, registry=back)
    ours, theirs = stored_files(team.root), stored_files(back.root)
    assert {path for path in theirs if path.startswith("objects/")} == {
        team.object_path(identity).relative_to(team.root).as_posix() for identity in two.objects
    }
    assert all(ours[path] == data for path, data in theirs.items() if path != "refs.json")
    assert damage(back) == []
    assert api.copy(source=place, registry=back)["files"] == 0


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "its objects are here already"])
def test_a_foreign_adapter_is_refused_and_nothing_is_written(
    team: Registry, place: str, tmp_path: Path, known: bool
) -> None:
    two = modal(team, 30, "two")
    other = modal(team, 40)
    swapped = replace(two, name="swapped", adapters={**two.adapters, "clean": other.adapters["clean"]})
    here = Registry(tmp_path / "here")
    if known:
        api.copy(["two", other.name], to=str(here.root), registry=team)
    before = stored_files(here.root)
    team.add(swapped, {"started": "2026-01-01T00:00:00+00:00"})
    with pytest.raises(IntegrityError, match="the adapter clean of swapped belongs to another base"):
        api.copy(["swapped"], to=place, registry=team)
    assert not Registry(Path(place)).exists
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "read_binding", lambda *a: None)  # as somebody who wants us to have it
        api.copy(["swapped"], to=place, registry=team)
    with pytest.raises(IntegrityError, match="the adapter clean of swapped belongs to another base"):
        api.copy(source=place, registry=here)
    assert stored_files(here.root) == before


def test_a_generation_comes_with_its_ancestors_and_no_others(team: Registry, place: str, tmp_path: Path) -> None:
    told = api.copy(["gen1"], to=place, registry=team)
    assert [g["generation"] for g in told["generations"]] == ["gen0", "gen1"]
    back = Registry(tmp_path / "back")
    api.copy(["gen1"], source=place, registry=back)
    assert list(back.refs()["names"]) == ["gen0", "gen1"]
    assert len(back.results(back.get("gen0").id)) == 1
    assert damage(back) == []
    more = api.copy(["gen2"], to=place, registry=team)
    assert [g["new"] for g in more["generations"]] == [False, False, True], "what is there is not sent again"
    assert more["files"] == 7


def test_a_dry_run_writes_nothing(team: Registry, place: str, tmp_path: Path) -> None:
    told = api.copy(to=place, dry_run=True, registry=team)
    assert (told["files"], told["dry_run"]) == (21, True)
    with pytest.raises(NotFoundError, match="there is no registry in"):
        api.copy(source=place, registry=Registry(tmp_path / "back"))
    assert api.copy(to=place, registry=team) == {**told, "dry_run": False}
    api.copy(source=place, dry_run=True, registry=Registry(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_a_copy_mends_what_is_damaged_here(team: Registry, place: str) -> None:
    api.copy(to=place, registry=team)
    whole = stored_files(team.root)
    gen2 = team.get("gen2")
    result = team.results(gen2.id)[0]
    for path in (team.object_path(gen2.weights), team.record_path(gen2.id), result.path, team.log_path(result)):
        path.write_bytes(path.read_bytes()[:-1])
    team.object_path(gen2.last_weights).unlink()
    assert len(damage(team)) == 4
    api.copy(source=place, registry=team)
    assert stored_files(team.root) == whole


def test_measurements_travel_later_and_what_is_there_stays(team: Registry, place: str, tmp_path: Path) -> None:
    api.copy(to=place, registry=team)
    back = Registry(tmp_path / "back")
    api.copy(source=place, registry=back)
    gen1 = team.get("gen1")
    measure(team, gen1, "cd34")
    assert api.copy(to=place, registry=team)["files"] == 2
    measure(back, gen1, "cd34", accuracy=0.125)
    told = api.copy(source=place, registry=back)
    assert told["kept"] == [f"results/{gen1.id[7:]}/certificate-cd34.json"]
    assert told["files"] == 0
    assert back.results(gen1.id)[0].content["figures"]["acr"] == 0.125
    assert damage(back) == notes(back) == []


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_taken_name_stops_the_copy_before_anything_is_written(team: Registry, place: str, tmp_path: Path) -> None:
    mine = Registry(tmp_path / "mine")
    other = commit(mine, 100, "gen0")
    child = commit(mine, 101, "gen9", teacher=other)
    api.copy(to=place, registry=team)
    before = api.copy(source=place, registry=Registry(tmp_path / "before"))
    for arguments in ({}, {"rename": "mine"}, {"rename": "gen1"}):
        with pytest.raises(RobustKTError, match=r"the name gen\d belongs to another generation in .*\nNothing was"):
            api.copy(["gen9"], to=place, registry=mine, **arguments)
    assert api.copy(source=place, registry=Registry(tmp_path / "after"))["generations"] == before["generations"]
    told = api.copy(["gen9"], to=place, suffix="-anna", registry=mine)
    assert told["names"] == {"gen0-anna": other.id, "gen9": child.id}
    assert api.copy(["gen9"], to=place, registry=mine)["names"] == {}, "it has its name there already"
    named = api.copy(["gen0"], to=place, rename="anna", registry=mine)
    assert named["names"] == {"anna": other.id}


def test_a_tag_that_points_elsewhere_stays(team: Registry, place: str) -> None:
    api.copy(to=place, registry=team)
    keep.tag(team, "best", team.get("alone").id)
    told = api.copy(to=place, registry=team)
    assert (told["tags"], told["kept"]) == ({}, ["@best"])


@pytest.mark.parametrize("url", ["memory://team", "FILE", "S3"])
def test_two_writers_of_one_name(
    url: str, team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Both have planned before either writes: one gets the name, the other is told, and nothing is lost."""
    url = url if "://" in url else f"{request.getfixturevalue('bucket')}/x" if url == "S3" else f"file://{tmp_path}/x"
    mine = Registry(tmp_path / "mine")
    commit(mine, 100, "gen0")
    point = Remote.point

    def beaten(self: Remote, refs: Any) -> list[str]:
        with monkeypatch.context() as inner:
            inner.setattr(Remote, "point", point)
            api.copy(["gen0"], to=url, registry=team)
        return point(self, refs)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "point", beaten)
        with pytest.raises(RobustKTError, match=r"gen0 in .* has been given to another generation meanwhile"):
            api.copy(to=url, registry=mine)
    assert Mirror(url).get("gen0").id == team.get("gen0").id
    api.copy(to=url, suffix="-b", registry=mine)
    assert Mirror(url).get("gen0-b").id == mine.get("gen0").id


def test_many_writers_of_one_name_at_once(tmp_path: Path, bucket: str) -> None:
    """Exactly one of eight is told that the name is his, in a store that can create exclusively."""
    for url in (f"file://{tmp_path}/x", f"{bucket}/x"):
        won: list[int] = []

        def write(i: int, url: str = url, won: list[int] = won) -> None:
            refs = {"names": {"gen0": digest(b"%d" % i)}, "tags": {}, "history": {}}
            if not Remote(url).point(refs):  # type: ignore[arg-type]
                won.append(i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert Remote(url).refs()["names"] == {"gen0": digest(b"%d" % won[0])}


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "torn")], ids=["ctrl-c", "torn"])
def test_an_upload_stopped_anywhere_shows_nothing_and_is_continued(
    team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    pipe = MemoryFileSystem.pipe_file
    for fatal in range(1000):
        url, calls = f"memory://place{fatal}", [0]

        def failing(
            self: Any, path: str, value: bytes, calls: list[int] = calls, fatal: int = fatal, **more: Any
        ) -> None:
            calls[0] += 1
            if calls[0] == fatal + 1:
                raise error
            pipe(self, path, value, **more)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "pipe_file", failing)
            try:
                api.copy(to=url, registry=team)
            except (KeyboardInterrupt, RobustKTError):
                pass
            else:
                break
        if Remote(url).exists():
            seen = Mirror(url)
            seen.fetch_all(lambda amount: None)
            assert damage(seen) == []
            assert not set(seen.refs()["names"].items()) - set(team.refs()["names"].items())
            for name in seen.refs()["names"]:
                assert all(seen.object(g.weights) for g in [seen.get(name), *seen.ancestors(seen.get(name))])
        there = len(folder_copy(url))
        told = api.copy(to=url, registry=team)
        assert told["files"] + len(told["names"]) + len(told["tags"]) == 27 - max(there, 1), "no more than was missing"
        back = Registry(tmp_path / f"back{fatal}")
        api.copy(source=url, registry=back)
        assert stored_files(back.root) == stored_files(team.root)
    assert fatal == 27


def test_a_download_stopped_anywhere_writes_nothing_or_is_continued(
    team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://team"
    api.copy(to=url, registry=team)
    cat = MemoryFileSystem.cat_file
    for fatal in range(1000):
        calls = [0]

        def failing(self: Any, path: str, *a: Any, calls: list[int] = calls, fatal: int = fatal, **more: Any) -> bytes:
            calls[0] += 1
            if calls[0] == fatal + 1:
                raise KeyboardInterrupt
            return cat(self, path, *a, **more)

        back = Registry(tmp_path / f"back{fatal}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{fatal}"))
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "cat_file", failing)
            try:
                api.copy(source=url, registry=back)
                break
            except KeyboardInterrupt:
                assert not back.root.exists(), "all is fetched and checked before anything is written"
        api.copy(source=url, registry=back)
        assert stored_files(back.root) == stored_files(team.root)
    assert fatal > 20


def test_a_passing_failure_is_tried_again(team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, failures = MemoryFileSystem.pipe_file, iter([ConnectionResetError(), TimeoutError(), OSError(16, "busy")])

    def flaky(self: Any, path: str, value: bytes, **more: Any) -> None:
        for error in failures:
            raise error
        pipe(self, path, value, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", flaky)
    monkeypatch.setattr(location, "PAUSES", (0.0, 0.0, 0.0))
    assert api.copy(to="memory://team", registry=team)["files"] == 21


# -- foreign files -----------------------------------------------------------------------------------------------------


def some_files(team: Registry) -> list[str]:
    """A file of each kind, of gen2."""
    gen2 = team.get("gen2")
    result = team.results(gen2.id)[0]
    paths = (
        team.object_path(gen2.weights), team.manifest_path(gen2.id), team.record_path(gen2.id), result.path,
        team.log_path(result),
    )  # fmt: skip
    return [path.relative_to(team.root).as_posix() for path in paths] + ["names/gen2.json", "tags/best.json"]


@pytest.mark.parametrize("which", range(7))
def test_a_flipped_byte_is_refused_and_nothing_is_written(team: Registry, tmp_path: Path, which: int) -> None:
    url = f"file://{tmp_path}/remote"
    api.copy(to=url, registry=team)
    path = tmp_path / "remote" / some_files(team)[which]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    back = Registry(tmp_path / "back")
    with pytest.raises(RobustKTError):
        api.copy(source=url, registry=back)
    assert not back.root.exists()
    told = api.verify_remote(url)
    assert not told["ok"]
    assert any(Path(some_files(team)[which]).name in problem["path"] for problem in told["problems"])
    if which < 5:
        api.copy(["alone"], source=url, registry=back)
        assert list(back.refs()["names"]) == ["alone"], "others are not held up"


@pytest.mark.parametrize("which", range(5))
def test_a_missing_file_is_told_and_nothing_is_written(team: Registry, tmp_path: Path, which: int) -> None:
    url = f"file://{tmp_path}/remote"
    api.copy(to=url, registry=team)
    (tmp_path / "remote" / some_files(team)[which]).unlink()
    back = Registry(tmp_path / "back")
    if which == 3:  # without its head a log is a leftover
        api.copy(source=url, registry=back)
        return
    with pytest.raises(IntegrityError, match="missing"):
        api.copy(source=url, registry=back)
    assert not back.root.exists()


@pytest.mark.parametrize("which", range(7))
def test_an_enormous_file_is_not_read(
    team: Registry, tmp_path: Path, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    api.copy(to=url, registry=team)
    os.truncate(tmp_path / "remote" / some_files(team)[which], 2**40)  # a hole: no disk is needed
    back = Registry(tmp_path / "back")
    with pytest.raises(RobustKTError):
        api.copy(source=url, registry=back)
    assert not back.root.exists()
    assert not api.verify_remote(url)["ok"]
    assert sum(p.stat().st_size for p in (tmp_path / "home").rglob("*") if p.is_file()) < 2**20


@pytest.mark.parametrize(
    "path",
    ["names/../../x.json", "names/..json", "results/../../x.json", "objects/../../../x", "names/a/b.json", "/etc/x"],
)
def test_hostile_paths_lead_nowhere(team: Registry, tmp_path: Path, path: str, bucket: str) -> None:
    import s3fs

    for url, fs in ((f"{bucket}/team", s3fs.S3FileSystem()), ("memory://team", MemoryFileSystem())):
        api.copy(to=url, registry=team)
        told = sealed({"at": "2026-01-01T00:00:00.000000Z", "format": 1, "generation": team.get("gen0").id})
        if fs.protocol == "memory":
            MemoryFileSystem.store[f"/team/{path}"] = fs._open("/spare", "wb")
            MemoryFileSystem.store[f"/team/{path}"].write(told)
        else:
            fs.call_s3("put_object", Bucket=bucket[5:], Key=f"team/{path}", Body=told)
        before = {p for p in tmp_path.rglob("*") if "home" not in p.parts and "back" not in p.parts}
        back = Registry(tmp_path / f"back-{url[:2]}")
        api.copy(source=url, registry=back)
        assert stored_files(back.root) == stored_files(team.root)
        assert {p for p in tmp_path.rglob("*") if "home" not in p.parts and f"back-{url[:2]}" not in p.parts} == {
            p for p in before if f"back-{url[:2]}" not in p.parts
        } or url.startswith("memory")
        assert not list(tmp_path.rglob("x.json"))


def test_links_are_not_followed(team: Registry, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/remote"
    api.copy(to=url, registry=team)
    place = tmp_path / "remote" / some_files(team)[2]
    (tmp_path / "secret").write_bytes(place.read_bytes())
    place.unlink()
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(IntegrityError, match="missing"):
        api.copy(source=url, registry=Registry(tmp_path / "back"))


def _header(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize(
    "weights",
    [
        pickle.dumps({"w": [1, 2, 3]}),
        _header(b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}') + b"\0" * 16,
        (2**60).to_bytes(8, "little") + b"{}",
        _header(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[-4,12]}}') + b"\0" * 16,
    ],
    ids=["pickle", "too short", "enormous header", "before the beginning"],
)
def test_weights_that_are_no_safetensors_are_refused(registry: Registry, tmp_path: Path, weights: bytes) -> None:
    commit(registry, 0, best=weights)
    back = tmp_path / "back"
    for arguments in (
        {"source": str(registry.root), "registry": Registry(back)},
        {"to": str(back), "registry": registry},
    ):
        with pytest.raises(IntegrityError, match="are not safetensors"):
            api.copy(**arguments)  # type: ignore[arg-type]
        assert not back.exists()


def test_a_result_of_another_generation_is_refused(team: Registry, tmp_path: Path) -> None:
    result = team.results(team.get("gen2").id)[0]
    stolen = team.results_path(team.get("gen1").id) / result.path.name
    stolen.parent.mkdir()
    stolen.write_bytes(result.path.read_bytes())
    with pytest.raises(IntegrityError, match="belongs to another generation"):
        api.copy(to=str(tmp_path / "there"), registry=team)
    assert not (tmp_path / "there").exists()


# -- reading a remote registry -----------------------------------------------------------------------------------------


def test_a_remote_registry_is_listed_shown_and_traced(cli: Cli, team: Registry, bucket: str) -> None:
    url = f"{bucket}/deep/er"
    assert cli("copy", "--to", url, "--registry", team.root).code == 0
    here = cli("list", "--json", "--registry", team.root).json
    there = cli("list", "--json", "--registry", url)
    assert there.json == {**here, "registry": url}
    assert cli("show", "@best", "--json", "--registry", url).json["generation"] == "gen2"
    for command in ("lineage", "show"):
        assert cli(command, "gen2", "--json", "--registry", url).json == (
            cli(command, "gen2", "--json", "--registry", team.root).json
        )
    told = cli("verify", "--json", "--registry", url).json
    assert (told["ok"], told["registry"], told["generations"], told["notes"]) == (True, url, 4, [])


def test_reading_again_fetches_only_what_is_new(team: Registry, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/team"
    api.copy(to=url, registry=team)
    api.open_registry(url)
    fetched: list[str] = []
    many = Location.many

    def counted(self: Location, sizes: dict[str, int], most: Any) -> Any:
        fetched.extend(sizes)
        return many(self, sizes, most)

    commit(team, 50, "new")
    api.copy(["new"], to=url, registry=team)
    monkeypatch.setattr(Location, "many", counted)
    assert list(api.open_registry(url).refs()["names"])[-1] == "new"
    assert sorted(path.partition("/")[0] for path in fetched) == ["generations", "names", "records"]


def test_what_works_in_a_registry_refuses_a_remote_one(
    cli: Cli, team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    api.copy(to=url, registry=team)
    for place in (url, tmp_path / "remote"):
        for command in (("rename", "gen0", "x"), ("push", "gen0"), ("gc",), ("verify", "--repair")):
            ran = cli(*command, "--registry", place)
            assert (ran.code, ran.out) == (1, "")
            assert ran.err.startswith(
                f"error: {url} is a remote registry, and this command works in a local one\n  → `"
            )
    monkeypatch.setenv("ROBUSTKT_REGISTRY", url)
    assert cli("list", "--json").json["registry"] == url
    assert cli("gc").code == 1
    with pytest.raises(RobustKTError, match="has registry format remote 1"):
        commit(Registry(tmp_path / "remote"), 3)


# -- what can be wrong with a place ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "copy takes either --to PLACE or --from PLACE"),
        (("--to", "a", "--from", "b"), "copy takes either"),
        (("--to", "s3:/bucket"), "'s3:/bucket' is no address"),
        (("--to", "s3://key:word@bucket/x"), "the address holds a user or a password"),
        (("--to", "simplecache::s3://bucket"), "an address inside another"),
        (("--to", "memory://a", "--suffix", "../x"), "--suffix '../x' cannot be part of a name"),
        (("gen0", "--to", "memory://a", "--as", "../x"), "'../x' cannot be a generation's name"),
        (("--to", "memory://a", "--as", "x"), "--as names one generation"),
        (("--to", "s3://"), "s3:// names no place"),
        (("--to", "nothing://a"), "nothing://a: Protocol not known"),
        (("--to", "registry"), "registry is both ends of the copy"),
    ],
)
def test_impossible_places_and_names(cli: Cli, team: Registry, arguments: tuple[str, ...], what: str) -> None:
    ran = cli("copy", *arguments, "--registry", "registry")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {what}")
    assert ran.err.count("\n") == 2
    assert "word" not in ran.err.replace("password", "")
    assert not MemoryFileSystem.store


def test_places_that_hold_something_else_or_nothing(cli: Cli, team: Registry, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "registry").symlink_to(team.root)
    for place, what in (
        ("mine", "mine holds something that is not a registry"),
        (f"file://{tmp_path}/mine", f"file://{tmp_path}/mine holds something that is not a registry: notes.txt"),
    ):
        ran = cli("copy", "--to", place, "--registry", "registry")
        assert (ran.code, ran.err.splitlines()[0]) == (1, f"error: {what}")
    ran = cli("copy", "--from", "project", "--registry", "new")
    assert (ran.code, ran.err) == (
        1,
        "error: there is no registry in project\n  → Did you mean project/registry?\n",
    )
    assert cli("copy", "--from", "memory://none", "--registry", "new").code == 1
    assert cli("copy", "gen77", "--to", "new", "--registry", "registry").code == 1
    assert not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with fsspec.open("memory://old/registry.json", "wb") as file:
        file.write(b'{"format": 2}')
    assert "in the layout of a local folder" in cli("copy", "--to", "memory://old", "--registry", "registry").err
    with fsspec.open("memory://old/registry.json", "wb") as file:
        file.write(b'{"format": "remote 9"}')
    assert "this version reads 'remote 1'" in cli("list", "--registry", "memory://old").err


def test_what_a_store_refuses(cli: Cli, team: Registry, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    copy = ("copy", "gen0", "--registry", team.root, "--to")
    ran = cli(*copy, "s3://there-is-none/team")
    assert ran.err.startswith("error: there is no bucket for s3://there-is-none/team")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    s3fs.S3FileSystem.clear_instance_cache()
    ran = cli(*copy, f"{bucket}/team")
    assert ran.err == (
        f"error: {bucket}/team asks who you are, and finds no credentials that it knows\n"
        "  → Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.\n"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    ran = cli(*copy, f"{bucket}/team")
    assert ran.err.startswith(f"error: cannot reach {bucket}/team: ")
    assert ran.err.count("\n") == 2
    for secret in ("so-secret", "AKIAEXAMPLE"):
        assert secret not in ran.err + ran.out
    s3fs.S3FileSystem.clear_instance_cache()


def test_no_right_to_write(cli: Cli, team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise PermissionError("AccessDenied https://store/x?X-Amz-Signature=abc")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    ran = cli("copy", "--to", "memory://team", "--registry", team.root, "-v")
    assert "error: memory://team refuses: no right to do this\n" in ran.err
    assert "Signature" not in ran.err


def test_a_protocol_whose_package_is_missing(cli: Cli, team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    protocols = sys.modules["fsspec.registry"]
    monkeypatch.delitem(protocols._registry, "s3", raising=False)
    ran = cli("copy", "--to", "s3://bucket/x", "--registry", team.root)
    assert ran.err == ('error: s3:// needs a package that is not installed\n  → Type `pip install "robustkt[s3]"`.\n')


def test_a_bug_keeps_its_traceback(team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", broken)
    with pytest.raises(ZeroDivisionError):
        api.copy(to="memory://team", registry=team)


def test_a_file_system_without_hard_links(team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    url = f"file://{tmp_path}/remote"
    assert len(api.copy(to=url, registry=team)["names"]) == 4
    refs = {"names": {"gen0": digest(b"another"), "new": digest(b"new")}, "tags": {}, "history": {}}
    assert Remote(url).point(refs) == ["gen0"]  # type: ignore[arg-type]


def test_a_store_without_exclusive_writes(team: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = MemoryFileSystem.pipe_file

    def limited(self: Any, path: str, value: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise OSError(errno.ENOSYS, "NotImplemented")
        pipe(self, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", limited)
    assert len(api.copy(to="memory://team", registry=team)["names"]) == 4
    refs = {"names": {"gen0": digest(b"another"), "new": digest(b"new")}, "tags": {}, "history": {}}
    assert Remote("memory://team").point(refs) == ["gen0"]  # type: ignore[arg-type]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_did(cli: Cli, team: Registry) -> None:
    ran = cli("copy", "gen1", "--to", "memory://team", "--dry-run", "--registry", team.root)
    assert ran.out.splitlines()[-1].startswith("dry run, nothing is written: 10 files, ")
    assert cli("copy", "gen1", "--to", "memory://team", "--registry", team.root).out.split()[3:9] == [
        "gen0", team.get("gen0").id[7:19], "copied", "gen1", team.get("gen1").id[7:19], "copied",
    ]  # fmt: skip
    told = cli("copy", "--from", "memory://team", "--registry", "new", "--json").json
    assert [g["generation"] for g in told["generations"]] == ["gen0", "gen1"]
    assert set(told) == {"from", "to", "dry_run", "generations", "files", "bytes", "names", "tags", "kept"}


def test_copying_imports_neither_torch_nor_a_store_before_it_is_needed(team: Registry, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from robustkt import api; from robustkt.registry import Registry\n"
        f"here = Registry(Path({str(team.root)!r}))\n"
        f"api.copy(to={str(tmp_path / 'there')!r}, registry=here)\n"
        "assert not {'fsspec', 'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
        f"api.copy(to='file://{tmp_path}/remote', registry=here)\n"
        "assert not {'torch', 's3fs', 'botocore'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_which_places_are_remote(team: Registry, tmp_path: Path) -> None:
    api.copy(to=f"file://{tmp_path}/remote", registry=team)
    assert remote_at(str(tmp_path / "remote")) == f"file://{tmp_path}/remote" == remote_at(f"file://{tmp_path}/remote")
    assert remote_at(str(team.root)) is None is remote_at(f"file://{team.root}")
    assert remote_at("s3://bucket") == "s3://bucket"
    with pytest.raises(UsageError):
        remote_at("s3:/bucket")
    assert json.loads((tmp_path / "remote" / "registry.json").read_bytes()) == {"format": remote_module.REMOTE}


# -- the Hub -----------------------------------------------------------------------------------------------------------

STAND_IN = SHARED / "tools" / "hubstandin.py"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for a stand-in of the Hub on this machine, with a data set repository `alice/team`."""
    if not STAND_IN.is_file():
        pytest.skip("there is no stand-in of the Hub here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "hub").mkdir()
    command = [sys.executable, str(STAND_IN), "--port", str(port), "--root", str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        told = dict(pair.split("=", 1) for pair in server.stdout.readline().split())
        more = {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **told, **more}
        yield environment
        server.terminate()


ALL_IN_ONE = """
import contextlib, io, json, sys
from concurrent.futures import ThreadPoolExecutor
from huggingface_hub import HfApi
from robustkt.cli import application
from robustkt.registry.remote import Remote

def command(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            application(words[0])(list(words))
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

url, commands = sys.argv[1], json.loads(sys.argv[2])
HfApi().create_repo("alice/team", repo_type="dataset")
first = command(*commands[0])
commits = len(HfApi().list_repo_commits("alice/team", repo_type="dataset"))
middle = [command(*words) for words in commands[1:-1]]
wishes = [{"names": {"new": f"sha256:{i:064}"}, "tags": {}, "history": {}} for i in range(4)]
with ThreadPoolExecutor(4) as pool:
    won = sum(pool.map(lambda wish: not Remote(url).point(wish), wishes))
print(json.dumps({"commits": commits, "won": won, "ran": [first, *middle, command(*commands[-1])]}))
"""  # the client reads where the Hub is when it is imported: a process of its own, and one is enough


def test_a_data_set_on_the_hub_is_a_registry(team: Registry, hub: dict[str, str], tmp_path: Path) -> None:
    url, back = "hf://datasets/alice/team", tmp_path / "back"
    mine = Registry(tmp_path / "mine")
    commit(mine, 100, "gen0")
    commands = [
        ["copy", "--to", url, "--registry", str(team.root), "--json"],
        ["copy", "--to", url, "--registry", str(team.root), "--json"],
        ["list", "--registry", url, "--json"],
        ["copy", "--from", url, "--registry", str(back)],
        ["copy", "--to", url, "--registry", str(mine.root)],
        ["copy", "--to", "hf://datasets/alice/none", "--registry", str(mine.root)],
    ]
    words = [sys.executable, "-c", ALL_IN_ONE, url, json.dumps(commands)]
    done = subprocess.run(words, env=hub, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["commits"] <= 1 + 1 + 5 + 5, "a commit a stage and a name, not one a file"
    assert told["won"] == 1, "of four writers of a name at once"
    sent, again, listed, fetched, taken, nowhere = told["ran"]
    assert sent["code"] == 0, sent["err"]
    assert json.loads(sent["out"])["files"] == 21
    assert json.loads(again["out"])["files"] == 0
    assert json.loads(listed["out"])["registry"] == url
    assert fetched["code"] == 0, fetched["err"]
    assert stored_files(back) == stored_files(team.root)
    assert taken["err"].startswith(f"error: the name gen0 belongs to another generation in {url}\n")
    assert nowhere["err"].startswith("error: there is no repository for hf://datasets/alice/none")


def test_collecting_during_a_copy_takes_nothing_of_it(
    team: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustkt.registry import copying

    target = Registry(tmp_path / "target")
    commit(target, 50, "theirs")
    real = copying.Folder.committing

    def collected(self: copying.Folder) -> Any:
        keep.collect(target, grace=0)
        return real(self)

    monkeypatch.setattr(copying.Folder, "committing", collected)
    api.copy(["gen2"], to=str(target.root), registry=team)
    assert damage(target) == []
    assert target.get("gen2").id == team.get("gen2").id


def test_histories_of_tags_are_joined(team: Registry, tmp_path: Path) -> None:
    target = Registry(tmp_path / "target")
    other = commit(target, 50, "theirs")
    keep.tag(target, "best", other.id)
    keep.untag(target, "best")
    api.copy(["gen2"], to=str(target.root), registry=team)
    assert [move["id"] for move in target.refs()["history"]["best"]] == [
        other.id, "", team.get("gen1").id, team.get("gen2").id,
    ]  # fmt: skip


def test_what_has_lost_its_name_is_asked_for_one(team: Registry, tmp_path: Path) -> None:
    lost = team.get("alone")
    keep.remove(team, ["alone"])
    with pytest.raises(RobustKTError, match=r"has lost its name.*\nGive it one: --as NAME"):
        api.copy([lost.id], to=str(tmp_path / "target"), registry=team)
    api.copy([lost.id], to=str(tmp_path / "target"), rename="found", registry=team)
    assert Registry(tmp_path / "target").get("found").id == lost.id


@pytest.mark.parametrize("place", ["target", "memory://claims"])
def test_claims_stay_claims(team: Registry, tmp_path: Path, place: str) -> None:
    found = team.get("gen2")
    (result,) = team.results(found.id)
    marks = {f"{result.kind}-{result.key}": digest(result.path.read_bytes())}
    told = claims.Claims(repo="org/gen2", revision=None, commit="0" * 40, license=None, results=marks)
    claims.write(team.root, found.id, told)
    assert team.results(found.id)[0].claimed
    where = place if "://" in place else str(tmp_path / place)
    api.copy(["gen2"], to=where, registry=team)
    back = Registry(tmp_path / "back")
    api.copy(["gen2"], source=where, registry=back)
    assert back.results(found.id)[0].claimed == "org/gen2@000000000000"
    assert damage(back) == notes(back) == []
