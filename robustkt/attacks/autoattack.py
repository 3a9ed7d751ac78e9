"""AutoAttack: a parameter-free ensemble, each attack on the survivors of the one before (2003.01690)."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks import apgd, fab
from robustkt.attacks._rolling import Journal, Search, hunt
from robustkt.attacks.square import Square
from robustkt.catalog import unknown
from robustkt.core import Model, ThreatModel

__all__ = ["autoattack"]

TARGETS = 9
EOT_DRAWS = 20


def standard(classes: int) -> list[Search]:
    """APGD-CE, APGD-T and FAB-T for min(9, K − 1) classes, Square."""
    return [
        *apgd.untargeted("apgd-ce", losses.ce_unrounded, 100, 1, 1),
        *apgd.targeted(classes, TARGETS, 100),
        *fab.targeted(classes, TARGETS, 100),
        Square(),
    ]


def rand(classes: int) -> list[Search]:
    """For networks that draw random numbers: APGD-CE and APGD-DLR with gradients over 20 passes."""
    loss = losses.dlr if classes >= 3 else losses.margin
    return [
        *apgd.untargeted("apgd-ce", losses.ce_unrounded, 100, 1, EOT_DRAWS),
        *apgd.untargeted("apgd-dlr", loss, 100, 1, EOT_DRAWS),
    ]


VERSIONS = {"standard": standard, "rand": rand}


def autoattack(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    version: str = "standard",
    batch_size: int = 256,
    journal: Journal | None = None,
) -> Tensor:
    """AutoAttack (2003.01690): APGD-CE, APGD-T, FAB-T, Square; `version=rand` (EoT) for randomised networks.

    Differs from the authors' code: min(9, K − 1) targets; for K < 4, where the targeted DLR loss is undefined, the
    difference of the two logits; APGD-CE compares losses that are not rounded to 0 where the network is sure; every
    random number of an image from a seed of its own, not from the clock and the batch's; Square's windows are placed
    for each image by itself, not one place for the whole batch; an image leaves the batch when it falls, another takes
    its place; `version=rand` judges an image by the mean of the logits over its 20 passes, not by one pass.

    Raises:
        UsageError: an unknown version.
    """
    if version not in VERSIONS:
        raise unknown("version of AutoAttack", version, VERSIONS)
    searches = VERSIONS[version](apgd.classes_of(model, x))
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)
