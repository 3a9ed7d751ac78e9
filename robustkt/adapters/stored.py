"""A generation's adapters as they are stored, and one of its modes put together as a plain network."""

from __future__ import annotations

from collections.abc import Callable

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from robustkt.adapters.mixing import merged, mixed
from robustkt.errors import IntegrityError
from robustkt.generation import Adapter, Generation
from robustkt.registry.binding import read_binding


def read_adapter(data: bytes, adapter: Adapter, who: str) -> dict[str, Tensor]:
    """The tensors of an adapter.

    Raises:
        IntegrityError: it is none, or belongs to another base or domain.
    """
    read_binding(data, adapter, who)
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise IntegrityError(
            f"the adapter {adapter.domain} of {who} is not one: {error}", "Run `robustkt verify`."
        ) from None


def assembled(generation: Generation, read: Callable[[str], bytes], *, last: bool = False) -> dict[str, Tensor]:
    """The state dict of the plain network: of a generation with adapters in the mode that is meant.

    Args:
        generation: which.
        read: gives the bytes that have a hash.
        last: of the last epoch.

    Raises:
        IntegrityError: an adapter is not what the manifest says.
        SafetensorError: the weights are not safetensors.
    """
    base = load_tensors(read(generation.last_weights if last else generation.weights))
    wanted = [one for one in generation.bound(last=last) if one.domain in generation.meant]
    if not wanted:
        return base
    parts = {one.domain: read_adapter(read(one.hash), one, generation.name) for one in wanted}
    return merged(base, mixed(parts, generation.meant))
