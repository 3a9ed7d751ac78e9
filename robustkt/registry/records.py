"""What a run record must look like before anything is drawn, compared or published from it; it may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustkt.registry.seal import unsealed
from robustkt.shapes import from_json
from robustkt.texts import check_printable

FIX = "Restore it from a copy."
OWN = ("paths",)  # of this machine's folders, which may be called anything; they are never published


@dataclass(frozen=True)
class Selected:
    """The epoch whose weights were kept."""

    epoch: int
    metric: str
    score: float


@dataclass(frozen=True)
class Measured:
    """The accuracy that an imported network had."""

    metric: str
    score: float
    images: int


@dataclass(frozen=True)
class Epoch:
    """The log of an epoch."""

    epoch: int
    loss: float | None = None
    lr: float | None = None
    held_out: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkingCopy:
    """The commit that a run was started in."""

    commit: str
    dirty: bool


@dataclass(frozen=True)
class Record:
    """How a generation came about; earlier versions, imports and soups tell less."""

    started: str | None = None
    seconds: float | None = None
    selected: Selected | None = None
    measured: Measured | None = None
    cost: Mapping[str, int] | None = None  # images through networks
    replay: Mapping[str, int] | None = None  # views of the teacher's logits: how many, and of how many none was missing
    epochs: tuple[Epoch, ...] = ()
    parameters: int = 0
    adapter_parameters: int = 0
    device: str | None = None
    machine: str | None = None
    system: str | None = None
    processors: int | None = None
    threads: int | None = None
    ranks: int | None = None  # processes that shared the training, where there were several
    hosts: int | None = None  # machines that they were on
    folded: bool | None = None  # attacks in training ran on a folded network
    compiled: bool | None = None
    versions: Mapping[str, str] | None = None
    deterministic: bool | None = None
    environment: str | None = None
    lock: Mapping[str, str] | None = None
    image: Mapping[str, str] | None = None
    git: WorkingCopy | None = None
    paths: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    license: str | None = None
    licence: str | None = None  # as earlier versions spelled it


def check_record(content: Mapping[str, Any], source: str, fix: str = FIX) -> None:
    """Raise an IntegrityError unless the record has the shape of one; keys of later versions are let be."""
    check_printable({key: value for key, value in content.items() if key not in OWN}, source, fix)
    from_json(Record, content, source)


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file.

    Raises:
        IntegrityError: it is damaged, or none.
    """
    content = unsealed(path, FIX)
    check_record(content, str(path))
    return {key: value for key, value in content.items() if key not in ("format", "name")}
