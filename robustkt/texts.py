"""Text of anybody's making that terminals, pages and pictures will show: printable, and not endless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustkt.errors import IntegrityError

LONGEST = 300  # characters; the longest that is written here is a class of ImageNet or a warning
LONGEST_SETTING = 8_000  # of a recipe: the rows of a thousand classes, the shares of a soup


def is_printable(text: str, longest: int = LONGEST) -> bool:
    """Whether it can be drawn: no control characters, no escapes, no more than `longest` characters."""
    return len(text) <= longest and text.isprintable()


def check_printable(value: Any, source: str, fix: str, longest: int = LONGEST) -> None:
    """Raise an IntegrityError for a text in a JSON value, or a key of its tables, that is not to be drawn."""
    for path, text in _texts(value):
        if not is_printable(text, longest):
            kind = "is too long" if text.isprintable() else "has unprintable characters"
            raise IntegrityError(f"{source}: {path or 'a key'} {kind}: {text[:40]!r}", fix)


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Every text with its place; a key comes before what is under it, so that a place is printable itself."""
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        path, found = left.pop()
        if isinstance(found, str):
            yield path, found
        elif isinstance(found, dict):
            for key in found:
                yield path, key
            left += [(f"{path}.{key}".lstrip(".")[:80], item) for key, item in found.items()]
        elif isinstance(found, (list, tuple)):
            left += [(path, item) for item in found]
