"""Files that are not named by their hash carry it as their last key, so that a flipped byte is noticed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustkt.errors import IntegrityError
from robustkt.numbers import canonical, digest, parse_json


def sealed(content: Mapping[str, Any]) -> bytes:
    """A non-empty table as canonical JSON and, as a last key, the digest of that: for files not named by their hash."""
    return _seal(canonical(content))


def unsealed(path: Path, fix: str) -> dict[str, Any]:
    """The table in a sealed file, without its digest.

    Raises:
        IntegrityError: it is damaged; `fix` says what to do.
    """
    return unsealed_bytes(path.read_bytes(), str(path), fix)


def unsealed_bytes(
    data: bytes, source: str, fix: str, *, parse: Callable[[bytes, str], Any] = parse_json
) -> dict[str, Any]:
    """The table in the bytes of a sealed file, as `unsealed` reads it; `parse` may trust what nobody else writes."""
    body = data.rpartition(b',"digest":')[0] + b"}"
    if data != _seal(body):
        raise IntegrityError(f"{source} is damaged: its digest is another", fix)
    return dict(parse(body, source))


def _seal(body: bytes) -> bytes:
    return body[:-1] + b',"digest":"' + digest(body).encode() + b'"}'
