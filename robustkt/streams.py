"""Random numbers by key: the same (seed, image, chunk) gives the same stream wherever and whenever it is drawn."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robustkt.core import seed_of

BITS = 60  # of the integers that a stream gives


class Stream(Protocol):
    """Where noise comes from; each call goes on where the one before stopped."""

    def normal(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with standard normal numbers."""
        ...

    def uniform(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with numbers from [0, 1)."""
        ...

    def integers(self, count: int) -> Tensor:
        """(count,) int64, uniform on [0, 2^60)."""
        ...


def philox(seed: int | str, key: int | str, chunk: int = 0) -> np.random.Generator:
    """NumPy's generator whose stream depends on (seed, key, chunk) alone."""
    words = np.frombuffer(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest(), dtype="<u8")
    # the highest word of the counter: chunks are 2^192 blocks apart and can never meet
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, 0, chunk]))


class HostStream:
    """NumPy's Philox4x64-10 (Salmon et al., SC'11): counter-based, its key the seed and image, its counter the chunk.

    torch's generator on the CPU is seeded by 32 bits only, so that some of ten thousand images would share noise.
    """

    def __init__(self, seed: int | str, key: int | str, chunk: int) -> None:
        self._rng = philox(seed, key, chunk)

    def normal(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with standard normal numbers."""
        self._rng.standard_normal(out=out.numpy(), dtype=np.float32)
        return out

    def uniform(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with numbers from [0, 1)."""
        self._rng.random(out=out.numpy(), dtype=np.float32)
        return out

    def integers(self, count: int) -> Tensor:
        """(count,) int64, uniform on [0, 2^60)."""
        return torch.from_numpy(self._rng.integers(0, 2**BITS, size=count, dtype=np.int64))


class DeviceStream:
    """torch's generator of a device; on CUDA Philox too, keyed by 63 bits of the seed, the image and the chunk."""

    def __init__(self, device: torch.device, seed: int | str, key: int | str, chunk: int) -> None:
        # counting up from the image's own number: two chunks of an image can never share a seed
        self._rng = torch.Generator(device).manual_seed((seed_of(seed, str(key)) + chunk) % 2**63)

    def normal(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with standard normal numbers."""
        return out.normal_(generator=self._rng)

    def uniform(self, out: Tensor) -> Tensor:
        """Fill `out` (contiguous, fp32) with numbers from [0, 1)."""
        return out.uniform_(generator=self._rng)

    def integers(self, count: int) -> Tensor:
        """(count,) int64, uniform on [0, 2^60)."""
        return torch.randint(0, 2**BITS, (count,), generator=self._rng, device=self._rng.device)


def stream(device: torch.device, seed: int | str, key: int | str, chunk: int) -> Stream:
    """The stream of a chunk of an image's noise on a device."""
    return HostStream(seed, key, chunk) if device.type == "cpu" else DeviceStream(device, seed, key, chunk)


def noise_seed(seed: int, mode: str, n: int, n0: int) -> str:
    """What the noise is keyed by beside the image: another procedure or number of copies draws other noise.

    A bound for a fixed n must not be taken on noise that n was chosen by, nor on some of it and a little more.
    """
    return f"{seed} {mode} {n} {n0}"


def uniform_number(seed: str, key: int | str) -> float:
    """From (0, 1] with nine decimals, which a log keeps exactly; drawn from a stream that no noise is drawn from."""
    return (int(HostStream(seed, f"u {key}", 0).integers(1)) % 10**9 + 1) / 10**9


# -- many keys at once -----------------------------------------------------------------------------------------------
# SplitMix64 (Steele, Lea and Flood, OOPSLA'14): the j-th number of a key is a mix of key + j·γ, so that a whole batch
# is drawn by a few exact operations on integers, and a row is the same whatever rows stand beside it, on every device.
# It takes integers that wrap at 64 bits, which torch's int64 do.

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # γ, the golden ratio's
MIXES = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
STEPS = 2**16  # of the table that turns 16 bits into a normal number


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place: int64 of any shape to numbers of which every bit depends on every bit."""
    for shift, factor in MIXES:
        z ^= (z >> shift) & (2 ** (64 - shift) - 1)
        z *= factor
    z ^= (z >> 31) & (2**33 - 1)
    return z


def keys_of(seed: int, index: Tensor) -> Tensor:
    """(B,) int64, a key for each of the numbers `index` (B,) under a seed of 63 bits."""
    return mixed(index * GAMMA + seed)


def bits_of(keys: Tensor, count: int) -> Tensor:
    """(B, count) int64, the first numbers of the stream of each key (B,)."""
    return mixed(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * GAMMA)


def normals_of(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *shape) fp32 of N(0, 1): the sum of two entries of a table, each picked by 16 bits: no two devices differ.

    The table holds the means of N(0, 1) between its 65,536-quantiles, scaled to variance 1/2. Of the sum every moment
    up to the fourth is that of a normal number to 10⁻³, and the largest value is 6.2.
    """
    count = math.prod(shape)
    places = bits_of(keys, -(-count // 2)).view(torch.int16)  # four an integer
    table = _normal_table().to(keys.device)
    drawn = table.index_select(0, (places.int() + STEPS // 2).view(-1)).view_as(places)
    half = places.shape[1] // 2
    return (drawn[:, :half] + drawn[:, half:])[:, :count].reshape(-1, *shape)


@functools.cache
def _normal_table() -> Tensor:
    """(65536,) fp32, rising."""
    edges = torch.special.ndtri(torch.arange(1, STEPS, dtype=torch.float64) / STEPS)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    zero = torch.zeros(1, dtype=torch.float64)
    means = STEPS * (torch.cat([zero, density]) - torch.cat([density, zero]))
    means = (means - means.flip(0)) / 2  # symmetric to the last bit
    return (means / means.square().mean().sqrt() / math.sqrt(2)).float()
