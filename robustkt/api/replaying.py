"""A student's teacher: loaded when it is first asked, and not at all where everything it would say is kept."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustkt import engine, objectives
from robustkt.api.loading import load_network, machine, ready, source_of
from robustkt.core import InPrecision, Model, Objective
from robustkt.data import Split
from robustkt.generation import Generation, Recipe
from robustkt.progress import Progress
from robustkt.registry import Registry
from robustkt.replay import Replay


class Teacher:
    """A generation's network in the precision of a recipe, its passes counted from the first on."""

    def __init__(
        self,
        registry: Registry,
        generation: Generation,
        recipe: Recipe,
        device: torch.device,
        meters: MutableMapping[str, engine.Meter],
    ) -> None:
        self.registry, self.generation, self.device, self.meters = registry, generation, device, meters
        self.recipe = recipe
        source_of(registry, generation)  # code that may not be run is refused now, not at the first question

    @cached_property
    def network(self) -> InPrecision:
        """The network on its device.

        Raises:
            RobustKTError: as `load_network` does.
        """
        network = load_network(self.registry, self.generation).requires_grad_(False)
        self.meters["teacher"] = engine.Meter(network)
        return ready(network, self.device, self.recipe.precision)

    def __call__(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to fp32 logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits

    def guide(self) -> Model:
        """What the objective gets: the teacher as it is where views of it are kept, else its network, loaded now."""
        return self if self.recipe.settings.get("views") else self.network

    def replay(self, objective: Objective[Any], images: Split, progress: Progress) -> Replay | None:
        """Its logits on the views of the recipe; None where each epoch has a fresh one."""
        training = self.recipe.training
        if training is None or not isinstance(objective, objectives.Replayed) or objective.views is None:
            return None
        return Replay(
            self.registry,
            teacher=self,
            identity=self.generation.id,
            objective=objective,
            views=objective.views,
            recipe=self.recipe,
            training=training,
            images=images,
            device=self.device,
            circumstances=lambda: circumstances(self.device),
            progress=progress,
        )


def circumstances(device: torch.device) -> dict[str, Any]:
    """What logits are rounded by: students find only those that their own machine would give."""
    told = machine(device)
    kept = {key: told[key] for key in ("device", "machine", "system", "threads")}
    return {**kept, "torch": torch.__version__, "deterministic": torch.are_deterministic_algorithms_enabled()}


def reused(recipe: Recipe, epochs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many views the epochs went over, and of how many of them all logits were there before: views, reused."""
    views, filled = set(), set()
    for entry in epochs:
        view = int(entry["epoch"]) % int(recipe.settings["views"] or 1)
        views.add(view)
        if not entry.get("reused"):
            filled.add(view)
    return {"views": len(views), "reused": len(views - filled)}
