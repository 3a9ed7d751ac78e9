"""Networks from outside the catalog, always with fresh weights: torchvision's and timm's by name, and the user's own.

Either library is imported when it is first named.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from robustkt.catalog import unknown
from robustkt.errors import UsageError
from robustkt.generation import DataSpec
from robustkt.models._user import UserSource, importable, load_callable

Construct = Callable[[DataSpec], nn.Module]


class Repeat(nn.Module):
    """A network for three channels, fed with one grey channel three times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, 1, H, W) to logits (B, K)."""
        logits: Tensor = self.network(x.expand(-1, 3, -1, -1))
        return logits

    def foreign(self, name: str) -> str:
        """What a parameter of the network alone is called here."""
        return f"network.{name}"


def torchvision(name: str) -> Construct:
    """The constructor of `torchvision.models.<name>`.

    Raises:
        UsageError: not a classifier of torchvision.
    """
    models: Any = importlib.import_module("torchvision.models")  # typed only in part
    _check(name, models.list_models(module=models), "torchvision")
    family = models.get_model_builder(name).__module__.rpartition(".")[2]  # its file in torchvision.models

    def construct(data: DataSpec) -> nn.Module:
        channels, side, _ = data.shape
        if channels not in (1, 3):
            raise UsageError(f"torchvision:{name} takes 1 or 3 channels, not {channels}", "Take timm:NAME instead.")
        logits_only = {"aux_logits": False, "init_weights": True}  # else tuples while training, and a warning
        extra: dict[str, dict[str, Any]] = {
            "googlenet": logits_only,
            "inception": logits_only,
            "vision_transformer": {"image_size": side},
            "maxvit": {"input_size": (side, side)},
        }
        network: nn.Module = models.get_model(
            name, weights=None, num_classes=len(data.classes), **extra.get(family, {})
        )
        return Repeat(network) if channels == 1 else network

    return construct


def timm(name: str) -> Construct:
    """The constructor of `timm.create_model(<name>)`.

    Raises:
        UsageError: timm is not installed, or has no such model. Names with a tag of pretrained weights
            (`resnet18.a1_in1k`) or of a hub (`hf-hub:…`) are refused: nothing is ever downloaded here.
    """
    try:
        library: Any = importlib.import_module("timm")
    except ImportError:
        raise UsageError(f"timm:{name} needs timm", "Run pip install 'robustkt[timm]'.") from None
    _check(name, library.list_models(), "timm")
    config = library.get_pretrained_cfg(name)

    def construct(data: DataSpec) -> nn.Module:
        channels, height, width = data.shape
        size = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
        network: nn.Module = library.create_model(
            name, pretrained=False, num_classes=len(data.classes), in_chans=channels, **size
        )
        return network

    return construct


def users(source: UserSource) -> Construct:
    """What runs a user's source and calls its callable."""

    def construct(data: DataSpec) -> nn.Module:
        function = load_callable(source)
        given = arguments(source.spec, inspect.signature(function), data)
        with importable(source.spec):
            return function(**given)

    return construct


def arguments(spec: str, signature: inspect.Signature, data: DataSpec) -> dict[str, Any]:
    """The keywords to call a user's callable with: those of ours it names, or `channels` and `classes` for `**kwargs`.

    Raises:
        UsageError: it requires other parameters.
    """
    channels, height, width = data.shape
    size = height if height == width else (height, width)
    offer: dict[str, Any] = {"classes": len(data.classes), "num_classes": len(data.classes)}
    offer |= {"channels": channels, "in_channels": channels, "in_chans": channels}
    offer |= {"image_size": size, "img_size": size}
    named = {p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    optional = {p.name for p in signature.parameters.values() if p.default is not p.empty}
    variadic = {p.name: p.kind for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    missing = [name for name in signature.parameters if name not in (named & set(offer)) | optional | set(variadic)]
    if missing:
        raise UsageError(
            f"{spec} requires {', '.join(missing)}; it is called with channels and classes",
            "Give them defaults, or name a function that fills in the rest.",
        )
    fits = {name: value for name, value in offer.items() if name in named}
    open_ended = inspect.Parameter.VAR_KEYWORD in variadic.values()
    return {"channels": channels, "classes": len(data.classes)} if open_ended and not fits else fits


def _check(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=8, cutoff=0.5)
        what = unknown(f"{library} architecture", name, near).what
        raise UsageError(what, f"Near: {', '.join(near)}." if near else f"The documentation of {library} lists them.")


def library_version(arch: str) -> str | None:
    """`timm 1.0.19` of an architecture that a library brings, without what names a build; else None.

    A library may give a name another network in a later version, so this is part of a recipe.
    """
    library = arch.partition(":")[0] if ":" in arch else ""
    return f"{library} {importlib.metadata.version(library).partition('+')[0]}" if library in LIBRARIES else None


LIBRARIES = {"torchvision": torchvision, "timm": timm}
