"""What this machine has, what will be used of it, what is missing for which command, and how long things take here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import robustkt
from robustkt import hardware
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError, clip
from robustkt.progress import Progress, Silent
from robustkt.provenance import lock_file
from robustkt.registry import Registry

SHOWN = ("torch", "torchvision", "numpy", "safetensors", "huggingface-hub")  # whose versions decide results
ROOM = 2**30  # bytes of disk below which a training may not end
MEASURED = 5.0  # seconds, of all slices together


@dataclass(frozen=True)
class Wanted:
    """Something that some commands need."""

    what: str
    commands: str  # that need it
    fix: str
    there: Callable[[], bool]


def doctor(
    generation: str | None = None,
    *,
    to: str | None = None,
    seconds: float = MEASURED,
    measure: bool = True,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What this machine has, will use and lacks, and how long `certify` and `distill` of a generation take here.

    Nothing is written into the registry, and no network is asked.

    Args:
        generation: whose times are estimated; @latest, where there is one.
        to: architecture of the student that `distill` is timed for; by default the generation's own.
        seconds: of measuring in all; loading and the first passes come on top.
        measure: False leaves the estimates out.
        data: where its data lie now, as `certify` and `distill` take it.
        data_dir: where named data sets lie.
        registry: the nearest one by default; it may be none yet.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        machine {processor {model, architecture, cores, usable, load, features}, memory {total, available, limit}, disk
        {total, free, place}, gpus [{name, memory, capability}]} (sizes in bytes), versions {name: version}, lock {file,
        packages, differ {name: [locked, here]}} or None, uses {device, precision_measuring, precision_training,
        compiler (there is one), compile_training, threads} or None, missing [{what, commands, fix}], problems
        [{what, fix}], estimates {certify, distill: as `estimating` gives them, or {seconds: None, why, fix}} or None,
        ok (False: something that every command needs is broken).

    Raises:
        UsageError: `seconds` is out of range, or the device is none.
        NotFoundError: the generation that was named is not there.
    """
    if not 0.5 <= seconds <= 600:
        raise UsageError(f"--seconds {seconds:g} is no time to measure", "Give 0.5 to 600 seconds; 5 is usual.")
    registry, progress = registry or Registry.locate(), progress or Silent()
    broken = _broken(registry)
    if generation is not None and not broken:
        with contextlib.suppress(IntegrityError):  # told where the times would be
            registry.get(generation)
    uses = gpus = None
    if _unimportable("torch") is None:
        uses, gpus = _with_torch(device)
    machine = {
        "processor": hardware.processor(),
        "memory": hardware.memory(),
        "disk": {**(hardware.disk(registry.root.absolute()) or {}), "place": str(registry.root)},
        "gpus": gpus or [],
    }
    missing = [{"what": w.what, "commands": w.commands, "fix": w.fix} for w in WANTED if not w.there()]
    if uses is not None and not uses["compiler"]:
        missing.append(NO_COMPILER)
    estimates = None
    if measure and uses is not None and not broken:
        estimates = _estimates(registry, generation, to, seconds, device, data, data_dir, progress)
    return {
        "machine": machine,
        "versions": _versions(),
        "lock": _lock(),
        "uses": uses,
        "missing": missing,
        "problems": [*broken, *_tight(machine)],
        "estimates": estimates,
        "ok": not broken,
    }


# -- what is broken ----------------------------------------------------------------------------------------------------


def _broken(registry: Registry) -> list[dict[str, str]]:
    """What every command would stumble over."""
    found = []
    gone = [name for name in _needed() if _version(name) is None]
    if gone:
        what = f"{', '.join(gone)}: not installed, though every command needs {'them' if len(gone) > 1 else 'it'}"
        found.append(_problem(what, "Install robustkt again: pip install --force-reinstall robustkt"))
    elif (reason := _unimportable("torch")) is not None:
        found.append(_problem(f"torch cannot be imported: {reason}", "Install it again: pip install torch torchvision"))
    try:
        if not registry.root.is_dir() and os.path.lexists(registry.root):
            found.append(_problem(f"{registry.root} is no folder", "Name a registry's folder with --registry DIR."))
        if registry.exists:
            registry.check_format()
            registry.refs()
    except RobustKTError as error:
        found.append(_problem(error.what, error.fix))
    except OSError as error:
        what = f"the registry {registry.root} cannot be read: {error.strerror}"
        found.append(_problem(what, "Check that it is yours to read, or name another one with --registry DIR."))
    return found


def _needed() -> list[str]:
    """The packages that robustkt was installed with; none where it was not installed but only lies here."""
    try:
        told = importlib.metadata.requires("robustkt") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in told if "extra ==" not in line]


def _unimportable(name: str) -> str | None:
    """Why a module cannot be imported, or None when it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a library of the system that is missing, or anything else
        return clip(str(error) or type(error).__name__)
    return None


def _tight(machine: Mapping[str, Any]) -> list[dict[str, str]]:
    """What will stop some jobs."""
    found, disk, memory = [], machine["disk"], machine["memory"]
    if disk.get("free") is not None and disk["free"] < ROOM:
        what = f"only {disk['free'] / 2**20:,.0f} MiB of disk are free at {disk['place']}"
        found.append(_problem(what, "Free some, or take another place with --registry DIR; `robustkt gc` may help."))
    place = Path(disk["place"])
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        what = f"{place} cannot be written: generations and results have no place there"
        found.append(_problem(what, "Take another place with --registry DIR, or make it writable."))
    room = [size for size in (memory["available"], memory["limit"]) if size is not None]
    if room and min(room) < ROOM:
        what = f"only {min(room) / 2**20:,.0f} MiB of memory are to be had"
        found.append(_problem(what, "End other programs, or raise the container's limit."))
    return found


def _problem(what: str, fix: str) -> dict[str, str]:
    return {"what": what, "fix": fix}


# -- versions and what is missing ------------------------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> dict[str, str]:
    told = {"robustkt": robustkt.__version__, "python": sys.version.split()[0]}
    return told | {name: version for name in SHOWN if (version := _version(name)) is not None}


def _lock() -> dict[str, Any] | None:
    """The lock file here, and which of its packages are installed in another version; None where there is none."""
    path = lock_file(Path.cwd())
    if path is None or not path.is_file():
        return None
    pinned = _pinned(path.read_text(errors="replace"))
    differ = {}
    for name, wanted in pinned.items():
        here = _version(name)
        if here is not None and here != wanted:
            differ[name] = [wanted, here]
    return {"file": str(path), "packages": len(pinned), "differ": differ}


def _pinned(text: str) -> dict[str, str]:
    """The version of each package that a lock in pip's format has for this Python on this system."""
    from packaging.requirements import InvalidRequirement, Requirement

    found = {}
    for line in text.splitlines():
        with contextlib.suppress(InvalidRequirement):
            asked = Requirement(line.partition(" #")[0].rstrip("\\ "))
            exactly = [one.version for one in asked.specifier if one.operator == "=="]
            if exactly and (asked.marker is None or asked.marker.evaluate()):
                found[asked.name] = exactly[0]
    return found


def _module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _program(*names: str) -> Callable[[], bool]:
    return lambda: any(shutil.which(name) for name in names)


def _token() -> bool:
    """Whether there is a token for the Hub; it is neither shown nor tried."""
    from huggingface_hub import get_token

    return bool(get_token())


EXTRA = "pip install 'robustkt[{}]'"
WANTED = (
    Wanted("onnx", "export --format onnx", EXTRA.format("export"), _module("onnx")),
    Wanted("onnxscript", "export --format onnx", EXTRA.format("export"), _module("onnxscript")),
    Wanted("onnxruntime", "export --format onnx", EXTRA.format("export"), _module("onnxruntime")),
    Wanted("timm", "--arch timm:NAME, import of timm's networks", EXTRA.format("timm"), _module("timm")),
    Wanted("s3fs", "--registry s3://…, copy to and from it", EXTRA.format("s3"), _module("s3fs")),
    Wanted("model-signing", "push --sign, pull --require-signature", EXTRA.format("sign"), _module("model_signing")),
    Wanted("pandas", ".to_pandas() in Python", "pip install pandas", _module("pandas")),
    Wanted("git", "train, distill: the commit in the run record", "Install git.", _program("git")),
    Wanted("docker or podman", "the container images", "Install one of them.", _program("docker", "podman")),
    Wanted("a token for the Hub", "push to the Hub (push --to DIR needs none)", "hf auth login, or set HF_TOKEN",
           _token),
)  # fmt: skip
NO_COMPILER = {
    "what": "a C++ compiler (C for CUDA)",
    "commands": "torch.compile, in long certify, train and distill",
    "fix": "Install g++ (gcc), or name yours in CXX (CC).",
}


# -- what needs torch ------------------------------------------------------------------------------------------------


def _with_torch(device: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What commands will use, by the functions that choose it for them; and the GPUs."""
    import torch

    from robustkt import inference
    from robustkt.api.loading import pick_device, pick_precision

    target = pick_device(device)
    precision = pick_precision("auto")
    there = inference.can_compile(target)
    uses = {
        "device": str(target),
        "precision_measuring": pick_precision("auto", target),
        "precision_training": precision,
        "compiler": there,
        "compile_training": there and inference.pays(target, precision),
        "threads": torch.get_num_threads(),
    }
    gpus = []
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        gpus.append({"name": told.name, "memory": told.total_memory, "capability": f"{told.major}.{told.minor}"})
    return uses, gpus


def _estimates(
    registry: Registry,
    generation: str | None,
    to: str | None,
    seconds: float,
    device: str,
    data: str | None,
    data_dir: Path | None,
    progress: Progress,
) -> dict[str, Any] | None:
    """Of both commands, or why there is none; None where there is no generation."""
    from robustkt.api.estimating import estimate_certify, estimate_distill

    try:
        name = registry.get(generation or "@latest").name
    except NotFoundError:
        return None
    except RobustKTError as error:
        none = {"generation": generation or "@latest", "seconds": None, "why": error.what, "fix": error.fix}
        return {"certify": none, "distill": none}
    given: dict[str, Any] = {"seconds": seconds / 2, "registry": registry, "device": device}
    given |= {"data": data, "data_dir": data_dir}
    progress.note(f"timing some forward passes and some training steps of {name}, {seconds:g} s")

    def tried(estimate: Callable[..., dict[str, Any]], **more: Any) -> dict[str, Any]:
        try:
            return estimate(generation or "@latest", **given, **more)
        except RobustKTError as error:
            return {"generation": name, "seconds": None, "why": error.what, "fix": error.fix}
        except Exception as error:  # a network of the user's own in training, or too little memory
            why = clip(f"{type(error).__name__}: {error}")
            return {"generation": name, "seconds": None, "why": why, "fix": "The command itself shows where."}

    return {"certify": tried(estimate_certify), "distill": tried(estimate_distill, to=to)}
