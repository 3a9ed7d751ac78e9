"""Exact numbers as people write them (`8/255`, `0.25`), and JSON with one spelling for one value."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction
from typing import Any

from robustkt.errors import IntegrityError, UsageError, clip

MAX_JSON = 16 * 2**20  # bytes; no honest manifest or result header comes near
# A number that may overflow to infinity, or half a surrogate pair: neither could be written again.
SUSPECT = re.compile(rb"[eE]\+?\d{3}|\d{300}|\\u[dD]")
MIN_SIGMA, MAX_SIGMA = Fraction(1, 10**4), 100
MIN_EPS, MAX_EPS = Fraction(1, 10**12), 10_000  # 4,000 is the diagonal of an image of 16 million values
DIGITS = 1_000  # characters of a number; Python reads integers of 4,300 digits at most, and slowly
LARGEST = 10**300  # every number stays within a float's range; `1e999999999` would not even fit into memory


def fraction(value: str | int | float | Fraction, what: str = "number") -> Fraction:
    """`8/255`, `0.25`, `1e-3` or a number, as an exact fraction; a float counts as its shortest decimal.

    Raises:
        UsageError: not a finite number, one that no float can come near, or one of more than `DIGITS` characters.
    """
    text = "a number of thousands of digits"
    try:
        text = str(value).strip()
        if len(text) > DIGITS:
            raise UsageError(f"{what} '{clip(text, 60)}' is too long", "Write it as 0.25 or 8/255.")
        exponent = re.search(r"e([+-]?[\d_]+)$", text, re.IGNORECASE)
        number = Fraction(text) if exponent is None or abs(int(exponent[1])) <= 300 else Fraction(LARGEST + 1)
        if abs(number) <= LARGEST:
            return number
        problem = "is too large or too small"
    except (ValueError, ZeroDivisionError):
        problem = "is not a number"
    raise UsageError(f"{what} '{clip(text, 60)}' {problem}", "Write it as 0.25 or 8/255.")


def check_exact(text: str, what: str) -> Fraction:
    """The number behind a stored text, which has to be in its one spelling.

    Raises:
        UsageError: it is no number, or spelled otherwise than `exact` does.
    """
    value = fraction(text, what)
    if exact(value) != text:
        raise UsageError(f"{what} {clip(text, 60)!r} is not in its one spelling", f"It is {exact(value)}.")
    return value


def number(text: str) -> float:
    """A radius or another number from a table: `0.25` or `8/255`, to compare and sort by.

    Raises:
        UsageError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        return float(fraction(text))


def noise_level(value: Any) -> Fraction:
    """A standard deviation of Gaussian noise in [0, 1] pixel units, above 0.

    Raises:
        UsageError: it is not.
    """
    sigma = fraction(value, "sigma")
    if sigma <= 0:
        raise UsageError(f"sigma must be above 0, not {exact(sigma)}", "The field uses 0.12, 0.25, 0.5 and 1.")
    if not MIN_SIGMA <= sigma <= MAX_SIGMA:
        raise UsageError(
            f"sigma {float(sigma):g} is no noise for images in [0, 1]", "The field uses 0.12, 0.25, 0.5 and 1."
        )
    return sigma


def check_counts(counts: Mapping[str, int | None]) -> None:
    """Raise a UsageError for an option below 1."""
    for option, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}", f"Leave {option} out for the default.")


def check_ball(norm: str, eps: Fraction) -> None:
    """Raise a UsageError for a norm other than linf and l2, or an eps that no image's ball has."""
    if norm not in ("linf", "l2"):
        raise UsageError(f"unknown norm '{norm}'", "Known: linf, l2.")
    if eps <= 0:
        raise UsageError(f"eps must be above 0, not {exact(eps)}", "The usual linf eps is 8/255.")
    if not MIN_EPS <= eps <= MAX_EPS:
        raise UsageError(f"eps {float(eps):g} is no size of a perturbation of images in [0, 1]", "Write it as 8/255.")
    if norm == "linf" and eps > 1:
        raise UsageError(
            f"eps {exact(eps)} is over 1, the whole range of a pixel",
            f"Images are in [0, 1]: for {exact(eps)} grey levels of 255 write --eps {exact(eps)}/255.",
        )


def wilson(right: float, of: int) -> list[float]:
    """The 95 % Wilson interval of a share; exactly 0 at none and 1 at all, where floating point comes close only.

    `right` may be a sum of shares in [0, 1], one an image: those vary less than zeros and ones of the same mean do.
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(right, of, method="wilson")
    return [0.0 if right == 0 else float(low), 1.0 if right == of else float(high)]


def exact(value: Fraction) -> str:
    """A fraction's one spelling: a short decimal where it has one, else `8/255`."""
    decimal = f"{float(value):.6g}"
    return decimal if "e" not in decimal and Fraction(decimal) == value else str(value)


def floored(value: float, digits: int) -> str:
    """A finite number with so many decimals, rounded down: a certified radius is never shown larger than it is.

    A float counts as its shortest decimal, so that 0.29 stays 0.29.
    """
    return str(Decimal(str(value)).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `1,000 epochs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes) -> str:
    """The SHA-256 of `data` with its algorithm's name: `sha256:ab12…`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, source: str) -> Any:
    """JSON from a file that may be anything.

    Raises:
        IntegrityError: not UTF-8, not JSON, too large or too deep, with a repeated key, a NaN, a number too large for a
            float or a half of a surrogate pair.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    try:
        if len(data) > MAX_JSON:
            raise ValueError(f"larger than {MAX_JSON} bytes")
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        if SUSPECT.search(data):
            canonical(value)
        return value
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{source} is not the JSON it should be: {error}", "Run `robustkt verify` to see what else is damaged."
        ) from None
