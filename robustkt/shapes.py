"""Dataclasses as JSON and back: what is read is checked field by field, as anybody may have written it."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from robustkt.errors import IntegrityError, UsageError, clip
from robustkt.numbers import LARGEST

RESTORE = "Restore the file from a copy."
T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass as plain JSON values; tuples become lists, fractions stay with their owner."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {f.name: to_json(v) for f, v in fields.items() if not (v is None and f.metadata.get("later"))}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def from_json(kind: type[T], value: Any, source: str) -> T:
    """A dataclass from JSON values, checked field by field; keys it does not know are left aside.

    Raises:
        IntegrityError: a field is missing or of the wrong type.
    """

    def wrong(path: str, expected: Any) -> IntegrityError:
        shown = getattr(expected, "__name__", str(expected))
        place = path if path.isprintable() else repr(path)
        return IntegrityError(f"{source}: {clip(place, 120)} is not a valid {shown}", RESTORE)

    def take(expected: Any, found: Any, path: str) -> Any:
        if type(found) is int and abs(found) > LARGEST:
            raise wrong(path, expected)
        if type(found) is expected:
            return found
        origin, arguments = typing.get_origin(expected), typing.get_args(expected)
        if dataclasses.is_dataclass(expected):
            if not isinstance(found, dict):
                raise wrong(path, expected)
            hints, fields = _hints(typing.cast(type, expected)), dataclasses.fields(expected)
            for f in fields:
                if f.name not in found and f.default is f.default_factory is dataclasses.MISSING:
                    raise IntegrityError(f"{source}: {path}.{f.name} is missing", RESTORE)
            given = {f.name: take(hints[f.name], found[f.name], f"{path}.{f.name}") for f in fields if f.name in found}
            try:
                return expected(**given)  # type: ignore[operator]
            except UsageError as error:
                raise IntegrityError(f"{source}: {path}: {error.what}", RESTORE) from None
        if origin in (typing.Union, types.UnionType):
            for option in arguments:
                if option is type(None) and found is None:
                    return None
                if option in (str, int, float, bool) and type(found) is option:
                    return found
            return take(next(a for a in arguments if a is not type(None)), found, path)
        if origin is tuple:
            if not isinstance(found, list):
                raise wrong(path, expected)
            return tuple(take(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(found))
        if origin is not None and issubclass(origin, Mapping):
            if not isinstance(found, dict):
                raise wrong(path, expected)
            return {k: take(arguments[1], v, f"{path}.{k}") for k, v in found.items()}
        if expected is float and type(found) is int:
            return float(found)
        raise wrong(path, expected)

    return typing.cast(T, take(kind, value, kind.__name__.lower()))
