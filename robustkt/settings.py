"""Turns `--set key=value` into the fields of a dataclass, by their annotations."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from robustkt.errors import UsageError, clip
from robustkt.numbers import fraction


def parse(hint: Any, value: Any, name: str) -> Any:
    """`value` (text from the command line, or a JSON value) as the type that the annotation `hint` names.

    Raises:
        UsageError: it cannot be read so.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None or str(value).lower() == "none":
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return tuple(parse(typing.get_args(hint)[0], item, name) for item in items if item != "")
    if hint is bool:
        return _boolean(value, name)
    if hint is str:
        return str(value)
    if hint is int:
        return _whole(value, name)
    number = fraction(value, name)
    return number if hint is Fraction else float(number)


def _whole(value: Any, name: str) -> int:
    with contextlib.suppress(UsageError):
        number = fraction(value, name)
        if number.denominator == 1:
            return int(number)
    raise UsageError(f"{name} must be a whole number, not {clip(str(value), 60)}", "Write it as 10, for instance.")


def _boolean(value: Any, name: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UsageError(
            f"{name} must be true or false, not {clip(str(value), 60)}", f"For instance --set {name}=true."
        ) from None


def fill(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `given` parsed by the annotations of the dataclass `kind`; keys that it lacks are left out."""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    return {key: parse(hints[key], value, key) for key, value in given.items() if key in names}
