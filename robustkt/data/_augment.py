"""What happens to images between data set and network: random crops, mirror images, and the step to [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(x: Tensor, *, pad: int, flip: bool, rng: torch.Generator) -> Tensor:
    """A random window of each image padded by `pad` zeros, mirrored left to right half of the time if `flip`.

    Images (B, C, H, W) of any type and device; `rng` may live on another device than they do.
    """
    if pad == 0 and not flip:
        return x
    count, channels, height, width = x.shape

    def shift() -> Tensor:  # (B, 1)
        return torch.randint(2 * pad + 1, (count, 1), generator=rng, device=rng.device).to(x.device)

    rows = torch.arange(height, device=x.device) + shift()  # (B, H)
    across = torch.arange(width, device=x.device).expand(count, width)
    if flip:
        mirrored = torch.rand((count, 1), generator=rng, device=rng.device).to(x.device) < 0.5
        across = torch.where(mirrored, across.flip(1), across)
    columns = across + shift()  # (B, W)
    padded = F.pad(x, [pad] * 4)
    window = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, window).view_as(x)


def to_float(x: Tensor) -> Tensor:
    """uint8 images as floats in [0, 1]."""
    return x.float() / 255
