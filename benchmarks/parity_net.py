"""A network small enough that an attack of thousands of queries takes seconds: two convolutions and a linear layer."""

from __future__ import annotations

from torch import Tensor, nn


class TinyCNN(nn.Module):
    """8 and 16 channels, each with stride 2."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.LazyLinear(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        return self.head(self.features(x))
