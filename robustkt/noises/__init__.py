"""What the copies of an image are made by, and what their votes then guarantee: a file a noise."""

from __future__ import annotations

import dataclasses
import typing
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from robustkt.catalog import NOISES, unknown
from robustkt.errors import UsageError
from robustkt.numbers import exact
from robustkt.settings import parse

if TYPE_CHECKING:
    from torch import Tensor

    from robustkt.streams import Stream

__all__ = ["Noise", "certifies", "named", "spelled"]


class Noise(Protocol):
    """A frozen dataclass whose fields are the noise's parameters."""

    norms: ClassVar[tuple[str, ...]]  # what its votes certify, the usual one first
    about: ClassVar[str]  # how a radius follows from a probability

    def draw(self, out: Tensor, x: Tensor, stream: Stream) -> None:
        """Fill `out` (n, C, H, W), fp32 and contiguous, with noisy copies of `x` (C, H, W) in [0, 1]."""
        ...

    def radius(self, p: float, norm: str, shape: tuple[int, ...]) -> float:
        """The exact radius that a lower bound p > ½ on the top class's probability certifies; images of `shape`."""
        ...

    def needed(self, radius: float, norm: str, shape: tuple[int, ...]) -> float:
        """The probability whose radius it is: the inverse of `radius`, ½ at 0."""
        ...


def certifies(noise: Noise, norm: str) -> bool:
    """Whether votes under this noise say anything in this norm; `lq` stands for any order above 2, as `l4`."""
    if norm == "lq" or norm in noise.norms:
        return norm != "lq"
    try:
        order = float(norm[1:]) if norm.startswith("l") else 0.0
    except ValueError:
        return False
    return "lq" in noise.norms and 2 < order < float("inf")


def named(text: str, sigma: Fraction | None = None) -> Noise:
    """The noise behind `NAME` or `NAME:KEY=VALUE:…`; `sigma` fills the field of that name.

    Raises:
        UsageError: no such noise or parameter, a value out of range, or one that is missing.
    """
    head, *pairs = text.strip().split(":")
    kind = NOISES.get(head)
    hints = {f.name: typing.get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if key not in hints:
            raise unknown(f"parameter of {head} noise", key, hints)
        if key in given or not equals or not value.strip():
            raise UsageError(f"{key} of {head} noise needs one value", f"Write {head}:{key}=VALUE.")
        given[key] = parse(hints[key], value.strip(), key)
    if "sigma" in hints and sigma is not None:
        if given.get("sigma", sigma) != sigma:
            raise UsageError(f"σ is {exact(sigma)} and {exact(given['sigma'])} at once", "Give it once.")
        given["sigma"] = sigma
    for name in hints:
        if name not in given:
            fix = "Add --sigma 0.25." if name == "sigma" else f"Write --noise {head}:{name}=VALUE."
            raise UsageError(f"{head} noise needs its {name}", fix)
        if not given[name] > 0:
            hint = "The field uses 0.12, 0.25, 0.5 and 1." if name == "sigma" else f"Write --noise {head}:{name}=VALUE."
            raise UsageError(f"{name} must be above 0, not {given[name]}", hint)
    return typing.cast("Noise", kind(**given))


def spelled(noise: Noise) -> str:
    """The noise's one spelling without its σ, which stands beside it: `gaussian`, `ablation:keep=20`."""
    name = NOISES.spelled(type(noise).__name__)
    fields = {f.name: getattr(noise, f.name) for f in dataclasses.fields(noise) if f.name != "sigma"}  # type: ignore[arg-type]
    return ":".join([name, *(f"{key}={value}" for key, value in sorted(fields.items()))])
