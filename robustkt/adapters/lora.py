"""Low-rank changes of a ViT's projections for each domain."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.adapters._adapted import Adapted, replaced
from robustkt.errors import UsageError
from robustkt.modes import Modes

__all__ = ["LoRA"]

PROJECTIONS = re.compile(r"(^|\.)(qkv|proj|q_proj|k_proj|v_proj|out_proj)$")
RANK = 4


class LowRank(nn.Module):
    """B·A of rank r, beginning at 0: A (r, inside) is random, B (outside, r) zero."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(RANK, inside))
        self.lora_B = nn.Parameter(torch.zeros(outside, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


class LoRA(Adapted):
    """W·x + B·A·x with B and A for each domain and one W (2106.09685, α = r = 4)."""

    def __init__(self, base: nn.Linear, modes: Modes) -> None:
        super().__init__(modes)
        self.base = base
        self.own = nn.ModuleList(LowRank(base.in_features, base.out_features) for _ in modes.domains)

    @classmethod
    def attach(cls, network: nn.Module, modes: Modes) -> None:
        """Replace the projections of the attention layers.

        Raises:
            UsageError: there are none.
        """
        names = {id(module): name for name, module in network.named_modules()}

        def wanted(module: nn.Module) -> bool:
            return type(module) is nn.Linear and bool(PROJECTIONS.search(names.get(id(module), "")))

        if not replaced(network, wanted, lambda m: cls(m, modes)):  # type: ignore[arg-type]
            raise UsageError(
                "the network has no attention with projections called qkv and proj",
                "Take another network, such as vit_tiny, or another --set adapter=…",
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, inside) to (B, …, outside)."""
        changes = [
            F.linear(F.linear(part, self.own[place].lora_A), self.own[place].lora_B)  # type: ignore[arg-type]
            for place, part in self.modes.parts(x)
        ]
        out: Tensor = self.base(x) + torch.cat(changes)
        return out
