"""What ties an adapter's file to the network that it was trained on: its base's hash, its domain and its kind."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, BinaryIO

from robustkt.errors import IntegrityError, clip
from robustkt.generation import HASH, Adapter
from robustkt.numbers import MAX_JSON, canonical
from robustkt.shapes import to_json

HEADER = "robustkt"  # the one key of an adapter's metadata: several would be written in any order
RESTORE = "Restore the registry from a copy."


@dataclass(frozen=True)
class Binding:
    """What an adapter's file says that it belongs to."""

    base: str  # "sha256:…" of the weights that all its domains share
    domain: str
    kind: str  # of the adapters catalog

    def text(self) -> str:
        """Its one spelling in the file."""
        return canonical(to_json(self)).decode()


def read_binding(file: BinaryIO | bytes, adapter: Adapter, who: str, fix: str = RESTORE) -> Binding:
    """The binding in an adapter's file, if it is that of `adapter`; the header is read, and no tensor.

    Args:
        file: the safetensors file, or its bytes.
        adapter: what the manifest says of it.
        who: what messages call the generation.
        fix: what to do about one that is another.

    Raises:
        IntegrityError: it is no adapter, or one of another base or domain.
    """
    told = f"the adapter {adapter.domain} of {who}"
    try:
        header = json.loads(_metadata(io.BytesIO(file) if isinstance(file, bytes) else file)[HEADER])
        found = Binding(header["base"], header["domain"], header["kind"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise IntegrityError(f"{told} is not one: its file has no header that binds it", fix) from None
    if not (isinstance(found.base, str) and HASH.fullmatch(found.base) and isinstance(found.kind, str)):
        raise IntegrityError(f"{told} is not one: its file has no header that binds it", fix)
    if found.base != adapter.base:
        raise IntegrityError(
            f"{told} belongs to another base, {found.base[:19]}…, not to {adapter.base[:19]}…",
            f"An adapter works only with the network that it was trained on. {fix}",
        )
    if found.domain != adapter.domain:
        raise IntegrityError(f"{told} is that of {clip(str(found.domain), 31)}", fix)
    return found


def _metadata(file: BinaryIO) -> dict[str, Any]:
    """What a safetensors file says beside its tensors."""
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_JSON:
        raise ValueError("a header longer than any")
    return dict(json.loads(file.read(length))["__metadata__"])
