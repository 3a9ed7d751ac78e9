"""The jobs of a registry while they run, and those that were interrupted; read only, without torch."""

from __future__ import annotations

import datetime
import math
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any

from robustkt.errors import RobustKTError, clip
from robustkt.registry import Registry
from robustkt.registry.underway import Facts, Told, Underway, underway

UNITS = {"train": "steps", "reproduce": "steps", "certify": "copies", "evaluate": "images", "soup": "points"}
PROGRAMS = re.compile(r"robustkt|__main__\.py")  # what argv[0] is called when a command line can be typed again
LINES = 8  # of figures


def status(registry: Registry | None = None) -> dict[str, Any]:
    """The jobs of a registry that run or were interrupted: what each is at, how far, how fast, how to go on.

    Nothing is written or locked, so it may be asked at any moment, by anybody who may read the registry.

    Args:
        registry: the nearest one by default; it may be none yet, which has no jobs.

    Returns:
        registry, time (ISO 8601, UTC), running (how many), jobs [{job, kind, state (running, silent: a lease without a
        sign of life, interrupted), what, generation, teacher, host, pid, command, since, seen_seconds (since the last
        sign of life), share (done, 0 to 1), done, total, unit, epoch, epochs, rate (units a second),
        images_per_second, seconds_left, figures [a line], metric, curve (a figure an epoch), resume (what to type, or
        None), folder (where to type it)}], the running first, then the latest; strange (folders that are no jobs).

    Raises:
        RobustKTError: the registry is not for this user to read.
    """
    registry = registry or Registry.locate()
    if not registry.exists:
        return {"registry": str(registry.root), "time": _iso(time.time()), "running": 0, "jobs": [], "strange": []}
    found, strange = underway(registry.root)
    names = _names(registry)
    jobs = [_described(job, names) for job in found]
    return {
        "registry": str(registry.root),
        "time": _iso(time.time()),
        "running": sum(job["state"] == "running" for job in jobs),
        "jobs": jobs,
        "strange": [clip(name, 80) for name in strange],
    }


def _names(registry: Registry) -> dict[str, str]:
    """Ids and names; none where they cannot be read."""
    try:
        return {identity: name for name, identity in reversed(list(registry.refs()["names"].items()))}
    except (RobustKTError, OSError):
        return {}


def _described(job: Underway, names: Mapping[str, str]) -> dict[str, Any]:
    """One job, as plain values."""
    told = job.told or Told(time=0.0)
    facts, holder = told.facts, job.holder
    on = [names.get(identity, identity[7:19]) for identity in job.needs]
    running = job.state == "running"
    rate = told.rate if running and told.rate is not None and told.rate > 0 else None
    return {
        "job": job.folder.name,
        "kind": job.kind,
        "state": job.state,
        "what": _what(job.kind, facts, on),
        "generation": facts.generation or (on[0] if on and job.kind not in ("train", "copy", "pull") else None),
        "teacher": facts.teacher,
        "host": clip(holder.host, 80) if holder else None,
        "pid": holder.pid if holder else None,
        "command": holder.command if holder else None,
        "since": _iso(job.since),
        "seen_seconds": max(0.0, time.time() - job.changed) if job.changed is not None else None,
        **_progress(job, told),
        "rate": rate,
        "seconds_left": _left(told, rate),
        "figures": [clip(line, 200) for line in told.text[:LINES]],
        **_curve(job, facts),
        "resume": None if running else _again(told),
        "folder": told.cwd,
    }


def _what(kind: str, facts: Facts, on: list[str]) -> str:
    """In words what a job is at."""
    base = facts.generation or (on[0] if on else "")
    if kind in ("train", "reproduce") and facts.method:
        teacher = f", from {facts.teacher}" if facts.teacher else ""
        again = f"{base} again: " if kind == "reproduce" and base else ""
        named = f", to be {facts.name}" if facts.name and kind == "train" else ""
        words = f"{again}{facts.method} of {facts.arch} on {facts.data}{teacher}{named}"
    elif kind == "certify" and facts.mode:
        words = f"{base}, {facts.noise}, {facts.mode}, n {facts.n or 0:,}"
    elif kind == "evaluate" and facts.attacks:
        words = f"{base} under {', '.join(facts.attacks)}" if facts.attacks != ("clean",) else f"{base} without attack"
    elif kind == "pull" and facts.source:
        words = facts.source
    else:
        words = f"of {', '.join(on)}" if on else ""
    return clip(words, 200)


def _progress(job: Underway, told: Told) -> dict[str, Any]:
    """How far it is: by its own units, and by epochs or images where it has any."""
    total, facts = told.total, told.facts
    known = total is not None and total > 0 and told.done is not None
    done = min(max(told.done or 0.0, 0.0), total or 0.0) if known else None
    share = done / total if known and done is not None and total else None
    if job.epochs and job.state == "interrupted":  # it goes on from its checkpoint
        share = None
    epochs = facts.epochs if facts.epochs and 0 < facts.epochs < 2**31 else None
    behind = len(job.epochs)
    if epochs and share is None:
        share = min(behind / epochs, 1.0)
    finished = max(behind, math.floor(share * epochs + 1e-9)) if epochs and share is not None else behind
    images = facts.images if job.kind == "certify" else None
    return {
        "share": share,
        "done": done,
        "total": total if known else None,
        "unit": UNITS.get(job.kind, "parts"),
        "epoch": min(finished + (job.state == "running"), epochs) if epochs else None,
        "epochs": epochs,
        "images": images,
        "certified": (facts.certified or 0) if images else None,
        "processes": told.processes,
    }


def _left(told: Told, rate: float | None) -> float | None:
    """Seconds until the end at the present speed; what has passed since the job told of itself is taken off."""
    if rate is None or told.total is None or told.done is None:
        return None
    ahead = (told.total - told.done) / rate - max(0.0, time.time() - told.time)
    return max(0.0, ahead) if math.isfinite(ahead) else None


def _curve(job: Underway, facts: Facts) -> dict[str, Any]:
    """The held-out figure of each epoch, or else the loss; and how fast the last one went."""
    held = [_number(entry.get("held_out")) for entry in job.epochs]
    loss = [_number(entry.get("loss")) for entry in job.epochs]
    speed = _number(job.epochs[-1].get("images_per_second")) if job.epochs else None
    selected = any(value is not None for value in held)
    return {
        "metric": (facts.metric or "held-out") if selected else "loss" if any(v is not None for v in loss) else None,
        "curve": held if selected else loss,
        "images_per_second": speed,
    }


def _number(value: Any) -> float | None:
    try:
        found = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None
    return found if found is not None and math.isfinite(found) else None


def _again(told: Told) -> str | None:
    """What to type to go on with a job; None where it was no command line of robustkt's."""
    if not told.argv or not PROGRAMS.fullmatch(told.argv[0]) or len(told.argv) < 2 or told.argv[1].startswith("-"):
        return None
    start = "python -m robustkt" if told.argv[0] == "__main__.py" else "robustkt"
    if told.processes > 1:
        start = f"torchrun --nproc-per-node {told.processes} -m -- robustkt"
    return f"{start} {shlex.join(a for a in told.argv[1:] if a != '--fresh')}"  # which would start over


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
    except (OverflowError, OSError, ValueError):
        return None
