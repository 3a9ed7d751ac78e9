"""What happens after the sensor: light, contrast, compression and fewer pixels.

arXiv:1903.12261, section 3. Compression and pixels are Pillow's, as in the published images.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from robustkt.data._images import MODES, picture_of, pixels
from robustkt.errors import UsageError

__all__ = ["brightness", "contrast", "jpeg_compression", "pixelate"]

Image = npt.NDArray[np.float64]


def brightness(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """The value of HSV raised by 0.05 to 0.3, hue and saturation kept.

    With those kept a colour is proportional to its value, the largest of its channels; black turns grey.
    """
    raised = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = x.max(axis=0, keepdims=True)
    brighter = np.minimum(value + raised, 1)
    made: Image = np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)
    return made


def contrast(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """The distance to each channel's mean times 0.75 down to 0.15."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean: Image = x.mean(axis=(1, 2), keepdims=True)
    return (x - mean) * kept + mean


def jpeg_compression(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """JPEG of quality 80 down to 40."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    file = BytesIO()
    picture(x).save(file, "JPEG", quality=quality)
    with Pillow.open(file, formats=["JPEG"]) as read:
        return pixels(read) / 255


def pixelate(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Shrunk to 95 % down to 65 % of the side and enlarged again, both by the mean over boxes."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    whole = picture(x)
    small = whole.resize((int(whole.width * share), int(whole.height * share)), Pillow.Resampling.BOX)
    return pixels(small.resize(whole.size, Pillow.Resampling.BOX)) / 255


def picture(x: Image) -> Pillow.Image:
    """The image in 8 bits.

    Raises:
        UsageError: it is neither grey nor in colours.
    """
    if len(x) not in MODES:
        raise UsageError(f"a picture has 1 or 3 channels, not {len(x)}", "Take another corruption.")
    return picture_of((x * 255).round().astype(np.uint8))
