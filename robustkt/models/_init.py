"""The initial weights that every family of this folder starts from."""

from __future__ import annotations

import math

from torch import nn


def he(network: nn.Module) -> None:
    """Convolutions drawn from N(0, 2 / fan_out) (He et al., arXiv:1502.01852), biases 0; draws from torch's global RNG.

    fan_out counts the outputs one input reaches, so a depthwise convolution is not scaled down by its channels,
    as `nn.init.kaiming_normal_` would do.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels / module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
