"""From an architecture's name to a network that takes images in [0, 1] and is known to give logits."""

from __future__ import annotations

import copy
import inspect
import traceback
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustkt.catalog import ARCHITECTURES, plain, unknown
from robustkt.errors import RobustKTError, UsageError
from robustkt.generation import DataSpec
from robustkt.models._outside import LIBRARIES, Construct, library_version, users
from robustkt.models._sized import wide
from robustkt.models._user import UserSource, guarded, read_source, told
from robustkt.models.deepmind import dmwideresnet
from robustkt.models.wideresnet import wideresnet

__all__ = ["Classifier", "Normalize", "blamed", "build", "check_training", "known", "library_version"]


class Normalize(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel; both are saved with the weights."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if not all(value > 0 for value in std):
            what = "a channel is the same in every image: its standard deviation is 0"
            raise UsageError(what, "Leave the channel out, or give images that differ in it.")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to about zero mean and unit variance."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """A network behind its normalisation: attacks and noise see images in [0, 1]."""

    foreign: str | None = None  # the architecture's name where the network's code is not ours

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        logits: Tensor = self.network(self.normalize(x))
        return logits


def build(arch: str, data: DataSpec, *, source: UserSource | None = None) -> Classifier:
    """A new network for `data`, in training mode, its weights drawn from torch's global RNG (seed it before).

    `arch` is a catalog name, `wideresnetD_W`, `torchvision:NAME`, `timm:NAME`, or a user's `file.py:Callable` or
    `package.module:callable`, which is called as `callable(channels=C, classes=K)`; `source` stands in for the user's
    file as it was when the recipe was written. One forward pass on two black images checks what comes out.

    Raises:
        UsageError: an unknown name; a callable that asks for more; an output that is not finite (B, K) logits.
        NotFoundError: the user's file is not there.
        RobustKTError: a foreign network raised an exception, or needs larger images.
    """
    construct = resolve(arch, source)
    fix = ""
    if arch.partition(":")[0] in LIBRARIES:
        size = "x".join(map(str, data.shape))
        fix = f"It may need larger images than {size}: pass --image-size, or take a catalog architecture."
    # catalogued networks are ours: what they raise is a bug and keeps its traceback
    with guarded(arch, fix) if ":" in arch else nullcontext():
        network = construct(data)
        if not isinstance(network, nn.Module):
            raise UsageError(f"{arch} returned a {type(network).__name__}", "It must return a torch.nn.Module.")
        classifier = Classifier(Normalize(data.mean, data.std), network).eval()
        classifier.foreign = arch if ":" in arch else None
        with torch.no_grad():
            logits = classifier(torch.zeros(2, *data.shape))
    check_logits(logits, arch, data)
    return classifier.train()


def check_training(network: Classifier, data: DataSpec) -> None:
    """Trains a copy of a network from outside the catalog on two black images: some fail in training only.

    Neither the network nor torch's random numbers change.

    Raises:
        UsageError: while training it does not give logits (B, K).
        RobustKTError: its code raised an exception, forwards or backwards.
    """
    arch = network.foreign
    if arch is None:
        return
    with guarded(arch, when=" in training"), torch.random.fork_rng(devices=[]):
        trained = copy.deepcopy(network).train()
        logits = trained(torch.zeros(2, *data.shape))
        check_logits(logits, f"{arch}, in training,", data)
        logits.sum().backward()


def blamed(error: BaseException) -> RobustKTError | None:
    """What to say of an exception that came out of a network from outside the catalog; None of any other."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_qualname == Classifier.forward.__qualname__:
            network = frame.f_locals.get("self")
            if isinstance(network, Classifier) and network.foreign is not None:
                return told(error, network.foreign)
    return None


def known(arch: str) -> None:
    """Checks an architecture's name without building it; of a user's file, that the callable is there.

    Raises:
        UsageError: an unknown or misspelt name, or timm is not installed.
        NotFoundError: the user's file is not there.
    """
    resolve(arch)


def resolve(arch: str, source: UserSource | None = None) -> Construct:
    """What builds `arch` once the data are known; nothing is built and no code of the user's file runs.

    Raises:
        UsageError: an unknown or misspelt name, or timm is not installed.
        NotFoundError: the user's file is not there.
    """
    prefix, colon, name = arch.partition(":")
    if colon and prefix in LIBRARIES:
        return LIBRARIES[prefix](name)
    return users(source or read_source(arch)) if colon else catalogued(arch)


def catalogued(arch: str) -> Construct:
    """The constructor of a name of the catalog, or of `wideresnetD_W` or `dmwideresnetD_W`.

    Raises:
        UsageError: no such name, or a wide ResNet of a depth that is not 6n + 4.
    """
    name = plain(arch)
    constructor = wide(name, "wideresnet", wideresnet) or wide(name, "dmwideresnet", dmwideresnet)
    if constructor is None and not ARCHITECTURES.has(arch):
        error = unknown("architecture", arch, ARCHITECTURES.names())
        raise UsageError(error.what, f"{error.fix} Also wideresnetD_W, torchvision:NAME, timm:NAME, file.py:Callable.")
    constructor = constructor or ARCHITECTURES.get(arch)
    sized = "size" in inspect.signature(constructor).parameters  # of a network for images of one size

    def construct(data: DataSpec) -> nn.Module:
        size: dict[str, Any] = {"size": data.shape[1:]} if sized else {}
        return constructor(channels=data.shape[0], classes=len(data.classes), **size)

    return construct


def check_logits(logits: object, arch: str, data: DataSpec) -> None:
    """Checks that two images gave two rows of finite logits.

    Raises:
        UsageError: they did not.
    """
    wanted = (2, len(data.classes))
    meaning = f"logits for the {wanted[1]} classes of {data.name}"
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"{arch} returned a {type(logits).__name__}, not a tensor: {meaning}", "Return the logits alone."
        )
    if logits.shape != wanted:
        raise UsageError(
            f"{arch} returned shape {tuple(logits.shape)}, not {wanted}: {meaning}",
            f"Let its last layer give {wanted[1]} numbers an image.",
        )
    if not logits.is_floating_point():
        raise UsageError(
            f"{arch} returned {logits.dtype}, not floating point: {meaning}", "Return the logits themselves."
        )
    if not logits.is_meta and not logits.isfinite().all():
        raise UsageError(f"{arch} returned NaN or infinity for a black image", "Look at its initial weights.")
