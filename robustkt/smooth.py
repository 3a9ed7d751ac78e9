"""Samples the noisy classifier for certificates: batches filled across images, noise keyed by seed, image and chunk."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from robustkt.certificates import Certificate, Certifying
from robustkt.core import attacking, seed_of
from robustkt.errors import IntegrityError

CHUNK = 64  # draws that share one seed; part of what the noise is keyed by, so never tuned
BATCH = 512  # noisy images a forward pass; free to tune


K = TypeVar("K", int, str)  # what an image is known by; part of what its noise is keyed by


@dataclass
class _Image(Generic[K]):
    """One image on its way to a certificate."""

    key: K
    x: Tensor  # (C, H, W), float, on the device
    program: Certifying
    classes: int
    pending: int = 0  # draws of the present request that are not in a batch yet
    awaited: int = 0  # draws of the present request that are not counted yet
    chunk: int = 0  # chunks drawn so far
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    done: Certificate | None = None

    def ask(self) -> None:
        """Start the program, or hand it the counts that it asked for."""
        try:
            wanted = self.program.send(self.counts.tolist()) if self.chunk else next(self.program)
            self.pending = self.awaited = wanted
            self.counts = torch.zeros(self.classes, dtype=torch.int64)
        except StopIteration as stop:
            self.done = stop.value


def certify(
    model: nn.Module,
    images: Iterable[tuple[K, Tensor]],
    program: Callable[[], Certifying],
    *,
    classes: int,
    sigma: Fraction,
    seed: int,
    device: torch.device,
    batch_size: int = BATCH,
    advance: Callable[[int], None] = lambda draws: None,
) -> Iterator[tuple[K, Certificate, float]]:
    """Certify images with the smoothed version of `model`; yields (key, certificate, seconds) in the order given.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K); used in eval mode.
        images: (key, image (C, H, W) in [0, 1]); the key, `seed` and a chunk's number decide its noise, so that the
            counts of an image depend neither on the batch size nor on the other images nor on an interruption.
        program: starts a certifier for one image.
        classes: K.
        sigma: standard deviation of the noise, in [0, 1] pixel units; it is added unclipped, in fp32.
        seed: of the noise.
        device: where the network is.
        batch_size: noisy images a forward pass, filled across images; at least one chunk.
        advance: called with the number of draws after each forward pass.
    """
    todo = iter(images)
    active: deque[_Image[K]] = deque()
    since = time.perf_counter()
    buffer: Tensor | None = None
    batch_size = max(batch_size, CHUNK)
    rng = torch.Generator(device)

    while True:
        batch: list[tuple[_Image[K], int, int]] = []  # image, its first row, its rows
        filled = 0
        for image in _fillable(active, todo, program, classes, device):
            if buffer is None:
                buffer = torch.empty(batch_size, *image.x.shape, device=device)
            while image.pending and filled + min(CHUNK, image.pending) <= batch_size:
                rows = min(CHUNK, image.pending)
                noisy = buffer[filled : filled + rows]
                rng.manual_seed(chunk_seed(seed, image.key, image.chunk))
                noisy.normal_(generator=rng).mul_(float(sigma)).add_(image.x)
                batch.append((image, filled, rows))
                image.chunk += 1
                image.pending -= rows
                filled += rows
            if image.pending or filled == batch_size:
                break
        if not batch:
            return
        assert buffer is not None  # a batch has been drawn into it
        _count(model, buffer[:filled], batch, classes)
        advance(filled)
        while active and active[0].done is not None:
            image = active.popleft()
            now = time.perf_counter()
            yield image.key, image.done, now - since  # type: ignore[misc]
            since = now


def chunk_seed(seed: int, key: int | str, chunk: int) -> int:
    """The seed of a chunk's noise: another one for every chunk of an image, so that its draws are fresh.

    torch's generator on the CPU uses 32 bits of a seed. Hashing the chunk as well would let an image meet the same
    32 bits twice (one image in 36 at a million draws); counting up from the image's own hash cannot.
    """
    return (seed_of(seed, str(key)) + chunk) % 2**32


def _fillable(
    active: deque[_Image[K]],
    todo: Iterator[tuple[K, Tensor]],
    program: Callable[[], Certifying],
    classes: int,
    device: torch.device,
) -> Iterator[_Image[K]]:
    """The images that still want draws: those under way, then new ones."""
    yield from [image for image in active if image.pending]
    for key, x in todo:
        image = _Image(key, x.to(device), program(), classes)
        image.ask()
        active.append(image)
        yield image


def _count(model: nn.Module, noisy: Tensor, batch: list[tuple[_Image[K], int, int]], classes: int) -> None:
    """One forward pass, its votes counted on the device with one synchronisation; answered programs go on."""
    rows = torch.tensor([n for _, _, n in batch], device=noisy.device)
    owner = torch.repeat_interleave(torch.arange(len(batch), device=noisy.device), rows, output_size=len(noisy))
    with attacking(model), torch.inference_mode():
        logits = model(noisy)
        votes = logits.argmax(dim=1)
        counts = torch.bincount(owner * classes + votes, minlength=len(batch) * classes).view(len(batch), classes).cpu()
        if not bool(logits.isfinite().all()):
            raise IntegrityError("the network gives logits that are not finite numbers", "It cannot be certified.")
    for (image, _, n), count in zip(batch, counts, strict=True):
        image.counts += count
        image.awaited -= n
        if not image.awaited:
            image.ask()
