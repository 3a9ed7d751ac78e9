"""What happens to images between data set and network: random crops, mirror images, and the step to [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustkt.streams import bits_of


def crop_flip(x: Tensor, *, pad: int, flip: bool, rng: torch.Generator) -> Tensor:
    """A random window of each image padded by `pad` zeros, mirrored left to right half of the time if `flip`.

    Images (B, C, H, W) of any type and device; `rng` may live on another device than they do.
    """
    if pad == 0 and not flip:
        return x
    count = len(x)

    def shift() -> Tensor:  # (B, 1)
        return torch.randint(2 * pad + 1, (count, 1), generator=rng, device=rng.device).to(x.device)

    down = shift()
    mirrored = torch.rand((count, 1), generator=rng, device=rng.device).to(x.device) < 0.5 if flip else None
    return _window(x, pad, down, shift(), mirrored)


def keyed_crop_flip(x: Tensor, *, pad: int, flip: bool, keys: Tensor) -> Tensor:
    """The same with the random numbers of each image from its own key, (B,) int64: the batch does not matter."""
    if pad == 0 and not flip:
        return x
    drawn = bits_of(keys, 1).to(x.device)  # 20 bits a shift, so that no shift is likelier than another by 10⁻⁴

    def shift(place: int) -> Tensor:  # (B, 1)
        return ((drawn >> place) & 0xFFFFF) * (2 * pad + 1) >> 20

    return _window(x, pad, shift(0), shift(20), (drawn >> 40) & 1 == 1 if flip else None)


def _window(x: Tensor, pad: int, down: Tensor, across: Tensor, mirrored: Tensor | None) -> Tensor:
    """The window of each padded image that begins at row `down` and column `across`, mirrored where it says so."""
    count, channels, height, width = x.shape
    rows = torch.arange(height, device=x.device) + down  # (B, H)
    columns = torch.arange(width, device=x.device).expand(count, width)
    if mirrored is not None:
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns + across  # (B, W)
    padded = F.pad(x, [pad] * 4)
    window = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, window).view_as(x)


def to_float(x: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1]."""
    return x.float() / 255
