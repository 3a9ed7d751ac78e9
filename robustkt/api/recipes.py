"""From options, presets and defaults to a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkt import models, objectives, schedules
from robustkt.api.loading import trust
from robustkt.catalog import METHODS, plain, unknown
from robustkt.catalog import preset as preset_of
from robustkt.data import Dataset
from robustkt.errors import UsageError
from robustkt.generation import Generation, Recipe, Training
from robustkt.models import library_version
from robustkt.numbers import counted
from robustkt.settings import fill

TRAINING = tuple(field.name for field in dataclasses.fields(Training))


def assemble(
    *,
    method: str,
    arch: str,
    arch_source: str | None,
    data: Dataset,
    given: Mapping[str, Any],
    preset: str | None,
    precision: str,
    seed: int,
) -> Recipe:
    """The recipe that options describe: defaults for the data's size, then the preset, then what was given.

    Raises:
        UsageError: an unknown method, preset or key, a missing σ or eps, a value out of range.
    """
    method = METHODS.get(method).__name__.lower()
    chosen = {**preset_of(preset, method), **given}
    _check_keys(method, chosen)
    training = Training(**{**defaults(data), **fill(Training, chosen)})
    schedules.check(training)
    return Recipe(
        method=method,
        settings=objectives.resolve(method, chosen, epochs=training.epochs),
        arch=arch,
        arch_source=arch_source,
        data=data.spec,
        training=training,
        precision=precision,
        seed=seed,
        arch_version=library_version(arch),
    )


def named_source(arch: str) -> models.UserSource | None:
    """The user's own file behind `arch`, trusted because it was named; None for a known architecture, checked."""
    if not models.is_user_arch(arch):
        models.known(arch)
        return None
    source = models.read_source(arch)
    trust(source)
    return source


def spelling(source: models.UserSource | None, arch: str) -> str:
    """The one spelling of an architecture: a user's file without its folder, a catalog name in its own case."""
    if source is None:
        return arch if ":" in arch else plain(arch)
    place, _, name = source.spec.rpartition(":")
    return f"{Path(place).name}:{name}" if place.endswith(".py") else source.spec


def defaults(data: Dataset) -> dict[str, Any]:
    """Training settings for a data set: 30 epochs, fewer of large sets (1.5 million images in all, at least 10)."""
    size = len(data.train)
    return {
        "epochs": min(30, max(10, round(1_500_000 / size))),
        "batch_size": 128 if size >= 5_000 else 32,
        "ema": 0.995 if size >= 5_000 else 0.98,
        "pad": data.pad,
        "flip": data.flip,
    }


def inherited(teacher: Generation, method: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The method for a student of `teacher` and what it takes from it where the options are silent.

    Raises:
        UsageError: `auto` finds no guarantee in the teacher, or the method cannot use one.
    """
    sigma, threat = teacher.recipe.sigma, teacher.recipe.threat
    if method == "auto":
        if sigma is None and threat is None and teacher.recipe.training is None:
            raise UsageError(
                f"{teacher.name} was imported without a claim of robustness",
                "Import it again with --sigma 0.25, or --eps 8/255, as its source says; or name a --method.",
            )
        if sigma is None and threat is None:
            raise UsageError(
                f"{teacher.name} was trained by {teacher.recipe.method} and has no robustness to carry over",
                "First `robustkt train --method smoothmix --sigma 0.25`, or `--method trades --eps 8/255`.",
            )
        method = "crt" if sigma is not None else "rslad"
    if "teacher" not in objectives.needs(method):
        raise UsageError(f"{method} learns from no teacher", "Use `robustkt train`, or --method crt or rslad.")
    taken: dict[str, Any] = {}
    if sigma is not None and "sigma" in objectives.needs(method):
        taken["sigma"] = teacher.recipe.settings["sigma"]
    if threat is not None and given.get("norm") not in (None, threat[0]) and "eps" not in given:
        raise UsageError(
            f"{teacher.name}'s eps is one in {threat[0]}; in {given['norm']} it would mean something else",
            "Give both: --norm and --eps.",
        )
    if threat is not None and "threat" in objectives.needs(method):
        taken |= {"norm": threat[0], "eps": threat[1]}
    return method, {**taken, **given}


def overlong(recipe: Recipe) -> str:
    """A line about what the method would only reach after the last epoch, or nothing."""
    if recipe.training is None:
        return ""
    epochs, told = recipe.training.epochs, []
    begin, warmup = (recipe.settings.get(name) for name in ("begin_epoch", "warmup_epochs"))
    if isinstance(begin, int) and begin >= epochs:
        told.append(f"begin_epoch {begin} is never reached")
    if isinstance(warmup, int) and warmup > epochs:
        told.append(f"the warm-up of {counted(warmup, 'epoch')} (warmup_epochs) is not finished")
    return f"in {counted(epochs, 'epoch')} {' and '.join(told)}; --set changes it" if told else ""


def _check_keys(method: str, chosen: Mapping[str, Any]) -> None:
    own = objectives.settings_of(method)
    for key in chosen:
        if key in ("sigma", "norm", "eps") and key not in own:
            raise UsageError(f"{method} has no {key}", f"It takes: {', '.join([*own, *TRAINING])}.")
        if key not in own and key not in TRAINING:
            raise unknown(f"setting for {method}", key, [*own, *TRAINING])
