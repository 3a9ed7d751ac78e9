"""The figure on held-out images that a choice goes by: the robustness that a network is trained for."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt import losses
from robustkt.api.loading import spread
from robustkt.attacks import ascend
from robustkt.catalog import unknown
from robustkt.core import ThreatModel, attacking, gaussian
from robustkt.data import Split
from robustkt.errors import UsageError
from robustkt.evaluate import clean_accuracy, noisy_accuracy, robust_accuracy
from robustkt.generation import Generation
from robustkt.numbers import exact, fraction
from robustkt.ranks import ALONE, Ranks
from robustkt.soup import View

DRAWS = 4  # noisy copies of an image
STEPS = 10  # of PGD

Score = Callable[[nn.Module], float]


def ball(found: Generation, norm: str | None = None, eps: str | float | Fraction | None = None) -> ThreatModel:
    """The threat model to attack a generation in: what is not said is its own, or else linf 8/255.

    Raises:
        UsageError: an unknown norm, one that is not its own without an eps, or no such eps.
    """
    if norm not in (None, "linf", "l2"):
        raise unknown("norm", norm, ["linf", "l2"])
    own_norm, own_eps = found.recipe.threat or ("linf", Fraction(8, 255))
    if norm not in (None, own_norm) and eps is None:
        raise UsageError(f"an eps in {own_norm} means something else in {norm}", f"Give both: --norm {norm} --eps EPS.")
    return ThreatModel(norm or own_norm, fraction(own_eps if eps is None else eps, "eps"))  # type: ignore[arg-type]


def slice_of(split: Split, images: int) -> Split:
    """At most so many images from all over a set, which may be sorted by class."""
    picked = slice(None, None, spread(len(split), images))
    return Split(split.x[picked], split.y[picked])


def seen(sigma: Fraction | None, threat: tuple[str, Fraction] | None) -> View:
    """What a network that is trained for this sees of an image: with noise, attacked, or as it is."""

    def view(network: nn.Module, x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        if sigma is not None:
            return x + gaussian(x, sigma, rng)
        if threat is None:
            return x
        ball = ThreatModel(threat[0], threat[1])  # type: ignore[arg-type]  # checked by ThreatModel itself
        start = ball.random_start(x, rng)
        with attacking(network):
            return ascend(network, x, ball, lambda z: losses.ce(z, y), steps=STEPS, step_size=ball.eps / 4, start=start)

    return view


def judge(
    sigma: Fraction | None,
    threat: tuple[str, Fraction] | None,
    split: Split,
    device: torch.device,
    group: Ranks = ALONE,
) -> tuple[str, Score]:
    """What it is called, and the score of a network on `device`: under its noise, under its threat, else clean.

    The ranks of `group` share the images; each gets the figure of all.
    """
    if sigma is not None:
        level = sigma
        return f"accuracy under noise {exact(sigma)}", lambda model: noisy_accuracy(
            model, split, level, draws=DRAWS, device=device, group=group
        )
    if threat is None:
        return "clean accuracy", lambda model: clean_accuracy(model, split, device=device, group=group)
    ball = ThreatModel(threat[0], threat[1])  # type: ignore[arg-type]  # checked by ThreatModel itself
    return f"accuracy under {STEPS} steps of PGD", lambda model: robust_accuracy(
        model, split, ball, steps=STEPS, device=device, group=group
    )
