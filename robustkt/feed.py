"""The images of an epoch, batch by batch, on the device: resident there as bytes where they fit, else brought ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from robustkt.data import Split

SHARE = 4  # a set is kept on an accelerator if it takes at most this part of the free memory: one in SHARE


class Feed:
    """Batches of a split of a data set, which lies in the host's memory.

    Attributes:
        resident: whether the images lie on the device. On a CPU they do; on an accelerator if they take a quarter of
            its free memory or less. Else a thread gathers the next batch into pinned memory while a step runs.
    """

    def __init__(self, images: Split, device: torch.device, *, resident: bool | None = None) -> None:
        free = free_bytes(device)
        fits = free is None or images.x.nbytes * SHARE <= free
        self.resident = fits if resident is None else resident
        self.device = device
        self.pinned = device.type == "cuda" and not self.resident
        self.images = Split(images.x.to(device), images.y.to(device)) if self.resident else images

    def batches(self, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each tensor of indices (B,), on the CPU, its images (B, C, H, W), uint8, and labels (B,)."""
        if self.resident:
            for picked in order:
                index = picked.to(self.device, non_blocking=True)
                yield self.images.x[index], self.images.y[index]
            return
        with ThreadPoolExecutor(1) as pool:  # indexing bytes lets go of Python's lock
            ahead = [pool.submit(self._gather, picked) for picked in order[:1]]
            for step in range(len(order)):
                x, y = ahead.pop().result()
                if step + 1 < len(order):
                    ahead.append(pool.submit(self._gather, order[step + 1]))
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _gather(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.images.x[picked], self.images.y[picked]
        return (x.pin_memory(), y.pin_memory()) if self.pinned else (x, y)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator; None of a CPU, in whose memory the set lies already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None
