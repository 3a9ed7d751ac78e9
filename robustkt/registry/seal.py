"""Files that are not named by their hash carry it as their last key, so that a flipped byte is noticed."""

from __future__ import annotations

from collections.abc import Mapping
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
    data = path.read_bytes()
    body = data.rpartition(b',"digest":')[0] + b"}"
    if data != _seal(body):
        raise IntegrityError(f"{path} is damaged: its digest is another", fix)
    return dict(parse_json(body, str(path)))


def _seal(body: bytes) -> bytes:
    return body[:-1] + b',"digest":"' + digest(body).encode() + b'"}'
