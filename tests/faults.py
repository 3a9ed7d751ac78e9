"""Lets a job die, or the disk refuse, at each of its file-system calls in turn; then looks at what is left.

    python -m tests.faults DOING,… kill|fail STRIDE FIRST
    python -m tests.faults          all of them, recorded in benchmarks/records/faults.json

Each attempt is a fork of a process that has imported everything, so that hundreds take minutes. Prints
calls, attempts and what was wrong as JSON.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robustkt import api
from robustkt.api import training
from robustkt.errors import RobustKTError
from robustkt.provenance import environment
from robustkt.registry import Registry, verify
from robustkt.registry.files import TEMPORARY

KILLED = 99
CALLS = ("fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir", "utime", "open")
WRITES = set("wxa+")

Job = Callable[[Registry, Path], object]


class Faults:
    """Counts calls that change files below a folder, and ends or refuses the one whose number is `fatal`."""

    def __init__(self, below: Path, fatal: int, mode: str) -> None:
        self.below, self.fatal, self.mode, self.calls = str(below), fatal, mode, 0
        for name in CALLS:
            setattr(os, name, self.wrapped(getattr(os, name), name))
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & WRITES or not str(file).startswith(self.below):
                return real(file, mode, *args, **kwargs)
            self.strike()
            return Torn(real(file, mode, *args, **kwargs), self)

        io.open = builtins.open = opened  # type: ignore[assignment]

    def wrapped(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(path, int) or str(path).startswith(self.below):
                self.strike()
            return real(path, *args, **kwargs)

        return call

    def strike(self) -> None:
        """One more call."""
        self.calls += 1
        if self.calls - 1 == self.fatal:
            if self.mode == "kill":
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Torn:
    """A file whose fatal write leaves half of the bytes."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def write(self, data: Any) -> int:
        """All, or half and the end."""
        if self.faults.calls == self.faults.fatal:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
        self.faults.strike()
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Torn:
        return self

    def __exit__(self, *what: object) -> None:
        self.file.close()


def digits(place: Path) -> None:
    """A few of scikit-learn's digits as an .npz."""
    from sklearn.datasets import load_digits

    images = (load_digits().images * 15.9).astype(np.uint8)
    labels = load_digits().target.astype(np.int64)
    parts = {"train": slice(0, 300), "test": slice(300, 360)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    np.savez(place, **arrays, **{f"{part}_labels": labels[rows] for part, rows in parts.items()})


QUICK = {"epochs": 2, "batch_size": 100}


def train(registry: Registry, folder: Path) -> None:
    """A teacher from scratch."""
    given = {"sigma": "0.25", **QUICK}
    api.train(
        method="gaussian", arch="smallcnn", data=str(folder / "d.npz"), given=given, registry=registry, device="cpu"
    )


def distill(registry: Registry, folder: Path) -> None:
    """Its student."""
    api.distill(teacher="gen0", arch="resnet8", given=QUICK, registry=registry, device="cpu")


def certify(registry: Registry, folder: Path) -> None:
    """Certificates of the teacher."""
    api.certify("gen0", n=200, n0=64, max_images=6, registry=registry, device="cpu")


def evaluate(registry: Registry, folder: Path) -> None:
    """Attacks on the teacher."""
    api.evaluate("gen0", attacks=["clean", "fgsm"], eps="0.1", max_images=20, registry=registry, device="cpu")


def push(registry: Registry, folder: Path) -> None:
    """The published folder."""
    api.push("gen0", to=folder / "published", registry=registry)


def gc(registry: Registry, folder: Path) -> None:
    """Two generations are taken away and collected; again after an interruption."""
    with contextlib.suppress(RobustKTError):
        api.rm(["gone", "too"], registry=registry)
    api.gc(grace="0", registry=registry)


def rename(registry: Registry, folder: Path) -> None:
    """A name and a tag move."""
    with contextlib.suppress(RobustKTError):
        api.rename("gone", "moved", registry)
    api.tag("production", "moved", registry)


JOBS: dict[str, Job] = {f.__name__: f for f in (train, distill, certify, evaluate, push, gc, rename)}


def prepare(folder: Path, doing: str) -> None:
    """What the job begins with."""
    digits(folder / "d.npz")
    registry = Registry(folder / "registry")
    if doing != "train":
        train(registry, folder)
    if doing in ("gc", "rename"):
        for seed, name in ((1, "gone"), (2, "too")):
            given = {"sigma": "0.25", **QUICK}
            data = str(folder / "d.npz")
            api.train(
                method="gaussian", arch="smallcnn", data=data, given=given, registry=registry, device="cpu",
                seed=seed, name=name,
            )  # fmt: skip


def state(folder: Path) -> dict[str, Any]:
    """What must be the same in the end, however often it was interrupted: ids, weights, logs, published files."""
    registry = Registry(folder / "registry")
    found: dict[str, Any] = {"refs": {kind: registry.refs()[kind] for kind in ("names", "tags")}}  # type: ignore[literal-required]
    for path in sorted(folder.rglob("*")):
        told = path.relative_to(folder).as_posix()
        passing = (
            TEMPORARY in told
            or told.startswith(".published-")
            or {"jobs", "lock"} & set(told.split("/"))
            or told.endswith("lock.owner")
        )
        if path.is_file() and path.suffix in ("", ".tsv", ".safetensors") and not passing:
            found[told] = hash(path.read_bytes())
    for generation in registry.all():
        found[generation.id] = [(r.kind, r.key, r.content["figures"]) for r in registry.results(generation.id)]
    return found


def forked(work: Callable[[], object]) -> tuple[int, str]:
    """Runs `work` in a fork; its exit status and the last line of its traceback, if it failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            work()
        except RobustKTError as error:
            os.write(writing, error.what.encode())
            status = 1
        except BaseException:
            os.write(writing, traceback.format_exc()[-600:].encode())
            status = 2
        os._exit(status)
    os.close(writing)
    text = b""
    while part := os.read(reading, 65_536):
        text += part
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text.decode(errors="replace")


def attempt(origin: Path, folder: Path, doing: str, mode: str, fatal: int, wanted: dict[str, Any]) -> list[str]:
    """What was wrong after a fault at call `fatal` and another run."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    registry = Registry(folder / "registry")

    def struck() -> None:
        Faults(folder, fatal, mode)
        JOBS[doing](registry, folder)

    status, text = forked(struck)
    wrong = []
    if status not in ((0, KILLED) if mode == "kill" else (0, 1)):
        wrong.append(f"{doing} {mode} {fatal}: ended with {status}: {text}")
    damaged = [f.what for f in verify(registry) if f.damage] if registry.exists else []
    wrong += [f"{doing} {mode} {fatal}: {what}" for what in damaged]
    status, text = forked(lambda: JOBS[doing](registry, folder))
    if status:
        wrong.append(f"{doing} {mode} {fatal}: could not be repeated: {text}")
    elif (found := state(folder)) != wanted:
        differ = [key for key in {*found, *wanted} if found.get(key) != wanted.get(key)]
        wrong.append(f"{doing} {mode} {fatal}: another result: {differ[:4]}")
    notes = [f.what for f in verify(registry)]
    damaged = [what for what in notes if what != "an unfinished write" and "no generation names" not in what]
    return wrong + [f"{doing} {mode} {fatal}: at the end {what}" for what in damaged]


def run(doing: str, mode: str, stride: int = 1, first: int = 0) -> dict[str, Any]:
    """Faults at every `stride`-th call of a job."""
    import torch
    import torch._dynamo  # an optimizer reads it in

    torch.set_num_threads(1)
    environment()  # which a process asks for once
    with tempfile.TemporaryDirectory() as place:
        origin, folder, counted = (Path(place) / name for name in ("origin", "w", "calls"))
        origin.mkdir()
        forked(lambda: prepare(origin, doing))
        shutil.copytree(origin, folder)

        def count() -> None:
            faults = Faults(folder, -1, mode)
            JOBS[doing](Registry(folder / "registry"), folder)
            counted.write_text(str(faults.calls))

        status, text = forked(count)
        if status:
            raise SystemExit(text)
        calls, wanted = int(counted.read_text()), state(folder)
        wrong: list[str] = []
        attempts = range(first, calls, stride)
        for fatal in attempts:
            wrong += attempt(origin, folder, doing, mode, fatal, wanted)
    return {"doing": doing, "mode": mode, "calls": calls, "attempts": len(attempts), "wrong": wrong}


if __name__ == "__main__":
    assert training
    if len(sys.argv) > 1:
        chosen, kind, step, start = sys.argv[1:]
        print(json.dumps([run(doing, kind, int(step), int(start)) for doing in chosen.split(",")]))
    else:
        ROWS = [run(doing, mode, stride) for doing in JOBS for mode, stride in (("kill", 1), ("fail", 2))]
        TOLD = {"points": sum(row["attempts"] for row in ROWS), "wrong": sum(len(row["wrong"]) for row in ROWS)}
        RECORD = Path(__file__).parents[1] / "benchmarks" / "records" / "faults.json"
        RECORD.write_text(json.dumps({**TOLD, "jobs": ROWS}, indent=1) + "\n")
        print(json.dumps(TOLD))
