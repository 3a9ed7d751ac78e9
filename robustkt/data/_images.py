"""Picture files through Pillow: bytes in the channels and the size that are wanted, or a reason why not."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError, clip

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # and no other: Pillow's EPS reader, say, starts Ghostscript
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # grey levels of 16 bits
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
# What Pillow raises on damaged files; its own decoders differ.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


class Header(NamedTuple):
    """What is known of a picture before it is decoded."""

    width: int
    height: int
    grey: bool


@contextmanager
def no_bombs() -> Iterator[None]:
    """Pictures of absurd size are an error, not a warning, while this lasts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def header(path: Path) -> Header:
    """Size and kind of a picture file; raises one of `UNREADABLE`."""
    with Image.open(path, formats=FORMATS) as picture:
        return Header(picture.width, picture.height, picture.mode in ("1", "L", *DEEP))


def decode(path: Path, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The pixels (C, H, W) of a picture file, resized and cut to its centre if need be; raises one of `UNREADABLE`."""
    with Image.open(path, formats=FORMATS) as picture:
        if picture.mode == "F":
            raise ValueError("floating-point grey levels have no known range")
        shown: Image.Image = picture
        if picture.mode in DEEP:  # Pillow's own conversion cuts at 255
            shown = Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8))
        elif picture.mode in ("P", "PA"):  # its palette may hold transparency, which RGB alone cannot take
            shown = picture.convert("RGBA")
        return pixels(fit(shown.convert(MODES[channels]), height, width))


def read_image(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """One picture file as a network with inputs of `shape` (C, H, W) sees it: uint8 (C, H, W).

    A picture of another size is resized to cover H x W, and its centre is kept.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: the file is not a picture, is damaged or decompresses to an absurd size.
        UsageError: the network takes neither 1 nor 3 channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise UsageError(f"a picture has 1 or 3 channels, not {channels}", "Use a model trained on pictures.")
    if not path.is_file():
        raise NotFoundError(f"there is no image file {path}", "Check the path.")
    try:
        with no_bombs():
            return torch.from_numpy(decode(path, channels, height, width))
    except UNREADABLE as error:
        raise IntegrityError(
            f"{path} cannot be read: {reason(error)}", "Give a picture that opens elsewhere."
        ) from None


def reason(error: Exception) -> str:
    """Why a picture could not be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return clip(str(error)) or type(error).__name__


def picture_of(image: npt.NDArray[np.uint8]) -> Image.Image:
    """Pixels (C, H, W) as a picture."""
    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))


def fit(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The largest centred box with the sides' ratio, resized; for a square: the shorter side to N, then the centre."""
    if picture.size == (width, height):
        return picture
    across, down = float(picture.width), float(picture.height)
    if picture.width * height <= picture.height * width:
        down = picture.width * height / width
    else:
        across = picture.height * width / height
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    box = (left, top, (picture.width + across) / 2, (picture.height + down) / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box)


def pixels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The bytes (C, H, W) of a grey or RGB picture."""
    array = np.asarray(picture)
    return np.array(
        array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C"
    )  # a copy: Pillow's is read-only


def empty(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Room for images (N, C, H, W).

    Raises:
        RobustKTError: there is not enough memory.
    """
    try:
        return np.empty(shape, np.uint8)
    except (MemoryError, ValueError):  # numpy's ValueError: more elements than it can count
        size = f"{shape[0]} images of {shape[3]}x{shape[2]} do not fit into memory"
        raise RobustKTError(size, "Give a smaller --image-size.") from None
