"""Losses a row: logits (B, K) to (B,); an objective takes the mean once, visibly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy −log p_y, shape (B,); `y` is (B,) int64."""
    return F.cross_entropy(logits, y, reduction="none")


def ce_unrounded(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy as log(1 + Σ_{k≠y} exp(z_k − z_y)), shape (B,): above 0 where `ce` of a sure network rounds to it.

    What compares losses, as APGD does to choose its step, would else see a plateau from a margin of 17 on.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)
    return F.softplus(others - _at(logits, y))


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


def entropy(p: Tensor) -> Tensor:
    """−Σ p log p, shape (B,), of probabilities (B, K)."""
    total: Tensor = torch.special.entr(p).sum(dim=1)
    return total


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y, shape (B,): above 0 where the network is wrong (the CW loss, 1608.04644)."""
    others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return others - _at(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio −(z_y − max_{k≠y} z_k)/(z_π1 − z_π3), shape (B,); K ≥ 3 (2003.01690)."""
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """−(z_y − z_t)/(z_π1 − (z_π3 + z_π4)/2), shape (B,); K ≥ 4 (2003.01690); `target` (B,) is the wanted class."""
    top = logits.topk(4, dim=1).values
    return margin_targeted(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t − z_y, shape (B,)."""
    return _at(logits, target) - _at(logits, y)


def _at(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)
