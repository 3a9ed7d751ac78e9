"""A network in eval mode as fast as its machine runs it: folded, laid out, compiled, in its precision."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import (
    fuse_conv_bn_eval,
    fuse_conv_bn_weights,
    fuse_linear_bn_eval,
    fuse_linear_bn_weights,
)

from robustkt import hardware
from robustkt.core import PRECISIONS, InPrecision
from robustkt.errors import clip
from robustkt.models import Classifier


class Folded(nn.Module):
    """A classifier whose BatchNorm and standard deviation are folded into the weights of its convolutions.

    The mean is subtracted from the images and not folded into a bias: the border that convolutions pad with zeros
    stands for the mean, so a folded bias would be wrong there.

    Args:
        mean: (C, 1, 1), of the images.
        traced: the network after the normalisation, folded.
        dtype: what it runs in.
        norms: layer -> the BatchNorm that is folded into it, by their names in the unfolded network.
        std: (C, 1, 1), of the images.
        first: the layer that `std` is folded into; None where it stands in front.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        traced: fx.GraphModule,
        dtype: torch.dtype,
        norms: Mapping[str, str],
        std: Tensor,
        first: str | None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.network: nn.Module = traced.to(dtype)
        self.divide = nn.Identity() if first else _Divide(std)
        self.dtype, self.norms, self.first = dtype, norms, first

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), fp32, to fp32 logits (B, K); the cast comes after everything that needs fp32."""
        logits: Tensor = self.network(self.divide(x - self.mean).to(self.dtype))
        return logits.to(x.dtype)

    @torch.no_grad()
    def refresh(self, network: Classifier) -> None:
        """Take the weights and statistics that `network`, which this was folded from, has by now; in place."""
        source, own = network.network, tensors(self.network)
        modules, fresh = dict(source.named_modules()), tensors(source)
        for layer, norm in self.norms.items():
            conv, bn = cast("nn.Conv2d", modules[layer]), cast("nn.BatchNorm2d", modules[norm])
            fuse = fuse_conv_bn_weights if isinstance(conv, nn.Conv2d) else fuse_linear_bn_weights
            mean, var = cast("Tensor", bn.running_mean), cast("Tensor", bn.running_var)
            fused = fuse(conv.weight, conv.bias, mean, var, bn.eps, bn.weight, bn.bias)
            fresh[f"{layer}.weight"], fresh[f"{layer}.bias"] = fused
        if self.first:
            fresh[f"{self.first}.weight"] = fresh[f"{self.first}.weight"] / self.std
        for name, tensor in own.items():
            tensor.copy_(fresh[name])


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those too that are called twice or that no state dict holds."""
    named = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return {name: tensor.detach() for pairs in named for name, tensor in pairs}


class Compiled(nn.Module):
    """A module that torch.compile runs where gradients are asked for, at the first shapes that it meets.

    Everything else, such as a batch that has lost rows, runs as it is: a new shape would cost half a minute. Where
    compiling fails all of it does, and `note` is told so once. Hooks of the module itself do not run: they would be
    compiled in.
    """

    SHAPES = 2  # of images, each in training and in eval mode

    def __init__(self, module: nn.Module, note: Callable[[str], None]) -> None:
        super().__init__()
        self.module, self.note = module, note
        self.works = True
        # where torch can: else the compilations of all networks of a class count together, and the ninth is given up
        alone: Any = {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
        self.fast = torch.compile(module.forward, dynamic=False, **alone)
        self.met: set[tuple[torch.Size, bool]] = set()

    def forward(self, x: Tensor) -> Tensor:
        """What the module gives for `x`."""
        logits: Tensor
        if self.works and torch.is_grad_enabled() and self._takes((x.shape, self.module.training)):
            try:
                logits = self.fast(x)
                return logits
            except Exception as error:  # the compiler's, or the module's own, which it raises again below
                logits = self.module.forward(x)
                self.works = False
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                self.note(f"torch.compile does not work here, so the network runs as it is: {clip(reason)}")
                return logits
        logits = self.module.forward(x)
        return logits

    def _takes(self, key: tuple[torch.Size, bool]) -> bool:
        if len({shape for shape, training in self.met if training == key[1]}) < self.SHAPES:
            self.met.add(key)
        return key in self.met


def fastest_precision(device: torch.device) -> str:
    """`bf16` where the hardware multiplies it faster than fp32 (CUDA with tensor cores, CPUs with AMX), else `fp32`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and "amx_bf16" in hardware.processor_flags() else "fp32"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C compiler for Triton's launchers, or a C++ compiler for a CPU."""
    compilers = {"cuda": (os.environ.get("CC") or "gcc", "clang"), "cpu": (os.environ.get("CXX") or "g++", "clang++")}
    return any(shutil.which(name) for name in compilers.get(device.type, ()))


def pays(device: torch.device, precision: str) -> bool:
    """Whether torch.compile makes training faster: on CUDA and in bf16; fp32 on a CPU is bound by its convolutions."""
    return device.type == "cuda" or precision == "bf16"


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
    norms = _fold_batchnorm(traced)
    mean, std = network.normalize.mean, network.normalize.std
    first = _fold_scale(traced, std)
    folded = Folded(mean, traced, mean.dtype, norms, std, first).eval()
    probe = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), dtype=mean.dtype).to(mean.device)
    with torch.no_grad():
        expected, found = network(probe), folded(probe)
    close = torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return Folded(mean, traced, dtype, norms, std, first).eval() if close else None


class _Divide(nn.Module):
    """By the standard deviation, where the first layer is no convolution that could take it."""

    std: Tensor

    def __init__(self, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.std


def _fold_batchnorm(traced: fx.GraphModule) -> dict[str, str]:
    """Layer -> BatchNorm, of all whose input comes from a convolution or linear layer that nobody else reads."""
    folded: dict[str, str] = {}
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
        folded[str(before.target)] = str(node.target)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folded


def _fold_scale(traced: fx.GraphModule, std: Tensor) -> str | None:
    """Divide the weights of the first convolution by `std` (C, 1, 1), if it alone reads the images; its name."""
    (images,) = (node for node in traced.graph.nodes if node.op == "placeholder")
    readers = list(images.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    name = str(readers[0].target)
    layer = traced.get_submodule(name)
    if type(layer) is not nn.Conv2d or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if [node.target for node in traced.graph.nodes].count(readers[0].target) > 1:
        return None
    first = copy.deepcopy(layer)
    with torch.no_grad():
        first.weight.div_(std)
    _put(traced, name, first)
    return name


def _put(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(traced.get_submodule(parent), leaf, module)
