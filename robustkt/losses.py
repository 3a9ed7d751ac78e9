"""Losses a row: logits (B, K) to (B,); an objective takes the mean once, visibly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy −log p_y, shape (B,); `y` is (B,) int64."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(P‖Q) = Σ P log(P/Q), shape (B,); P from the `target` logits (B, K), Q from `logits` (B, K).

    Computed from log-probabilities, so that saturated targets give finite values and gradients on both sides.
    """
    log_p, log_q = F.log_softmax(target, dim=1), F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def kl_soft(p: Tensor, logits: Tensor) -> Tensor:
    """KL(P‖Q), shape (B,), for a target `p` (B, K) of probabilities, all above 0 where it has gradients."""
    return (torch.xlogy(p, p) - p * F.log_softmax(logits, dim=1)).sum(dim=1)


def l2(target: Tensor, logits: Tensor) -> Tensor:
    """The Euclidean distance ‖logits − target‖₂ of two rows of raw logits (B, K), un-squared, shape (B,)."""
    distance: Tensor = torch.linalg.vector_norm(logits - target, dim=1)
    return distance
