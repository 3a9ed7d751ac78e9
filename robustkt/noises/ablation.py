"""Random ablation: the network sees a few pixels only; certifies how many pixels anybody may change at will."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from robustkt.streams import Stream

__all__ = ["Ablation"]


@dataclass(frozen=True)
class Ablation:
    """Keeps `keep` pixels of d = H·W, all channels of each, and blackens the others (Levine and Feizi, 1911.09272).

    r changed pixels are certified when p − (1 − C(d − r, keep)/C(d, keep)) > ½: the copies in which none of them is
    seen stay as they were. What is put in place of an ablated pixel does not depend on the image, and that is all that
    the proof asks of it.
    """

    keep: int  # pixels
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    about: ClassVar[str] = "L0: the most pixels r with p − (1 − C(d − r, keep)/C(d, keep)) > ½."

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """A uniformly drawn set of pixels for each copy."""
        import torch

        rows, pixels = len(out), x.shape[-1] * x.shape[-2]
        scores = stream.integers(rows * pixels).view(rows, pixels)  # 60 bits: floats tie at the cut too often
        kept = scores.topk(min(self.keep, pixels), dim=1).indices
        mask = torch.zeros(rows, pixels, device=out.device).scatter_(1, kept, 1.0)
        torch.mul(mask.view(rows, 1, *x.shape[-2:]), x, out=out)

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """A whole number of pixels."""
        largest = 0
        while largest < shape[1] * shape[2] and p - self._touched(largest + 1, shape) > 0.5:
            largest += 1
        return float(largest)

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """½ and the share of copies that see one of the changed pixels."""
        changed = math.ceil(radius)
        return min(1.0, math.nextafter(0.5 + self._touched(changed, shape), 1)) if changed else 0.5

    def _touched(self, changed: int, shape: tuple[int, ...]) -> float:
        """The share of copies that see one of `changed` pixels, rounded up."""
        pixels = shape[1] * shape[2]
        keep = min(self.keep, pixels)
        return math.nextafter(1 - math.comb(pixels - changed, keep) / math.comb(pixels, keep), 2)
