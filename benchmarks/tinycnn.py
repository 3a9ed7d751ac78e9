"""Small strided networks that learn Fashion-MNIST robustly on two CPU cores, for benchmarks."""

from __future__ import annotations

from torch import Tensor, nn


class TinyCNN(nn.Module):
    """Three convolutions of stride 2, the first with `width` channels: images (B, C, H, W) to logits (B, K)."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K)."""
        logits: Tensor = self.layers(x)
        return logits


class Teacher(TinyCNN):
    """Three times as wide."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, width=48)
