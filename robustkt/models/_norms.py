"""The normalisations that a residual network can be built with; each makes the layer for a number of channels."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Norm = Callable[[int], nn.Module]

GROUPS = 32  # the default of Group Normalization, arXiv:1803.08494, section 3.1


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm, arXiv:1803.08494: 32 groups; below 64 channels in pairs, as a group of one is instance norm."""
    return nn.GroupNorm(min(GROUPS, channels // 2), channels)


def layer_norm(channels: int) -> nn.GroupNorm:
    """Layer norm, arXiv:1607.06450: one mean and one variance over all channels and places of an image.

    That is group norm in one group (arXiv:1803.08494, section 3.1), and what the comparison of norms there means by it.
    ConvNeXt's LayerNorm2d is another layer: it normalises each place by itself, which takes a feature's strength away
    wherever it stands alone; networks that are designed for it normalise once a block, these do so twice.
    """
    return nn.GroupNorm(1, channels)
