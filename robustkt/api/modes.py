"""Weights and adapters on disk, and one mode of a generation put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from safetensors.torch import save as save_tensors
from torch import Tensor

from robustkt.adapters.stored import assembled
from robustkt.generation import Generation
from robustkt.registry import Registry
from robustkt.registry.binding import HEADER, Binding


def weight_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors, in name order and without metadata: equal weights give equal bytes."""
    return save_tensors({name: state[name].contiguous().clone() for name in sorted(state)})


def adapter_bytes(tensors: Mapping[str, Tensor], *, base: str, kind: str, domain: str) -> bytes:
    """An adapter's tensors by their plain names, and the base's hash, the kind and the domain that they belong to."""
    told = Binding(base, domain, kind).text()
    return save_tensors({name: tensors[name].contiguous().clone() for name in sorted(tensors)}, {HEADER: told})


def state_of(registry: Registry, generation: Generation, *, last: bool = False) -> dict[str, Tensor]:
    """The state dict of the plain network: of a generation with adapters in the mode that is meant.

    Raises:
        IntegrityError: an object is missing, damaged, or not what the manifest says.
        SafetensorError: the weights are not safetensors.
    """
    return assembled(generation, registry.object, last=last)


def count_of(parameters: Iterable[Tensor]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)
