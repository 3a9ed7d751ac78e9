"""Runs a generation again from its manifest and says whether the same came out, and if not where first it differed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from robustkt.adapters.stored import read_adapter
from robustkt.api.jobs import Job
from robustkt.api.loading import load_data, machine, pick_device, trusted
from robustkt.api.modes import weight_bytes
from robustkt.api.souping import mixed_again
from robustkt.errors import IntegrityError, RobustKTError, UsageError, clip
from robustkt.generation import Generation
from robustkt.mixture import SOUP
from robustkt.models import UserSource
from robustkt.numbers import canonical, digest
from robustkt.progress import Progress, Silent
from robustkt.provenance import circumstances
from robustkt.ranks import ranks
from robustkt.registry import Registry

MADE = ("weights", "last_weights", "adapters", "last_adapters")  # what a run gives
TOLERANCE = 1e-3  # of the weights, as the length of the difference over the length of the weights
CIRCUMSTANCES = (
    "device", "machine", "system", "threads", "versions", "environment", "lock", "image", "git", "deterministic",
    "ranks",
)  # fmt: skip
# recorded where there is one, by every version that records the environment
OPTIONAL = ("lock", "image", "git", "ranks", "hosts")
# other bits may come of these
DECIDING = ("device", "machine", "system", "threads", "versions", "deterministic", "ranks")
PASSING = ("images_per_second", "seconds", "reused")  # of an epoch, another in every run


def reproduce(
    generation: str = "@latest",
    *,
    tolerance: float = TOLERANCE,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a generation again by its recipe, beside the registry, and compare; nothing in the registry changes.

    An interrupted reproduction continues. A soup is mixed again from its parents.

    Args:
        generation: which.
        tolerance: relative L2 distance of all weights up to which they count as equal.
        data: where the data lie now, if not where they did.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps; the recorded kind is the one to compare with.
        fresh: start over instead of continuing.
        progress: where to report.

    Returns:
        generation, id, verdict (identical, equal or different; of adapters too), distance and last_distance (of
        selected and last weights, adapters among them), largest (difference of a single weight, and its name), first
        (epoch, key, then, now; of the first epoch whose log differs, or None), selected (epoch then and now),
        circumstances (those that differ), seconds.

    Raises:
        UsageError: a tolerance below 0.
        RobustKTError: it was imported, the data have changed, the code of the architecture is not trusted, or the
            weights are damaged.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if not tolerance >= 0:
        raise UsageError(f"--tolerance must be 0 or more, not {tolerance}", f"Leave it out for {TOLERANCE:g}.")
    found = registry.get(generation)
    recipe, started = found.recipe, time.monotonic()
    source = None
    if recipe.arch_source is not None:
        source = trusted(UserSource(recipe.arch, registry.object(recipe.arch_source)), found.name)
    target = pick_device(device)
    before, old = _weights(registry, found), registry.record(found.id)
    if recipe.training is None:
        if recipe.method != SOUP:
            source_of = clip(str(recipe.settings.get("source", "SOURCE")))
            raise RobustKTError(
                f"{found.name} was imported: how it was trained is not known, so it cannot be trained again",
                f"`robustkt import {source_of}` takes the same weights over again.",
            )
        record = {**circumstances(Path.cwd()), **machine(target)}
        _forewarn(old, record, progress)
        state = mixed_again(registry, found, data, data_dir, target)
        same = digest(weight_bytes(state)) == found.weights
        record |= {"seconds": time.monotonic() - started}
        return _verdict(found, before, {"selected": state, "last": state}, same, tolerance, old, record)
    dataset = load_data(registry, found, data, data_dir)
    teacher, init = (registry.by_id(found.parents[r]) if r in found.parents else None for r in ("teacher", "init"))
    folder = registry.job_path("reproduce", digest(canonical([found.id, target.type]))[7:23])
    with ranks() as group:
        group.agree({"generation": found.id})
        alone = registry.working(folder, "this very reproduction", [found.id], fresh=fresh)
        with alone if group.rank == 0 else contextlib.nullcontext():
            scratch = Registry(folder / "registry")
            if group.rank == 0:
                for needed in dict.fromkeys(identity for one in (teacher, init) if one for identity in one.objects):
                    scratch.put_object(registry.object(needed))
            job = Job(
                scratch if group.rank == 0 else registry,
                recipe,
                found.parents,
                found.name,
                dataset,
                source,
                target,
                False,
                progress,
                init,
            )
            _forewarn(old, job.circumstances, progress)
            if recipe.settings.get("views"):
                progress.note("its teacher is asked again: no logits that the registry keeps are taken")
            again, record = job.make(job.student(), teacher, folder, group)
            answer: dict[str, Any] = {}
            if group.rank == 0:
                same = all(getattr(again, name) == getattr(found, name) for name in MADE)
                answer = _verdict(found, before, _weights(scratch, again), same, tolerance, old, record)
            answer = json.loads(group.first(json.dumps(answer).encode()))
    return answer


def _verdict(
    found: Generation,
    before: Mapping[str, Mapping[str, Tensor]],
    after: Mapping[str, Mapping[str, Tensor]],
    same: bool,
    tolerance: float,
    old: Mapping[str, Any],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """What is answered; `same` says whether every byte is the same.

    Raises:
        IntegrityError: there are other tensors than its recipe gives.
    """
    for name, state in before.items():
        if strange := sorted(state.keys() ^ after[name].keys()):
            raise IntegrityError(
                f"{found.name} has other tensors than its recipe gives: {strange[0]}", "Do not use it."
            )
    distance, last = (_distance(before[name], after[name]) for name in ("selected", "last"))
    return {
        "generation": found.name,
        "id": found.id,
        "verdict": "identical" if same else "equal" if max(distance, last) <= tolerance else "different",
        "tolerance": tolerance,
        "distance": distance,
        "last_distance": last,
        "largest": _largest(before["last"], after["last"]),
        "first": _first(old.get("epochs", []), record.get("epochs", [])),
        "selected": {"then": _selected(old), "now": _selected(record)},
        "circumstances": _changed(old, record),
        "seconds": record["seconds"],
    }


def _weights(registry: Registry, made: Generation) -> dict[str, dict[str, Tensor]]:
    """The tensors of both epochs; those of adapters behind their domain."""
    found = {}
    for name, last in (("selected", False), ("last", True)):
        found[name] = load_tensors(registry.object(made.last_weights if last else made.weights))
        for one in made.bound(last=last):
            own = read_adapter(registry.object(one.hash), one, made.name)
            found[name] |= {f"{one.domain}: {key}": value for key, value in own.items()}
    return found


def _selected(record: Mapping[str, Any]) -> int | None:
    """The epoch that was selected."""
    epoch: int | None = (record.get("selected") or {}).get("epoch")
    return epoch


def _distance(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """‖new − old‖₂ / ‖old‖₂ over all floating-point tensors, in float64."""
    names = sorted(name for name, value in old.items() if value.is_floating_point())
    difference = sum(float((new[name].double() - old[name].double()).square().sum()) for name in names)
    length = sum(float(old[name].double().square().sum()) for name in names)
    return float((difference / length) ** 0.5) if length else 0.0


def _largest(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Any]:
    names = [name for name in sorted(old) if old[name].numel()]
    value, name = max((float((new[name].double() - old[name].double()).abs().max()), name) for name in names)
    return {"difference": value, "name": name}


def _first(old: list[Mapping[str, Any]], new: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first figure of the first epoch that came out otherwise."""
    for then, now in zip(old, new, strict=False):
        for key in sorted(set(then) & set(now) - set(PASSING)):
            if then[key] != now[key]:
                return {"epoch": then.get("epoch"), "key": key, "then": then[key], "now": now[key]}
    return None


def _forewarn(old: Mapping[str, Any], new: Mapping[str, Any], progress: Progress) -> None:
    """Before the work: what is not as it was recorded, and that other bits may come of it."""
    changed = _changed(old, new)
    if not changed:
        return
    late = "; other bits may come of that" if set(changed) & set(DECIDING) else ""
    progress.note(f"not as recorded: {', '.join(changed)}{late}")
    if "threads" in changed:
        then, now = changed["threads"]
        progress.note(f"it was trained with {then} threads, here are {now}: OMP_NUM_THREADS={then} sets them")


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the run was made with that is another now."""
    told = {*old, *(OPTIONAL if "environment" in old else ())}
    return {key: [old.get(key), new.get(key)] for key in CIRCUMSTANCES if key in told and old.get(key) != new.get(key)}
