"""The ranks of `torchrun`, which share the images of one job among them; alone without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Ranks:
    """One of `world` processes; exchanges bytes, never pickles."""

    rank: int = 0
    world: int = 1

    def gather(self, data: bytes) -> list[bytes]:
        """Everybody's bytes, in order of rank, at everybody."""
        if self.world == 1:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(1, *(int(size) for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        distributed.all_gather(parts, padded)
        return [bytes(part[: int(size)].numpy()) for part, size in zip(parts, sizes, strict=True)]

    def first_says(self, answer: bool) -> bool:
        """What the first rank answers."""
        return self.gather(b"\1" if answer else b"\0")[0] == b"\1"


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process's place among those that torchrun started, over gloo: what is exchanged is small."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    started = not distributed.is_initialized()
    if started:
        distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        if started:
            distributed.destroy_process_group()
