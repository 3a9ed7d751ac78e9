"""Random numbers by key: the same (seed, image, chunk) gives the same stream wherever and whenever it is drawn."""

from __future__ import annotations

import hashlib
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
