"""What is written on disk, from the dataclasses that read it: fields, types, and the remark beside each."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
import tokenize
from typing import Any

from docs._reference.markdown import flat, table
from robustkt import certlog, generation
from robustkt.registry import measurements, records

MANIFEST = (generation.Generation, generation.Recipe, generation.DataSpec, generation.Training)
RECORD = (records.Record, records.Selected, records.Measured, records.Epoch, records.WorkingCopy)
RESULTS = (
    measurements.Certificates, measurements.CertificateSettings, measurements.CertificateFigures,
    measurements.Evaluation, measurements.EvaluationSettings, measurements.EvaluationFigures,
    measurements.AttackFigures, measurements.Worst,
    measurements.Transfer, measurements.TransferSettings, measurements.TransferFigures,
)  # fmt: skip
NOT_STORED = ("name", "shares", "unknown")  # of a generation: pointers


def remarks(kind: type) -> dict[str, str]:
    """The trailing comment of each field of a dataclass, those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        name = None
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline):
            if token.type == tokenize.NAME and (match := re.match(r" {4}(\w+): ", token.line)):
                name = match[1]
            if token.type == tokenize.COMMENT and name and token.line.lstrip().startswith(f"{name}:"):
                found[name] = token.string.lstrip("# ")
    return found


def shape(kind: type) -> str:
    """A dataclass as a table."""
    said = remarks(kind)
    rows = [
        [f"`{field.name}`", f"`{field.type}`", _default(field), said.get(field.name, "")]
        for field in dataclasses.fields(kind)
        if not (kind is generation.Generation and field.name in NOT_STORED)
    ]
    title = f"### {kind.__name__}\n\n{flat(inspect.getdoc(kind))}"
    return f"{title}\n\n{table(['field', 'type', 'if left out', 'meaning'], rows)}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "empty"
    if field.default is dataclasses.MISSING:
        return "refused"
    return "empty" if field.default == () else f"`{field.default}`"


def shapes(kinds: tuple[type, ...]) -> str:
    """Several, each with its heading."""
    return "\n\n".join(shape(kind) for kind in kinds)


def log() -> str:
    """The columns of a certification log in their order."""
    said = remarks(certlog.Row)
    fields = [field.name for field in dataclasses.fields(certlog.Row)]
    columns = [*certlog.COLUMNS, certlog.RANDOMISED]
    rows = [[f"`{column}`", said.get(name, "")] for column, name in zip(columns, fields, strict=True)]
    return table(["column", "meaning"], rows)
