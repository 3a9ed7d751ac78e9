"""Data sets as bytes in memory: a slice of training is held out for selection, and test is only for reporting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from robustkt.catalog import plain, unknown
from robustkt.corruptions import SEED, Corruption
from robustkt.corruptions import fingerprint as corrupted_fingerprint
from robustkt.data._arrays import Arrays, Raw, checked, drawn, fingerprint, image_side, mean_std, resized
from robustkt.data._augment import crop_flip, keyed_crop_flip, to_float
from robustkt.data._corrupted import corrupt
from robustkt.data._folder import read_folder, read_labelled
from robustkt.data._images import read_image
from robustkt.data._named import read_named
from robustkt.data._npz import read_npz
from robustkt.data._sources import present
from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.generation import DataSpec

__all__ = [
    "NAMES",
    "Dataset",
    "Split",
    "check_fits",
    "corrupt",
    "corrupted",
    "crop_flip",
    "keyed_crop_flip",
    "labelled",
    "load",
    "present",
    "read_image",
    "tests_alone",
    "to_float",
    "trainless",
]

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagenette")  # a literal: read unimported


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a data set."""

    x: Tensor  # (N, C, H, W), uint8
    y: Tensor  # (N,), int64

    def __len__(self) -> int:
        """N."""
        return len(self.y)

    def images(self, index: slice | Tensor) -> Tensor:
        """The chosen images as floats in [0, 1]."""
        return to_float(self.x[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory with what pins it."""

    spec: DataSpec
    train: Split  # without the held-out images
    held_out: Split  # a slice of the training set, for selection
    test: Split  # only for reporting
    flip: bool  # whether a mirrored image keeps its label
    pad: int  # pixels of padding for random crops: 4 at 32, 3 at 28, none below 16, where a pixel is an eighth
    source: str  # what to load it by again: its name, or its whole path; no part of its identity

    @property
    def paths(self) -> dict[str, str]:
        """Where it lies, as run records keep it: nothing of one that is found by its name."""
        return {} if self.spec.name in NAMES else {"data": self.source}


def load(data: str, *, data_dir: Path | None = None, image_size: int | None = None) -> Dataset:
    """The data set called `data`: one of `NAMES`, an image folder, or an `.npz` in the layout of MedMNIST.

    `data_dir` is where the named sets lie or are downloaded to; without it $ROBUSTKT_DATA, else the user's cache.
    `image_size` is the side in pixels that images are resized to.

    Raises:
        UsageError: an unknown name, a file of another kind, or an image size that cannot be used.
        NotFoundError: no such file or folder.
        RobustKTError: data that cannot be downloaded, are damaged or do not fit together.
    """
    side = image_side(image_size)
    name = plain(data).replace("_", "-")
    named = name in NAMES
    if named:
        raw = read_named(name, data_dir, side)
    elif data and os.path.isdir(data):
        raw = read_folder(Path(data), side)
    elif os.path.isfile(data):
        if not data.lower().endswith(".npz"):
            raise UsageError(f"{data} is not an .npz file", "Give a name, an image folder or an .npz file.")
        raw = read_npz(Path(data))
    else:
        raise _no_such(data)
    raw = checked(resized(raw, side) if side else raw, data)

    train, held_out = raw.train, raw.held_out
    if held_out is None:
        chosen = drawn(len(train.y))
        train, held_out = Arrays(train.x[~chosen], train.y[~chosen]), Arrays(train.x[chosen], train.y[chosen])
    splits = [Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in (train, held_out, raw.test)]
    mean, std = mean_std(splits[0].x)
    spec = DataSpec(
        name=raw.name,
        fingerprint=fingerprint(raw),
        classes=raw.classes,
        shape=tuple(splits[0].x.shape[1:]),
        mean=mean,
        std=std,
        held_out=len(splits[1]),
        image_size=raw.image_size,
    )
    source = name if named else os.path.abspath(data)
    return Dataset(
        spec,
        splits[0],
        splits[1],
        splits[2],
        flip=raw.flip,
        pad=spec.shape[1] // 8 if spec.shape[1] >= 16 else 0,
        source=source,
    )


def labelled(data: str, spec: DataSpec) -> tuple[Split, str] | None:
    """Labelled images for a model trained on `spec`, and their fingerprint: `CLASS/*.png`, or `test/CLASS/*.png`.

    Some of the classes are enough. None where `data` is not such a folder, but a data set or nothing: see `load`.

    Raises:
        UsageError: pictures in colours for a model of grey ones.
        RobustKTError: classes that the model does not know, or pictures that cannot be read.
    """
    if not trainless(data):
        return None
    found = read_labelled(_tests(data), spec.classes, spec.shape)
    pinned = fingerprint(Raw("folder", found, Arrays(found.x[:0], found.y[:0]), spec.classes, flip=False))
    return Split(torch.from_numpy(found.x), torch.from_numpy(found.y)), pinned


def tests_alone(data: str, spec: DataSpec) -> Dataset | None:
    """Test images for a model trained on `spec`, of a folder without training images: `test/CLASS/*.png` or `CLASS/*`.

    Some of the classes are enough; pictures of another size are resized. Nothing is held out and nothing is there to
    train on. None where `data` is no such folder: see `load`.

    Raises:
        UsageError: a folder of training images, or pictures in colours for a model of grey ones.
        RobustKTError: classes that the model does not know, or pictures that cannot be read.
    """
    if not trainless(data):
        return None
    if os.path.basename(os.path.realpath(_tests(data))).lower() == "train":
        raise UsageError(f"{data} holds training images, on which nothing is measured", "Name the folder with test/.")
    found = labelled(data, spec)
    if found is None:
        return None
    test, pinned = found
    none = Split(test.x[:0], test.y[:0])
    own = replace(spec, name="folder", fingerprint=pinned, held_out=0)
    return Dataset(own, none, none, test, flip=False, pad=0, source=os.path.abspath(data))


def _tests(data: str) -> Path:
    """Where the classes of a folder without training images lie."""
    inside = Path(data, "test")
    return inside if inside.is_dir() else Path(data)


def trainless(data: str) -> bool:
    """Whether it is a folder without training images."""
    named = plain(data).replace("_", "-") in NAMES
    return not named and os.path.isdir(data) and not os.path.isdir(os.path.join(data, "train"))


def corrupted(dataset: Dataset, corruption: Corruption, rows: Sequence[int]) -> Dataset:
    """`dataset` with the test images `rows` corrupted and the others black; training images stay as they are.

    Its name and its fingerprint are its own, so that no result on it is taken for one on the clean images.
    """
    x = torch.zeros_like(dataset.test.x)
    chosen = torch.as_tensor(rows, dtype=torch.int64)
    x[chosen] = corrupt(dataset.test.x[chosen], corruption.name, corruption.severity, SEED, indices=list(rows))
    pinned = corrupted_fingerprint(dataset.spec.fingerprint, corruption)
    spec = replace(dataset.spec, name=f"{dataset.spec.name}+{corruption}", fingerprint=pinned)
    return replace(dataset, spec=spec, test=Split(x, dataset.test.y))


def check_fits(spec: DataSpec, other: DataSpec, *, who: str) -> None:
    """Does nothing if a model trained on `spec` can be used on `other`; `who` is the model: "the teacher gen0".

    Classes without names of their own (0, 1, 2 …, as npz files have) fit any classes of the same number.

    Raises:
        UsageError: other classes, or images of another shape.
    """
    if len(spec.classes) != len(other.classes):
        raise UsageError(
            f"{who} tells {len(spec.classes)} classes of {spec.name} apart; {other.name} has {len(other.classes)}",
            f"Give data with the classes of {spec.name}, or a model trained on {other.name}.",
        )
    numbers = tuple(map(str, range(len(spec.classes))))
    if spec.classes != other.classes and numbers not in (spec.classes, other.classes):
        mine, theirs = next((a, b) for a, b in zip(spec.classes, other.classes, strict=True) if a != b)
        raise UsageError(
            f"{who} has other classes than {other.name}: '{mine}' where that has '{theirs}'",
            f"Give data with the classes of {spec.name} in the same order, or a model trained on {other.name}.",
        )
    if spec.shape != other.shape:
        (c, h, w), (channels, height, width) = spec.shape, other.shape
        resizable = c == channels and h == w
        raise UsageError(
            f"{who} takes {w}x{h} images with {c} channels; {other.name} has {width}x{height} with {channels}",
            f"Add --image-size {h}."
            if resizable
            else f"Give data like {spec.name}, or a model trained on {other.name}.",
        )


def _no_such(data: str) -> RobustKTError:
    """What to say of something that is neither a name nor there."""
    if "." in data or os.sep in data:
        return NotFoundError(
            f"there is no file or folder {data}", f"Check the path, or name a set: {', '.join(NAMES)}."
        )
    return unknown("data set", data, NAMES)
