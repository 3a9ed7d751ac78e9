"""What this machine has, read from the operating system without torch: processor, cores, memory, disk."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_bf16": "AMX-bf16", "asimd": "NEON", "sve": "SVE"}
CGROUP = Path("/sys/fs/cgroup")
CPUINFO, MEMINFO, OWN = Path("/proc/cpuinfo"), Path("/proc/meminfo"), Path("/proc/self/cgroup")
UNLIMITED = 2**60  # bytes; what the first version of control groups calls no limit is more


def processor_flags() -> frozenset[str]:
    """The features that Linux tells of the processor, in its words; none elsewhere."""
    for line in _text(CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor() -> dict[str, Any]:
    """model, architecture, cores (there are), usable (by this process, perhaps a fraction), load, features.

    The load is how many programs have wanted a core at once, on average over a minute; None where nobody counts.
    """
    named = [line.partition(":")[2].strip() for line in _text(CPUINFO).splitlines() if line.startswith("model name")]
    there = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = cpu_quota()
    flags = processor_flags()
    return {
        "model": (named or [platform.processor() or platform.machine()])[0],
        "architecture": platform.machine(),
        "cores": there,
        "usable": min(allowed, quota) if quota is not None else allowed,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "features": [name for flag, name in FEATURES.items() if flag in flags],
    }


def memory() -> dict[str, int | None]:
    """In bytes: total, available (now, with what can be given back), limit (of the control group, or None)."""
    told = {}
    for line in _text(MEMINFO).splitlines():
        name, _, value = line.partition(":")
        told[name] = int(value.split()[0]) * 1024 if value.split() else 0
    total = told.get("MemTotal")
    if total is None and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"total": total, "available": told.get("MemAvailable"), "limit": memory_limit()}


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups of this process allow; None without a limit."""
    shares = []
    for group in _groups("cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = (_text(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if (cores := _number(quota) / _number(period)) > 0:
            shares.append(cores)
    return min(shares, default=None)


def memory_limit() -> int | None:
    """Bytes that the control groups of this process allow; None without a limit."""
    limits = []
    for group in _groups("memory"):
        found = _number(_text(group / "memory.max") or _text(group / "memory.limit_in_bytes"))
        if 0 < found < UNLIMITED:
            limits.append(int(found))
    return min(limits, default=None)


def disk(place: Path) -> dict[str, int] | None:
    """In bytes: total and free where `place` is, or will be made; None where that cannot be told."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        found = shutil.disk_usage(place)
    except OSError:
        return None
    return {"total": found.total, "free": found.free}


def _groups(controller: str) -> Iterator[Path]:
    """The control groups that this process is in, its own first, the outermost last; of both versions."""
    for line in _text(OWN).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number != "0" and controller not in controllers.split(","):
            continue
        top = CGROUP if number == "0" else CGROUP / controller
        own = top / path.strip("/")
        yield from (group for group in (own, *own.parents) if group == top or top in group.parents)


def _number(text: str) -> float:
    """NaN of what is none, such as `max`."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
