"""Where the sets of torchvision come from, what lies on disk of them, and what to say when one is not there."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib
import os
import sys
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt import places
from robustkt.errors import IntegrityError, RobustKTError, clip

OTHERWISE = "name the folder that holds it with --data-dir, or start with --data digits, which needs no download."
# What torchvision raises when it can neither find nor download a set, or unpack what it has.
FAILURES = (OSError, RuntimeError, ValueError, EOFError, tarfile.TarError, zlib.error, http.client.HTTPException)


@dataclass(frozen=True)
class Source:
    """A set of torchvision: its class there, and what lies in the data directory."""

    kind: str  # in torchvision.datasets
    folder: str  # where it is unpacked, below the data directory
    archives: Mapping[str, str]  # path below the data directory -> MD5, as torchvision has them
    counts: tuple[int, int]  # training and test images


SOURCES: Mapping[str, Source] = {
    "mnist": Source(
        "MNIST",
        "MNIST/raw",
        {
            "MNIST/raw/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "MNIST/raw/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "MNIST/raw/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "MNIST/raw/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        (60_000, 10_000),
    ),
    "fashion-mnist": Source(
        "FashionMNIST",
        "FashionMNIST/raw",
        {
            "FashionMNIST/raw/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        (60_000, 10_000),
    ),
    "cifar10": Source(
        "CIFAR10",
        "cifar-10-batches-py",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
        (50_000, 10_000),
    ),
    "cifar100": Source(
        "CIFAR100",
        "cifar-100-python",
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
        (50_000, 10_000),
    ),
    "svhn": Source(
        "SVHN",
        "",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
        (73_257, 26_032),
    ),
    "imagenette": Source(
        "Imagenette",
        "imagenette2-160",
        {"imagenette2-160.tgz": "e793b78cc4c9e9a4ccc0c1155377a412"},
        (9_469, 3_925),
    ),
}


def default_directory() -> Path:
    """$ROBUSTKT_DATA, else `robustkt/data` in the user's cache."""
    if given := os.environ.get("ROBUSTKT_DATA"):
        return Path(given)
    return places.cache() / "data"


def present(name: str, data_dir: Path | None) -> bool:
    """Whether a named set lies here, so that reading it asks no network; its checksums are not looked at."""
    if name not in SOURCES:
        return True
    source, root = SOURCES[name], (data_dir or default_directory()).expanduser()
    unpacked = bool(source.folder) and any((root / source.folder).glob("*"))
    return unpacked or all((root / archive).is_file() for archive in source.archives)


def whole(root: Path, source: Source, archive: str) -> bool:
    """Whether an archive is there with the checksum it should have."""
    try:
        with open(root / archive, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            return found.hexdigest() == source.archives[archive]
    except OSError:
        return False


def torchvision_set(name: str, root: Path, **options: Any) -> Any:
    """torchvision's object for a set, after it has downloaded what is missing; what it prints goes to stderr.

    Raises:
        RobustKTError: it is not there and could not be downloaded.
        IntegrityError: an archive is damaged and could not be downloaded again.
    """
    kind = getattr(importlib.import_module("torchvision.datasets"), SOURCES[name].kind)
    inside = root / SOURCES[name].folder
    new = [place for place in (inside, *inside.parents) if place.is_relative_to(root) and not place.exists()]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return kind(root, download=True, **options)
    except FAILURES as error:
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()  # what torchvision made and could not fill
        raise _not_there(name, root, error) from None


def _not_there(name: str, root: Path, error: Exception) -> RobustKTError:
    source = SOURCES[name]
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]  # earlier lines name the file and mirrors
    why = f"could not be downloaded: {clip(last.removeprefix('<urlopen error ').removesuffix('>'))}"
    damaged = [root / a for a in source.archives if (root / a).is_file() and not whole(root, source, a)]
    if damaged:
        named = ", ".join(map(str, damaged))
        return IntegrityError(
            f"{name}: {named} is damaged (wrong checksum) and {why}", f"Put a good copy there, {OTHERWISE}"
        )
    partly = source.folder and any((root / source.folder).glob("*"))
    files = ", ".join(Path(a).name for a in source.archives)
    place = (root / next(iter(source.archives))).parent
    return RobustKTError(
        f"{name} is not {'whole ' * bool(partly)}in {root} and {why}",
        f"{f'Delete {root / source.folder}, then connect' if partly else 'Connect'} to the network, "
        f"put {files} into {place}, {OTHERWISE}",
    )
