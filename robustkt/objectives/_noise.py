"""What objectives under Gaussian noise share: draws, the mean prediction, and settings that depend on σ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from robustkt.core import Batch, gaussian, seed_of
from robustkt.losses import ce
from robustkt.streams import keys_of, normals_of

T = TypeVar("T", int, float, Fraction)


def noises(batch: Batch, sigma: Fraction, draws: int) -> Tensor:
    """(m, B, C, H, W) of N(0, σ² I)."""
    return torch.stack([noise(batch, sigma, draw) for draw in range(draws)])


def noise(batch: Batch, sigma: Fraction, draw: int) -> Tensor:
    """(B, C, H, W) of N(0, σ² I); in a view that is kept that of each image and draw, whatever the batch."""
    if batch.keys is None:
        return gaussian(batch.x, sigma, batch.rng)
    keys = keys_of(seed_of("noise", draw), batch.keys)
    return normals_of(keys, batch.x.shape[1:]).to(batch.x.device) * float(sigma)


def mean_probability(logits: Tensor, draws: int) -> Tensor:
    """p̄ (B, K): the mean softmax over the draws of logits (m·B, K)."""
    drawn: Tensor = logits.softmax(dim=1).unflatten(0, (draws, -1))
    return drawn.mean(dim=0)


def minus_log_mean(logits: Tensor, y: Tensor, draws: int) -> Tensor:
    """−log p̄_y, shape (B,), of logits (m·B, K); log p̄_y is taken of log-probabilities, so that its slope never ends."""
    log_p: Tensor = -ce(logits, y.repeat(draws)).unflatten(0, (draws, -1))
    return math.log(draws) - log_p.logsumexp(dim=0)


def by_sigma(sigma: Fraction, table: Sequence[tuple[Fraction, T]], above: T) -> T:
    """The published setting for a noise level: that of the first σ in the table that is not below it, else `above`."""
    return next((value for level, value in table if sigma <= level), above)


QUARTER, HALF = Fraction(1, 4), Fraction(1, 2)  # the field's noise levels, with 1
