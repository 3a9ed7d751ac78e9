"""The networks of DeepMind's robust checkpoints: a wide ResNet and a pre-activation ResNet-18, both with SiLU.

Uncovering the Limits of Adversarial Training, arXiv:2010.03593, and the papers that start from its code. They differ
from the usual ones where the image is halved: strided convolutions pad only below and to the right (TensorFlow's SAME),
and the ResNet's shortcuts are 3x3 convolutions of the block's input before its batch norm. Parameters are called as
there.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.models._init import he

__all__ = ["dmpreactresnet18", "dmwideresnet28_10"]


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and SiLU, whose result is added to the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inside)
        self.conv_0 = conv(inside, outside, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outside)
        self.conv_1 = conv(outside, outside, 1)
        self.shortcut = None if inside == outside else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        active = F.silu(self.batchnorm_0(x))
        out: Tensor = self.conv_1(F.silu(self.batchnorm_1(self.conv_0(same(active, self.conv_0)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class Group(nn.Module):
    """The blocks of one width."""

    def __init__(self, depth: int, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        rest = (WideBlock(outside, outside, 1) for _ in range(depth - 1))
        self.block = nn.Sequential(WideBlock(inside, outside, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        out: Tensor = self.block(x)
        return out


class DMWideResNet(nn.Module):
    """A 3x3 stem with 16 channels, three groups of pre-activation blocks, a global average and a linear map."""

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.init_conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(*(Group(n, widths[i], widths[i + 1], 2 if i else 1) for i in range(3)))
        self.batchnorm = nn.BatchNorm2d(widths[-1])
        self.logits = nn.Linear(widths[-1], classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
        logits: Tensor = self.logits(out.mean((2, 3)))
        return logits


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and SiLU; a shortcut whose shape changes is a 3x3 convolution."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inside)
        self.conv_2d_1 = conv(inside, outside, stride)
        self.batchnorm_1 = nn.BatchNorm2d(outside)
        self.conv_2d_2 = conv(outside, outside, 1)
        self.shortcut = None if inside == outside and stride == 1 else conv(inside, outside, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, outside, H / stride, W / stride)."""
        inner = self.conv_2d_1(same(F.silu(self.batchnorm_0(x)), self.conv_2d_1))
        out: Tensor = self.conv_2d_2(F.silu(self.batchnorm_1(inner)))
        return out + (x if self.shortcut is None else self.shortcut(same(x, self.shortcut)))


class DMPreActResNet(nn.Module):
    """A 3x3 stem with 64 channels, four stages of two blocks, a global average and a linear map."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer_0 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer_1 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer_2 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer_3 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, classes)
        he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        out = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        logits: Tensor = self.logits(F.silu(self.batchnorm(out)).mean((2, 3)))
        return logits


def conv(inside: int, outside: int, stride: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; of stride 2 one that wants its images padded by `same`."""
    return nn.Conv2d(inside, outside, 3, stride, padding=1 if stride == 1 else 0, bias=False)


def same(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Images (B, C, H, W) with the border that `layer` of stride 2 needs to give half the size, rounded up."""
    return x if layer.stride == (1, 1) else F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))


def dmwideresnet(depth: int, width: int, *, channels: int, classes: int) -> nn.Module:
    """DeepMind's wide ResNet of any depth 6n + 4 and any width, arXiv:2010.03593; (B, C, H, W) -> (B, K)."""
    return DMWideResNet(depth, width, channels, classes)


def dmwideresnet28_10(*, channels: int, classes: int) -> nn.Module:
    """DeepMind's WRN-28-10 with SiLU (36.48 M parameters), arXiv:2010.03593; (B, C, H, W) -> (B, K)."""
    return dmwideresnet(28, 10, channels=channels, classes=classes)


def dmpreactresnet18(*, channels: int, classes: int) -> nn.Module:
    """DeepMind's PreActResNet-18 with SiLU (12.55 M parameters), arXiv:2103.01946; (B, C, H, W) -> (B, K)."""
    return DMPreActResNet(channels, classes)
