"""The engine's resumable state as one file: named groups of tensors and a JSON history; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustkt.errors import IntegrityError
from robustkt.numbers import digest
from robustkt.ranks import ALONE, Ranks
from robustkt.registry.files import write_atomic
from robustkt.registry.underway import CHECKPOINT as FILE

HASH_LENGTH = len(digest(b""))


def save(folder: Path, groups: Mapping[str, Mapping[str, Tensor]], history: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder` in one step: its hash, a line of history, the tensors."""
    flat = {f"{group}/{name}": value.contiguous() for group, t in groups.items() for name, value in t.items()}
    body = json.dumps(history).encode() + b"\n" + save_tensors(_own(flat))
    write_atomic(folder / FILE, digest(body).encode() + b"\n" + body)


def load(folder: Path, company: Ranks = ALONE) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The checkpoint in `folder`, the first rank's at all of them, or None when there is none.

    Raises:
        IntegrityError: it is damaged.
    """
    path = folder / FILE
    found = company.first(b"there " + path.read_bytes() if company.rank == 0 and path.is_file() else b"")
    if not found:
        return None
    data = found.removeprefix(b"there ")
    body = data[HASH_LENGTH + 1 :]
    if digest(body).encode() != data[:HASH_LENGTH]:
        raise IntegrityError(f"the checkpoint {path} is damaged", "Start over with --fresh.")
    line, tensors = body.split(b"\n", 1)
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        for key, value in load_tensors(tensors).items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = value
    except SafetensorError as error:
        raise IntegrityError(f"the checkpoint {path} is damaged: {error}", "Start over with --fresh.") from None
    groups.setdefault("optimizer", {})  # empty without momentum
    return groups, json.loads(line)


def _own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with memory of their own: safetensors refuses two names for one storage (tied weights)."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}
