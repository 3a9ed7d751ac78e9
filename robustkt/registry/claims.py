"""Measurements that came with a generation from elsewhere: claims, until they have been made again here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from robustkt.errors import IntegrityError
from robustkt.registry.files import write_atomic
from robustkt.registry.seal import sealed, unsealed
from robustkt.shapes import from_json, to_json

FOLDER = "claims"
FORMAT = 1
FIX = "Pull the generation again."


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Where a generation came from, and which of its measurements nobody has made here."""

    repo: str
    revision: str | None  # as it was asked for
    commit: str
    license: str | None
    results: Mapping[str, str]  # "certificate-ab12": the SHA-256 of its file

    @property
    def source(self) -> str:
        """`org/name@0123456789ab`."""
        return f"{self.repo}@{self.commit[:12]}"


def path_of(root: Path, identity: str) -> Path:
    """Where the claims about a generation lie."""
    return root / FOLDER / f"{identity.removeprefix('sha256:')}.json"


def read(root: Path, identity: str) -> Claims | None:
    """The claims about a generation, or None when it was made here.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = path_of(root, identity)
    if not path.is_file():
        return None
    content = unsealed(path, FIX)
    if content.get("format") != FORMAT:
        raise IntegrityError(f"{path} has format {content.get('format')}", "Upgrade robustkt.")
    license = content.get("license", content.pop("licence", None))  # as earlier versions spelled it
    return from_json(Claims, {**content, "license": license}, str(path))


def write(root: Path, identity: str, claims: Claims) -> None:
    """Keep the claims about a generation; the caller holds the writers' lock."""
    write_atomic(path_of(root, identity), sealed({"format": FORMAT, **to_json(claims)}))


def settle(root: Path, identity: str, stem: str) -> None:
    """`certificate-ab12` was measured here: it is a claim no longer; the caller holds the writers' lock."""
    found = read(root, identity)
    if found is not None and stem in found.results:
        left = {name: mark for name, mark in found.results.items() if name != stem}
        write(root, identity, replace(found, results=left))
