"""Samples the noisy classifier for certificates: batches filled across images, noise keyed by seed, image and chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robustkt.certificates import Certificate, Certifying
from robustkt.core import attacking
from robustkt.errors import IntegrityError
from robustkt.noises import Noise
from robustkt.streams import stream

CHUNK = 64  # draws that share one stream; part of what the noise is keyed by, so never tuned
BATCH = {"cpu": 256, "cuda": 4096, "mps": 1024}  # noisy images a forward pass; larger ones fall out of a CPU's cache


K = TypeVar("K", int, str)  # what an image is known by; part of what its noise is keyed by
J = TypeVar("J", int, str, contravariant=True)


@dataclass(frozen=True)
class Share:
    """What one forward pass found out about one image."""

    first: int  # number of the first chunk of its noise
    chunks: int  # whose noise it used up
    draws: int
    counts: Sequence[int]  # (K,)


class Journal(Protocol[J]):
    """Keeps counts so that an interrupted run never draws again what it has seen."""

    def before(self, key: J) -> Iterable[Share]:
        """What is known of an image, in the order in which it was drawn."""
        ...

    def add(self, found: Sequence[tuple[J, Share]]) -> None:
        """Remember one forward pass."""
        ...


@dataclass
class _Image(Generic[K]):
    """One image on its way to a certificate."""

    key: K
    x: Tensor  # (C, H, W), float, on the device
    program: Certifying
    classes: int
    started: bool = False
    pending: int = 0  # draws of the present request that are not in a batch yet
    awaited: int = 0  # draws of the present request that are not counted yet
    chunk: int = 0  # chunks drawn so far
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    done: Certificate | None = None

    def ask(self) -> None:
        """Start the program, or hand it the counts that it asked for."""
        try:
            wanted = self.program.send(self.counts.tolist()) if self.started else next(self.program)
            self.started = True
            self.pending = self.awaited = wanted
            self.counts = torch.zeros(self.classes, dtype=torch.int64)
        except StopIteration as stop:
            self.done = stop.value

    def take(self, draws: int, counts: Tensor) -> None:
        """Votes of the present request."""
        self.counts += counts
        self.awaited -= draws
        if not self.awaited:
            self.ask()

    def restore(self, shares: Iterable[Share]) -> int:
        """Votes of an earlier run: counted again, not drawn again. Returns how many.

        Raises:
            IntegrityError: they are not what this program asks for.
        """
        draws = 0
        for share in shares:
            if share.first > self.chunk:  # a pass between is lost: it is drawn again, to the same votes
                break
            fits = self.chunk == share.first and 0 < share.draws <= self.pending and sum(share.counts) == share.draws
            fits &= share.chunks == -(-share.draws // CHUNK) and min(share.counts) >= 0
            if self.done is not None or not fits or len(share.counts) != self.classes:
                raise IntegrityError(f"the kept votes of image {self.key} do not fit", "Start again with --fresh.")
            self.chunk += share.chunks
            self.pending -= share.draws
            self.take(share.draws, torch.tensor(share.counts))
            draws += share.draws
        return draws


@dataclass(frozen=True)
class _Piece(Generic[K]):
    """One chunk of an image's noise in a batch."""

    image: _Image[K]
    chunk: int
    first: int  # row of the batch
    rows: int


def certify(
    model: nn.Module,
    images: Iterable[tuple[K, Tensor]],
    program: Callable[[K], Certifying],
    *,
    classes: int,
    noise: Noise,
    seed: int | str,
    device: torch.device,
    batch_size: int | None = None,
    journal: Journal[K] | None = None,
    advance: Callable[[int], None] = lambda draws: None,
) -> Iterator[tuple[K, Certificate]]:
    """Certify images with the smoothed version of `model`; yields (key, certificate) in the order given.

    Every forward pass has the same number of rows, so that the votes of an image depend neither on the other images
    nor on an interruption; rows that nobody asked for are not counted.

    Args:
        model: images (B, C, H, W) to logits (B, K); used in eval mode.
        images: (key, image (C, H, W) in [0, 1]); the key, `seed` and a chunk's number decide its noise.
        program: starts a certifier for one image.
        classes: K.
        noise: what the copies are made by; drawn and added in fp32, whatever the network computes in.
        seed: of the noise.
        device: where the network is.
        batch_size: noisy images a forward pass, filled across images; at least one chunk; by default the device's.
        journal: keeps the votes.
        advance: called with the number of draws after each forward pass.
    """
    todo = iter(images)
    active: deque[_Image[K]] = deque()
    buffer: Tensor | None = None
    batch_size = max(batch_size or BATCH.get(device.type, BATCH["cpu"]), CHUNK)

    with _workers(device) as pool, attacking(model):
        while True:
            pieces: list[_Piece[K]] = []
            filled = 0
            for image in _fillable(active, todo, program, classes, device, journal, advance):
                while image.pending and filled + min(CHUNK, image.pending) <= batch_size:
                    piece = _Piece(image, image.chunk, filled, min(CHUNK, image.pending))
                    pieces.append(piece)
                    image.chunk += 1
                    image.pending -= piece.rows
                    filled += piece.rows
                if image.pending or filled == batch_size:
                    break
            if pieces:
                if buffer is None:
                    buffer = torch.zeros(batch_size, *pieces[0].image.x.shape, device=device)
                _draw(pool, buffer, pieces, noise, seed, device)
                _count(model, buffer, pieces, filled, classes, journal)
                advance(filled)
            while active and active[0].done is not None:
                image = active.popleft()
                yield image.key, image.done  # type: ignore[misc]
            if not pieces:
                return


@contextmanager
def _workers(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that draw, one a core, each on that core alone: NumPy's and torch's kernels let go of the lock."""
    threads = torch.get_num_threads()
    count = threads if device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # what threads to come start with


def _fillable(
    active: deque[_Image[K]],
    todo: Iterator[tuple[K, Tensor]],
    program: Callable[[K], Certifying],
    classes: int,
    device: torch.device,
    journal: Journal[K] | None,
    advance: Callable[[int], None],
) -> Iterator[_Image[K]]:
    """The images that still want draws: those under way, then new ones."""
    yield from [image for image in active if image.pending]
    for key, x in todo:
        image = _Image(key, x.to(device), program(key), classes)
        image.ask()
        if journal is not None:
            advance(image.restore(journal.before(key)))
        active.append(image)
        if image.pending:
            yield image


def _draw(
    pool: ThreadPoolExecutor,
    buffer: Tensor,
    pieces: Sequence[_Piece[K]],
    noise: Noise,
    seed: int | str,
    device: torch.device,
) -> None:
    """Noisy copies into the rows of the batch; on a CPU several chunks at once, as a stream draws on one core."""

    def one(piece: _Piece[K]) -> None:
        rows = buffer[piece.first : piece.first + piece.rows]
        with torch.inference_mode():
            noise.draw(rows, piece.image.x, stream(device, seed, piece.image.key, piece.chunk))

    list(pool.map(one, pieces))


def _count(
    model: nn.Module,
    buffer: Tensor,
    pieces: Sequence[_Piece[K]],
    filled: int,
    classes: int,
    journal: Journal[K] | None,
) -> None:
    """One forward pass, its votes counted on the device with one synchronisation; answered programs go on."""
    order = {id(piece.image): piece.image for piece in pieces}
    place = {identity: i for i, identity in enumerate(order)}
    owners = torch.tensor([place[id(piece.image)] for piece in pieces], device=buffer.device)
    rows = torch.tensor([piece.rows for piece in pieces], device=buffer.device)
    with torch.inference_mode():
        logits = model(buffer)[:filled]
        owner = torch.repeat_interleave(owners, rows, output_size=filled)
        votes = torch.bincount(owner * classes + logits.argmax(dim=1), minlength=len(order) * classes)
        sound = logits.isfinite().all().long()
        *flat, finite = torch.cat([votes, sound.view(1)]).tolist()
    if not finite:
        raise IntegrityError("the network gives logits that are not finite numbers", "It cannot be certified.")
    found: list[tuple[_Image[K], Share]] = []
    for identity, image in order.items():
        own = [piece for piece in pieces if piece.image is image]
        start = place[identity] * classes
        counts = flat[start : start + classes]
        found.append((image, Share(own[0].chunk, len(own), sum(piece.rows for piece in own), counts)))
    if journal is not None:
        journal.add([(image.key, share) for image, share in found])
    for image, share in found:
        image.take(share.draws, torch.tensor(share.counts))


def disagreements(
    fast: nn.Module,
    plain: nn.Module,
    images: Iterable[tuple[K, Tensor]],
    *,
    noise: Noise,
    seed: int | str,
    device: torch.device,
    batch_size: int | None = None,
) -> tuple[int, int]:
    """How many votes two forms of one network give differently, of how many: a chunk of copies of each image.

    `plain` is on the CPU. The noise is not that of the certificates.
    """
    batch_size = max(batch_size or BATCH.get(device.type, BATCH["cpu"]), CHUNK)
    buffer, differ, total = None, 0, 0
    for key, x in images:
        if buffer is None:
            buffer = torch.zeros(batch_size, *x.shape, device=device)
        with torch.inference_mode(), attacking(fast), attacking(plain):
            noise.draw(buffer[:CHUNK], x.to(device), stream(device, seed, f"self-check {key}", 0))
            votes = fast(buffer)[:CHUNK].argmax(dim=1).cpu()
            differ += int((votes != plain(buffer[:CHUNK].cpu()).argmax(dim=1)).sum())
            total += CHUNK
    return differ, total
