"""Normalisation layers with parameters of their own for each domain."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from robustkt.adapters._adapted import Adapted, Apart, replaced
from robustkt.errors import UsageError
from robustkt.modes import Modes

__all__ = ["DualBatchNorm", "DualParams"]


PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Affine(nn.Module):
    """A scale and an offset, each of the shape that the normalisation has."""

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))


class DualParams(Adapted):
    """A scale and an offset for each domain after one normalisation; BatchNorm's statistics are shared (2210.04886)."""

    def __init__(self, norm: nn.Module, modes: Modes) -> None:
        super().__init__(modes)
        scale, offset = cast(Tensor, norm.weight), cast("Tensor | None", norm.bias)
        self.own = nn.ModuleList(Affine(scale, offset) for _ in modes.domains)
        self.norm = copy.deepcopy(norm)
        self.norm.register_parameter("weight", None)
        self.norm.register_parameter("bias", None)

    @classmethod
    def attach(cls, network: nn.Module, modes: Modes) -> None:
        """Replace every normalisation that has a scale.

        Raises:
            UsageError: there is none.
        """
        kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
        other = next((m for m in network.modules() if isinstance(m, _BatchNorm) and type(m) not in PLAIN), None)
        if other is not None:
            raise UsageError(
                f"the network's {type(other).__name__} does more than normalise", "Take --set adapter=dualbatchnorm."
            )
        if not replaced(network, lambda m: isinstance(m, kinds) and m.weight is not None, lambda m: cls(m, modes)):
            raise UsageError(
                "the network has no normalisation with a scale and an offset", "Take another --set adapter=…"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Activations to activations of the same shape."""
        active = self.modes.active
        if len(active) == 1:
            return self._through(x, active[0])
        if isinstance(self.norm, _BatchNorm) and self.norm.training:
            return self._scaled(self.norm(x))  # statistics of the mixture
        return torch.cat([self._through(part, place) for place, part in self.modes.parts(x)])

    def _through(self, x: Tensor, place: int) -> Tensor:
        norm, (weight, bias) = self.norm, self._pair(place)
        if type(norm) is nn.GroupNorm:
            return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
        if type(norm) is nn.LayerNorm:
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        told = {"weight": weight, **({} if bias is None else {"bias": bias})}
        out: Tensor = functional_call(norm, told, x, strict=False)
        return out

    def _pair(self, place: int) -> tuple[Tensor, Tensor | None]:
        own = cast(Affine, self.own[place])
        return own.weight, own.bias

    def _scaled(self, x: Tensor) -> Tensor:
        """Normalised rows with the scale and the offset of each row's domain."""
        rows = len(x) // len(self.modes.active)
        shape = (-1, x.shape[1], *[1] * (x.dim() - 2))

        def of(name: str) -> Tensor:
            stacked = torch.stack([getattr(self.own[place], name) for place in self.modes.active])
            return stacked.repeat_interleave(rows, dim=0).view(shape)

        out: Tensor = x * of("weight") + (of("bias") if self._pair(0)[1] is not None else 0)
        return out.to(x.dtype)  # as in one mode, whatever the precision of the passes


class DualBatchNorm(Apart):
    """A BatchNorm for each domain, with statistics of its own: AdvProp's auxiliary BatchNorm (1911.09665)."""

    @classmethod
    def attach(cls, network: nn.Module, modes: Modes) -> None:
        """Replace every BatchNorm.

        Raises:
            UsageError: there is none.
        """
        if not replaced(network, lambda m: isinstance(m, _BatchNorm), lambda m: cls(m, modes)):
            raise UsageError("the network has no BatchNorm", "Take --set adapter=dualparams, say.")
