"""What objectives under Gaussian noise share: draws, the mean prediction, and settings that depend on σ."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from robustkt.core import Batch, gaussian

T = TypeVar("T", float, Fraction)


def noises(batch: Batch, sigma: Fraction, draws: int) -> Tensor:
    """(m, B, C, H, W) of N(0, σ² I)."""
    return torch.stack([gaussian(batch.x, sigma, batch.rng) for _ in range(draws)])


def mean_probability(logits: Tensor, draws: int) -> Tensor:
    """p̄ (B, K): the mean softmax over the draws of logits (m·B, K)."""
    drawn: Tensor = logits.softmax(dim=1).unflatten(0, (draws, -1))
    return drawn.mean(dim=0)


def minus_log_at(p: Tensor, y: Tensor) -> Tensor:
    """−log p_y, shape (B,), of probabilities (B, K); finite where p_y is 0."""
    return -p.gather(1, y[:, None]).squeeze(1).clamp_min(1e-20).log()


def by_sigma(sigma: Fraction, table: Sequence[tuple[Fraction, T]], above: T) -> T:
    """The published setting for a noise level: that of the first σ in the table that is not below it, else `above`."""
    return next((value for level, value in table if sigma <= level), above)


QUARTER, HALF = Fraction(1, 4), Fraction(1, 2)  # the field's noise levels, with 1
