"""Learning-rate schedules as plain functions of the share of the training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable

from robustkt.catalog import unknown
from robustkt.errors import UsageError
from robustkt.generation import Training


def _onecycle(done: float, training: Training) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to 0 (1803.09820 in its short form)."""
    return done / training.warmup if done < training.warmup else (1 - done) / (1 - training.warmup)


def _cosine(done: float, training: Training) -> float:
    """Half a cosine from 1 to 0 (1608.03983, one period)."""
    return (1 + math.cos(math.pi * done)) / 2


def _multistep(done: float, training: Training) -> float:
    """Times gamma after each milestone; whole epochs, as the papers' scripts step."""
    epoch = math.floor(done * training.epochs + 1e-9)
    return float(training.gamma ** sum(epoch >= round(m * training.epochs) for m in training.milestones))


def _constant(done: float, training: Training) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[float, Training], float]] = {
    "onecycle": _onecycle,
    "cosine": _cosine,
    "multistep": _multistep,
    "constant": _constant,
}


def check(training: Training) -> None:
    """Raise a UsageError unless the schedule of `training` is known and complete."""
    if training.schedule not in SCHEDULES:
        raise unknown("schedule", training.schedule, SCHEDULES)
    if training.schedule == "multistep" and not training.milestones:
        raise UsageError(
            "the schedule multistep needs milestones", "Add --set milestones=0.5,0.75 (shares of the epochs)."
        )
    if any(not 0 < milestone < 1 for milestone in training.milestones):
        given = [f"{milestone:g}" for milestone in training.milestones]
        shares = ",".join(f"{milestone}/{training.epochs}" for milestone in given)
        raise UsageError(
            f"milestones are shares of the epochs, between 0 and 1, not {', '.join(given)}",
            f"If they are epochs, write --set milestones={shares}.",
        )
    if not 0 < training.gamma <= 1:
        raise UsageError(f"gamma must lie in (0, 1], not {training.gamma:g}", "The papers use 0.1.")


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) out of `steps`."""
    return training.lr * SCHEDULES[training.schedule](step / steps, training)
