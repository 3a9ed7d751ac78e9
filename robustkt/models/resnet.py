"""Residual networks for small images: the CIFAR family of 6n + 2 layers, and ResNet-18 with a stem that keeps the size.

Deep Residual Learning for Image Recognition, arXiv:1512.03385, section 4.2. Where the width grows the shortcut is a
strided 1x1 convolution with batch norm (the paper's option B), as in the code of the randomized smoothing papers.
`_gn` and `_ln` have group norm or layer norm wherever the others have batch norm; timm spells them so too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.models._init import he
from robustkt.models._norms import Norm, group_norm, layer_norm

__all__ = [
    "resnet8",
    "resnet8_gn",
    "resnet8_ln",
    "resnet18",
    "resnet18_gn",
    "resnet18_ln",
    "resnet20",
    "resnet20_gn",
    "resnet20_ln",
    "resnet56",
    "resnet110",
]


class Block(nn.Module):
    """Two 3x3 convolutions whose result is added to the input."""

    def __init__(self, inside: int, outside: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = norm(outside)
        same = inside == outside and stride == 1
        self.shortcut = nn.Identity() if same else projection(inside, outside, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, each after the first halving the image, a global average and a linear map."""

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], channels: int, classes: int, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = norm(widths[0])
        stages: list[nn.Module] = []
        inside = widths[0]
        for number, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            first = Block(inside, width, 2 if number else 1, norm)
            stages.append(nn.Sequential(first, *(Block(width, width, 1, norm) for _ in range(depth - 1))))
            inside = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(inside, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out: Tensor = self.stages(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(out.mean((2, 3)))
        return logits

    def foreign(self, name: str) -> str:
        """What a parameter of the usual public codes is called here: kuangliu's, RobustBench's and locuslab's."""
        stage = re.match(r"layer(\d)\.", name)
        if stage:
            name = f"stages.{int(stage[1]) - 1}.{name[stage.end() :]}"
        name = name.replace(".downsample.", ".shortcut.")
        return re.sub(r"^(conv|bn)1\.", r"\1.", re.sub(r"^linear\.", "fc.", name))


def projection(inside: int, outside: int, stride: int, norm: Norm) -> nn.Sequential:
    """The shortcut where the shape changes."""
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))


def cifar_resnet(depth: int, channels: int, classes: int, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """Three stages of n = (depth - 2) / 6 blocks with 16, 32 and 64 channels."""
    return ResNet([(depth - 2) // 6] * 3, (16, 32, 64), channels, classes, norm)


def resnet18_with(norm: Norm, channels: int, classes: int) -> ResNet:
    """Four stages of two blocks with 64 to 512 channels."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), channels, classes, norm)


def resnet8(*, channels: int, classes: int) -> nn.Module:
    """ResNet-8 (0.08 M parameters), arXiv:1512.03385: one block a stage, for quick runs; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(8, channels, classes)


def resnet8_gn(*, channels: int, classes: int) -> nn.Module:
    """ResNet-8 with group norm, arXiv:1803.08494; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(8, channels, classes, group_norm)


def resnet8_ln(*, channels: int, classes: int) -> nn.Module:
    """ResNet-8 with layer norm, arXiv:1607.06450; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(8, channels, classes, layer_norm)


def resnet20(*, channels: int, classes: int) -> nn.Module:
    """ResNet-20 (0.27 M parameters), arXiv:1512.03385 section 4.2; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(20, channels, classes)


def resnet20_gn(*, channels: int, classes: int) -> nn.Module:
    """ResNet-20 with group norm, arXiv:1803.08494; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(20, channels, classes, group_norm)


def resnet20_ln(*, channels: int, classes: int) -> nn.Module:
    """ResNet-20 with layer norm, arXiv:1607.06450; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(20, channels, classes, layer_norm)


def resnet56(*, channels: int, classes: int) -> nn.Module:
    """ResNet-56 (0.86 M parameters), arXiv:1512.03385 section 4.2; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(56, channels, classes)


def resnet110(*, channels: int, classes: int) -> nn.Module:
    """ResNet-110 usual base of certified CIFAR-10 classifiers; (B, C, H, W) -> (B, K)."""
    return cifar_resnet(110, channels, classes)


def resnet18(*, channels: int, classes: int) -> nn.Module:
    """ResNet-18 (11.17 M parameters), arXiv:1512.03385, with a 3x3 stem of stride 1; (B, C, H, W) -> (B, K)."""
    return resnet18_with(nn.BatchNorm2d, channels, classes)


def resnet18_gn(*, channels: int, classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and group norm, arXiv:1803.08494; (B, C, H, W) -> (B, K)."""
    return resnet18_with(group_norm, channels, classes)


def resnet18_ln(*, channels: int, classes: int) -> nn.Module:
    """ResNet-18 with a 3x3 stem and layer norm, arXiv:1607.06450; (B, C, H, W) -> (B, K)."""
    return resnet18_with(layer_norm, channels, classes)
