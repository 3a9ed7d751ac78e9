"""The two sides of a benchmark do the same work, and the ratio is what it says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from robustkt import bench, objectives, passes
from robustkt.api import benching, benchsteps
from robustkt.attacks.apgd import APGD
from robustkt.attacks.autoattack import VERSIONS, autoattack
from robustkt.attacks.square import Square
from robustkt.catalog import METHODS
from robustkt.core import ThreatModel
from robustkt.data import Split
from robustkt.engine import Meter
from robustkt.losses import ce
from robustkt.progress import Silent
from tests.conftest import Ran

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", benchsteps.PLAIN)
def test_plain_loops_take_the_step_of_the_objective(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all random numbers fixed, ours and the script's way of writing it end at the same weights."""
    monkeypatch.setattr(torch, "randn", lambda *size, **how: drawn(size))
    monkeypatch.setattr(torch, "randn_like", lambda at: drawn(at.shape))
    monkeypatch.setattr(torch, "rand", lambda *size, **how: drawn(size).sigmoid())
    monkeypatch.setattr(torch, "rand_like", lambda at: drawn(at.shape).sigmoid())
    steps = benchsteps.Steps([method], "smallcnn", (3, 8, 8), 4, CPU, "fp32", False, Silent())
    # away from 0 and 1: ours puts an attack's start into the box, scripts leave that to the first step, and where the
    # KL has next to no slope, as in TRADES, that turns signs
    steps.images = Split(steps.images.x.clamp(30, 220), steps.images.y)
    trainer, loop = steps._trainer(method), steps._plain(method)
    theirs = loop.args[0]  # type: ignore[attr-defined]
    trainer.training = dataclasses.replace(trainer.training, pad=0, flip=False)
    trainer.optimizer = torch.optim.SGD(trainer.student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    trainer.step(torch.arange(len(steps.images)), steps.images.x, steps.images.y, (benchsteps.EPOCH, 0), 1e-3)
    loop()
    before = steps.network.state_dict()
    both = zip(trainer.student.named_parameters(), theirs.parameters(), strict=True)
    ways = [(mine.detach() - before[name], other.detach() - before[name]) for (name, mine), other in both]
    ours, wanted = (torch.cat([way[side].flatten() for way in ways]) for side in (0, 1))
    assert (ours - wanted).norm() <= 1e-3 * wanted.norm()


def drawn(size: Any) -> torch.Tensor:
    """The same numbers for the same shape, however they are asked for."""
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    return torch.linspace(-2, 2, math.prod(shape)).sin().reshape(shape)


TIMED = [m for m in METHODS.names() if not issubclass(METHODS.get(m), objectives.Modal)]


@pytest.mark.parametrize("method", TIMED)
def test_the_arithmetic_of_a_method_is_what_the_engine_counts(method: str) -> None:
    """So no pass is taken twice, and none is missing from the minimum."""
    steps = benchsteps.Steps([method], "smallcnn", (3, 8, 8), 3, CPU, "fp32", False, Silent())
    trainer = steps.trainers[method]
    how = trainer.objective
    meters = {"student": Meter(trainer.net)}
    meters["student"].watch(trainer.victim)
    teacher = getattr(how, "teacher", None)
    if teacher is not None:
        meters["teacher"] = Meter(teacher)
    for epoch in (0, benchsteps.EPOCH):
        trainer.step(torch.arange(len(steps.images)), steps.images.x, steps.images.y, (epoch, 0), 1e-3)
        found = {f"{name}_{way}": n for name, meter in meters.items() for way, n in meter.take().items()}
        needed = passes.passes(method, how, epoch)
        assert needed is not None
        assert found == {key: 3 * n for key, n in needed.counted.items() if key in found}
        assert teacher is not None or not needed.taught + needed.taught_attacked


def test_methods_of_one_mode_have_their_arithmetic_written_down() -> None:
    assert set(passes.METHODS) == set(TIMED)


class Linear(nn.Module):
    """Two classes of a known margin."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([-margin, margin], dim=1)


def test_the_plain_ensemble_breaks_what_ours_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, threat = Linear(), ThreatModel("linf", Fraction(1, 20))
    x = 0.2 + 0.6 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    margin = model(x)[:, 1].detach()
    y = (margin > 0).long()
    reach = float(threat.eps) * model.w.detach().abs().sum()
    searches = [APGD("apgd-ce", lambda z, labels, target: ce(z, labels), 20), Square(60)]
    standing = bench.plain_ensemble(model, x, y, threat, searches, batch_size=16)
    clear = (margin.abs() - reach).abs() > 0.05 * reach
    assert clear.sum() > 30
    assert torch.equal(standing[clear], (margin.abs() > reach)[clear])
    monkeypatch.setitem(VERSIONS, "standard", lambda classes: searches)
    x_adv = autoattack(model, x, y, threat, rng=torch.Generator().manual_seed(0), batch_size=16)
    assert torch.equal((model(x_adv).argmax(dim=1) == y)[clear], standing[clear])


def test_pairs_are_taken_in_turn_and_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def taking(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    found = bench.pairs(taking("ours", 2.0), taking("plain", 5.0), 3, CPU)
    assert order == ["ours", "plain", "ours", "plain", "plain", "ours", "ours", "plain"]
    assert found["ours_seconds"] == pytest.approx(2)
    assert found["plain_seconds"] == pytest.approx(5)
    assert found["ratio"] == pytest.approx(2.5)
    assert len(found["ratios"]) == 3


def test_bench_from_the_command_line(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkt.api.benching.standard", lambda classes: [Square(9)])
    train = benching.train
    short = {"eps": "0.1", "epochs": 1, "steps": 1}  # what is timed need not be robust
    monkeypatch.setattr(benching, "train", lambda **told: train(**{**told, "given": short}))
    small = ("--arch", "smallcnn", "--batch-size", "2", "--image-size", "8", "--repeats", "1", "--images", "2")
    ran = cli("bench", "train", "-m", "rslad,mart,autoattack", *small, "--json")
    assert ran.code == 0, ran.err
    ratios = ran.json["ratios"]
    assert {"natural_cost", "rslad_cost", "rslad_of_minimum", "rslad_times_plain_loop", "mart_cost"} <= set(ratios)
    assert "mart_times_plain_loop" not in ratios  # nobody wrote that loop down
    assert ratios["natural_cost"] == 1
    assert all(ratio > 0 for ratio in ratios.values())
    figure = ran.json["figures"]["rslad"]
    assert figure["passes"] == {"trained": 2, "attacked": 10, "judged": 0, "taught": 1, "taught_attacked": 0}
    rates = ran.json["rates"]
    assert figure["minimum_seconds"] == pytest.approx(2 * rates["train"] + 10 * rates["attack"] + rates["forward"])
    assert {"data", "attack", "teacher", "forward", "backward", "optimiser"} == set(figure["profile"])
    assert figure["peak_bytes"] > 3 * 8 * 8 * 2 * 4  # more than its images
    assert "autoattack_times_plain_loop" in ratios
    assert ran.json["machine"]["threads"] >= 1
    ran = cli("bench", "train", "-m", "natural", *small)
    assert "natural" in ran.out
    assert "× plain loop" in ran.out


def test_bench_certify_from_the_command_line(cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustkt.inference.can_compile", lambda device: False)
    ran = cli("bench", "certify", "--arch", "smallcnn", "--samples", "100", "--repeats", "1", "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["ratios"]) == {"reference_loop", "bare_forward"}
    assert ran.json["samples"] == 256  # whole batches
    assert ran.json["ratios"]["bare_forward"] > 0
    train = ("train", "-m", "gaussian", "-a", "smallcnn", "-d", "digits", "--sigma", "0.25", "--epochs", "1")
    assert cli(*train).code == 0
    ran = cli("bench", "certify", "gen0", "--images", "3", "--n", "500", "--samples", "100", "--repeats", "1", "--json")
    assert ran.json["figures"]["table"]["samples_per_image"] <= 600
    assert ran.json["ratios"]["table"] > 0


def test_the_reference_loop_counts_every_copy() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    counts = bench.plain_counts(model, torch.zeros(1, 2, 2), 1_000, 0.5, 64, 3)
    assert sum(counts) == 1_000
    assert min(counts) < 1_000


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("trian",), 2, "No such command 'trian'"),
        (("certify", "--samples", "0"), 2, "at least 1"),
        (("certify", "--precision", "fp8"), 2, "unknown precision"),
        (("train", "--images", "0"), 2, "at least 1"),
        (("train", "--method", "rsald"), 2, "unknown objective"),
        (("train", "--method", "cotraining"), 2, "several modes"),
        (("train", "--compile", "perhaps"), 2, "unknown value of --compile"),
        (("train", "--arch", "resnet21x"), 2, "unknown architecture"),
    ],
)
def test_what_cannot_be_timed(arguments: tuple[str, ...], code: int, said: str, cli: Callable[..., Ran]) -> None:
    ran = cli("bench", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert ran.out == ""
