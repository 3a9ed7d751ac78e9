"""Pre-activation ResNet-18 for small images, with a stem that keeps the size, in the variants that checkpoints have.

Identity Mappings in Deep Residual Networks, arXiv:1603.05027: batch norm and ReLU before each convolution. Published
codes differ in two points that the papers do not tell: whether batch norm and ReLU stand before the linear map, and
whether a shortcut whose shape changes starts behind the block's first batch norm or before it (`raw`). The first shows
in a checkpoint, the second does not. Parameters are called as RobustBench calls them, so its checkpoints fit by name.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.models._init import he

__all__ = ["preactresnet18", "preactresnet18_nobn", "preactresnet18_nobn_raw", "preactresnet18_raw"]


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, whose result is added to the input."""

    def __init__(self, inside: int, outside: int, stride: int, raw: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        same = inside == outside and stride == 1
        self.shortcut = None if same else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False))
        self.raw = raw

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(x if self.raw else active))


class PreActResNet(nn.Module):
    """A 3x3 stem with 64 channels, four stages of two blocks, a global average and a linear map."""

    def __init__(self, channels: int, classes: int, *, bn: bool, raw: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = stage(64, 64, 1, raw)
        self.layer2 = stage(64, 128, 2, raw)
        self.layer3 = stage(128, 256, 2, raw)
        self.layer4 = stage(256, 512, 2, raw)
        self.bn = nn.BatchNorm2d(512) if bn else None
        self.linear = nn.Linear(512, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


def stage(inside: int, outside: int, stride: int, raw: bool) -> nn.Sequential:
    """Two blocks, the first with the stride."""
    return nn.Sequential(Block(inside, outside, stride, raw), Block(outside, outside, 1, raw))


def preactresnet18(*, channels: int, classes: int) -> nn.Module:
    """PreActResNet-18 (11.17 M parameters) of arXiv:1603.05027; (B, C, H, W) -> (B, K)."""
    return PreActResNet(channels, classes, bn=True, raw=False)


def preactresnet18_raw(*, channels: int, classes: int) -> nn.Module:
    """PreActResNet-18, arXiv:1603.05027, its shortcuts before the batch norm; (B, C, H, W) -> (B, K)."""
    return PreActResNet(channels, classes, bn=True, raw=True)


def preactresnet18_nobn(*, channels: int, classes: int) -> nn.Module:
    """PreActResNet-18, arXiv:1603.05027, with no batch norm before the linear map; (B, C, H, W) -> (B, K)."""
    return PreActResNet(channels, classes, bn=False, raw=False)


def preactresnet18_nobn_raw(*, channels: int, classes: int) -> nn.Module:
    """PreActResNet-18 as Fast is better than free, arXiv:2001.03994, has it on RobustBench; (B, C, H, W) -> (B, K)."""
    return PreActResNet(channels, classes, bn=False, raw=True)
