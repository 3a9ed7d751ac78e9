"""Adapters: a few parameters a domain on one backbone, so that a network has several modes (arXiv:2210.04886).

A file a family, a class a kind, found by name. `attach` puts them into a network that is to be trained; `split` takes
its tensors apart into what all domains share and what each has for itself, called as in the plain network; `merged`
puts one mode together, so that everything but training sees an ordinary network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkt.adapters._adapted import Adapted
from robustkt.adapters.mixing import NONE, merged, mixed
from robustkt.catalog import ADAPTERS, plain, unknown
from robustkt.errors import UsageError
from robustkt.models import Classifier
from robustkt.modes import Modes, modes_of

__all__ = ["NONE", "attach", "check_kinds", "freeze", "hold", "merged", "mixed", "own_parameters", "split"]


def check_kinds(kinds: str) -> str:
    """The one spelling of adapters of the catalog, each once, joined by `+`, or of none at all.

    Raises:
        UsageError: an unknown one, or one twice.
    """
    if plain(kinds) == NONE:
        return NONE
    parts = kinds.split("+")
    for part in parts:
        if not ADAPTERS.has(part):
            raise unknown("adapter", part, [*ADAPTERS.names(), NONE])
    if len({plain(part) for part in parts}) < len(parts):
        raise UsageError(f"the adapters {kinds} name one kind twice", "Name each kind once.")
    return "+".join(sorted(ADAPTERS.spelled(part) for part in parts))


def attach(network: nn.Module, kinds: str, domains: Sequence[str], *, default: str) -> Modes:
    """Give a network adapters of one kind, or of several joined by `+`, in place; all begin as the network is.

    Args:
        network: one that has none.
        kinds: names of the adapters catalog, as `dualtoken+dualhead`, or `none` for domains that share everything.
        domains: their names.
        default: the one that is active outside `through`.

    Raises:
        UsageError: an unknown kind, or a network without what it adapts.
    """
    modes = Modes(domains, default)
    for kind in [] if kinds == NONE else kinds.split("+"):
        ADAPTERS.get(kind).attach(network.network if isinstance(network, Classifier) else network, modes)
    network.modes = modes  # type: ignore[assignment]
    _check(network, modes)
    return modes


def freeze(network: nn.Module) -> None:
    """Let only what belongs to one domain be trained: what all share keeps its bytes, BatchNorm's statistics too."""
    owned = own_parameters(network)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in owned)
    modes = modes_of(network)
    if modes is not None:
        modes.frozen = True


def hold(network: nn.Module) -> None:
    """In a frozen network in training mode, let BatchNorm that all domains share take its statistics as they are."""
    modes = modes_of(network)
    if modes is None or not modes.frozen:
        return
    owned = {m for module in network.modules() if isinstance(module, Adapted) for m in module.own.modules()}
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module not in owned:
            module.eval()


def own_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The parameters that belong to one domain each."""
    adapted = [module for module in network.modules() if isinstance(module, Adapted)]
    return {parameter for module in adapted for parameter in module.own.parameters()}


def split(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Of a state dict of `network` the tensors that all domains share, and each domain's, by their plain names."""
    modes = modes_of(network)
    if modes is None:
        return dict(state), {}
    places = {name: module for name, module in network.named_modules() if isinstance(module, Adapted)}
    shared: dict[str, Tensor] = {}
    own: dict[str, dict[str, Tensor]] = {domain: {} for domain in modes.domains}
    for key, value in state.items():
        layer = next((name for name in places if key.startswith(f"{name}.")), None)
        if layer is None:
            shared[key] = value
            continue
        place, name = places[layer].plain(key.removeprefix(f"{layer}."))
        whole = f"{layer}.{name}" if name else layer
        (shared if place is None else own[modes.domains[place]])[whole] = value
    return shared, own


def _check(network: nn.Module, modes: Modes) -> None:
    """Every parameter belongs to all domains or to exactly one."""
    owned = own_parameters(network)
    each = [
        {p for module in network.modules() if isinstance(module, Adapted) for p in module.own[place].parameters()}
        for place in range(len(modes.domains))
    ]
    if sum(map(len, each)) != len(owned) or not owned <= set(network.parameters()):
        raise UsageError(
            "two kinds of adapters would change the same layers", "Name one of them: --set adapter=dualparams."
        )
