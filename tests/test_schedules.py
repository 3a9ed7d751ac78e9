"""Learning rates, step by step: the traces of the published recipes, end points, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from robustkt.catalog import METHODS
from robustkt.errors import UsageError
from robustkt.generation import Training
from robustkt.schedules import SCHEDULES, check, learning_rate
from robustkt.settings import fill

STEPS_AN_EPOCH = 7  # so that an epoch's share of the steps is no round number

# preset -> epochs of each piece of the trace, each piece a tenth of the one before; from the authors' scripts
PUBLISHED = {
    "rslad-iccv21": [215, 45, 25, 15],  # "if epoch in [215, 260, 285]" at the end of the epoch, counted from 1
    "trades-icml19": [74, 2],  # "if epoch >= 75" at the start of the epoch, counted from 1, of 76
    "gaussian-icml19": [30, 30, 30],
    "smoothmix-neurips21": [50, 50, 50],
    "smoothadv-neurips19": [50, 50, 50],
    "stability-neurips19": [50, 50, 50],
    "consistency-neurips20": [50, 50, 50],
    "macer-iclr20": [200, 200, 40],
    "mart-iclr20": [74, 15, 10, 21],  # "if epoch >= 75", 90, 100 at the start of the epoch, counted from 1
    "ard-aaai20": [100, 100],  # "if epoch in [100, 150]: lr *= 0.1" on a copy of the first rate, counted from 0
    "iad-iclr22": [100, 100],  # the same
    "crt-neurips22": [100, 50, 50],
}


def trace(training: Training, steps_an_epoch: int = STEPS_AN_EPOCH) -> list[float]:
    steps = training.epochs * steps_an_epoch
    return [learning_rate(training, step, steps) for step in range(steps)]


@pytest.mark.parametrize("preset", PUBLISHED)
@pytest.mark.parametrize("steps_an_epoch", [1, STEPS_AN_EPOCH])
def test_published_traces(preset: str, steps_an_epoch: int) -> None:
    training = Training(**fill(Training, METHODS.tables("PRESETS")[preset]))
    pieces = PUBLISHED[preset]
    assert training.epochs == sum(pieces)
    wanted = [training.lr * 0.1**piece for piece, epochs in enumerate(pieces) for _ in range(epochs * steps_an_epoch)]
    assert trace(training, steps_an_epoch) == pytest.approx(wanted, rel=1e-12)


def test_every_preset_with_milestones_is_checked_above() -> None:
    schedules = {name: fill(Training, table).get("schedule") for name, table in METHODS.tables("PRESETS").items()}
    assert {name for name, schedule in schedules.items() if schedule == "multistep"} == set(PUBLISHED)


def test_multistep_takes_whole_epochs_and_its_own_factor() -> None:
    training = Training(lr=3.0, epochs=5, schedule="multistep", milestones=(0.4, 0.8), gamma=0.5)
    assert trace(training, 2) == [3.0] * 4 + [1.5] * 4 + [0.75] * 2
    late = Training(lr=3.0, epochs=5, schedule="multistep", milestones=(0.42,), gamma=0.5)  # 2.1 epochs
    assert trace(late, 2) == [3.0] * 4 + [1.5] * 6
    both = Training(lr=1.0, epochs=4, schedule="multistep", milestones=(0.5, 0.5))  # twice at once
    assert trace(both, 1) == pytest.approx([1, 1, 0.01, 0.01])


@pytest.mark.parametrize(("epochs", "after"), [(22, 15), (23, 13), (76, 53)])
def test_an_epoch_begins_at_its_first_step_however_its_share_is_rounded(epochs: int, after: int) -> None:
    assert math.floor(after / epochs * epochs) < after  # floating point falls short of the epoch here
    training = Training(lr=1.0, epochs=epochs, schedule="multistep", milestones=(after / epochs,))
    assert trace(training) == pytest.approx([1.0] * after * 7 + [0.1] * (epochs - after) * 7)


@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5])
def test_onecycle_climbs_and_falls_in_straight_lines(warmup: float) -> None:
    training = Training(lr=0.4, epochs=10, schedule="onecycle", warmup=warmup)
    rates = trace(training, 10)
    top = round(warmup * 100)
    assert rates[0] == 0
    assert rates[top] == max(rates) == pytest.approx(0.4)
    assert learning_rate(training, 100, 100) == pytest.approx(0)
    assert rates[:top] == pytest.approx([0.4 * step / top for step in range(top)])
    assert rates[top:] == pytest.approx([0.4 * (100 - step) / (100 - top) for step in range(top, 100)])


def test_cosine_falls_from_all_to_nothing() -> None:
    rates = trace(Training(lr=2.0, epochs=10, schedule="cosine"))
    steps = len(rates)
    assert rates[0] == 2.0
    assert rates[steps // 2] == pytest.approx(1.0)
    assert learning_rate(Training(lr=2.0, schedule="cosine"), steps, steps) == pytest.approx(0, abs=1e-15)
    assert rates == pytest.approx([1 + math.cos(math.pi * step / steps) for step in range(steps)])
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_constant() -> None:
    assert set(trace(Training(lr=0.25, epochs=3, schedule="constant"))) == {0.25}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_stays_within_its_rate(schedule: str) -> None:
    training = Training(lr=0.5, epochs=4, schedule=schedule, milestones=(0.5,))
    check(training)
    rates = trace(training)
    assert all(0 <= rate <= 0.5 for rate in rates)
    assert max(rates) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schedule": "onecylce"}, "did you mean 'onecycle'"),
        ({"schedule": "linear"}, "Known: onecycle, cosine, multistep, constant"),
        ({"schedule": "multistep"}, "milestones=0.5,0.75"),
        ({"schedule": "multistep", "milestones": (50.0, 75.0), "epochs": 90}, "milestones=50/90,75/90"),
        ({"schedule": "multistep", "milestones": (0.5, 1.0)}, "between 0 and 1"),
        ({"schedule": "multistep", "milestones": (0.0,)}, "between 0 and 1"),
        ({"schedule": "multistep", "milestones": (0.5,), "gamma": 0.0}, "gamma"),
        ({"schedule": "multistep", "milestones": (0.5,), "gamma": 1.5}, "gamma"),
    ],
)
def test_schedules_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(Training(**fields))
    assert said in str(caught.value)
