"""Reads the sets with a name: scikit-learn's digits, and what torchvision downloads and checks."""

from __future__ import annotations

import functools
import gzip
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from robustkt.data._arrays import Arrays, Bytes, Labels, Raw
from robustkt.data._folder import read_folder
from robustkt.data._sources import SOURCES, default_directory, torchvision_set, whole
from robustkt.errors import IntegrityError

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
TEST_DIGITS = 360


def read_named(name: str, data_dir: Path | None, image_size: int | None) -> Raw:
    """The set called `name`, from the data directory or, where it is not there, from the network.

    Raises:
        RobustKTError: not there, and it could not be downloaded.
        IntegrityError: there, but damaged.
    """
    if name == "digits":
        return _digits()
    source, root = SOURCES[name], (data_dir or default_directory()).expanduser()
    raw = READERS[name](name, root, image_size)
    counts = len(raw.train.y), len(raw.test.y)
    if counts != source.counts:
        raise IntegrityError(
            f"{name} in {root / source.folder} is not whole: {counts[0]} training and {counts[1]} test images, "
            f"not {source.counts[0]} and {source.counts[1]}",
            f"Delete {root / source.folder} and run it again.",
        )
    return raw


def _digits() -> Raw:
    """scikit-learn's 1,797 digits of 8x8 in 17 grey levels; about a fifth of each class are test images."""
    x, y = _scanned()
    shuffled = np.random.RandomState(0).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    test = np.zeros(len(y), bool)
    test[by_class[(np.arange(TEST_DIGITS) * 2 + 1) * len(y) // (2 * TEST_DIGITS)]] = True  # evenly spaced over classes
    return Raw("digits", Arrays(x[~test], y[~test]), Arrays(x[test], y[test]), DIGITS, flip=False)


@functools.cache
def _scanned() -> tuple[Bytes, Labels]:
    """All images and labels as they come, read from compressed text once a process; to be copied, not changed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None], found.target.astype(np.int64)


def _mnist(name: str, root: Path, image_size: int | None) -> Raw:
    """MNIST, which is digits."""
    return Raw(name, *_idx_set(name, root), DIGITS, flip=False)


def _fashion_mnist(name: str, root: Path, image_size: int | None) -> Raw:
    """Fashion-MNIST: a mirrored garment is that garment."""
    return Raw(name, *_idx_set(name, root), GARMENTS, flip=True)


def _idx_set(name: str, root: Path) -> tuple[Arrays, Arrays]:
    """Training and test images from the checked archives, which may be read-only, else from the unpacked files."""

    def contents() -> list[bytes | None]:
        return [_unpacked(name, root, archive) for archive in SOURCES[name].archives]

    files = contents()
    if None in files:
        torchvision_set(name, root)
        files = contents()
    images, labels, test_images, test_labels = (
        _idx_array(data or b"", root / archive) for data, archive in zip(files, SOURCES[name].archives, strict=True)
    )
    train = Arrays(images[:, None], labels.astype(np.int64))
    return train, Arrays(test_images[:, None], test_labels.astype(np.int64))


def _unpacked(name: str, root: Path, archive: str) -> bytes | None:
    path = root / archive
    if whole(root, SOURCES[name], archive):
        return gzip.decompress(path.read_bytes())
    return path.with_suffix("").read_bytes() if path.with_suffix("").is_file() else None


def _idx_array(data: bytes, path: Path) -> Bytes:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, their sizes, the values."""
    dimensions = 3 if "images" in path.name else 1
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + math.prod(shape):
        raise IntegrityError(f"{path.with_suffix('')} is damaged", "Delete it and run it again.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def _cifar(name: str, root: Path, image_size: int | None) -> Raw:
    """CIFAR-10 and CIFAR-100, with their fine labels."""
    train, test = (torchvision_set(name, root, train=part) for part in (True, False))
    parts = [Arrays(_channels_first(p.data), np.array(p.targets, np.int64)) for p in (train, test)]
    return Raw(name, parts[0], parts[1], tuple(train.classes), flip=True)


def _channels_first(x: Bytes) -> Bytes:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _svhn(name: str, root: Path, image_size: int | None) -> Raw:
    """SVHN without its extra images."""
    parts = (torchvision_set(name, root, split=part) for part in ("train", "test"))
    train, test = (Arrays(np.ascontiguousarray(p.data), p.labels.astype(np.int64)) for p in parts)
    return Raw(name, train, test, DIGITS, flip=False)


def _imagenette(name: str, root: Path, image_size: int | None) -> Raw:
    """Imagenette from its archive of 160 pixels; what it calls validation is the test set here."""
    found, _ = (torchvision_set(name, root, size="160px", split=part) for part in ("train", "val"))
    raw = read_folder(root / SOURCES[name].folder, image_size or 160, test="val")
    return replace(raw, name=name, classes=tuple(names[0] for names in found.classes))


READERS: Mapping[str, Callable[[str, Path, int | None], Raw]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "svhn": _svhn,
    "imagenette": _imagenette,
}
