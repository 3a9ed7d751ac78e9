"""Small networks of four kinds, which two CPU cores can train robustly: images (B, C, H, W) to logits (B, K)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolution(inward: int, outward: int, size: int, stride: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inward, outward, size, stride, padding=(size - 1) // 2, bias=False),
        nn.BatchNorm2d(outward),
        nn.ReLU(inplace=True),
    )


def head(features: int, classes: int) -> nn.Sequential:
    """The mean of four quarters, and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * features, classes))


class Strided(nn.Sequential):
    """Three convolutions of stride 2."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__(
            convolution(channels, width, 4, 2),
            convolution(width, 2 * width, 4, 2),
            convolution(2 * width, 2 * width, 3, 2),
            head(2 * width, classes),
        )


def wide(channels: int, classes: int) -> nn.Module:
    """`Strided`, half as wide again."""
    return Strided(channels, classes, width=24)


class Pooled(nn.Sequential):
    """Convolutions of 3×3 with max-pooling between them, in the manner of VGG."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            convolution(channels, 8, 3, 1),
            nn.MaxPool2d(2),
            convolution(8, 16, 3, 1),
            nn.MaxPool2d(2),
            convolution(16, 32, 3, 1),
            nn.MaxPool2d(2),
            head(32, classes),
        )


class Block(nn.Module):
    """A residual block of stride 2."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(inward, outward, 3, 2),
            nn.Conv2d(outward, outward, 3, padding=1, bias=False),
            nn.BatchNorm2d(outward),
        )
        self.shortcut = nn.Conv2d(inward, outward, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inward, H, W) to (B, outward, H / 2, W / 2)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Residual(nn.Sequential):
    """Two residual blocks behind a convolution of stride 2."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(convolution(channels, 12, 4, 2), Block(12, 24), Block(24, 32), head(32, classes))


class Transformer(nn.Module):
    """A vision transformer of three blocks on patches of 4×4, width 64."""

    def __init__(self, channels: int, classes: int, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 64, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, (image_size // 4) ** 2, 64) * 0.02)
        block = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 3, norm=nn.LayerNorm(64), enable_nested_tensor=False)
        self.last = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.last(self.blocks(tokens).mean(dim=1))
        return logits
