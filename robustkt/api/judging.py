"""The figure on held-out images that a choice goes by: the robustness that a network is trained for."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import nn

from robustkt.api.loading import spread
from robustkt.core import ThreatModel
from robustkt.data import Split
from robustkt.evaluate import clean_accuracy, noisy_accuracy, robust_accuracy
from robustkt.numbers import exact

DRAWS = 4  # noisy copies of an image
STEPS = 10  # of PGD

Score = Callable[[nn.Module], float]


def slice_of(split: Split, images: int) -> Split:
    """At most so many images from all over a set, which may be sorted by class."""
    picked = slice(None, None, spread(len(split), images))
    return Split(split.x[picked], split.y[picked])


def judge(
    sigma: Fraction | None, threat: tuple[str, Fraction] | None, split: Split, device: torch.device
) -> tuple[str, Score]:
    """What it is called, and the score of a network on `device`: under its noise, under its threat, else clean."""
    if sigma is not None:
        level = sigma
        return f"accuracy under noise {exact(sigma)}", lambda model: noisy_accuracy(
            model, split, level, draws=DRAWS, device=device
        )
    if threat is None:
        return "clean accuracy", lambda model: clean_accuracy(model, split, device=device)
    ball = ThreatModel(threat[0], threat[1])  # type: ignore[arg-type]  # checked by ThreatModel itself
    return f"accuracy under {STEPS} steps of PGD", lambda model: robust_accuracy(
        model, split, ball, steps=STEPS, device=device
    )
