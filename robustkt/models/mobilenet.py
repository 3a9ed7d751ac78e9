"""MobileNetV2 for small images, the usual small student of robust distillation.

MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381, as the CIFAR papers (RSLAD among them) run it:
stride 1 in the stem and the first two stages, ReLU for ReLU6, and a 1x1 convolution in the shortcut where a block of
stride 1 changes the width.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from robustkt.models._init import he

__all__ = ["mobilenetv2"]

STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widens with 1x1, filters each channel with 3x3, narrows with 1x1; the narrow ends are linear and added."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.body = nn.Sequential(
            *conv_bn(inside, wide, 1),
            nn.ReLU(),
            *conv_bn(wide, wide, 3, stride=stride, groups=wide),
            nn.ReLU(),
            *conv_bn(wide, outside, 1),
        )
        self.residual = stride == 1
        self.shortcut = nn.Sequential(*conv_bn(inside, outside, 1)) if stride == 1 and inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        if not self.residual:
            return out
        return out + (x if self.shortcut is None else self.shortcut(x))


class MobileNetV2(nn.Module):
    """The stem, seventeen inverted residuals, a 1x1 convolution to 1280 channels, a global average and a linear map."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(channels, 32, 3), nn.ReLU())
        blocks: list[nn.Module] = []
        inside = 32
        for expansion, width, depth, first in STAGES:
            for stride in (first, *[1] * (depth - 1)):
                blocks.append(InvertedResidual(inside, width, expansion, stride))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*conv_bn(inside, 1280, 1), nn.ReLU())
        self.fc = nn.Linear(1280, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out: Tensor = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(out.mean((2, 3)))
        return logits

    def foreign(self, name: str) -> str:
        """What a parameter of the usual public code, kuangliu's, is called here."""
        place = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6", "bn3": "7"}
        ends = {"conv1": "stem.0", "bn1": "stem.1", "conv2": "head.0", "bn2": "head.1", "linear": "fc"}
        layer = re.match(r"layers\.(\d+)\.(\w+)\.", name)
        if layer:
            part = f"body.{place[layer[2]]}" if layer[2] in place else layer[2]
            return f"blocks.{layer[1]}.{part}.{name[layer.end() :]}"
        first, _, rest = name.partition(".")
        return f"{ends.get(first, first)}.{rest}"


def conv_bn(inside: int, outside: int, side: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(inside, outside, side, stride, padding=side // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outside)


def mobilenetv2(*, channels: int, classes: int) -> nn.Module:
    """MobileNetV2 (2.30 M parameters), arXiv:1801.04381, with a stem of stride 1; (B, C, H, W) -> (B, K)."""
    return MobileNetV2(channels, classes)
