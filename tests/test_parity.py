"""A small run of the comparison with torchattacks."""

from __future__ import annotations

import importlib
from fractions import Fraction

import pytest
import torch
from torch import nn

from robustkt.core import ThreatModel


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_attacks_leave_as_many_images_as_torchattacks() -> None:
    pytest.importorskip("torchattacks", reason="torchattacks is not installed: pip install --no-deps torchattacks")
    parity = importlib.import_module("benchmarks.parity")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 24), nn.Tanh(), nn.Linear(24, 10)).eval().requires_grad_(False)
        x = torch.rand(100, 1, 12, 12)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    threat = ThreatModel("linf", Fraction(1, 40))
    assert parity.step_for_step(net, x, y, threat) < 1e-6
    names = ("apgd-ce", "apgd-t", "fab-t", "square")
    for name, row in parity.compare(net, x, y, threat, seeds=2, queries=500, attacks=names):
        assert 0 < max(row["ours"]["robust"]) < 100, name
        assert row["mean_difference"] <= 2, (name, row)
