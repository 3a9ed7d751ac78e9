"""How the weights of a student move: SGD, which of them decay, and their average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import adapters
from robustkt.generation import Training

FUSED = ("cpu", "cuda", "mps")  # kinds of devices with a fused SGD


def sgd(student: nn.Module, training: Training) -> torch.optim.SGD:
    """SGD over the parameters; weight decay on matrices and kernels only unless `decay_norm`, on adapters never.

    In one fused kernel where the device has it. The momentum begins as zeros, laid out as the parameters are: that is
    the same first step, and the kernel takes neither a missing buffer nor one in another layout.
    """
    spared, own = undecayed(student), adapters.own_parameters(student)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": training.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            weight = parameter.dim() > 1 and name not in spared
            groups[parameter in own or not (weight or training.decay_norm)]["params"].append(parameter)
    chosen = [group for group in groups if group["params"]]
    fused = all(parameter.device.type in FUSED for group in chosen for parameter in group["params"])
    optimizer = torch.optim.SGD(
        chosen, lr=training.lr, momentum=training.momentum, nesterov=training.nesterov, fused=fused
    )
    for parameter in all_parameters(optimizer) if training.momentum else []:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def undecayed(student: nn.Module) -> set[str]:
    """Parameters that a network says are no weights, such as a ViT's position embeddings, by timm's convention."""
    found = set()
    for place, module in student.named_modules():
        if callable(method := getattr(module, "no_weight_decay", None)):
            found |= {f"{place}.{name}".removeprefix(".") for name in method()}
    return found


def all_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of all groups in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def momentum(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The momentum buffers by the parameter's place."""
    buffers = {str(i): optimizer.state[p].get("momentum_buffer") for i, p in enumerate(all_parameters(optimizer))}
    return {index: buffer for index, buffer in buffers.items() if buffer is not None}


def warmed_up(decay: float) -> Callable[[Any, Any, Any], None]:
    """Averaging with decay min(`decay`, (1 + t)/(10 + t)) after t updates; counters are copied."""

    @torch.no_grad()
    def average(kept: list[Tensor], new: list[Tensor], updates: Tensor | int) -> None:
        t = int(updates)
        share = 1 - min(decay, (1 + t) / (10 + t))
        floating = [(a, b) for a, b in zip(kept, new, strict=True) if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], share)
        for a, b in zip(kept, new, strict=True):
            if not a.is_floating_point():
                a.copy_(b)

    return average
