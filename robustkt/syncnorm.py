"""BatchNorm whose statistics are those of the parts of all ranks together: torch's on GPUs, the same on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Summed(torch.autograd.Function):
    """The sum of the ranks' tensors at every rank; of a gradient likewise, as each rank's loss depends on all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Of any shape, the same on every rank."""
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Of the same shape."""
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class HostSyncBatchNorm(_BatchNorm):
    """BatchNorm over all ranks where the tensors are on a CPU, which torch's own refuses; by sums in fp32, or fp64.

    Two passes, the mean and then the squares around it: E[x²] − E[x]² would lose the digits that it is compared in.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any: the layer whose place it has taken has been used already."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …), the same number of rows on every rank."""
        if not self.training:
            found: Tensor = super().forward(input)
            return found
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        across, column = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _summed(x.sum(across)) / count
        centred = x - mean.view(column)
        variance = _summed(centred.square().sum(across)) / count
        self._follow(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        out = centred * scale.view(column)
        shifted: Tensor = out + self.bias.view(column) if self.affine else out
        return shifted.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def _summed(x: Tensor) -> Tensor:
    total: Tensor = Summed.apply(x)
    return total


def synchronised(network: nn.Module, device: torch.device) -> None:
    """Put synchronised BatchNorm in the place of BatchNorm everywhere in `network`, with the same parameters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _made(child, device).train(child.training))


def _made(norm: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
        return made
    host = HostSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
        setattr(host, name, value)
    return host
