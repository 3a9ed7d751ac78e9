"""A teacher's logits on views of the training images, computed once and re-used by every later student.

A view is one augmentation of every image, and under noise one draw of that; both depend on teacher, view and image
alone. The teacher goes over a view in blocks of the data set's own order, so that its logits, rounded to fp16, have the
same bits for every student, whatever its batches: for the one whose training makes them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustkt.core import Batch, Model, generator, seed_of
from robustkt.data import Split, keyed_crop_flip, to_float
from robustkt.errors import IntegrityError, RobustKTError
from robustkt.generation import Recipe, Training
from robustkt.objectives import Replayed
from robustkt.objectives._inner import prediction
from robustkt.progress import Progress
from robustkt.registry import Registry, replays
from robustkt.streams import keys_of

FORMAT = 1  # of what the files' first lines say, and of how a view is drawn: raise it when either changes
BLOCK = 256  # images that the teacher answers at once
LARGEST = 65_504.0  # of fp16

Logits: TypeAlias = npt.NDArray[np.float16]


class Replay:
    """The views of one training: what the teacher said of them, from the registry or from the teacher itself."""

    def __init__(
        self,
        registry: Registry,
        *,
        teacher: Model,
        identity: str,
        objective: Replayed,
        views: int,
        recipe: Recipe,
        training: Training,
        images: Split,
        device: torch.device,
        circumstances: Callable[[], Mapping[str, Any]],
        progress: Progress,
    ) -> None:
        self.registry, self.teacher, self.objective, self.progress = registry, teacher, objective, progress
        self.recipe, self.training, self.images, self.device = recipe, training, images, device
        self.identity, self.views = identity, views
        self.circumstances = circumstances  # asked when a view is opened: a continued run changes the threads
        self._view = -1
        self._logits: list[Logits] = []  # of the open view, one a copy, on the disk
        self._told = False

    def open(self, epoch: int) -> bool:
        """Have the logits of the epoch's view at hand; whether the teacher was not needed for that.

        Raises:
            RobustKTError: the teacher's logits do not fit into fp16.
        """
        self._view = epoch % self.views
        found = [self._opened(copy) for copy in range(self.objective.copies)]
        self._logits = [logits for logits, _ in found]
        return all(reused for _, reused in found)

    def batch(self, picked: Tensor, x: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> Batch:
        """Images (B, C, H, W), uint8, at the places `picked` (B,), in the open view, with the teacher's logits."""
        chosen = picked.numpy()
        target = np.concatenate([logits[chosen] for logits in self._logits]).astype(np.float32)
        return self._drawn(picked, x, y, epoch, rng)._replace(target=torch.from_numpy(target).to(self.device))

    def _drawn(self, picked: Tensor, x: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> Batch:
        keys = keys_of(seed_of("view", self.identity, self._view), picked).to(self.device)
        x = keyed_crop_flip(x, pad=self.training.pad, flip=self.training.flip, keys=keys)
        return Batch(to_float(x), y, epoch, rng, keys)

    def _opened(self, copy: int) -> tuple[Logits, bool]:
        content = self.content(copy)
        found = self._kept(content)
        if found is not None:
            return found, True
        try:
            with replays.filling(self.registry, content):
                found = self._kept(content)  # by the process that held the lock before
                if found is not None:
                    return found, True
                replays.put(self.registry.root, content, self._answers(copy))
            found = self._kept(content)
        except RobustKTError as error:
            if isinstance(error, TeacherError):
                raise
            self._tell(f"the teacher's logits are not kept: {error.what}. {error.fix}")
        if found is None:
            answers = np.frombuffer(b"".join(self._answers(copy)), dtype="<f2")
            found = answers.reshape(len(self.images), -1)
        return found, False

    def _kept(self, content: Mapping[str, Any]) -> Logits | None:
        """What is in the registry, never read whole; damage is told once and counts as nothing."""
        shape = (content["images"], content["classes"])
        try:
            kept = replays.find(self.registry.root, content, 2 * shape[0] * shape[1])
        except IntegrityError as error:
            self._tell(f"{error.what}; the teacher is asked again")
            return None
        if kept is None:
            return None
        return np.memmap(kept.path, dtype="<f2", mode="r", offset=kept.offset, shape=shape)

    def _tell(self, text: str) -> None:
        if not self._told:
            self.progress.note(text)
        self._told = True

    def content(self, copy: int) -> dict[str, Any]:
        """What decides the logits of a copy of the open view, rounding included."""
        return {
            "format": FORMAT,
            "teacher": self.identity,
            "precision": self.recipe.precision,
            "data": self.recipe.data.fingerprint,
            "images": len(self.images),
            "classes": len(self.recipe.data.classes),
            "pad": self.training.pad,
            "flip": self.training.flip,
            **self.objective.marks,
            "view": self._view,
            "copy": copy,
            "made": dict(self.circumstances()),
        }

    def _answers(self, copy: int) -> Iterator[bytes]:
        """The teacher's logits on a copy of the open view, block by block."""
        for start in range(0, len(self.images), BLOCK):
            rows = torch.arange(start, min(start + BLOCK, len(self.images)))
            x, y = (part[rows].to(self.device) for part in (self.images.x, self.images.y))
            batch = self._drawn(rows, x, y, 0, generator("cpu", 0))
            logits = _asked(self.teacher, self.objective.seen(batch, copy))
            yield logits.to(torch.float16).cpu().numpy().astype("<f2").tobytes()


class TeacherError(RobustKTError):
    """What the teacher itself cannot do, as against the disk."""


def _asked(teacher: Model, x: Tensor) -> Tensor:
    """The teacher's logits (B, K), once fp16 can hold them: bf16 passes lose nothing in it, fp32 ones 2⁻¹¹ of each."""
    try:
        logits = prediction(teacher, x)
    except RobustKTError as error:
        raise TeacherError(error.what, error.fix) from error
    largest = float(logits.abs().amax())  # NaN where one is
    if not largest <= LARGEST:
        raise TeacherError(
            f"a logit of the teacher is {largest:g}; {LARGEST:,.0f} is the largest that is kept (fp16)",
            "Add --set views=none: then the teacher is asked anew in every step.",
        )
    return logits
