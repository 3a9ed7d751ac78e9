"""Two ranks give what one gives: gradients, curves, verdicts; and a rank that dies or fails keeps nobody waiting."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from robustkt import api
from robustkt.core import Batch, InPrecision, ThreatModel, generator
from robustkt.data import Split, crop_flip, to_float
from robustkt.engine import Meter, Trainer
from robustkt.errors import RobustKTError, UsageError
from robustkt.evaluate import robust_accuracy
from robustkt.generation import Training
from robustkt.losses import ce
from robustkt.objectives.gaussian import Gaussian
from robustkt.parts import Parts, check_parts
from robustkt.progress import Silent
from robustkt.ranks import Ranks, _met, lost, ranks, world
from robustkt.registry import Registry, locks
from robustkt.updates import sgd
from tests.conftest import gaussian_digits

CPU = torch.device("cpu")
SIZE, STEPS, QUARTER = 16, 20, Fraction(1, 4)
PRELOADED = [  # once, for all processes of all groups: these are most of their seconds
    "robustkt.api.certifying", "robustkt.api.evaluating", "robustkt.api.training", "robustkt.cli.measure",
    "robustkt.cli.train", "robustkt.noises.gaussian", "sklearn.datasets", "tests.test_scale", "torch._dynamo",
    "torch.nn.parallel",
]  # fmt: skip
Work = Callable[..., Any]


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(work: Work, folder: Path, rank: int, variables: Mapping[str, str], arguments: tuple[Any, ...]) -> None:
    """One process of a group: what it answers or raises lies in the folder."""
    os.environ.update(variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    try:
        torch.save((work(*arguments), None), folder / f"{rank}.pt")
    except RobustKTError as error:
        torch.save((None, error.what), folder / f"{rank}.pt")


def together(work: Work, folder: Path, *arguments: Any, size: int = 2) -> list[tuple[Any, str | None]]:
    """What `work` gives at each of `size` ranks on loopback, or the message of its error."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    variables = {
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()),
        "OMP_NUM_THREADS": "1", "ROBUSTKT_RANK_TIMEOUT": "240",
    }  # fmt: skip
    started = [context.Process(target=_rank, args=(work, folder, r, variables, arguments)) for r in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        assert process.exitcode == 0
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(size)]


class Net(nn.Module):
    """A convolution, BatchNorm, a linear layer; one parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.spare = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))
        return found


@dataclass(frozen=True)
class Watched:
    """Gaussian training that keeps the value of each part's loss."""

    inner: Gaussian
    values: list[float]

    def perturb(self, student: Any, batch: Batch) -> Tensor:
        return self.inner.perturb(student, batch)

    def loss(self, student: Any, batch: Batch, view: Tensor) -> Any:
        terms = self.inner.loss(student, batch, view)
        self.values.append(float(terms["ce"].detach()))
        return terms


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def images(count: int = SIZE * STEPS) -> Split:
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(256, (count, 1, 6, 6), generator=rng, dtype=torch.uint8)
    return Split(x, torch.arange(count) % 3)


def trained(
    folder: Path, parts: int, sync_bn: bool = False, epochs: int = 1, stop: int | None = None
) -> dict[str, Any]:
    """A short run of this rank's group: the curve of its own parts, the state, the history."""

    class Watch(Silent):
        def line(self, text: str) -> None:
            if stop is not None and text.startswith(f"epoch {stop}/"):
                raise KeyboardInterrupt

    with ranks() as group:
        student, method = net(), Watched(Gaussian(sigma=QUARTER), [])
        plan = Training(
            epochs=epochs, batch_size=SIZE, lr=0.1, schedule="constant", clip=1.0, ema=0.9, pad=1, flip=True,
            sync_bn=sync_bn,
        )  # fmt: skip
        run = Trainer(
            student=student, objective=method, images=images(), training=plan, score=lambda model: 0.5, folder=folder,
            progress=Watch(), device=CPU, meters={"student": Meter(student)}, world_size=parts, group=group,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            fit = run.run()
            epochs_told = [{k: v for k, v in e.items() if k != "images_per_second"} for e in fit.history.epochs]
            return {
                "curve": method.values, "last": fit.last, "cost": fit.history.cost, "epochs": epochs_told,
                "student": {k: v.clone() for k, v in student.state_dict().items()},
            }  # fmt: skip
        return {}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# -- a step ------------------------------------------------------------------------------------------------------------


def test_two_ranks_and_one_rank_in_two_parts_are_the_same_bit_by_bit(tmp_path: Path) -> None:
    (first, _), (second, _) = together(trained, tmp_path / "two", tmp_path / "job2", 2)
    one = trained(tmp_path / "job1", 2)
    assert same(first["student"], second["student"])
    assert same(first["student"], one["student"])
    assert same(first["last"], one["last"]), "the average too"
    assert first["epochs"] == second["epochs"] == one["epochs"]
    assert first["cost"] == second["cost"] == one["cost"] == dict.fromkeys(one["cost"], SIZE * STEPS)
    assert one["curve"][::2] == first["curve"]
    assert one["curve"][1::2] == second["curve"]
    whole = trained(tmp_path / "job0", 1)
    assert not same(whole["student"], one["student"]), "another recipe"


def test_a_step_goes_down_the_mean_of_the_parts_gradients(tmp_path: Path) -> None:
    """Written out in float64: each part's gradient by itself, then the mean by hand; buffers likewise."""
    parts, student = Parts(Ranks(), 4, CPU, 7), net()
    method, split = Gaussian(sigma=QUARTER), images()
    model = InPrecision(student, torch.float32)
    outer = parts.prepared(method, model)
    parts.begin(0)
    views: list[tuple[Tensor, Tensor]] = []

    def terms_of(some: slice, rng: torch.Generator) -> Any:
        batch = Batch(split.x[some].float() / 255, split.y[some], 0, rng)
        view = method.perturb(model, batch)
        views.append((view, batch.y))
        return outer(batch, view)

    terms = parts.step(outer, SIZE, (0, 0), terms_of)
    gradients, means, losses = [], [], []
    for view, y in views:
        twin = net().double()
        loss = ce(twin(view.double()), y).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append([p.grad for name, p in twin.named_parameters() if name != "spare"])
        means.append(twin.norm.running_mean)
    for place, (name, parameter) in enumerate((n, p) for n, p in student.named_parameters() if n != "spare"):
        by_hand = sum(one[place] for one in gradients) / 4
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), by_hand, rtol=1e-4, atol=1e-7, msg=name)
    torch.testing.assert_close(student.norm.running_mean.double(), sum(means) / 4, rtol=1e-5, atol=1e-7)
    assert int(student.norm.num_batches_tracked) == 1
    assert float(terms["ce"].detach()) == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert len({float(view.sum()) for view, _ in views}) == 4, "every part has noise of its own"


def test_sync_bn_on_two_ranks_is_one_rank_with_the_double_batch(tmp_path: Path) -> None:
    """Against a plain loop with ordinary BatchNorm on both parts' views at once: 20 steps within 1e-5."""
    (first, _), (second, _) = together(trained, tmp_path / "two", tmp_path / "job", 2, True)
    curve = [(a + b) / 2 for a, b in zip(first["curve"], second["curve"], strict=True)]
    student, split = net(), images()
    optimizer = sgd(student, Training(lr=0.1, batch_size=SIZE))
    parts, whole = Parts(Ranks(), 2, CPU, 0), []
    parts.begin(0)
    order = torch.randperm(len(split), generator=generator("cpu", 0, "order", 0))
    for step in range(STEPS):
        rows, views = order[step * SIZE : (step + 1) * SIZE], []
        for place in range(2):
            some, rng = rows[place * SIZE // 2 : (place + 1) * SIZE // 2], parts.generators[place]
            x = to_float(crop_flip(split.x[some], pad=1, flip=True, rng=rng))
            views.append(x + 0.25 * torch.randn(x.shape, generator=rng))
        loss = ce(student(torch.cat(views)), split.y[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        whole.append(float(loss.detach()))
    assert len(curve) == STEPS
    assert max(abs(a - b) for a, b in zip(curve, whole, strict=True)) < 1e-5
    for name, value in student.state_dict().items():
        torch.testing.assert_close(first["student"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    apart = trained(tmp_path / "apart", 2)["curve"]
    assert abs(sum(apart[-2:]) / 2 - whole[-1]) > 1e-5, "without it the curve is another"


def test_an_interrupted_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", 2, epochs=3)
    assert trained(tmp_path / "job", 2, epochs=3, stop=2) == {}
    (first, _), (second, _) = together(trained, tmp_path / "two", tmp_path / "job", 2, False, 3)
    assert same(first["student"], whole["student"])
    assert same(second["last"], whole["last"])
    assert first["epochs"] == whole["epochs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 33, 2, False), "cannot be split into 2 equal parts"),
        ((3, 33, 2, False), "2 ranks cannot share the 3 parts"),
        ((0, 32, 1, False), "world_size must lie between"),
        ((2, 32, 1, True), "a rank of its own"),
        ((1, 32, 1, True), "needs several parts"),
    ],
)
def test_parts_that_cannot_be_are_refused(arguments: tuple[int, int, int, bool], words: str) -> None:
    count, rows, size, sync_bn = arguments
    with pytest.raises(UsageError, match=words):
        check_parts(count, rows, size, sync_bn=sync_bn)


# -- ranks -------------------------------------------------------------------------------------------------------------


def meet(registry: Path, own: bool) -> list[Any]:
    with ranks() as group:
        scores = robust_accuracy(net().eval(), images(600), linf(), steps=2, device=CPU, group=group)
        group.agree({"registry": str(registry), "place": group.rank if own else 0})
        return [group.rank, group.world, group.first(bytes([group.rank])), group.hosts(), scores]


def linf() -> ThreatModel:
    return ThreatModel("linf", QUARTER)


def test_ranks_score_alike_and_notice_that_their_jobs_differ(tmp_path: Path) -> None:
    scores = robust_accuracy(net().eval(), images(600), linf(), steps=2, device=CPU)
    assert [r for r, _ in together(meet, tmp_path, tmp_path, False)] == [[r, 2, b"\0", 1, scores] for r in (0, 1)]
    for _, error in together(meet, tmp_path, tmp_path, True):
        assert error is not None
        assert "rank 1" in error
        assert "another place" in error


def drift() -> None:
    with ranks() as group:
        student = net()
        with torch.no_grad():
            student.head.bias += group.rank * 1e-7
        Parts(group, 2, CPU, 0).check(student)


def test_ranks_with_different_weights_are_noticed(tmp_path: Path) -> None:
    assert all(error and "different weights" in error for _, error in together(drift, tmp_path))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2"}, "RANK and"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "name no rank"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "name no rank"),
    ],
)
def test_half_a_group_is_refused(
    variables: dict[str, str], words: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=words):
        world()
    if variables.get("RANK", "0") == "0":
        ran = cli("evaluate", "--json")
        assert ran.code == 2
        assert words in ran.json["error"]
        assert words in ran.err


def test_commands_that_no_ranks_can_share_say_so_once(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        ran = cli("list")
        assert ran.code == 2
        assert ("torchrun has started 4" in ran.err) == said
    monkeypatch.setenv("ROBUSTKT_RANK_TIMEOUT", "soon")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("RANK", "0")
    assert "ROBUSTKT_RANK_TIMEOUT" in cli("evaluate").err


def test_ranks_that_were_started_again_outwait_the_lease_of_a_machine_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert locks.for_a_job() == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert locks.for_a_job() == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert locks.for_a_job() > locks.STALE + locks.BEAT


def test_a_lost_neighbour_is_told_from_a_bug() -> None:
    assert lost(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert lost(RuntimeError("NCCL communicator was aborted"))
    assert lost(torch.distributed.DistBackendError("NCCL error: remote process exited"))
    assert not lost(RecursionError("gloo")), "a mistake of ours"
    assert not lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost(ValueError("connection closed"))


# -- commands ----------------------------------------------------------------------------------------------------------


def command(registry: Path, rank_one: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """The command line in this process, as torchrun starts it; rank 1 may get other words."""
    from robustkt.cli import application

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    words = rank_one if os.environ["RANK"] == "1" and rank_one else only
    out, err = io.StringIO(), io.StringIO()
    os.environ["ROBUSTKT_REGISTRY"] = str(registry)
    sys.argv = ["robustkt", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            application(words[0])(list(words))
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("attacks", "images"),
    [
        pytest.param("fgsm,square:queries=5", 300, id="batches", marks=pytest.mark.slow),
        pytest.param("smoothadv:steps=1", 30, id="smoothed"),
    ],
)
def test_evaluate_on_two_ranks_gives_the_bytes_of_one(attacks: str, images: int, tmp_path: Path) -> None:
    registry = gaussian_digits(tmp_path, epochs=1)
    asked = {"attacks": attacks.split(","), "eps": "0.05", "max_images": images, "base": True, "registry": registry}
    alone = api.evaluate("gen0", **asked, device="cpu")
    (result,) = registry.results(alone["id"], "evaluation")
    log = registry.log(result)
    words = ("evaluate", "gen0", "--attack", attacks, "--eps", "0.05", "--max-images", str(images), "--base", "--json")
    told = together(command, tmp_path / "two", registry.root, (), (*words, "--fresh", "--device", "cpu"))
    assert [code for (code, _, _), _ in told] == [0, 0], told
    assert told[1][0][1:] == ("", ""), "the first rank speaks alone"
    assert json.loads(told[0][0][1]) == json.loads(json.dumps(alone))
    (again,) = registry.results(alone["id"], "evaluation")
    assert again.content["ranks"] == 2
    assert registry.log(again) == log
    assert not any((registry.root / "jobs").glob("*/*"))


def test_certificates_of_two_ranks_are_the_bytes_of_one(tmp_path: Path) -> None:
    registry = gaussian_digits(tmp_path, epochs=1)
    few = {"sigma": "0.25", "n": 600, "n0": 64, "max_images": 24}
    log = Path(api.certify("gen0", **few, registry=registry, device="cpu")["log"]).read_bytes()
    words = [f"--{key.replace('_', '-')}={value}" for key, value in few.items()]
    told = together(
        command, tmp_path / "two", registry.root, (), ("certify", "gen0", *words, "--json", "--fresh", "--device=cpu")
    )
    assert [code for (code, _, _), _ in told] == [0, 0], told
    assert told[1][0][1:] == ("", ""), "the first rank speaks alone"
    assert Path(json.loads(told[0][0][1])["log"]).read_bytes() == log
    assert not any((registry.root / "jobs").glob("certify-*/*"))


def test_a_table_of_corruptions_on_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    registry = gaussian_digits(tmp_path, epochs=1)
    words = ("evaluate", "gen0", "--attack", "clean", "--corruption", "contrast:1,contrast:3", "--max-images", "40")
    table = together(command, tmp_path / "table", registry.root, (), (*words, "--json", "--device", "cpu"))
    plain = api.evaluate_corruptions("gen0", corruption="contrast:1,contrast:3", max_images=40, registry=registry)
    assert {**json.loads(table[0][0][1]), "reused": 2} == json.loads(json.dumps(plain))


def test_an_error_of_one_rank_ends_all_and_is_told_once(tmp_path: Path) -> None:
    """Rank 1 lacks the data; and both have the same wrong option: the first tells it."""
    words = ("train", "-m", "gaussian", "-a", "smallcnn", "--sigma", "0.25", "--epochs", "1", "--device", "cpu", "-d")
    began = time.monotonic()
    registry = tmp_path / "registry"
    first, second = together(command, tmp_path / "one", registry, (*words, str(tmp_path / "gone")), (*words, "digits"))
    assert time.monotonic() - began < 200, "nobody waits for the end of the timeout"
    assert [first[0][0], second[0][0]] == [second[0][0]] * 2 != [0, 0]
    assert "error" not in first[0][2]
    assert "rank 1 on" in second[0][2]
    assert str(tmp_path / "gone") in second[0][2].replace("\n", "")
    bad = (*words, "digits", "--batch-size", "33", "--json")
    told = together(command, tmp_path / "both", registry, (), bad)
    assert [code for (code, _, _), _ in told] == [2, 2]
    (said,) = [out for (_, out, _), _ in told if out]  # of the first, unless it is seconds behind
    assert "cannot be split" in json.loads(said)["error"]


def test_a_student_of_two_ranks_is_reproduced_by_one(tmp_path: Path) -> None:
    registry = gaussian_digits(tmp_path, epochs=1)
    words = ("distill", "--from", "gen0", "--to", "smallcnn", "--epochs", "2", "--device", "cpu", "--json")
    told = together(command, tmp_path / "two", registry.root, (), words)
    assert [code for (code, _, _), _ in told] == [0, 0], told
    made = registry.get(json.loads(told[0][0][1])["generation"])
    record = registry.record(made.id)
    assert (made.recipe.world_size, record["ranks"], record["hosts"]) == (2, 2, 1)
    assert told[1][0][1:] == ("", "")
    again = api.reproduce(made.name, registry=registry, device="cpu")
    assert again["verdict"] == "identical"
    assert again["circumstances"] == {"ranks": [2, None]}
    reused = together(command, tmp_path / "again", registry.root, (), words)
    assert json.loads(reused[0][0][1])["created"] is False


def test_ranks_that_are_started_again_do_not_meet_those_that_died() -> None:
    store, wait = distributed.HashStore(), datetime.timedelta(seconds=30)
    store.set("here/1", "dead")
    store.set("name/dead", "grave")
    with ThreadPoolExecutor() as pool:
        met = list(pool.map(lambda rank: _met(store, rank, 3, wait), range(3)))
    met[0].set("said", "by the first")
    assert [one.get("said") for one in met] == [b"by the first"] * 3
    assert not distributed.PrefixStore("grave", store).check(["said"])
    with pytest.raises(RuntimeError, match="timed out waiting for rank 1"):
        _met(distributed.HashStore(), 0, 2, datetime.timedelta(seconds=0.05))


# -- torchrun ----------------------------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [*launch, "--max-restarts", "3", "-m", "--", "robustkt", *arguments]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


PLAN = [
    "train", "-m", "gaussian", "-a", "resnet8", "-d", "digits", "--sigma", "0.25", "--epochs", "6", "--device", "cpu",
    "--json", "--registry",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of an undisturbed run of two ranks."""
    process = torchrun(*PLAN, str(tmp_path_factory.mktemp("whole") / "registry"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return str(json.loads(out)["id"])


def underway(registry: Path) -> subprocess.Popen[str]:
    """A run of two ranks that has written a checkpoint."""
    process = torchrun(*PLAN, str(registry))
    deadline = time.monotonic() + 300
    while not list((registry / "jobs").glob("train-*/checkpoint.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def ranks_of(launcher: int) -> dict[str, int]:
    """Process numbers by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=False)
    found = {}
    for pid in listed.stdout.split():
        with contextlib.suppress(OSError):
            told = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
            found[told.get("RANK", "")] = int(pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_nothing_had_been(
    victim: str, undisturbed: str, tmp_path: Path
) -> None:
    process = underway(tmp_path / "registry")
    os.kill(ranks_of(process.pid)[victim], signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "continuing after epoch" in err
    assert json.loads(out.splitlines()[-1])["id"] == undisturbed
    record = Registry(tmp_path / "registry").record(undisturbed)
    assert [entry["epoch"] for entry in record["epochs"]] == list(range(6))


@pytest.mark.slow
def test_a_terminated_group_says_so_once_and_goes_on_when_it_is_started_again(undisturbed: str, tmp_path: Path) -> None:
    process = underway(tmp_path / "registry")
    process.terminate()
    out, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert err.count("error: interrupted") == 1, err
    assert len(out.splitlines()) == 1
    again = torchrun(*PLAN, str(tmp_path / "registry"))
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert "continuing after epoch" in err
    assert json.loads(out)["id"] == undisturbed
