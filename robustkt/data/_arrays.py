"""What every data set has once it is read: uint8 images and labels, and what is counted and hashed over them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from robustkt.data._images import empty, fit, picture_of, pixels
from robustkt.errors import RobustKTError, UsageError

SMALLEST = 8  # pixels a side; below that there is nothing left to convolve
FEWEST = 5  # training images, so that the held-out slice has one

Bytes: TypeAlias = npt.NDArray[np.uint8]
Labels: TypeAlias = npt.NDArray[np.int64]


class Arrays(NamedTuple):
    """Images and their labels."""

    x: Bytes  # (N, C, H, W)
    y: Labels  # (N,)


@dataclass(frozen=True)
class Raw:
    """What a reader found, before anything is drawn from it."""

    name: str
    train: Arrays
    test: Arrays
    classes: tuple[str, ...]
    flip: bool
    held_out: Arrays | None = None  # where the data set brings its own
    image_size: int | None = None  # side that the reader resized to


def checked(raw: Raw, shown: str) -> Raw:
    """`raw`, once it can be trained on; `shown` is what the messages call it.

    Raises:
        RobustKTError: too few images or classes, images that are too small, or labels outside the classes.
    """
    parts = {"training": raw.train, "test": raw.test} | ({"held-out": raw.held_out} if raw.held_out else {})
    for part, (x, y) in parts.items():
        fewest = FEWEST if part == "training" else 1
        if len(x) < fewest:
            raise RobustKTError(f"{shown} has {len(x)} {part} images", f"It takes {fewest} at the very least.")
        if x.shape[1:] != raw.train.x.shape[1:]:
            raise RobustKTError(
                f"{shown} has {part} images of {side_by_side(x)} and training images of {side_by_side(raw.train.x)}",
                "Give both one size and the same channels, or --image-size N if only the sizes differ.",
            )
        if y.min() < 0 or y.max() >= len(raw.classes):
            raise RobustKTError(
                f"{shown} has {part} labels from {y.min()} to {y.max()}; training has {len(raw.classes)} classes",
                "Labels count from 0, and every class occurs in training.",
            )
    if len(raw.classes) < 2:
        raise RobustKTError(f"{shown} has fewer than 2 classes", "There is nothing to tell apart: add a second class.")
    if min(raw.train.x.shape[2:]) < SMALLEST:
        raise RobustKTError(
            f"{shown} has images of {side_by_side(raw.train.x)}; the smallest usable is {SMALLEST}x{SMALLEST}",
            "Add --image-size 32 to enlarge them.",
        )
    return raw


def side_by_side(x: Bytes) -> str:
    """The size of images (N, C, H, W) for messages: `28x28, 1 channel`."""
    channels = "1 channel" if x.shape[1] == 1 else f"{x.shape[1]} channels"
    return f"{x.shape[3]}x{x.shape[2]}, {channels}"


def resized(raw: Raw, side: int) -> Raw:
    """`raw` with square images of `side` pixels; untouched where they are that already."""

    def part(arrays: Arrays) -> Arrays:
        count, channels = arrays.x.shape[:2]
        x = empty((count, channels, side, side))
        for i, image in enumerate(arrays.x):
            x[i] = pixels(fit(picture_of(image), side, side))
        return Arrays(x, arrays.y)

    parts = [raw.train, raw.test, *([raw.held_out] if raw.held_out else [])]
    if all(p.x.shape[2:] == (side, side) for p in parts):
        return raw
    train, test, *held_out = map(part, parts)
    return replace(raw, train=train, test=test, held_out=held_out[0] if held_out else None, image_size=side)


def image_side(image_size: int | None) -> int | None:
    """`image_size`, once it is a size.

    Raises:
        UsageError: below the smallest size that can be used.
    """
    if image_size is not None and image_size < SMALLEST:
        raise UsageError(f"image size {image_size} is too small", f"Give {SMALLEST} or more; 32 is usual.")
    return image_size


def fingerprint(raw: Raw) -> str:
    """`sha256:…` over images, labels and their shapes, in order: train, the set's own held-out slice if any, test."""
    sha = hashlib.sha256()
    for x, y in filter(None, (raw.train, raw.held_out, raw.test)):
        for array in (x, y.astype("<i8")):
            sha.update(f"{array.dtype.str} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
    return "sha256:" + sha.hexdigest()


def drawn(count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` training images are held out: the same ones for every run on the data set."""
    size = max(count // 10, min(1000, count // 5))
    held_out = np.zeros(count, bool)
    held_out[np.random.RandomState(0).permutation(count)[:size]] = True  # the one stream numpy has frozen for good
    return held_out


def mean_std(x: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel of uint8 images (N, C, H, W), for images in [0, 1], from exact integer sums, to 6 digits."""
    means, stds = [], []
    for channel in range(x.shape[1]):
        counts: list[int] = torch.bincount(x[:, channel].reshape(-1), minlength=256).tolist()
        n = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(round(first / (255 * n), 6))
        stds.append(max(round(math.sqrt((n * second - first * first) / (255 * n) ** 2), 6), 1e-3))
    return tuple(means), tuple(stds)
