"""A folder of pictures: `train/CLASS/*.png` and `test/CLASS/*.png`, or a few labelled ones in `CLASS/*.png`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from robustkt.data._arrays import Arrays, Bytes, Labels, Raw
from robustkt.data._images import SUFFIXES, UNREADABLE, Header, decode, empty, header, no_bombs, reason
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError

LAYOUT = "An image folder holds train/CLASS/*.png and test/CLASS/*.png, with a folder for each class."
FLAT = "Labelled images lie in CLASS/*.png, with a folder for each class, or in train/CLASS and test/CLASS."
SHOWN = 3  # unreadable files named in a message

T = TypeVar("T")


def read_folder(path: Path, image_size: int | None, *, test: str = "test") -> Raw:
    """The set in the folder `path`, whose test images lie in its folder `test`, in the order of the names.

    Pictures are grey if all of them are, else RGB. Without `image_size` all must have one size; with it, the shorter
    side is resized to it and the square in the middle kept.

    Raises:
        NotFoundError: a folder is missing.
        RobustKTError: a folder without pictures, or a class that training does not have.
        UsageError: pictures of different sizes and no `image_size`.
        IntegrityError: pictures that cannot be read.
    """
    train, tests = _classes(path, "train"), _classes(path, test)
    strange = sorted(set(tests) - set(train))
    if strange:
        raise RobustKTError(
            f"{path / test} has classes that training does not: {_few(strange)}", "Name the folders alike in both."
        )
    files = [file for part in (train, tests) for found in part.values() for file in found]
    headers, bad = _headers(path, files)
    size = _size(path, list(headers.values()), image_size)
    channels = 1 if all(h.grey for h in headers.values()) else 3
    images = _decoded(path, files, headers, bad, (channels, *size))
    names, count = list(train), sum(map(len, train.values()))
    changed = any((h.height, h.width) != size for h in headers.values())
    return Raw(
        "folder",
        Arrays(images[:count], _labels(train, names)),
        Arrays(images[count:], _labels(tests, names)),
        tuple(names),
        flip=True,
        image_size=image_size if changed else None,
    )


def read_labelled(path: Path, classes: Sequence[str], shape: tuple[int, ...]) -> Arrays:
    """The pictures in the folder `path`, directly in a folder for each of some `classes`, in the order of the names.

    They are as a network with inputs of `shape` (C, H, W) sees them: those of another size are resized to cover H x W,
    and their centres are kept.

    Raises:
        NotFoundError: the folder cannot be read.
        RobustKTError: a folder without pictures, or a class that is none of `classes`.
        UsageError: pictures in colours for a network of grey ones.
        IntegrityError: pictures that cannot be read.
    """
    found = _classes(path, "", layout=FLAT)
    strange = [name for name in found if name not in classes]
    if strange:
        raise RobustKTError(
            f"{path} has folders of other classes: {_few(strange)}", f"Name them as the classes: {_few(classes)}."
        )
    files = [file for pictures in found.values() for file in pictures]
    headers, bad = _headers(path, files)
    if shape[0] == 1 and not all(h.grey for h in headers.values()):
        raise UsageError(f"{path} has pictures in colours, and the network takes grey ones", "Store them in grey.")
    return Arrays(_decoded(path, files, headers, bad, shape), _labels(found, classes))


def _headers(path: Path, files: Sequence[Path]) -> tuple[dict[Path, Header], dict[Path, Exception]]:
    """Those of the pictures that have one, and why others have none; an error if all have none."""
    headers, bad = _each(header, files)
    if len(bad) == len(files):
        raise _unreadable(path, bad, len(files))
    return headers, bad


def _decoded(
    path: Path,
    files: Sequence[Path],
    headers: dict[Path, Header],
    bad: dict[Path, Exception],
    shape: tuple[int, ...],
) -> Bytes:
    """The pictures (N, C, H, W); an error if one cannot be read."""
    images = empty((len(files), *shape))
    places = dict(zip(files, images, strict=True))
    channels, height, width = shape

    def read(file: Path) -> None:
        places[file][:] = decode(file, channels, height, width)

    bad = bad | _each(read, list(headers))[1]
    if bad:
        raise _unreadable(path, bad, len(files))
    return images


def _labels(part: dict[str, list[Path]], names: Sequence[str]) -> Labels:
    """The place in `names` of each picture's class."""
    return np.repeat([names.index(name) for name in part], [len(files) for files in part.values()])


def _classes(root: Path, part: str, layout: str = LAYOUT) -> dict[str, list[Path]]:
    """Class name -> its picture files, both in the order of their names."""
    folder = root / part
    if not folder.is_dir():
        raise NotFoundError(f"{root} has no folder {part}", layout)
    found: dict[str, list[Path]] = {}
    for place in _listed(folder):
        if not place.is_dir():
            continue
        found[place.name] = [p for p in _listed(place) if p.suffix.lower() in SUFFIXES and not p.is_dir()]
        if not found[place.name]:
            raise RobustKTError(
                f"{place} holds no images", f"Add some ({' '.join(SUFFIXES)}), directly in it, or remove the folder."
            )
        if not place.name.isprintable():
            raise RobustKTError(f"{folder} has a class with an unprintable name: {place.name!r}", "Rename the folder.")
    if not found:
        raise RobustKTError(f"{folder} holds no class folders", layout)
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    except OSError as error:
        raise NotFoundError(f"{folder} cannot be read: {reason(error)}", "Check its permissions.") from None


def _size(root: Path, headers: Sequence[Header], image_size: int | None) -> tuple[int, int]:
    """The height and width that all pictures will have."""
    if image_size is not None:
        return image_size, image_size
    sizes = sorted({(h.height, h.width) for h in headers})
    if len(sizes) > 1:
        raise UsageError(
            f"{root} has images of {len(sizes)} sizes: {_few([f'{w}x{h}' for h, w in sizes])}",
            "Add --image-size N: the shorter side becomes N, and the square in the middle is kept.",
        )
    return sizes[0]


Key = TypeVar("Key")


def _each(function: Callable[[Key], T], keys: Sequence[Key]) -> tuple[dict[Key, T], dict[Key, Exception]]:
    """`function` of every key, in threads (Pillow decodes without Python's lock), and where it could not read."""

    def attempt(key: Key) -> T | Exception:
        try:
            return function(key)
        except UNREADABLE as error:
            return error

    with no_bombs(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(keys, pool.map(attempt, keys), strict=True))
    bad = {key: result for key, result in results.items() if isinstance(result, Exception)}
    return {key: result for key, result in results.items() if not isinstance(result, Exception)}, bad


def _unreadable(root: Path, bad: dict[Path, Exception], total: int) -> IntegrityError:
    named = _few([f"{file} ({reason(bad[file])})" for file in sorted(bad)])
    return IntegrityError(f"{root}: {len(bad)} of {total} images cannot be read: {named}", "Replace or remove them.")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
