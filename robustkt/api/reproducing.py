"""Runs a generation again from its manifest and says whether the same came out, and if not where first it differed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from robustkt.api.loading import load_data, pick_device, trusted
from robustkt.api.training import Job
from robustkt.errors import UsageError
from robustkt.generation import Generation
from robustkt.models import UserSource
from robustkt.numbers import canonical, digest
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

TOLERANCE = 1e-3  # of the weights, as the length of the difference over the length of the weights
CIRCUMSTANCES = (
    "device", "machine", "system", "threads", "versions", "environment", "lock", "image", "git", "deterministic",
)  # fmt: skip
OPTIONAL = ("lock", "image", "git")  # recorded where there is one, by every version that records the environment
DECIDING = ("device", "machine", "system", "threads", "versions", "deterministic")  # other bits may come of these
PASSING = ("images_per_second", "seconds")  # of an epoch, another in every run


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

    An interrupted reproduction continues.

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
        generation, id, verdict (identical, equal or different), distance and last_distance (of selected and last
        weights), largest (difference of a single weight, and its name), first (epoch, key, then, now; of the first
        epoch whose log differs, or None), selected (epoch then and now), circumstances (those that differ), seconds.

    Raises:
        RobustKTError: the data have changed, the code of the architecture is not trusted, or the weights are damaged.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if not tolerance >= 0:
        raise UsageError(f"--tolerance must be 0 or more, not {tolerance}", f"Leave it out for {TOLERANCE:g}.")
    found = registry.get(generation)
    recipe = found.recipe
    teacher = registry.by_id(found.parents["teacher"]) if "teacher" in found.parents else None
    source = None
    if recipe.arch_source is not None:
        source = trusted(UserSource(recipe.arch, registry.object(recipe.arch_source)), found.name)
    target = pick_device(device)
    dataset = load_data(registry, found, data, data_dir)
    before = _weights(registry, found)
    folder = registry.job_path("reproduce", digest(canonical([found.id, target.type]))[7:23])
    with registry.working(folder, "this very reproduction", [found.id], fresh=fresh):
        scratch = Registry(folder / "registry")
        for needed in teacher.objects if teacher else []:
            scratch.put_object(registry.object(needed))
        job = Job(scratch, recipe, found.parents, found.name, dataset, source, target, False, progress)
        old = registry.record(found.id)
        _forewarn(old, job.circumstances, progress)
        again, record = job.make(job.student(), teacher, folder)
        after = _weights(scratch, again)
    distance, last = (_distance(before[name], after[name]) for name in ("selected", "last"))
    same = (again.weights, again.last_weights) == (found.weights, found.last_weights)
    return {
        "generation": found.name,
        "id": found.id,
        "verdict": "identical" if same else "equal" if max(distance, last) <= tolerance else "different",
        "tolerance": tolerance,
        "distance": distance,
        "last_distance": last,
        "largest": _largest(before["last"], after["last"]),
        "first": _first(old.get("epochs", []), record["epochs"]),
        "selected": {"then": (old.get("selected") or {}).get("epoch"), "now": record["selected"]["epoch"]},
        "circumstances": _changed(old, record),
        "seconds": record["seconds"],
    }


def _weights(registry: Registry, made: Generation) -> dict[str, dict[str, Tensor]]:
    stored = {"selected": made.weights, "last": made.last_weights}
    return {name: load_tensors(registry.object(identity)) for name, identity in stored.items()}


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
