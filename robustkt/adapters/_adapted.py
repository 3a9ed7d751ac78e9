"""What every adapted layer has in common, and how one takes the place of another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkt.modes import Modes


class Adapted(nn.Module):
    """A layer whose own parameters are one set a domain (`own`), beside those that all domains share."""

    own: nn.ModuleList

    def __init__(self, modes: Modes) -> None:
        super().__init__()
        self.modes = modes

    def plain(self, key: str) -> tuple[int | None, str]:
        """Whose a tensor of this layer is (None = everybody's), and its name in the layer that this one stands for."""
        first, _, rest = key.partition(".")
        if first != "own":
            return None, rest
        place, _, name = rest.partition(".")
        return int(place), name


class Apart(Adapted):
    """A whole layer for each domain, all beginning as the one whose place it takes."""

    def __init__(self, layer: nn.Module, modes: Modes) -> None:
        super().__init__(modes)
        self.own = nn.ModuleList(copy.deepcopy(layer) for _ in modes.domains)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) to what the layer makes of it, the rows of each active domain through its own."""
        return torch.cat([self.own[place](part) for place, part in self.modes.parts(x)])


def replaced(network: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[nn.Module], nn.Module]) -> int:
    """How many layers that `wanted` picks were exchanged for what `make` makes of them; one in two places stays one."""
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        if isinstance(parent, Adapted) or any(parent in new.modules() for new in made.values()):
            continue
        for name, child in list(parent.named_children()):
            if wanted(child):
                made[child] = made.get(child) or make(child)
                setattr(parent, name, made[child])
    return len(made)
