"""How many passes through its networks each method cannot do without: the arithmetic that a training step comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes of a batch of B images in a step; a fraction where only some rows go through.

    Early-stopped attacks need fewer; that depends on the images and is not counted.
    """

    trained: int = 0  # student: forward, and backward to weights
    attacked: int = 0  # student: forward, and backward to the images alone
    judged: int = 0  # student: forward alone
    taught: int = 0  # teacher: forward alone
    taught_attacked: int = 0  # teacher: forward, and backward to the images

    @property
    def counted(self) -> dict[str, int]:
        """What the engine's meters count an image of the batch."""
        return {
            "student_forward": self.trained + self.attacked + self.judged,
            "student_backward": self.trained + self.attacked,
            "teacher_forward": self.taught + self.taught_attacked,
            "teacher_backward": self.taught_attacked,
        }


def _steps(how: Any) -> int:
    return 1 if how.inner == "n-fgsm" else how.steps


def _iad(how: Any, epoch: int) -> Passes:
    late = epoch >= how.begin_epoch
    hard = how.alpha < 1  # the clean images go through once for each term, as they do in the authors' code
    return Passes(trained=1 + late + hard, attacked=_steps(how), taught=1 + late)


METHODS: Mapping[str, Callable[[Any, int], Passes]] = {
    "natural": lambda how, epoch: Passes(trained=1),
    "gaussian": lambda how, epoch: Passes(trained=how.draws),
    "stability": lambda how, epoch: Passes(trained=2),
    "consistency": lambda how, epoch: Passes(trained=how.draws),
    "macer": lambda how, epoch: Passes(trained=how.draws),
    "smoothmix": lambda how, epoch: Passes(trained=2 * how.draws, attacked=how.steps * how.draws),
    "smoothadv": lambda how, epoch: Passes(trained=how.copies, attacked=how.steps * how.copies),
    "crt": lambda how, epoch: Passes(trained=how.draws, taught=how.draws),
    "sat": lambda how, epoch: Passes(trained=1, attacked=_steps(how)),
    "trades": lambda how, epoch: Passes(trained=2, attacked=_steps(how), judged=1),
    "mart": lambda how, epoch: Passes(trained=2, attacked=_steps(how)),
    "ard": lambda how, epoch: Passes(trained=1 + (how.alpha < 1), attacked=_steps(how), taught=1),
    "iad": _iad,
    "rslad": lambda how, epoch: Passes(trained=2, attacked=_steps(how), taught=1),
    "adaad": lambda how, epoch: Passes(
        trained=1 + (how.alpha < 1), attacked=_steps(how), taught=1 + (how.alpha < 1), taught_attacked=_steps(how)
    ),
}  # a method that is not here is timed without a minimum


def passes(method: str, objective: Any, epoch: int = 0) -> Passes | None:
    """The passes of a step of an objective in an epoch; None of a method whose arithmetic is not written down.

    The least that the method's own definition needs: RSLAD of k steps attacks k times, trains on clean and on
    adversarial images, and asks its teacher once.
    """
    count = METHODS.get(method)
    return None if count is None else count(objective, epoch)
