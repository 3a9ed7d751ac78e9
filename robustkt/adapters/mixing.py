"""What is in an adapter, as numbers: bound to its base, mixed with others, put into the base."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from robustkt.errors import IntegrityError

NONE = "none"  # the kind of domains that share every parameter, which is what adapters are compared with
LOW_RANK = (".lora_A", ".lora_B")


def mixed(adapters: Mapping[str, Mapping[str, Tensor]], shares: Mapping[str, Fraction]) -> dict[str, Tensor]:
    """Σ share·adapter, an adversarial model soup (arXiv:2210.04886), in float64 and in the order of the names.

    One adapter with the share 1 comes out bit for bit. Of low-rank changes the products are mixed, Σ share·B·A, by
    factors of the summed rank: A and B apart mean nothing.

    Raises:
        IntegrityError: the adapters do not hold the same tensors.
    """
    used = [name for name in sorted(shares) if shares[name]]
    first = adapters[used[0]]
    for name in used[1:]:
        other = adapters[name]
        if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in other.items()}:
            raise IntegrityError(f"the adapters {used[0]} and {name} do not hold the same tensors", "Mix others.")
    if len(used) == 1 and shares[used[0]] == 1:
        return dict(first)
    return {key: _mix(key, [(float(shares[name]), adapters[name][key]) for name in used]) for key in first}


def _mix(key: str, parts: list[tuple[float, Tensor]]) -> Tensor:
    values = [value for _, value in parts]
    if key.endswith(LOW_RANK[0]):
        return torch.cat(values, dim=0)
    if key.endswith(LOW_RANK[1]):
        return torch.cat([(share * value.double()).to(value.dtype) for share, value in parts], dim=1)
    if not values[0].is_floating_point():  # a counter of BatchNorm
        return torch.stack(values).amax(dim=0)
    total = sum(share * value.double() for share, value in parts)
    return torch.as_tensor(total).to(values[0].dtype)


def merged(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the plain network in one mode: the adapter's tensors in the place of the base's.

    Pairs `NAME.lora_A` (r, in), `NAME.lora_B` (out, r) are added to `NAME.weight` as B·A.

    Raises:
        IntegrityError: half of such a pair, or one for a weight that is not there.
    """
    whole = {**base, **{key: value for key, value in adapter.items() if not key.endswith(LOW_RANK)}}
    for layer in dict.fromkeys(key.rpartition(".")[0] for key in adapter if key.endswith(LOW_RANK)):
        a, b = (adapter.get(f"{layer}{end}") for end in LOW_RANK)
        weight = base.get(f"{layer}.weight")
        if a is None or b is None or weight is None or (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise IntegrityError(f"the adapter of {layer} is not whole", "Restore it from a copy.")
        whole[f"{layer}.weight"] = weight + b @ a
    return whole
