"""From a generation's record to the network, the data and the device of a job."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import robustkt
from robustkt import data as datasets
from robustkt import inference, models, places
from robustkt.api.modes import state_of
from robustkt.catalog import unknown
from robustkt.core import PRECISIONS, InPrecision
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import COMPILE, Generation
from robustkt.models import UserSource
from robustkt.numbers import digest
from robustkt.registry import Registry
from robustkt.registry.files import append_synced


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` (or `cuda:1`) or `mps`, checked to be there.

    Raises:
        UsageError: an unknown device, or one that this machine lacks.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind, _, index = name.partition(":")
    if kind not in there or (index and not re.fullmatch("[0-9]{1,4}", index)):
        raise unknown("device", name, ["auto", *there])
    if not there[kind]:
        raise UsageError(
            f"this machine has no {kind} device that torch can use", "Leave --device out, or use --device cpu."
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(f"there is no {name}: this machine has {torch.cuda.device_count()}", "Use --device cuda.")
    if kind == "cuda":  # fp32 means fp32: no shortened multiplications unless bf16 is asked for
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun's processes take a device each
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return torch.device(name)


def pick_precision(name: str, measuring: torch.device | None = None) -> str:
    """`fp32`, `bf16`, or `auto`: to measure on a device its fastest; to train fp32, until parity of bf16 is shown."""
    if name not in ("auto", *PRECISIONS):
        raise unknown("precision", name, ["auto", *PRECISIONS])
    fastest = inference.fastest_precision(measuring) if measuring else "fp32"
    return fastest if name == "auto" else name


def pick_compile(asked: str, device: torch.device, enough: bool) -> bool:
    """`on`, `off`, or `auto`: compiled where it can be and where there is `enough` to do.

    Raises:
        UsageError: another word, or `on` where there is no compiler.
    """
    if asked not in COMPILE:
        raise unknown("value of --compile", asked, COMPILE)
    there = inference.can_compile(device)
    if asked == "on" and not there:
        name, needed = ("C", "gcc") if device.type == "cuda" else ("C++", "g++")
        raise UsageError(f"there is no {name} compiler for torch.compile", f"Install {needed}, or leave --compile out.")
    return asked == "on" or (asked == "auto" and enough and there)


def machine(device: torch.device) -> dict[str, Any]:
    """The circumstances of a run, for its record: versions and hardware, no names of hosts or users."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "robustkt": robustkt.__version__},
    }


def load_data(
    registry: Registry, generation: Generation, data: str | None, data_dir: Path | None, *, who: str = ""
) -> datasets.Dataset:
    """The data set of a generation, or another one (`data`) whose images and classes fit it.

    Raises:
        NotFoundError: its own data are not where they lay.
        RobustKTError: the data are not what the generation was trained on, and no other set was named.
        UsageError: the other set does not fit.
    """
    spec, who = generation.recipe.data, who or generation.name
    if data is not None:
        found = datasets.load(data, data_dir=data_dir, image_size=spec.image_size)
        channels, height, width = found.spec.shape
        if spec.shape == (channels, spec.shape[-1], spec.shape[-1]) and (height, width) != spec.shape[1:]:
            found = datasets.load(data, data_dir=data_dir, image_size=spec.shape[-1])
        datasets.check_fits(spec, found.spec, who=who)
        return found
    source = spec.name if spec.name in datasets.NAMES else paths(registry, generation).get("data")
    if source is None:
        raise UsageError(f"where the data of {who} lie is not recorded here", "Name them: --data PATH.")
    if source not in datasets.NAMES and not Path(source).exists():
        raise NotFoundError(f"the data of {who} lay at {source}, and are not there", "Say where they are: --data PATH.")
    found = datasets.load(source, data_dir=data_dir, image_size=spec.image_size)
    if found.spec.fingerprint != spec.fingerprint:
        raise RobustKTError(
            f"{source} has changed since {who} was made: its fingerprint is another",
            f"To use the data as they are now, say so: --data {source}.",
        )
    return found


def load_test_data(
    registry: Registry, generation: Generation, data: str | None, data_dir: Path | None
) -> datasets.Dataset:
    """As `load_data`, for what uses the test images alone: the other set may be a folder that has no more.

    Raises:
        UsageError: the folder holds training images, or colours for a network of grey ones.
        RobustKTError: its classes are not the generation's, its pictures cannot be read, or as `load_data`.
    """
    alone = datasets.tests_alone(data, generation.recipe.data) if data is not None else None
    return alone or load_data(registry, generation, data, data_dir)


def load_own_data(
    registry: Registry, generation: Generation, data: str | None, data_dir: Path | None
) -> datasets.Dataset:
    """The very data set that a generation was made with; `data` says where it lies now.

    Raises:
        UsageError: what lies there is another one.
        RobustKTError: as `load_data`.
    """
    if data is not None and datasets.trainless(data):
        raise UsageError(
            f"{data} holds no training images: it is not what {generation.name} was made with",
            f"Name the place of {generation.name}'s own data with --data.",
        )
    found = load_data(registry, generation, data, data_dir)
    if found.spec.fingerprint != generation.recipe.data.fingerprint:
        raise UsageError(
            f"{data} holds other images than {generation.name} was made with: its fingerprint is another",
            f"Name the place of {generation.name}'s own data with --data.",
        )
    return found


def paths(registry: Registry, generation: Generation) -> dict[str, str]:
    """Where the data of a generation lay on this machine: a circumstance, no part of its identity."""
    found = registry.record(generation.id).get("paths")
    return dict(found) if isinstance(found, dict) else {}


def load_network(registry: Registry, generation: Generation, *, last: bool = False) -> nn.Module:
    """The generation's network with its weights, on the CPU, in eval mode.

    Raises:
        IntegrityError: the weights are damaged or do not fit the architecture.
        UsageError: the architecture is code that this user has not run.
    """
    recipe, source = generation.recipe, source_of(registry, generation)
    with torch.random.fork_rng(devices=[]):
        network = models.build(source.spec if source else recipe.arch, recipe.data, source=source)
    try:
        network.load_state_dict(state_of(registry, generation, last=last), strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        fix = "Run `robustkt verify`."
        if recipe.arch_version not in (None, here := models.library_version(recipe.arch)):
            fix = f"It was made with {recipe.arch_version}, and here is {here}: install that version."
        raise IntegrityError(f"the weights of {generation.name} do not fit {recipe.arch}: {reason}", fix) from error
    return network.eval()


def ready(network: nn.Module, device: torch.device, precision: str) -> InPrecision:
    """The network on its device, in its precision, in eval mode; channels last, which convolutions are fastest in."""
    network = network.to(device).to(memory_format=torch.channels_last)
    return InPrecision(network, PRECISIONS[precision]).eval()


# -- code of the user's own ------------------------------------------------------------------------------------------
# A registry may come from somebody else, and building an architecture from its file runs that file. So the code of a
# generation is run only when its hash is on this user's list; naming the file on the command line puts it there,
# together with the place that it and its siblings are imported from. Nothing that a registry says decides either.


def trust(source: UserSource) -> None:
    """Remember that the user named this code, and where it lies."""
    place, _, name = source.spec.rpartition(":")
    spec = f"{Path(place).expanduser().absolute()}:{name}" if place.endswith(".py") else source.spec
    if _trusted().get(_mark(source)) != spec:
        append_synced(_trust_list(), f"{_mark(source)} {spec}\n".encode())


def source_of(registry: Registry, generation: Generation) -> UserSource | None:
    """The code of a generation's architecture, where it is a user's own.

    Raises:
        UsageError: this user has not run it.
    """
    recipe = generation.recipe
    if recipe.arch_source is None:
        return None
    return trusted(UserSource(recipe.arch, registry.object(recipe.arch_source)), generation.name)


def trusted(source: UserSource, who: str) -> UserSource:
    """The same code with the place that the user named it at.

    Raises:
        UsageError: the user has not named this very code.
    """
    spec = _trusted().get(_mark(source))
    if spec is None:
        raise UsageError(
            f"the architecture of {who} is code, {source.spec} ({source.hash[:19]}…), that you have not run here",
            "Read it, then train once with `--arch FILE.py:NAME`, FILE.py holding the same code: that trusts it.",
        )
    return UserSource(spec, source.text)


def _mark(source: UserSource) -> str:
    return digest(source.spec.rpartition(":")[2].encode() + b"\n" + source.text)


def _trust_list() -> Path:
    return places.state() / "trusted-code"


def _trusted() -> dict[str, str]:
    """Marks and places, the latest last."""
    path = _trust_list()
    lines = path.read_text().splitlines() if path.is_file() else []
    return {mark: spec for mark, _, spec in (line.partition(" ") for line in lines)}


def check_images(count: int) -> None:
    """Raise a UsageError unless some images are asked for."""
    if count < 1:
        raise UsageError(f"--max-images must be at least 1, not {count}", "Leave it out for 1,000.")


def spread(there: int, wanted: int) -> int:
    """The step that takes at most `wanted` of `there` images, from all over a set that may be sorted by class."""
    return max(1, -(-there // wanted))
