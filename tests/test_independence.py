"""Random streams that must not be the same: a student's and its teacher's, and the chunks of one image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustkt import api
from robustkt.api import jobs
from robustkt.core import Batch, Model
from robustkt.objectives.gaussian import Gaussian
from robustkt.objectives.transfer import CRT
from robustkt.registry import Registry


def test_a_student_begins_elsewhere_and_sees_other_noise_than_its_teacher(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same network at the same seed, so that only the teacher tells the two runs apart."""
    begun: list[torch.Tensor] = []
    seen: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    build = jobs.Job.student

    def spied(job: Any) -> Any:
        network = build(job)
        begun.append(next(p.detach().clone() for p in network.parameters()))
        return network

    monkeypatch.setattr(jobs.Job, "student", spied)
    for kind, who in ((Gaussian, "teacher"), (CRT, "student")):
        perturb = kind.perturb

        def watched(self: Any, student: Model, batch: Batch, perturb: Any = perturb, who: str = who) -> Any:
            view = perturb(self, student, batch)
            seen[who].append((view if isinstance(view, torch.Tensor) else view.x) - batch.x)
            return view

        monkeypatch.setattr(kind, "perturb", watched)
    given = {"epochs": 1, "batch_size": 256}
    api.train(method="gaussian", arch="smallcnn", data="digits", given={"sigma": "0.25", **given}, registry=registry)
    api.distill(teacher="gen0", arch="smallcnn", given=given, registry=registry)
    assert not torch.equal(begun[0], begun[1])
    assert len(seen["teacher"]) == len(seen["student"]) > 0
    for noise in seen["student"]:
        assert all(not torch.allclose(noise, other) for other in seen["teacher"])
