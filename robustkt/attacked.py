"""The student as attacks in training see it: eval mode, BatchNorm folded, in its precision, compiled where asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkt.inference import Compiled, Shape, fold
from robustkt.models import Classifier


class Attacked(nn.Module):
    """A folded copy of a classifier that keeps up with it: its weights are derived anew once in a step, in place.

    No gradient reaches a parameter through it, and the classifier's own statistics are left alone.
    """

    def __init__(self, student: Classifier, folded: nn.Module, run: nn.Module) -> None:
        super().__init__()
        self.folded = folded
        self._run = [run]  # no child of its own: `folded` is in it
        self._student = [student]  # read only; its parameters are none of this module's
        self.stale = True

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), fp32, to the fp32 logits (B, K) of the student in eval mode."""
        if self.stale:
            self.folded.refresh(self._student[0])  # type: ignore[operator]
            self.stale = False
        logits: Tensor = self._run[0](x)
        return logits


def attacked(
    student: nn.Module, shape: Shape, dtype: torch.dtype, *, compiled: bool = False, note: Callable[[str], None]
) -> Attacked | None:
    """`student` folded for the attacks of its training, on its device; None where it cannot be folded exactly.

    Args:
        student: the network that is trained.
        shape: (C, H, W) of its images.
        dtype: what the attacks' forward passes run in; images, losses and gradients on the images stay as they are.
        compiled: run by torch.compile.
        note: told in one line when compiling fails.
    """
    folded = fold(student, shape, dtype)
    if folded is None or not isinstance(student, Classifier):
        return None
    folded = folded.requires_grad_(False).to(memory_format=torch.channels_last)
    return Attacked(student, folded, Compiled(folded, note) if compiled else folded)
