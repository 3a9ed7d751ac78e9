"""A data set in one `.npz` file, in the layout of MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robustkt.data._arrays import Arrays, Raw
from robustkt.data._images import MODES
from robustkt.errors import IntegrityError, RobustKTError, clip

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
HELD_OUT = ("val_images", "val_labels")
LAYOUT = "The layout is train_images, train_labels, test_images, test_labels; images uint8, (N, H, W) or (N, H, W, C)."
DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path) -> Raw:
    """The set in the file `path`; `val_images, val_labels`, where it has them, become the held-out slice.

    Raises:
        IntegrityError: not an npz file, a damaged one, or one with pickled objects, which are never loaded.
        RobustKTError: an array is missing or is not what the layout says.
    """
    stored = _stored(path)
    train, test = _arrays(stored, "train", path), _arrays(stored, "test", path)
    held_out = _arrays(stored, "val", path) if "val_images" in stored else None
    top = int(train.y.max())
    if top >= len(train.x):
        raise RobustKTError(
            f"{path}: train_labels reaches {top} with {len(train.x)} images", "Labels are the class numbers 0 to K-1."
        )
    return Raw("npz", train, test, tuple(map(str, range(top + 1))), flip=False, held_out=held_out)


def _stored(path: Path) -> dict[str, Any]:
    """The arrays of the file that belong to the layout."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an npz file")
        with np.load(path, allow_pickle=False) as file:
            wanted = REQUIRED + HELD_OUT * any(key in file.files for key in HELD_OUT)
            missing = [key for key in wanted if key not in file.files]
            if missing:
                raise RobustKTError(f"{path} has no {', '.join(missing)}", LAYOUT)
            return {key: file[key] for key in wanted}
    except DAMAGED as error:
        why = clip(str(error)) or type(error).__name__
        raise IntegrityError(
            f"{path} cannot be read: {why}", "Write it again with numpy.savez, from plain arrays."
        ) from None


def _arrays(stored: dict[str, Any], part: str, path: Path) -> Arrays:
    """One part of the set, as (N, C, H, W) and (N,)."""
    images, labels = stored[f"{part}_images"], stored[f"{part}_labels"]

    def wrong(what: str, fix: str = LAYOUT) -> RobustKTError:
        return RobustKTError(f"{path}: {part}_{what}", fix)

    for array, name in ((images, "images"), (labels, "labels")):
        if not isinstance(array, np.ndarray):
            raise wrong(f"{name} is not an array")
    if images.dtype != np.uint8:
        raise wrong(f"images is {images.dtype}, not uint8", "Scale the images to 0..255 and store them as uint8.")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in MODES):
        raise wrong(f"images has shape {images.shape}", "Images are (N, H, W), (N, H, W, 1) or (N, H, W, 3).")
    if 0 in images.shape:
        raise wrong(f"images is empty: {images.shape}")
    if labels.dtype.kind not in "iu":
        raise wrong(f"labels is {labels.dtype}, not integer", "Labels are the class numbers 0 to K-1.")
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise wrong(
            f"labels has shape {labels.shape} for {len(images)} images", "Each image has one label: (N,) or (N, 1)."
        )
    if labels.min() < 0 or labels.max() > 2**31:
        raise wrong(f"labels runs from {labels.min()} to {labels.max()}", "Labels are the class numbers 0 to K-1.")
    x = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Arrays(np.ascontiguousarray(x), labels.reshape(-1).astype(np.int64))
