"""Blur: Gaussian, of a lens out of focus, and of a moving camera.

arXiv:1903.12261, section 3. Radii and deviations are those for images of 32 pixels; on larger ones they grow with the
shorter side.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["defocus_blur", "gaussian_blur", "motion_blur"]

Image = npt.NDArray[np.float64]

SIDE = 32  # pixels a side, of the images that the numbers are for
LARGE = 8  # pixels: from there on the rim of a disk is softened by 5x5 weights


def growth(x: Image) -> float:
    """How much longer a length is than on images of 32 pixels; smaller images keep them."""
    shorter: int = min(x.shape[1:])
    return max(1.0, shorter / SIDE)


def gaussian_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """A Gaussian of deviation 0.4 to 1 pixels; the border's pixels go on beyond it."""
    sigma = growth(x) * (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    blurred: Image = ndimage.gaussian_filter(x, (0, sigma, sigma), mode="nearest")
    return blurred


def defocus_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """A disk of radius 0.3 to 1.5 pixels with a softened rim; the border mirrors the image."""
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    kernel = disk(growth(x) * radius, soft)
    blurred: Image = ndimage.convolve(x, kernel[None], mode="mirror")
    return blurred


def disk(radius: float, soft: float) -> Image:
    """Weights (K, K) of a disk, blurred by a Gaussian of deviation `soft` that is cut at a pixel, or two."""
    reach = 1 if radius <= LARGE else 2
    places = np.arange(-math.floor(radius) - reach, math.floor(radius) + reach + 1)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    blurred: Image = ndimage.gaussian_filter(inside / inside.sum(), soft, mode="constant", radius=reach)
    return blurred


def motion_blur(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Half a Gaussian of deviation 1 to 2.5 pixels along a line at −45° to 45°, as ImageMagick's MotionBlur has it."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * round(growth(x) * radius) + 1)
    weights = np.exp(-0.5 * (steps / (growth(x) * sigma)) ** 2)
    across, down = (np.ceil(steps * part - 0.5).astype(int) for part in (math.cos(angle), math.sin(angle)))
    rows, columns = (np.arange(side) for side in x.shape[1:])
    blurred = np.zeros_like(x)
    for weight, right, below in zip(weights / weights.sum(), across, down, strict=True):
        here = (rows + below).clip(0, rows[-1])[:, None], (columns + right).clip(0, columns[-1])
        blurred += weight * x[:, *here]
    return blurred
