"""The two sides of a benchmark do the same work, and the ratio is what it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import nn

from robustkt import bench, objectives
from robustkt.api import benching
from robustkt.attacks.apgd import APGD
from robustkt.attacks.autoattack import autoattack
from robustkt.attacks.square import Square
from robustkt.core import Batch, ThreatModel
from robustkt.losses import ce
from tests.conftest import Ran

CPU = torch.device("cpu")


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_both_rslad_steps_are_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same noise the weights move the same way, but for the attack's rounding."""
    ours, teacher = network(), network(5).eval()
    theirs = copy.deepcopy(ours)
    rng = torch.Generator().manual_seed(0)
    x, noise = torch.rand(16, 1, 8, 8, generator=rng), torch.randn(16, 1, 8, 8, generator=rng)
    monkeypatch.setattr(torch, "randn", lambda *size, **how: noise)
    monkeypatch.setattr(torch, "randn_like", lambda at: noise)
    objective = objectives.build("rslad", {"norm": "linf", "eps": "8/255"}, teacher)
    step = {"lr": 0.1, "momentum": 0.9}
    batch = Batch(x, torch.zeros(16, dtype=torch.int64), 0, rng)
    bench.our_step(ours, objective, batch, torch.optim.SGD(ours.parameters(), **step))
    optimizer = torch.optim.SGD(theirs.parameters(), **step)
    bench.plain_rslad_step(theirs, teacher, x, optimizer, eps=8 / 255, steps=10)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5, msg=name)


class Linear(nn.Module):
    """Two classes of a known margin."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([-margin, margin], dim=1)


def test_the_plain_ensemble_breaks_what_ours_breaks() -> None:
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
    ran = cli("bench", "train", "--arch", "smallcnn", "--batch-size", "2", "--repeats", "1", "--images", "2", "--json")
    assert ran.code == 0
    assert set(ran.json["ratios"]) == {"rslad_step", "autoattack"}
    assert all(ratio > 0 for ratio in ran.json["ratios"].values())
    assert ran.json["machine"]["threads"] >= 1


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
        (("train", "--arch", "resnet21x"), 2, "unknown architecture"),
    ],
)
def test_what_cannot_be_timed(arguments: tuple[str, ...], code: int, said: str, cli: Callable[..., Ran]) -> None:
    ran = cli("bench", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert ran.out == ""
