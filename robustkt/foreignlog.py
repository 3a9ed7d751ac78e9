"""Reading anybody's certification log: the field's six columns in any printing, whatever stands behind them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from robustkt.errors import IntegrityError, NotFoundError, clip
from robustkt.numbers import fraction, parse_json

REQUIRED = ("idx", "label", "predict", "radius", "correct", "time")
MAX_BYTES = 256 * 2**20  # ImageNet's 50,000 images take 4 MB
MAX_FIELD = 200  # characters; a number has at most 30
FORMAT = "A log has a first line `idx label predict radius correct time`, tab separated, and then a line an image."

INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
CLOCK = re.compile(r"(?:(\d{1,4}) days?, )?(\d{1,6}):(\d\d):(\d\d(?:\.\d*)?)")
STORED = re.compile(r"(certificate-[0-9a-f]+)-[0-9a-f]{8}\.tsv")  # a log in a registry, beside its result


@dataclass(frozen=True)
class Line:
    """One image's line, as the file says it."""

    idx: int
    label: int
    predict: int  # -1 = abstained
    radius: float  # finite, 0 or more
    printed: str  # the radius as it was printed
    correct: bool
    seconds: float  # nan when the file does not know
    extra: tuple[str, ...] = ()  # the columns after `time`

    def radius_reaches(self, r: Fraction) -> bool:
        """Whether the printed radius is at least `r`; both round to the same double when they are equal."""
        return self.radius >= float(r)


@dataclass(frozen=True)
class Fault:
    """A line that says nothing usable."""

    number: int  # of the line in the file, from 1
    idx: str  # as printed
    why: str


@dataclass(frozen=True)
class Log:
    """A certification log with what is known about it."""

    file: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    faults: tuple[Fault, ...]
    torn: bool  # the last line broke off, and is left out
    header: Mapping[str, Any] = field(default_factory=dict)  # of the JSON beside the log

    def column(self, name: str) -> list[str] | None:
        """An extra column as printed, a value a line; None when there is none."""
        if name in REQUIRED or name not in self.columns:
            return None
        place = [c for c in self.columns if c not in REQUIRED].index(name)
        return [line.extra[place] for line in self.lines]

    def figure(self, name: str) -> float | None:
        """A number of the header, such as sigma.

        Raises:
            UsageError: it is not a number.
        """
        value = self.header.get(name)
        return None if value is None else float(fraction(value, f"{name} in the header of {self.file}"))


def read(path: Path) -> Log:
    """The log in a file; lines that cannot be read are kept as faults.

    Times are seconds, `H:MM:SS.ffffff`, `nan` or `-`. A last line that broke off is left out. The header is the JSON
    beside it, `LOG.json`, or for a log within a registry the settings of its result.

    Raises:
        NotFoundError: there is no such file.
        IntegrityError: not a text with the field's columns, or one that holds nothing but its first line.
    """
    text = _text(path)
    first, _, body = text.partition("\n")
    columns = tuple(name.strip() for name in first.split("\t"))
    _check_columns(path, columns, text)
    rows = body.split("\n")
    whole = rows.pop() == ""  # the file ends with a line end
    numbered = [(i, row) for i, row in enumerate(rows, start=2) if row.strip()]
    torn = False
    if not whole:
        last = (len(rows) + 2, body.rsplit("\n", 1)[-1])
        # a column behind `time` may have lost digits; the field's own six are whole once a time follows them
        torn = len(columns) > len(REQUIRED) or isinstance(_line(*last, columns), Fault)
        numbered += [] if torn else [last]
    if not numbered:
        raise IntegrityError(
            f"nothing is certified yet in {path}: it holds only its first line",
            "Wait for the run's first images, or start `robustkt certify` again: it continues.",
        )
    read_lines = [_line(number, row, columns) for number, row in numbered]
    return Log(
        file=str(path),
        columns=columns,
        lines=tuple(line for line in read_lines if isinstance(line, Line)),
        faults=tuple(line for line in read_lines if isinstance(line, Fault)),
        torn=torn,
        header=_header(path),
    )


def check(log: Log) -> None:
    """Refuse a log that figures cannot be taken from: unreadable lines, or an image that stands there twice.

    Raises:
        IntegrityError: so.
    """
    audit = "`robustkt audit` lists everything that is wrong with it; mend or drop those lines."
    if log.faults:
        fault = log.faults[0]
        more = f" (and {len(log.faults) - 1} more lines)" if len(log.faults) > 1 else ""
        raise IntegrityError(f"line {fault.number} of {log.file}: {fault.why}{more}", audit)
    seen: set[int] = set()
    for line in log.lines:
        if line.idx in seen:
            raise IntegrityError(f"{log.file} has image {line.idx} twice", audit)
        seen.add(line.idx)


def _text(path: Path) -> str:
    if not path.exists():
        raise NotFoundError(f"there is no {path}", "Give the path of a log, such as the one `robustkt certify` names.")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MB")
        if b"\0" in data:
            raise ValueError("it is binary")
        text = data.decode("utf-8-sig")
    except ValueError as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise IntegrityError(f"{path} is no certification log: {why}", FORMAT) from None
    return text.replace("\r\n", "\n")


def _check_columns(path: Path, columns: tuple[str, ...], text: str) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    if not text.strip():
        raise IntegrityError(f"{path} is empty", FORMAT)
    if missing:
        found = clip(" ".join(columns), 60)
        raise IntegrityError(f"{path} lacks the column {missing[0]}; its first line is '{found}'", FORMAT)
    twice = next((name for name, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise IntegrityError(f"{path} has the column {clip(twice, 40)!r} twice", FORMAT)


def _line(number: int, text: str, columns: tuple[str, ...]) -> Line | Fault:
    fields = text.split("\t")
    values = dict(zip(columns, (f.strip() for f in fields), strict=False))
    try:
        if len(fields) != len(columns):
            raise ValueError(f"{len(fields)} fields instead of {len(columns)}")
        if len(text) > MAX_FIELD and any(len(f) > MAX_FIELD for f in fields):
            raise ValueError("a field is too long for a number")
        return Line(
            idx=_integer("idx", values["idx"]),
            label=_integer("label", values["label"]),
            predict=_integer("predict", values["predict"]),
            radius=_radius(values["radius"]),
            printed=values["radius"],
            correct=_flag(values["correct"]),
            seconds=_seconds(values["time"]),
            extra=tuple(value for name, value in values.items() if name not in REQUIRED),
        )
    except ValueError as error:
        return Fault(number, clip(values.get("idx", ""), 20), str(error))


def _integer(name: str, text: str) -> int:
    if not INTEGER.fullmatch(text):
        raise ValueError(f"{name} '{clip(text, 30)}' is not an integer")
    return int(text)


def _radius(text: str) -> float:
    if not NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise ValueError(f"radius '{clip(text, 30)}' is not a finite number")
    if float(text) < 0:
        raise ValueError(f"radius {clip(text, 30)} is negative")
    return float(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"correct '{clip(text, 30)}' is neither 0 nor 1")
    return text == "1"


def _seconds(text: str) -> float:
    if text.lower() in ("nan", "-", ""):
        return math.nan
    if NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if clock := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = clock.groups()
        return int(days or 0) * 86_400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    raise ValueError(f"time '{clip(text, 30)}' is neither seconds nor H:MM:SS")


def _header(path: Path) -> Mapping[str, Any]:
    beside = path.with_name(path.name + ".json")
    stored = STORED.fullmatch(path.name)
    if not beside.is_file() and stored:
        beside = path.with_name(stored[1] + ".json")
    if not beside.is_file():
        return {}
    value = parse_json(beside.read_bytes(), str(beside))
    if isinstance(value, dict) and stored and isinstance(value.get("settings"), dict):
        value = {**value["settings"], "preprocessing": value.get("preprocessing")}
    if not isinstance(value, dict):
        raise IntegrityError(f"{beside} is not the header of a log", "It should be a JSON object; or remove it.")
    return cast(Mapping[str, Any], value)
