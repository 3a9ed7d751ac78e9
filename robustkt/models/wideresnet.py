"""Wide residual networks, the usual large teachers of adversarial training.

Wide Residual Networks, arXiv:1605.07146: a depth of 6n + 4 and the CIFAR widths 16, 32 and 64 times W, with batch norm
and ReLU before each convolution. As TRADES runs them but without its unused `sub_block1`, and without dropout.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.models._init import he

__all__ = ["wideresnet28_10", "wideresnet34_10"]


class PreActivation(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, whose result is added to the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        same = inside == outside and stride == 1
        self.shortcut = None if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 stem with 16 channels, three stages of pre-activation blocks, a global average and a linear map."""

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inside = 16
        for outside, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for step in (stride, *[1] * ((depth - 4) // 6 - 1)):
                blocks.append(PreActivation(inside, outside, step))
                inside = outside
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inside)
        self.fc = nn.Linear(inside, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out = F.relu(self.bn(self.blocks(self.conv(x))))
        logits: Tensor = self.fc(out.mean((2, 3)))
        return logits

    def foreign(self, name: str) -> str | None:
        """What a parameter of TRADES's and RobustBench's code is called here; None of one that is never used there."""
        if name.startswith("sub_block1."):  # a second first stage, which their forward pass leaves out
            return None
        stage = re.match(r"block([123])\.layer\.(\d+)\.", name)
        if stage:
            number = (int(stage[1]) - 1) * (len(self.blocks) // 3) + int(stage[2])
            return f"blocks.{number}.{name[stage.end() :]}".replace(".convShortcut.", ".shortcut.")
        return re.sub(r"^(conv|bn)1\.", r"\1.", name)


def wideresnet(depth: int, width: int, *, channels: int, classes: int) -> nn.Module:
    """A wide ResNet of any depth 6n + 4 and any width, arXiv:1605.07146; (B, C, H, W) -> (B, K)."""
    return WideResNet(depth, width, channels, classes)


def wideresnet28_10(*, channels: int, classes: int) -> nn.Module:
    """WRN-28-10 (36.48 M parameters), arXiv:1605.07146, the larger network of RobustBench; (B, C, H, W) -> (B, K)."""
    return wideresnet(28, 10, channels=channels, classes=classes)


def wideresnet34_10(*, channels: int, classes: int) -> nn.Module:
    """WRN-34-10 (46.16 M parameters), the network and teacher of TRADES, arXiv:1901.08573; (B, C, H, W) -> (B, K)."""
    return wideresnet(34, 10, channels=channels, classes=classes)
