"""Which adapters a forward pass goes through: the modes of a network with several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from robustkt.core import Model
from robustkt.errors import UsageError


class Modes:
    """The domains of a network and those that are active: a batch is split evenly among the active ones, in order."""

    def __init__(self, domains: Sequence[str], default: str) -> None:
        self.domains = tuple(domains)
        self.default = default
        self.frozen = False  # whether what all domains share is kept as it is
        self.active: tuple[int, ...] = (self.domains.index(default),)

    def place(self, domain: str) -> int:
        """The place of a domain's adapter.

        Raises:
            UsageError: the network has no such domain.
        """
        if domain not in self.domains:
            raise UsageError(f"there is no domain {domain}", f"The network has {', '.join(self.domains)}.")
        return self.domains.index(domain)

    def parts(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """The rows (B / active, …) that each active domain takes, and its place.

        Raises:
            ValueError: the batch cannot be split evenly.
        """
        if len(x) % len(self.active):
            raise ValueError(f"{len(x)} rows cannot be split evenly among {len(self.active)} domains")
        return list(zip(self.active, x.chunk(len(self.active)), strict=True))


def modes_of(model: Model) -> Modes | None:
    """The modes of a network with adapters, however it is wrapped; None of one without."""
    if isinstance(model, nn.Module):
        for module in model.modules():
            found = getattr(module, "modes", None)
            if isinstance(found, Modes):
                return found
    return None


@contextmanager
def through(model: Model, *domains: str) -> Iterator[None]:
    """Forward passes inside go through the adapters of `domains`, a batch split evenly among them in this order.

    A function that is no network with adapters is left as it is: it has one mode.

    Raises:
        UsageError: the network has no such domain.
    """
    modes = modes_of(model)
    if modes is None:
        yield
        return
    before = modes.active
    modes.active = tuple(modes.place(domain) for domain in domains)
    try:
        yield
    finally:
        modes.active = before
