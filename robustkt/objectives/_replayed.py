"""What transfers have in common whose teacher answers images that no student decides: its answers can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from robustkt.core import Batch, Model
from robustkt.generation import LATER
from robustkt.objectives._inner import prediction


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The fields of every such transfer; epoch e takes the view e mod `views`."""

    views: int | None = field(default=None, metadata=LATER)  # of the training images; None = a fresh one each epoch

    @property
    def copies(self) -> int:
        """m, how many images the teacher sees of one."""
        return 1

    @property
    def marks(self) -> Mapping[str, str]:
        """What decides, beside view and copy, which images the teacher sees."""
        return {}

    def seen(self, batch: Batch, copy: int) -> Tensor:
        """The images (B, C, H, W) that the teacher sees as a copy of the batch."""
        return batch.x

    @staticmethod
    def scaled(epochs: int) -> dict[str, int]:
        """A view an epoch, where it is not given."""
        return {"views": epochs}


def taught(teacher: Model, batch: Batch, x: Tensor) -> Tensor:
    """The teacher's logits (m·B, K) at what it sees of the batch, `x`; those that are kept where there are."""
    return prediction(teacher, x) if batch.target is None else batch.target
