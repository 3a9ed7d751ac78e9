"""Vision transformers for small images: patches of 4x4 pixels, learned positions, a class token that conditions them.

An Image is Worth 16x16 Words, arXiv:2010.11929, blocks with the norm first. As in Revisiting Adapters with Adversarial
Training, arXiv:2210.04886, the class token takes part in the attention only, and the head reads the mean of the
patches: so what the token holds decides in which mode the network works, and the head is shared between modes. It is
timm's `VisionTransformer(global_pool="avg", class_token=True)`, its parameters called as there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.errors import UsageError

__all__ = ["vit_s4", "vit_ti4", "vit_tiny"]

PATCH = 4  # pixels a side
HEAD = 64  # numbers that each head of the published sizes attends with
EPSILON = 1e-6  # of the layer norms, as in the paper's code


class Attention(nn.Module):
    """Every token looks at every token, with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, D / heads)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        mixed: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return mixed


class MLP(nn.Module):
    """Two linear maps, four times as wide between them, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Each patch to a token by one linear map, written as a strided convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / 4 * W / 4, D)."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """Patches and a class token through the blocks; a linear map of the normalised mean of the patches.

    Raises:
        UsageError: patches do not divide `size`, the images' height and width. Nothing is padded in silence.
    """

    def __init__(
        self, width: int, depth: int, heads: int, *, channels: int, classes: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        rows, columns = (-(-side // PATCH) for side in size)
        if (rows * PATCH, columns * PATCH) != size:
            raise UsageError(
                f"patches of {PATCH}x{PATCH} do not divide images of {size[1]}x{size[0]}",
                f"Resize them: --image-size {max(rows, columns) * PATCH}.",
            )
        self.patch_embed = PatchEmbed(channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.fc_norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, classes)
        self._start()

    def _start(self) -> None:
        """Normal numbers of deviation 0.02 cut at ±2 (timm's start of a ViT), the head's weights too; biases 0.

        The token starts at about 0: the first of the position embeddings speaks for it.
        """
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are places, not weights; timm's method of the same name."""
        return {"cls_token", "pos_embed"}

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to logits (B, K)."""
        patches = self.patch_embed(x)
        tokens = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        out = self.blocks(tokens)
        logits: Tensor = self.head(self.fc_norm(out[:, 1:].mean(dim=1)))
        return logits


def vit_tiny(*, channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """A ViT 96 wide, 4 deep (0.46 M parameters), arXiv:2010.11929, for quick runs; (B, C, H, W) -> (B, K)."""
    return VisionTransformer(96, 4, 3, channels=channels, classes=classes, size=size)


def vit_ti4(*, channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """ViT-Ti/4 (5.36 M parameters), the width and depth of DeiT-Ti, arXiv:2012.12877; (B, C, H, W) -> (B, K)."""
    return VisionTransformer(3 * HEAD, 12, 3, channels=channels, classes=classes, size=size)


def vit_s4(*, channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """ViT-S/4 (21.34 M parameters), the width and depth of DeiT-S, arXiv:2012.12877; (B, C, H, W) -> (B, K)."""
    return VisionTransformer(6 * HEAD, 12, 6, channels=channels, classes=classes, size=size)
