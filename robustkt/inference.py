"""A network as fast as its machine runs it, for forward passes only: folded, laid out, compiled, in its precision."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from robustkt.core import PRECISIONS, InPrecision
from robustkt.models import Classifier


class Folded(nn.Module):
    """A classifier whose BatchNorm and standard deviation are folded into the weights of its convolutions.

    The mean is subtracted from the images and not folded into a bias: the border that convolutions pad with zeros
    stands for the mean, so a folded bias would be wrong there.
    """

    mean: Tensor  # (C, 1, 1)

    def __init__(self, mean: Tensor, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), fp32, to fp32 logits (B, K); the cast comes after everything that needs fp32."""
        logits: Tensor = self.network((x - self.mean).to(self.dtype))
        return logits.float()


def fastest_precision(device: torch.device) -> str:
    """`bf16` where the hardware multiplies it faster than fp32 (CUDA with tensor cores, CPUs with AMX), else `fp32`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    flags = Path("/proc/cpuinfo")
    return "bf16" if device.type == "cpu" and flags.is_file() and "amx_bf16" in flags.read_text() else "fp32"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C compiler for Triton's launchers, or a C++ compiler for a CPU."""
    compilers = {"cuda": (os.environ.get("CC") or "gcc", "clang"), "cpu": (os.environ.get("CXX") or "g++", "clang++")}
    return any(shutil.which(name) for name in compilers.get(device.type, ()))


Shape = tuple[int, ...]  # (C, H, W)


def prepare(
    network: nn.Module, shape: Shape, device: torch.device, precision: str, *, compiled: bool = False
) -> nn.Module:
    """`network` (a classifier on the CPU, for images of `shape`) for forward passes on `device`; it stays as it is.

    Folded where it can be traced and gives the same logits to fp32's accuracy; else in autocast. `compiled` runs it
    through torch.compile, its weights frozen, for batches of one constant size.
    """
    dtype = PRECISIONS[precision]
    ready: nn.Module = fold(network, shape, dtype) or InPrecision(copy.deepcopy(network), dtype)
    ready = ready.eval().requires_grad_(False)
    ready = ready.to(device).to(memory_format=torch.channels_last)
    if compiled:
        key = "freezing" if device.type == "cpu" else "triton.cudagraphs"
        return cast("nn.Module", torch.compile(ready, dynamic=False, options={key: True}))
    return ready


def fold(network: nn.Module, shape: Shape, dtype: torch.dtype = torch.float32) -> Folded | None:
    """The classifier folded, or None when it is no `Classifier`, cannot be traced or computes something else then."""
    if not isinstance(network, Classifier):
        return None
    network = copy.deepcopy(network).eval()
    try:
        traced = fx.symbolic_trace(network.network)
    except Exception:  # of the user's own forward: anything may happen when it is given a proxy
        return None
    _fold_batchnorm(traced)
    mean, std = network.normalize.mean, network.normalize.std
    if not _fold_scale(traced, std):
        traced = nn.Sequential(_Divide(std), traced)  # type: ignore[assignment]
    folded = Folded(mean, traced, torch.float32).eval()
    probe = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = network(probe), folded(probe)
    close = torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return Folded(mean, traced, dtype).eval() if close else None


class _Divide(nn.Module):
    """By the standard deviation, where the first layer is no convolution that could take it."""

    std: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.std


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    """Every BatchNorm whose input comes from a convolution or linear layer that nobody else reads."""
    modules = dict(traced.named_modules())
    uses = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_mean is None:
            continue
        (before,) = node.args
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        if len(before.users) > 1 or uses.count(before.target) > 1 or uses.count(node.target) > 1:
            continue
        if type(layer) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            _put(traced, str(before.target), fuse_conv_bn_eval(layer, norm))
        elif type(layer) is nn.Linear and isinstance(norm, nn.BatchNorm1d):
            _put(traced, str(before.target), fuse_linear_bn_eval(layer, norm))
        else:
            continue
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _fold_scale(traced: fx.GraphModule, std: Tensor) -> bool:
    """Divide the weights of the first convolution by `std` (C, 1, 1), if it alone reads the images."""
    (images,) = (node for node in traced.graph.nodes if node.op == "placeholder")
    readers = list(images.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return False
    name = str(readers[0].target)
    layer = traced.get_submodule(name)
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    if [node.target for node in traced.graph.nodes].count(readers[0].target) > 1:
        return False
    first = copy.deepcopy(layer)
    with torch.no_grad():
        first.weight.div_(std)
    _put(traced, name, first)
    return True


def _put(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(traced.get_submodule(parent), leaf, module)
