"""A small convolutional network for 28x28 images and smaller.

The plan of the MNIST network of TRADES, arXiv:1901.08573 (two convolutions, pool, two convolutions, pool), made fully
convolutional: padding, batch norm and a global average stand for its three linear maps, so every size works.
"""

from __future__ import annotations

from torch import nn

from robustkt.models._init import he

__all__ = ["smallcnn"]


def layer(inside: int, outside: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution that keeps the size, batch norm and ReLU."""
    return nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()


def smallcnn(*, channels: int, classes: int) -> nn.Module:
    """Four convolutions with 32 and 64 channels (0.07 M parameters), in the style of arXiv:1901.08573.

    Normalised images (B, C, H, W), H and W at least 4, to logits (B, K).
    """
    network = nn.Sequential(
        *layer(channels, 32),
        *layer(32, 32),
        nn.MaxPool2d(2),
        *layer(32, 64),
        *layer(64, 64),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )
    he(network)
    return network
