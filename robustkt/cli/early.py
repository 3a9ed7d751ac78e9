"""Refusals that need no torch, given before it is imported: names from the sources, numbers as numbers.

The api checks again, in the same words: it has other callers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from robustkt import schedules
from robustkt.catalog import ATTACKS, preset, unknown
from robustkt.errors import UsageError
from robustkt.generation import COMPILE, PRECISIONS, Generation, Training
from robustkt.numbers import check_ball, fraction, noise_level
from robustkt.settings import fill

DEVICES = ("auto", "cpu", "cuda", "mps")


def machine(device: str, precision: str = "auto", compiled: str = "auto") -> None:
    """Raise a UsageError for a device or a precision that no machine has, or another word about compiling."""
    kind, _, index = device.partition(":")
    if kind not in DEVICES or (index and not re.fullmatch("[0-9]{1,4}", index)):
        raise unknown("device", device, DEVICES)
    known = ("auto", *PRECISIONS)
    if precision not in known:
        raise unknown("precision", precision, known)
    if compiled not in COMPILE:
        raise unknown("value of --compile", compiled, COMPILE)


def training(method: str | None, given: Mapping[str, Any], named: str | None) -> None:
    """Raise a UsageError for a preset, σ, ball or training setting that cannot be; `method` None is not known yet."""
    own = {} if method is None else preset(named, method)
    if given.get("sigma") is not None:
        noise_level(given["sigma"])
    if given.get("eps") is not None:
        check_ball(str(given.get("norm") or "linf"), fraction(given["eps"], "eps"))
    chosen = {**own, **given}
    made = Training(**fill(Training, chosen))
    if "epochs" in chosen or "milestones" not in chosen:  # else the message would count epochs that only the data tell
        schedules.check(made)


def successor(teacher: Generation, method: str) -> str | None:
    """The method that `auto` stands for, where there is one."""
    if method != "auto":
        return method
    return "crt" if teacher.recipe.sigma is not None else "rslad" if teacher.recipe.threat is not None else None


def shifted(corruption: str | None, transfer: bool) -> None:
    """Raise a UsageError for adversarial transfer of corrupted images, which nobody measures."""
    if corruption is not None and transfer:
        raise UsageError("--transfer is measured on images as they are", "Leave --corruption out.")


def attacks(names: Sequence[str], found: Generation, norm: str | None, eps: str | None) -> None:
    """Raise a UsageError for an unknown attack or norm, or an eps that cannot be."""
    for name in names:
        head = name.partition(":")[0].strip()
        if not ATTACKS.has(head):
            raise unknown("attack", head, ATTACKS.names())
    if norm not in (None, "linf", "l2"):
        raise unknown("norm", norm or "", ["linf", "l2"])
    if eps is not None:
        own = found.recipe.threat
        check_ball(norm or (own[0] if own else "linf"), fraction(eps, "eps"))
