"""Training methods: a file a family, a frozen dataclass a method; found by name, built from a recipe."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from robustkt.catalog import METHODS, unused
from robustkt.core import Model, Objective, ThreatModel
from robustkt.errors import UsageError
from robustkt.generation import Setting
from robustkt.numbers import exact, fraction, noise_level
from robustkt.objectives._modal import Modal
from robustkt.objectives._replayed import Replayed
from robustkt.settings import fill

__all__ = ["Modal", "Replayed", "build", "hyperparameters", "needs", "optional", "resolve", "settings_of"]

FROM_ZERO = ("begin_epoch", "adversarial_weight", "extra_steps")  # whole numbers and fractions that may be 0
OWN = ("teacher", "threat")  # fields that are not hyper-parameters themselves


def needs(method: str) -> set[str]:
    """Which of `teacher`, `threat` and `sigma` the method has fields for."""
    fields = {field.name for field in dataclasses.fields(METHODS.get(method))}
    return fields & {"teacher", "threat", "sigma"}


def hyperparameters(method: str) -> list[str]:
    """The names that `--set` takes for the method, besides those of the training."""
    return [field.name for field in dataclasses.fields(METHODS.get(method)) if field.name not in OWN]


def settings_of(method: str) -> list[str]:
    """The keys of a recipe's settings: hyper-parameters, and norm and eps where the method has a threat model."""
    return [*hyperparameters(method), *(("norm", "eps") if "threat" in needs(method) else ())]


def optional(method: str) -> set[str]:
    """Settings that came after format 1 and that no rule fills: a recipe leaves them out unless they are given."""
    kind = METHODS.get(method)
    ruled = kind.scaled(1) if hasattr(kind, "scaled") else {}
    return {field.name for field in dataclasses.fields(kind) if field.metadata.get("later")} - set(ruled)


def resolve(method: str, given: Mapping[str, Any], *, epochs: int | None = None) -> dict[str, Setting]:
    """Every hyper-parameter of the method, defaults filled in, as the recipe records it; fractions as text.

    Those that its inner maximisation has no use for are recorded as none, and those that a method scales with the
    length of the training follow `epochs`.

    Raises:
        UsageError: sigma or a threat is missing where the method needs one, or a value is out of its range.
    """
    kind = METHODS.get(method)
    if epochs is not None and hasattr(kind, "scaled"):
        given = {**given, **{key: value for key, value in kind.scaled(epochs).items() if key not in given}}
    objective = _construct(method, given, teacher=_absent)
    settings: dict[str, Setting] = {}
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        if isinstance(value, ThreatModel):
            settings |= {"norm": value.norm, "eps": exact(value.eps)}
        elif field.name not in OWN:
            settings[field.name] = exact(value) if isinstance(value, Fraction) else value
    settings |= dict.fromkeys(key for key in unused(settings) if key != "sentinel")  # the engine's, not PGD's
    later = {field.name for field in dataclasses.fields(objective) if field.metadata.get("later")}
    return {key: value for key, value in settings.items() if value is not None or key not in later}


def build(method: str, settings: Mapping[str, Setting], teacher: Model | None = None) -> Objective[Any]:
    """The objective of a recipe, with its teacher where it has one."""
    return typing.cast("Objective[Any]", _construct(method, settings, teacher))


def _construct(method: str, given: Mapping[str, Any], teacher: Model | None) -> Any:
    kind = METHODS.get(method)
    wanted = needs(method)
    fields: dict[str, Any] = fill(kind, given)
    if "sigma" in wanted:
        if given.get("sigma") is None:
            raise UsageError(f"{method} trains under Gaussian noise and needs its σ", "Add --sigma 0.25.")
        fields["sigma"] = noise_level(given["sigma"])
    if "threat" in wanted:
        if given.get("eps") is None:
            raise UsageError(f"{method} trains against an attack and needs its eps", "Add --eps 8/255.")
        fields["threat"] = ThreatModel(given.get("norm") or "linf", fraction(given["eps"], "eps"))
    if "teacher" in wanted:
        fields["teacher"] = teacher
    for name, value in fields.items():
        _check(name, value)
    return kind(**fields)


def _check(name: str, value: Any) -> None:
    numeric = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
    if not numeric:
        return
    if isinstance(value, float) and not 0 <= value < float("inf"):
        raise UsageError(f"{name} must be a finite number from 0 up, not {value}", "Leave it out for the default.")
    if name in FROM_ZERO and value < 0:
        raise UsageError(f"{name} must be at least 0, not {value}", "Leave it out for the default.")
    if not isinstance(value, float) and value <= 0 and name not in FROM_ZERO:
        raise UsageError(f"{name} must be above 0, not {value}", "Leave it out for the default.")


def _absent(x: Tensor) -> Tensor:
    raise RuntimeError("this objective was built to read its fields, not to train")
