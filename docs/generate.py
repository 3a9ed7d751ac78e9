"""Writes the tables of docs/objectives.md from the code; `--check` only says whether they agree."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustkt import objectives
from robustkt.attacks import named
from robustkt.catalog import ATTACKS, METHODS
from robustkt.numbers import exact

PAGE = Path(__file__).with_name("objectives.md")
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def shown(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "by rule"
    return exact(value) if isinstance(value, Fraction) else str(value)


def methods() -> str:
    """One row a method: what it needs, its fields with their defaults, its presets."""
    presets = METHODS.tables("PRESETS")
    lines = ["| `--method` | what it is | needs | settings and defaults | presets |", "|---|---|---|---|---|"]
    for name in METHODS.names():
        kind = METHODS.get(name)
        needs = [
            {"teacher": "`--from`", "threat": "`--eps`", "sigma": "`--sigma`"}[n]
            for n in sorted(objectives.needs(name))
        ]
        own = set(objectives.hyperparameters(name)) - {"sigma"}
        told = {f.name: "none" if f.metadata.get("later") else shown(f.default) for f in dataclasses.fields(kind)}
        fields = [f"`{name}={value}`" for name, value in told.items() if name in own]
        mine = [f"`{p}`" for p, table in sorted(presets.items()) if table["method"] == name]
        title = (inspect.getdoc(kind) or "").splitlines()[0].partition(":")[0].rstrip(".")
        lines.append(f"| `{name}` | {title} | {' '.join(needs)} | {' '.join(fields)} | {' '.join(mine)} |")
    return "\n".join(lines)


def attacks() -> str:
    """One row an attack: its settings with their defaults."""
    lines = ["| `--attack` | what it is | settings and defaults |", "|---|---|---|"]
    for name in ATTACKS.names():
        run = named(name).run
        parameters = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
        told = [p for p in parameters if p.name not in ("rng", "journal", "batch_size", "sigma")]
        title = " ".join((inspect.getdoc(run) or "").split("\n\n")[0].split()).rstrip(".")
        lines.append(f"| `{name}` | {title} | {' '.join(f'`{p.name}={shown(p.default)}`' for p in told)} |")
    return "\n".join(lines)


TABLES = {"methods": methods, "attacks": attacks}


def rendered(text: str) -> str:
    """The page with its tables written anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + "\n" + m[3], text)


def main() -> None:
    """Update the page, or with --check exit 1 when it is stale."""
    text = PAGE.read_text()
    if "--check" in sys.argv:
        sys.exit("stale: run python docs/generate.py" if rendered(text) != text else 0)
    PAGE.write_text(rendered(text))


if __name__ == "__main__":
    main()
