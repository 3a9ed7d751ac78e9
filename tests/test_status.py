"""status: jobs that run, stand still or were interrupted, read from folders that may hold anything."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.cli import status as drawn
from robustkt.numbers import canonical, digest
from robustkt.progress import Silent
from robustkt.registry import Registry, heartbeats, locks
from robustkt.registry.heartbeats import Heartbeat
from robustkt.registry.underway import CHECKPOINT, underway
from tests.conftest import Ran, gaussian_digits
from tests.stores import commit

KEY = "0123456789abcdef"
ARGV = ["robustkt", "distill", "--from", "gen0", "--to", "resnet20", "--fresh", "--name", "a b"]


def told(**given: Any) -> dict[str, Any]:
    facts = {"method": "crt", "arch": "resnet20", "data": "digits", "teacher": "gen0", "epochs": 30}
    return {"time": time.time(), "argv": ARGV, "facts": facts, "title": "training", "total": 1050, "done": 420.0,
            "rate": 7.0, **given}  # fmt: skip


def job(registry: Registry, name: str = f"train-{KEY}", content: Any = None) -> Path:
    """A job's folder with what it told of itself."""
    registry.create()
    folder = registry.root / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "needs.json").write_bytes(canonical([]))
    (folder / heartbeats.FILE).write_text(json.dumps(told() if content is None else content))
    return folder


def history(folder: Path, epochs: list[dict[str, Any]]) -> None:
    body = json.dumps({"epoch": len(epochs), "epochs": epochs}).encode() + b"\n" + bytes(100_000)
    (folder / CHECKPOINT).write_bytes(digest(body).encode() + b"\n" + body)


def lease(folder: Path, *, age: float = 0.0, **given: Any) -> None:
    owner = locks.owner_of(locks.lock_of(folder))
    here = {"pid": os.getpid(), "host": platform.node(), "boot": locks._boot(), "command": "robustkt x", "nonce": "n"}
    owner.write_text(json.dumps({**here, **given}))
    os.utime(owner, (time.time() - age,) * 2)


def only(registry: Registry) -> dict[str, Any]:
    (found,) = api.status(registry)["jobs"]
    return found


def test_a_registry_that_is_none_has_no_jobs(registry: Registry, cli: Callable[..., Ran]) -> None:
    assert api.status(registry) | {"time": ""} == {
        "registry": str(registry.root), "time": "", "running": 0, "jobs": [], "strange": []
    }  # fmt: skip
    assert not registry.root.exists()
    ran = cli("status")
    assert ran.code == 0
    assert ran.out.startswith("no job runs, and none was interrupted")


def test_a_job_that_runs_says_how_far_how_fast_and_how_long_still(registry: Registry) -> None:
    folder = job(registry)
    history(folder, [{"epoch": e, "held_out": 0.1 * e, "loss": 1.0, "images_per_second": 900.0} for e in range(12)])
    with locks.locked(locks.lock_of(folder), "this"):
        found = only(registry)
        assert found["state"] == "running"
        assert (found["host"], found["pid"]) == (platform.node(), os.getpid())
        assert found["what"] == "crt of resnet20 on digits, from gen0"
        assert (found["epoch"], found["epochs"], found["share"]) == (13, 30, 0.4)
        assert found["seconds_left"] == pytest.approx((1050 - 420) / 7, abs=2)
        assert found["images_per_second"] == 900.0
        assert found["curve"] == pytest.approx([0.1 * e for e in range(12)])
        assert found["resume"] is None
    assert only(registry)["state"] == "interrupted"


def test_what_was_interrupted_says_what_to_type(registry: Registry) -> None:
    job(registry)
    found = only(registry)
    assert found["state"] == "interrupted"
    assert found["resume"] == "robustkt distill --from gen0 --to resnet20 --name 'a b'"  # not --fresh: it starts over
    assert found["rate"] is None


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({}, "running"),
        ({"age": 3600}, "silent"),  # its process is there and gives no sign: suspended, or hung
        ({"pid": 2**22 + 1}, "interrupted"),  # no process has this number
        ({"pid": 2**22 + 1, "host": "elsewhere", "boot": "another"}, "running"),  # numbers mean nothing here
        ({"pid": 2**22 + 1, "host": "container"}, "running"),  # the same boot, other process numbers
        ({"host": "elsewhere", "boot": "another", "age": 3600}, "silent"),
        ({"age": -3600}, "running"),  # a clock that is ahead
        ({"pid": "no number"}, "interrupted"),
        ({"host": "\x1b[31m"}, "interrupted"),
    ],
)
def test_a_lease_says_whether_somebody_is_at_it(registry: Registry, given: dict[str, Any], state: str) -> None:
    lease(job(registry), **given)
    assert only(registry)["state"] == state


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", '{"time": 1, "argv": 7}', '{"time": NaN}', '{"time": 1e999}', "[" * 5000,
        json.dumps(told(text=["\x1b]0;title\x07"])), json.dumps(told(facts={"epochs": "many"})),
        json.dumps(told(title="x" * 60_000)), "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_costs_only_what_it_would_have_said(
    registry: Registry, cli: Callable[..., Ran], content: str
) -> None:
    (job(registry) / heartbeats.FILE).write_text(content)
    assert only(registry)["what"] == ""
    ran = cli("status", "--registry", registry.root)
    assert ran.code == 0
    assert "interrupted  train" in ran.out
    assert ran.out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "given",
    [
        {"total": -1}, {"total": 0}, {"done": 1e300}, {"done": -5.0}, {"rate": -1.0}, {"rate": 1e-300}, {"rate": 1e300},
        {"time": -1e300}, {"time": 1e300}, {"facts": {"epochs": -3}}, {"facts": {"epochs": 2**52}}, {"argv": []},
        {"argv": ["robustkt"]}, {"argv": ["rm", "-rf", "/"]}, {"argv": ["robustkt", "-c"]}, {"processes": -7},
        {"cwd": "/nonexistent"}, {"facts": {"images": -1, "certified": 10**15}},
    ],
)  # fmt: skip
def test_figures_that_cannot_be_break_nothing(
    registry: Registry, cli: Callable[..., Ran], given: dict[str, Any]
) -> None:
    folder = job(registry, content=told(**given))
    lease(folder)
    found = json.loads(cli("status", "--json", "--registry", registry.root).out)["jobs"][0]
    assert found["share"] is None or 0 <= found["share"] <= 1
    assert found["seconds_left"] is None or found["seconds_left"] >= 0
    locks.owner_of(locks.lock_of(folder)).unlink()
    assert cli("status", "--registry", registry.root).code == 0
    assert (only(registry)["resume"] or "robustkt distill").startswith(("robustkt distill", "torchrun"))


def test_only_plain_files_of_a_bounded_size_are_read(registry: Registry, tmp_path: Path) -> None:
    folder = job(registry)
    for name in (heartbeats.FILE, CHECKPOINT, "needs.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)  # opening one to read would wait for a writer
    (tmp_path / "secret").write_text(json.dumps(told(title="secret")))
    other = job(registry, "train-fedcba9876543210")
    (other / heartbeats.FILE).unlink()
    (other / heartbeats.FILE).symlink_to(tmp_path / "secret")
    (registry.root / "jobs" / "train-aaaaaaaaaaaaaaaa").symlink_to(tmp_path)
    assert [found["what"] for found in api.status(registry)["jobs"]] == ["", ""]


def test_folders_of_other_names_are_told_as_such(registry: Registry, cli: Callable[..., Ran]) -> None:
    registry.create()
    for name in ("notes", "Train-x", "train-\x1b[2J0123456789"):
        (registry.root / "jobs" / name).mkdir(parents=True)
    (registry.root / "jobs" / "a-file").touch()
    assert len(api.status(registry)["strange"]) == 3
    ran = cli("status", "--registry", registry.root)
    assert "3 folders in jobs/ of no job's name" in ran.out
    assert "\x1b" not in ran.out


def test_a_damaged_checkpoint_has_no_curve(registry: Registry) -> None:
    folder = job(registry)
    for data in (b"", b"x", b"\n\n\n", b"hash\n{}\n", b'hash\n{"epochs": [1, {"held_out": "x"}, {"loss": 1e308}]}\n'):
        (folder / CHECKPOINT).write_bytes(data)
        assert not any(only(registry)["curve"][:1])


def test_a_thousand_jobs(registry: Registry, cli: Callable[..., Ran]) -> None:
    registry.create()
    for number in range(1000):
        folder = registry.root / "jobs" / f"train-{number:016x}"
        folder.mkdir(parents=True)
        (folder / heartbeats.FILE).write_text(json.dumps(told(done=number)))
    began = time.process_time()
    ran = cli("status", "--registry", registry.root)
    assert time.process_time() - began < 3
    assert ran.out.startswith("0 jobs running, 1000 interrupted")
    assert ran.out.count("\ninterrupted ") == drawn.SHOWN
    assert f"and {1000 - drawn.SHOWN} more" in ran.out
    assert cli("status", "--all", "--registry", registry.root).out.count("\ninterrupted ") == 1000


@pytest.mark.parametrize("width", [80, 160])
def test_lines_fit_the_terminal_but_for_what_is_typed(
    registry: Registry, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    folder = job(registry, content=told(facts={**told()["facts"], "name": "n" * 100}))
    history(folder, [{"epoch": e, "held_out": e / 400} for e in range(400)])
    lease(folder)
    job(registry, f"certify-{KEY}", content=told(text=["x" * 180], facts={"generation": "g" * 90, "mode": "fixed"}))
    out = cli("status", "--registry", registry.root).out
    long = [line for line in out.splitlines() if len(line) > width]
    assert all("to go on, type" in line for line in long)
    assert "resnet20 on digits" in out
    assert {folder.name, f"certify-{KEY}"} <= set(out.split()), "a job's name is whole"
    heads = ("0 jobs", "1 job", "running ", "interrupted ", " ")
    assert [line for line in out.splitlines() if not line.startswith(heads)] == [], "further lines are indented"


def test_what_is_typed_names_the_folder_when_it_is_another(
    registry: Registry, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    place = tmp_path / "my work"
    place.mkdir()
    job(registry, content=told(cwd=str(place), processes=4))
    out = cli("status", "--registry", registry.root).out
    assert f"type: cd '{place}' && torchrun --nproc-per-node 4 -m -- robustkt distill" in out


def test_it_only_reads(registry: Registry) -> None:
    commit(registry, 0)
    folder = job(registry)
    lease(folder, pid=2**22 + 1)
    before = {path: path.lstat().st_mtime_ns for path in sorted(registry.root.rglob("*"))}
    api.status(registry)
    assert {path: path.lstat().st_mtime_ns for path in sorted(registry.root.rglob("*"))} == before


@pytest.mark.parametrize(
    "arguments", [("5",), ("--watch",), ("--watch", "--json"), ("--watch", "0"), ("--watch", "nan")]
)
def test_watching_needs_a_terminal_and_a_time(cli: Callable[..., Ran], arguments: tuple[str, ...]) -> None:
    ran = cli("status", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("error: ")


def test_watching_draws_until_interrupted(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    job(registry)
    rounds = []

    def nap(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(drawn.time, "sleep", nap)
    drawn._watch(registry, 0.5, False)
    assert rounds == [0.5] * 3


# -- the heartbeat ---------------------------------------------------------------------------------------------------


def test_a_beat_is_written_at_first_at_last_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    heart = Heartbeat(Silent(), tmp_path, epochs=3)
    path, seen = tmp_path / heartbeats.FILE, []
    with heart.bar("training", 100) as bar:
        for _ in range(60):
            now[0] += 1.0
            bar.advance(1)
            seen.append(json.loads(path.read_text())["done"])
        assert len(set(seen)) == 60 / heartbeats.EVERY + (seen[0] == 0)
        assert json.loads(path.read_text())["rate"] == pytest.approx(1.0)
        bar.advance(1, "latest")
    last = json.loads(path.read_text())
    assert (last["done"], last["total"], last["text"]) == (61, 100, ["latest"])
    assert [p.name for p in tmp_path.iterdir()] == [heartbeats.FILE]


def test_what_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    with Heartbeat(Silent(), tmp_path / "missing", strange=object()).bar("x", 1) as bar:
        bar.advance(1, "text")
    with Heartbeat(Silent(), None).bar("x", 1) as bar:
        bar.line("text")
    assert list(tmp_path.iterdir()) == []


def test_slow_disks_are_written_to_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeats.time, "monotonic", lambda: now[0])
    real = os.replace

    def slow(*places: Any) -> None:
        now[0] += 2.0
        real(*places)

    monkeypatch.setattr(heartbeats.os, "replace", slow)
    heart = Heartbeat(Silent(), tmp_path)
    assert heart.due - now[0] == 2.0 * heartbeats.SHARE


class Watched(Silent):
    """Looks at the registry from within a job, and ends it at a milestone as Ctrl-C does."""

    def __init__(self, registry: Registry, last: int) -> None:
        self.registry, self.last, self.seen = registry, last, []

    @contextmanager
    def bar(self, title: str, total: float, done: float = 0) -> Iterator[Watched]:
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        if not self.seen or text:
            self.line(text)

    def line(self, text: str) -> None:
        self.seen.append(only(self.registry))
        if len(self.seen) == self.last:
            raise KeyboardInterrupt


def test_training_certifying_and_attacking_are_seen_from_outside(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["robustkt", "train", "--fresh", "--sigma", "0.25"])
    training = Watched(registry, 3)
    with pytest.raises(KeyboardInterrupt):
        api.train(method="gaussian", arch="smallcnn", data="digits", given={"sigma": "0.25", "epochs": 3},
                  registry=registry, device="cpu", progress=training)  # fmt: skip
    first, *_, last = training.seen
    assert (first["state"], first["kind"], first["epoch"], first["epochs"]) == ("running", "train", 1, 3)
    assert first["what"] == "gaussian of smallcnn on digits"
    assert len(last["curve"]) == 2
    after = only(registry)
    assert (after["state"], after["epoch"]) == ("interrupted", 2)
    assert after["resume"] == "robustkt train --sigma 0.25"
    assert after["folder"] == os.getcwd()

    gaussian_digits(registry.root.parent, epochs=3)  # takes the same job to its end
    assert api.status(registry)["jobs"] == []
    certifying = Watched(registry, 2)
    with pytest.raises(KeyboardInterrupt):
        api.certify("gen0", n=200, n0=64, max_images=20, registry=registry, device="cpu", progress=certifying)
    assert certifying.seen[0]["what"] == "gen0, gaussian, sequential, n 200"
    assert certifying.seen[0]["images"] == 20
    after = only(registry)
    assert 1 <= after["certified"] <= 20  # figures are shown each second, and at the end
    assert after["figures"][0].startswith(f"{after['certified']} of 20 images")
    api.certify("gen0", n=200, n0=64, max_images=20, registry=registry, device="cpu")

    attacking = Watched(registry, 2)
    with pytest.raises(KeyboardInterrupt):
        api.evaluate("gen0", attacks=["fgsm"], eps="0.1", max_images=20, registry=registry, device="cpu", base=True,
                     progress=attacking)  # fmt: skip
    assert attacking.seen[0]["what"] == "gen0 under clean, fgsm"
    assert only(registry)["state"] == "interrupted"


@pytest.mark.slow
def test_a_job_that_is_killed_is_seen_before_and_after(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "robustkt", "train", "-m", "gaussian", "-a", "smallcnn", "-d", "digits",
               "--sigma", "0.25", "--epochs", "500", "-q"]  # fmt: skip
    registry, found = Registry(tmp_path / "registry"), []
    root = str(Path(__file__).parents[1])
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, stderr=-3) as process:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not (found and found[0]["curve"]):
            assert process.poll() is None
            time.sleep(0.1)
            found = api.status(registry)["jobs"]
        process.send_signal(signal.SIGKILL)
    (job,) = found
    assert (job["state"], job["kind"], job["pid"], job["epochs"]) == ("running", "train", process.pid, 500)
    assert job["what"] == "gaussian of smallcnn on digits"
    after = only(registry)
    assert after["state"] == "interrupted"
    assert after["resume"] == "python -m robustkt " + " ".join(command[3:])
    assert after["folder"] == str(tmp_path)
    assert underway(registry.root)[0][0].epochs
