"""Searches for an image in a threat model that a network gets wrong; a file a family."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor

from robustkt.attacks._rolling import Journal
from robustkt.attacks.autoattack import VERSIONS
from robustkt.attacks.gradient import LOSSES, ascend, ascend_friendly
from robustkt.catalog import ATTACKS, unknown
from robustkt.errors import UsageError
from robustkt.numbers import exact
from robustkt.settings import parse

__all__ = ["Journal", "Named", "ascend", "ascend_friendly", "named"]

INNER = ("rng", "journal", "batch_size")  # keyword arguments that are no settings of an attack
CHOICES: Mapping[str, Collection[str]] = {"loss": (*LOSSES, "kl"), "version": VERSIONS}


@dataclass(frozen=True)
class Named:
    """An attack as it was asked for, such as `pgd:loss=dlr:steps=50`."""

    name: str  # its one spelling
    run: Callable[..., Tensor]
    options: Mapping[str, Any]

    def takes(self, argument: str) -> bool:
        """Whether the function has this argument.

        `journal`: it takes any number of images at once and tells what it decides. `sigma`: it attacks the smoothed
        classifier.
        """
        return argument in inspect.signature(self.run).parameters


def named(text: str) -> Named:
    """The attack behind `NAME` or `NAME:KEY=VALUE:…`; the keys are the function's keyword arguments.

    Raises:
        UsageError: no such attack or key, or a value that cannot be read.
    """
    head, *pairs = text.strip().split(":")
    function = ATTACKS.get(head)
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in INNER]
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if key not in known:
            raise unknown(f"setting for {head}", key, known)
        if key in options:
            raise UsageError(f"{key} is given twice to {head}", "Give it once, or write two attacks with a comma.")
        if not equals or not value.strip():
            raise UsageError(f"{key} of {head} lacks its value", f"Write {head}:{key}=VALUE.")
        options[key] = parse(hints[key], value.strip(), key)
        if key in CHOICES and options[key] not in CHOICES[key]:
            raise unknown(key, options[key], CHOICES[key])
        if isinstance(options[key], (int, float, Fraction)) and options[key] <= 0:
            raise UsageError(f"{key} must be above 0, not {value}", f"Leave it out for the default of {head}.")
    options = {key: value for key, value in options.items() if value is not None}  # none: the default
    spelled = [ATTACKS.spelled(head), *(f"{key}={_text(value)}" for key, value in sorted(options.items()))]
    return Named(":".join(spelled), function, options)


def _text(value: Any) -> str:
    return exact(value) if isinstance(value, Fraction) else str(value)
