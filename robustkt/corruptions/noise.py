"""Noise in the sensor: Gaussian, shot (Poisson) and impulse noise.

arXiv:1903.12261, section 3. The numbers of an image's stream are the same at every severity, so that the noise grows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]

Image = npt.NDArray[np.float64]


def gaussian_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """N(0, σ²) added to each value, σ from 0.04 to 0.1: a sensor in little light."""
    sigma = (0.04, 0.06, 0.08, 0.09, 0.1)[severity - 1]
    return x + sigma * rng.standard_normal(x.shape)


def shot_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Counts of light, Poisson with mean `most` x, over `most`, from 500 down to 50."""
    most = (500, 250, 100, 75, 50)[severity - 1]
    return rng.poisson(x * most) / most


def impulse_noise(x: Image, severity: int, rng: np.random.Generator) -> Image:
    """Salt and pepper: a share of the values, from 1 to 7 %, set to 0 or 1 with equal odds."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit, salt = rng.random(x.shape) < share, rng.random(x.shape) < 0.5
    return np.where(hit, salt.astype(np.float64), x)
