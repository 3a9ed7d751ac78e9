"""Weights and adapters on disk, an adapter bound to its base, and one mode of a generation put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustkt import adapters
from robustkt.errors import IntegrityError
from robustkt.generation import Generation
from robustkt.numbers import canonical
from robustkt.registry import Registry

HEADER = "robustkt"  # the one key of an adapter's metadata: several would be written in any order


def weight_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors, in name order and without metadata: equal weights give equal bytes."""
    return save_tensors({name: state[name].contiguous().clone() for name in sorted(state)})


def adapter_bytes(tensors: Mapping[str, Tensor], *, base: str, kind: str, domain: str) -> bytes:
    """An adapter's tensors by their plain names, and the base's hash, the kind and the domain that they belong to."""
    told = canonical({"base": base, "domain": domain, "kind": kind}).decode()
    return save_tensors({name: tensors[name].contiguous().clone() for name in sorted(tensors)}, {HEADER: told})


def read_adapter(data: bytes, *, base: str, domain: str, who: str) -> dict[str, Tensor]:
    """The tensors of an adapter.

    Raises:
        IntegrityError: it is none, or belongs to another base or domain.
    """
    try:
        header = json.loads(_metadata(data)[HEADER])
        found = header["base"], header["domain"]
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"the adapter {domain} of {who} is not one: {error}", "Run `robustkt verify`.") from None
    if found[0] != base:
        raise IntegrityError(
            f"the adapter {domain} of {who} belongs to another base, {str(found[0])[:19]}…, not to {base[:19]}…",
            "An adapter works only with the network that it was trained on; restore the registry from a copy.",
        )
    if found[1] != domain:
        raise IntegrityError(
            f"the adapter {domain} of {who} is that of {str(found[1])[:31]}", "Restore the registry from a copy."
        )
    return tensors


def _metadata(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    found = head["__metadata__"]
    return dict(found)


def state_of(registry: Registry, generation: Generation, *, last: bool = False) -> dict[str, Tensor]:
    """The state dict of the plain network: of a generation with adapters in the mode that is meant.

    Raises:
        IntegrityError: an object is missing, damaged, or not what the manifest says.
        SafetensorError: the weights are not safetensors.
    """
    weights = generation.last_weights if last else generation.weights
    base = load_tensors(registry.object(weights))
    own = generation.last_adapters if last else generation.adapters
    if not own:
        return base
    read = {
        domain: read_adapter(registry.object(own[domain]), base=weights, domain=domain, who=generation.name)
        for domain in generation.meant
    }
    return adapters.merged(base, adapters.mixed(read, generation.meant))


def count_of(parameters: Iterable[Tensor]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)
