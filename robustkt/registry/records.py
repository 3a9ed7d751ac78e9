"""What a run record must look like before anything is drawn, compared or published from it; it may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustkt.registry.seal import unsealed
from robustkt.shapes import from_json
from robustkt.texts import check_printable, is_printable

FIX = "Restore it from a copy."
OWN = ("paths",)  # of this machine's folders, which may be called anything; they are never published


def data_called(name: str, record: Mapping[str, Any]) -> str:
    """A data set's name; of a folder or file the last part of where it lay, as `folder` says little."""
    paths = record.get("paths")
    place = paths.get("data") if isinstance(paths, dict) else None
    last = Path(str(place)).name if place else ""
    return last if last and is_printable(last) else name


@dataclass(frozen=True)
class Selected:
    """The epoch whose weights were kept."""

    epoch: int  # counted from 0
    metric: str  # what was compared, in words
    score: float  # a share of the held-out images


@dataclass(frozen=True)
class Measured:
    """The accuracy that an imported network had."""

    metric: str  # what was measured, in words
    score: float  # a share of the images
    images: int  # how many


@dataclass(frozen=True)
class Epoch:
    """The log of an epoch."""

    epoch: int  # counted from 0
    loss: float | None = None  # mean over the images
    lr: float | None = None  # learning rate of its last step
    held_out: float | None = None  # accuracy on the held-out images, as the selection measures it
    images_per_second: float | None = None  # speed of training
    seconds: float | None = None  # of the epoch, where it was told
    terms: Mapping[str, float] = field(default_factory=dict)  # each term of the loss, weighted, by name


@dataclass(frozen=True)
class WorkingCopy:
    """The commit that a run was started in."""

    commit: str  # of git, forty digits
    dirty: bool  # whether a tracked file was changed


@dataclass(frozen=True)
class Record:
    """How a generation came about; earlier versions, imports and soups tell less."""

    started: str | None = None  # ISO 8601, UTC
    seconds: float | None = None  # of training
    selected: Selected | None = None  # whose weights are the generation's
    measured: Measured | None = None  # of an imported network
    cost: Mapping[str, int] | None = None  # images through networks
    replay: Mapping[str, int] | None = None  # views of the teacher's logits: how many, and of how many none was missing
    epochs: tuple[Epoch, ...] = ()  # the log of training
    parameters: int = 0  # of the network, or of what all modes share
    adapter_parameters: int = 0  # of all adapters together
    device: str | None = None  # cpu, cuda or mps
    machine: str | None = None  # the processor's architecture
    system: str | None = None  # the operating system
    processors: int | None = None  # cores
    threads: int | None = None  # that torch computed with on a CPU
    ranks: int | None = None  # processes that shared the training, where there were several
    hosts: int | None = None  # machines that they were on
    folded: bool | None = None  # attacks in training ran on a folded network
    compiled: bool | None = None  # torch.compile had a part
    versions: Mapping[str, str] | None = None  # of Python, torch and robustkt
    deterministic: bool | None = None  # whether torch's deterministic algorithms were on
    environment: str | None = None  # hash of the names and versions of all installed packages
    lock: Mapping[str, str] | None = None  # name and hash of the lock file
    image: Mapping[str, str] | None = None  # of a container: what it was built from, and its digest
    git: WorkingCopy | None = None  # the commit of the working folder
    paths: Mapping[str, str] | None = None  # of data and code on this machine; never published
    notes: tuple[str, ...] = ()  # what a reader should know
    license: str | None = None  # of an imported network, as its source tells it
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
