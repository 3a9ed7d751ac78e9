"""What a gate is told: the `[gate]` table of a committed robustkt.toml, and the command line before it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustkt.catalog import unknown
from robustkt.errors import NotFoundError, UsageError, clip
from robustkt.numbers import exact, fraction, noise_level

FILE = "robustkt.toml"
MOST, LEAST = 0.999999999, 1e-6  # confidence, margin
FAIL_ON = ("not-excluded", "shown")


@dataclass(frozen=True)
class Gate:
    """The checks and their margins; shares, not points."""

    against: str | None = None  # the generation to hold it against
    confidence: float = 0.95  # 1 − the largest probability of passing a model that lost a margin
    margin: float = 0.02  # of what `margins` does not name
    margins: Mapping[str, float] = field(default_factory=dict)  # by check, or by kind of check
    class_margin: float = 0.1  # what a class may lose; 1 = no checks of classes
    attacks: tuple[str, ...] | None = None  # None = all that both were measured under, () = none
    radii: tuple[str, ...] | None = None  # None = those of the certificates' tables, () = no certificates
    sigma: str | None = None  # None = every σ, each by itself
    min_images: int = 100  # fewer decide nothing
    fail_on: str = "not-excluded"  # or `shown`: fail only when a loss beyond the margin is shown
    file: str | None = None  # where the table was read

    @property
    def alpha(self) -> float:
        """1 − confidence, without the noise of a subtraction."""
        return float(1 - fraction(self.confidence, "confidence"))

    def margin_of(self, *names: str) -> float:
        """The margin of the first name that has one."""
        return next((self.margins[name] for name in names if name in self.margins), self.margin)


KEYS = tuple(f.name for f in fields(Gate) if f.name != "file")


def read(file: Path | None = None, folder: Path | None = None) -> Gate:
    """The `[gate]` table of `file`, or of the nearest robustkt.toml from `folder` upwards; the defaults without one.

    Raises:
        NotFoundError: `file` is not there.
        UsageError: no TOML, an unknown key, or a value that cannot mean anything.
    """
    here = (folder or Path.cwd()).resolve()
    nearest = next((place / FILE for place in (here, *here.parents) if (place / FILE).is_file()), None)
    path = file or nearest
    if path is None:
        return Gate()
    if not path.is_file():
        raise NotFoundError(f"there is no {path}", "Name another with --config FILE, or leave it out.")
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {clip(str(error))}", "See docs/gate.md for an example.") from None
    for key in content:
        if key != "gate":
            raise unknown(f"table of {path.name}", key, ["gate"])
    table = content.get("gate", {})
    if not isinstance(table, dict):
        raise UsageError(f"gate in {path} is no table", "Write [gate] on a line of its own.")
    for key in table:
        if key not in KEYS:
            raise unknown(f"key of [gate] in {path.name}", key, KEYS)
    return replace(given(Gate(), table), file=str(path))


def given(before: Gate, table: Mapping[str, Any]) -> Gate:
    """`before` with what `table` tells; margins add to those there are. None is not told.

    Raises:
        UsageError: a value that cannot mean anything.
    """
    told: dict[str, Any] = {key: value for key, value in table.items() if value is not None}
    for key in ("against", "fail_on"):
        if key in told and not isinstance(told[key], str):
            raise UsageError(
                f"{key} must be a text", f'For instance {key} = "{"gen1" if key == "against" else FAIL_ON[0]}".'
            )
    if told.get("fail_on", FAIL_ON[0]) not in FAIL_ON:
        raise unknown("value of fail-on", told["fail_on"], FAIL_ON)
    if "confidence" in told:
        told["confidence"] = _share(told["confidence"], "confidence")
        check_confidence(told["confidence"])
    for key in ("margin", "class_margin"):
        if key in told:
            told[key] = _margin(told[key], key.replace("_", "-"))
    if "margins" in told:
        if not isinstance(told["margins"], Mapping):
            raise UsageError(
                "margins must be a table", 'For instance margins = { clean = 0.005, "certified@0.5" = 0.03 }.'
            )
        margins = {_spelled(name): _margin(value, f"margin {name}") for name, value in told["margins"].items()}
        told["margins"] = {**before.margins, **margins}
    for key in ("attacks", "radii"):
        if key in told:
            told[key] = _list(told[key], key)
    if "radii" in told:
        told["radii"] = tuple(exact(_radius(r)) for r in told["radii"])
    if "sigma" in told:
        told["sigma"] = exact(noise_level(_plain(told["sigma"], "sigma")))
    if "min_images" in told:
        number = told["min_images"]
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UsageError(f"min-images must be a whole number above 0, not {clip(str(number), 40)}", "Such as 100.")
    return replace(before, **told)


def margins_of(pairs: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """`0.01` and `clean=0.005` as the margin of all and those of names.

    Raises:
        UsageError: one is given twice.
    """
    default: str | None = None
    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")  # a name may hold settings: pgd:steps=100=0.02
        if not equals:
            if default is not None:
                raise UsageError("--margin is given twice for all checks", "Give it once, others as NAME=MARGIN.")
            default = value
        elif _spelled(name) in {_spelled(n) for n in named}:
            raise UsageError(f"the margin of {name} is given twice", "Give it once.")
        else:
            named[name] = value
    return default, named


def check_confidence(confidence: float) -> None:
    """Raise a UsageError for a confidence below one half, or so near to 1 that nothing reaches it."""
    if not 0.5 <= confidence <= MOST:
        raise UsageError(f"confidence must lie between 0.5 and {MOST}, not {confidence:g}", "The usual one is 0.95.")


def _plain(value: Any, what: str) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value != value or value in (math.inf,):
        raise UsageError(f"{what} must be a number, not {clip(str(value), 40)}", "Write it as 0.01 or 1/100.")
    return value


def _share(value: Any, what: str) -> float:
    return float(fraction(_plain(value, what), what))


def _margin(value: Any, what: str) -> float:
    """A margin above 0 and below 1; a class may lose everything."""
    share = _share(value, what)
    if not LEAST <= share < 1 and not (share == 1 and what == "class-margin"):
        fix = "It is a share: 0.01 is one point." if share > LEAST else "Without one, nothing can be shown: 0.01, say."
        raise UsageError(f"{what} must lie between 0 and 1, not {share:g}", fix)
    return share


def _radius(value: Any) -> Fraction:
    radius = fraction(_plain(value, "a radius"), "a radius")
    if radius < 0:
        raise UsageError(f"a radius cannot be below 0, as {exact(radius)} is", "For instance 0.25.")
    return radius


def _list(value: Any, key: str) -> tuple[Any, ...]:
    """A list as TOML has it, or a text with commas."""
    if isinstance(value, str):
        if value.strip() == "none":
            return ()
        parts = tuple(part.strip() for part in value.split(","))
        if not all(parts):
            raise UsageError(f"{key} has an empty entry", f"Leave {key} out for all, or write none.")
        return parts
    if not isinstance(value, (list, tuple)) or (key == "attacks" and not all(isinstance(v, str) for v in value)):
        raise UsageError(f"{key} must be a list", f'For instance {key} = ["clean", "pgd-sat"].')
    return tuple(value)


def _spelled(name: str) -> str:
    """`certified@0.50` as `certified@0.5`, as checks are called; settings behind the radius stay."""
    kind, at, rest = name.strip().partition("@")
    if not at:
        return kind
    radius, colon, more = rest.partition(":")
    return f"{kind}@{exact(_radius(radius))}{colon}{more}"
