"""A class token and a last layer of its own for each domain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustkt.adapters._adapted import Adapted, Apart
from robustkt.errors import UsageError
from robustkt.modes import Modes

__all__ = ["DualHead", "DualToken"]

HEADS = ("head", "fc", "linear", "classifier", "logits")  # what networks call the layer that gives the logits


class Token(nn.Module):
    """A class token (1, 1, D)."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())


class DualToken(Adapted):
    """A class token for each domain of a ViT that reads it as `self.cls_token` in every forward pass (2210.04886)."""

    def __init__(self, token: Tensor, modes: Modes) -> None:
        super().__init__(modes)
        self.own = nn.ModuleList(Token(token) for _ in modes.domains)

    @classmethod
    def attach(cls, network: nn.Module, modes: Modes) -> None:
        """Take the place of the parameter `cls_token`.

        Raises:
            UsageError: there is none.
        """
        token = network._parameters.get("cls_token")
        if token is None:
            raise UsageError(
                "the network has no class token", "Take another network, such as vit_tiny, or another --set adapter=…"
            )
        del network._parameters["cls_token"]
        made = cls(token, modes)
        network.add_module("cls_token", made)
        network.register_forward_pre_hook(made.before)
        network.register_forward_hook(made.after, always_call=True)

    def before(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Lay the tokens of the coming batch where the network reads its own: (1, 1, D), or (B, 1, D) for several."""
        active = self.modes.active
        tokens = [self.own[place].value for place in active]
        rows = len(inputs[0]) // len(active)
        token = tokens[0] if len(tokens) == 1 else torch.cat([t.expand(rows, -1, -1) for t in tokens])  # type: ignore[operator]
        network.__dict__["cls_token"] = token

    def after(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Take them away again: a copy of the network holds parameters only."""
        network.__dict__.pop("cls_token", None)

    def plain(self, key: str) -> tuple[int | None, str]:
        """As of every adapted layer; the parameter itself is what it stands for."""
        place, _ = super().plain(key)
        return place, ""


class DualHead(Apart):
    """A last linear layer for each domain."""

    @classmethod
    def attach(cls, network: nn.Module, modes: Modes) -> None:
        """Replace the layer that gives the logits.

        Raises:
            UsageError: it is not to be found.
        """
        for name in HEADS:
            head = getattr(network, name, None)
            if isinstance(head, nn.Linear):
                setattr(network, name, cls(head, modes))
                return
        raise UsageError(
            f"the network's last layer is not a Linear called {', '.join(HEADS)}", "Take another --set adapter=…"
        )
