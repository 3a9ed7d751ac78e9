"""Accuracy under common corruptions: a table of corruption and severity, and its mean with an interval."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustkt import corruptions
from robustkt.api.evaluating import Asked, ask
from robustkt.api.results import CorruptedEvaluation
from robustkt.api.verdicts import table
from robustkt.corruptions import Corruption
from robustkt.numbers import wilson
from robustkt.progress import Progress, Silent
from robustkt.ranks import Ranks, ranks
from robustkt.registry import Registry, Result


def evaluate_corruptions(
    generation: str = "@latest",
    *,
    corruption: str = "all",
    attacks: Sequence[str] = ("clean",),
    norm: str | None = None,
    eps: str | float | Fraction | None = None,
    max_images: int = 1_000,
    seed: int = 0,
    last: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    base: bool = False,
    progress: Progress | None = None,
) -> CorruptedEvaluation:
    """Accuracy on test images under several common corruptions (arXiv:1903.12261), each kept as a measurement.

    Every corruption and severity is one evaluation, with its own interval, re-used when it is there; so is the one of
    the images as they are. With several attacks an accuracy is that of images which no attack breaks. An interval of a
    mean takes the images for the sample, each with its share of right answers, as its corruptions are no new images.

    Args:
        generation: whose network is measured; of one trained for smoothing, the base network.
        corruption: `all`, a name, `NAME:SEVERITY`, or several with commas between.
        attacks: on the corrupted images; by default none.
        norm: of the attacks, as in `evaluate`; so are the other arguments.
        eps: of the attacks.
        max_images: at most so many test images.
        seed: of the attacks; the corruptions' own is always the same.
        last: the last epoch's weights.
        data: another data set of the same shape and classes.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        fresh: measure again.
        base: let AutoAttack score the base network of a smoothed generation.
        progress: where to report.

    Returns:
        generation, id, images, network, attacks, norm, eps, clean {accuracy, interval}, corruptions {name: {severities
        {1: {accuracy, interval}, …}, mean {accuracy, interval}}}, mean {accuracy, interval}, reused (of how many); with
        `.to_pandas()` and `.plot()`.

    Raises:
        RobustKTError: anything the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    wanted = corruptions.parse(corruption)
    asked = ask(
        generation, attacks=attacks, norm=norm, eps=eps, max_images=max_images, seed=seed, last=last, data=data,
        data_dir=data_dir, registry=registry, device=device, fresh=fresh, base=base, progress=progress,
    )  # fmt: skip
    with ranks() as group:
        answer = _table(asked, wanted, group)
        return CorruptedEvaluation(json.loads(group.first(json.dumps(answer).encode())))


def _table(asked: Asked, wanted: Sequence[Corruption], group: Ranks) -> dict[str, Any]:
    """The answer, at the first rank; all of them measure."""
    registry = asked.registry
    clean, _ = asked.measure(None, group)
    right: dict[str, dict[int, Tensor]] = {}
    told: dict[str, dict[str, Any]] = {}
    reused = 0
    for shift in wanted:
        result, before = asked.measure(shift, group)
        reused += before
        if group.rank == 0:
            right.setdefault(shift.name, {})[shift.severity] = _right(registry, result)
        severities = told.setdefault(shift.name, {"severities": {}})["severities"]
        severities[str(shift.severity)] = _worst(result)
    for name, by_severity in right.items():
        told[name]["mean"] = _mean(by_severity.values())
    if group.rank:
        return {}
    return {
        "generation": asked.found.name,
        "id": asked.found.id,
        "images": len(asked.chosen),
        "network": asked.network,
        "attacks": list(asked.names),
        **_ball(asked),
        "clean": _worst(clean),
        "corruptions": told,
        "mean": _mean([one for by_severity in right.values() for one in by_severity.values()]),
        "reused": reused,
    }


def _ball(asked: Asked) -> dict[str, str | None]:
    """Where the attacks may go; nowhere when there are none."""
    alone = list(asked.names) == ["clean"]
    settings = asked.settings(None)
    return {key: None if alone else settings[key] for key in ("norm", "eps")}


def _worst(result: Result) -> dict[str, Any]:
    worst = result.content["figures"]["worst"]
    return {"accuracy": worst["accuracy"], "interval": worst["interval"]}


def _right(registry: Registry, result: Result) -> Tensor:
    """(N,) bool: the images that no attack broke; of a smoothed classifier where only it was attacked."""
    figures: Mapping[str, Any] = result.content["figures"]
    rows = table(registry.log(result))
    smoothed = bool(figures["worst"].get("smoothed"))
    names = [name for name, attack in figures["attacks"].items() if bool(attack.get("smoothed")) == smoothed]
    return torch.stack([rows[name].bool() for name in names]).all(dim=0)


def _mean(right: Iterable[Tensor]) -> dict[str, Any]:
    """The mean over corruptions, and the Wilson interval of so many images: their shares vary less than it allows."""
    shares = torch.stack(list(right)).double().mean(dim=0)
    return {"accuracy": float(shares.mean()), "interval": wilson(float(shares.sum()), len(shares))}
