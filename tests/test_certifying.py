"""Certifying from end to end: killed, interrupted, shared among processes, under every noise, it gives one log."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from robustkt import api, certlog
from robustkt.api.loading import pick_device
from robustkt.certificates import lower_bound
from robustkt.errors import RobustKTError
from robustkt.registry import Registry
from robustkt.votes import Votes
from tests.conftest import gaussian_digits, l2

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
SOME = {"sigma": "0.25", "n": 600, "n0": 64, "max_images": 24, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return gaussian_digits(tmp_path_factory.mktemp("certifying"), epochs=3)


@pytest.fixture(scope="module")
def whole(trained: Registry) -> bytes:
    """The log of an undisturbed run."""
    return Path(api.certify("gen0", **SOME, registry=trained)["log"]).read_bytes()


def command(registry: Registry, *more: str) -> list[str]:
    options = ["--sigma", "0.25", "--n", "600", "--n0", "64", "--max-images", "24", "--device", "cpu"]
    return ["robustkt", "certify", "gen0", *options, "--registry", str(registry.root), *more]


def run(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_same_seed_gives_the_same_bytes(trained: Registry, whole: bytes, tmp_path: Path) -> None:
    again = api.certify("gen0", **SOME, fresh=True, out=tmp_path / "log.tsv", registry=trained)
    assert (tmp_path / "log.tsv").read_bytes() == whole
    head = json.loads((tmp_path / "log.tsv.json").read_text())
    assert again["self_check"]["votes"] == 512
    assert again["self_check"]["differ_from_fp32"] <= (0 if head["precision"] == "fp32" else 10)  # bf16 has 8 bits
    assert (head["generation"], head["sigma"], head["mode"], head["n"]) == ("gen0", "0.25", "sequential", 600)
    assert {"id", "weights", "preprocessing", "alpha", "seed", "precision", "compiled", "versions"} <= set(head)
    other = api.certify("gen0", **SOME, seed=1, registry=trained)
    assert Path(other["log"]).read_bytes() != whole


@pytest.mark.slow
def test_two_ranks_of_torchrun_write_the_log_of_one_process(trained: Registry, whole: bytes) -> None:
    process = run(*TORCHRUN, *command(trained, "--fresh", "--json"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    answer = json.loads(out)  # of the first rank alone
    assert Path(answer["log"]).read_bytes() == whole
    assert not any((trained.root / "jobs").glob("certify-*/*"))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_was(trained: Registry, whole: bytes, ranks: int) -> None:
    """SIGKILL in the middle, of one process or of two; one process goes on with what either has seen."""
    more = command(trained, "--fresh", "--batch-size", "64")
    start = TORCHRUN if ranks == 2 else ("-m",)
    process = run(*start, *more)
    jobs = trained.root / "jobs"
    deadline = time.monotonic() + 120
    while sum(file.stat().st_size for file in jobs.glob("certify-*/votes-*.tsv")) < 1_500:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()
    (folder,) = [file for file in jobs.glob("certify-*") if file.is_dir()]
    seen = sum(len(file.read_bytes().split()) for file in folder.glob("votes-*.tsv"))
    assert seen > 0
    found = api.certify("gen0", **SOME, batch_size=64, registry=trained)
    assert not found["reused"]
    assert Path(found["log"]).read_bytes() == whole


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def test_each_process_of_torchrun_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", functools.cache(lambda: True))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert str(pick_device("cuda")) == "cuda"
    for rank, device in ((0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert str(pick_device("auto")) == device
    assert str(pick_device("cuda:1")) == "cuda:1"
    assert str(pick_device("cpu")) == "cpu"


def test_ctrl_c_tells_the_table_so_far(trained: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustkt.progress import Silent

    told: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    real, calls = Votes.add, []

    def interrupted(self: Votes, found: Any) -> None:
        real(self, found)
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Votes, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.certify("gen0", **SOME, batch_size=64, seed=9, registry=trained, progress=Notes())
    assert [line for line in told if re.fullmatch(r"so far, [1-9]\d* of 24 images:", line)]
    assert sum("certified at" in line and "[" in line for line in told) >= 3


@pytest.mark.parametrize("noise", ["quantised", "uniform", "laplace", "ablation:keep=60"])
def test_every_noise_certifies_from_end_to_end(trained: Registry, noise: str) -> None:
    given = SOME | ({"sigma": None} if noise.startswith("ablation") else {})
    found = api.certify("gen0", **given, noise=noise, registry=trained)
    assert found["noise"] == noise
    assert found["norm"] == {"quantised": "l2", "ablation:keep=60": "l0"}.get(noise, "l1")
    assert found["certified_accuracy"]["0"] > 0.5


def test_linf_radii_are_l2_radii_over_the_root_of_the_dimension(trained: Registry) -> None:
    l2, linf = (
        certlog.parse(Path(api.certify("gen0", **SOME, mode="fixed", norm=norm, registry=trained)["log"]).read_text())
        for norm in ("l2", "linf")
    )
    for one, other in zip(l2, linf, strict=True):
        assert one.successes == other.successes  # the same noise
        assert other.radius == pytest.approx(one.radius / 8, abs=2e-6)
        assert other.radius <= one.radius / 8 + 1e-6


def test_simultaneous_shares_alpha_among_the_images(trained: Registry) -> None:
    found = api.certify("gen0", **SOME, mode="fixed", simultaneous=True, registry=trained)
    assert found["alpha_image"] == 0.001 / 24
    for row in certlog.parse(Path(found["log"]).read_text()):
        bound = lower_bound(row.successes, row.trials, 0.001 / 24)
        assert row.radius == l2(0.25).radius(bound)


def test_randomised_bounds_are_larger_and_their_numbers_are_logged(trained: Registry) -> None:
    plain, found = (api.certify("gen0", **SOME, mode=mode, registry=trained) for mode in ("fixed", "randomised"))
    rows, before = (certlog.parse(Path(one["log"]).read_text()) for one in (found, plain))
    assert [row.successes for row in rows] != [row.successes for row in before]  # another procedure, other noise
    for row in rows:
        plain_bound = lower_bound(row.successes, row.trials, 0.001)
        assert row.p_low >= plain_bound - 1e-9
    assert any(row.p_low > lower_bound(row.successes, row.trials, 0.001) + 1e-5 for row in rows)
    assert len({row.u for row in rows}) == 24
    assert all(row.u is not None and 0 < row.u <= 1 for row in rows)


def test_another_sigma_is_said_to_be_another_classifier(trained: Registry) -> None:
    from robustkt.progress import Silent

    told: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    lone = {**SOME, "max_images": 4}
    api.certify("gen0", **lone | {"sigma": "1/8"}, noise="uniform", registry=trained, progress=Notes())
    told.clear()
    api.certify("gen0", **lone | {"sigma": "1/4"}, noise="uniform", registry=trained, progress=Notes())
    assert any("at σ 0.125 too" in line or ("at σ 0.125, 0.25 too" in line and "--alpha" in line) for line in told)
    told.clear()
    api.certify("gen0", **lone | {"sigma": "1/4", "n": 700}, noise="uniform", registry=trained, progress=Notes())
    assert any("certifications" in line for line in told)


def test_another_number_of_copies_draws_other_noise(trained: Registry) -> None:
    """Else a bound for a fixed n could be had on noise that n was chosen by."""
    logs = [
        certlog.parse(Path(api.certify("gen0", **SOME | {"n": n}, mode="fixed", registry=trained)["log"]).read_text())
        for n in (600, 601)
    ]
    assert sum(abs(one.successes - other.successes) > 1 for one, other in zip(*logs, strict=True)) > 6


def test_a_disk_that_refuses_the_last_votes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    votes = Votes(tmp_path / "votes.tsv", job="a")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RobustKTError, match="No space left") as told:
        votes.close()
    assert "it continues" in told.value.fix


@pytest.mark.parametrize("cut", [0, 1, 5, 12, 17])
def test_votes_that_a_crash_cut_off_are_drawn_again(tmp_path: Path, cut: int) -> None:
    from robustkt.smooth import Share

    shares = [Share(0, 2, 100, [60, 40]), Share(2, 1, 64, [64, 0])]
    votes = Votes(tmp_path / "votes.tsv", job="a")
    for share in shares:
        votes.add([(7, share)])
    votes.close()
    data = (tmp_path / "votes.tsv").read_bytes()
    (tmp_path / "votes.tsv").write_bytes(data[: len(data) - cut])
    again = Votes(tmp_path / "votes.tsv", job="a")
    assert again.before(7) == (shares if cut < 2 else shares[:1])  # the seal stands before the end of the line
    again.add([(7, shares[1])])
    again.close()
    third = Votes(tmp_path / "other.tsv", [tmp_path / "votes.tsv"], job="a")
    assert third.before(7) == shares
    assert third.before(8) == []
    third.close()
