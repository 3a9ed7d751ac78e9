"""What can be named on the command line, from the catalogs: one row an entry."""

from __future__ import annotations

import dataclasses
import inspect
from fractions import Fraction
from typing import Any

from docs._reference.markdown import flat, table
from robustkt import objectives
from robustkt.attacks import named
from robustkt.catalog import ATTACKS, METHODS, Catalog
from robustkt.numbers import exact

NEEDS = {"teacher": "`--from`", "threat": "`--eps`", "sigma": "`--sigma`"}


def shown(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "by rule"
    return exact(value) if isinstance(value, Fraction) else str(value)


def first(found: Any) -> str:
    """The first paragraph of a docstring, on one line, without its full stop."""
    return flat((inspect.getdoc(found) or "").split("\n\n")[0]).rstrip(".")


def methods() -> str:
    """One row a method: what it needs, its fields with their defaults, its presets."""
    tables = METHODS.tables("PRESETS")
    body = []
    for name in METHODS.names():
        kind = METHODS.get(name)
        own = set(objectives.hyperparameters(name)) - {"sigma"}
        off = objectives.optional(name)
        told = {f.name: "none" if f.name in off else shown(f.default) for f in dataclasses.fields(kind)}
        fields = [f"`{field}={value}`" for field, value in told.items() if field in own]
        mine = [f"`{p}`" for p, entries in sorted(tables.items()) if entries["method"] == name]
        title = (inspect.getdoc(kind) or "").splitlines()[0].partition(":")[0].rstrip(".")
        needs = " ".join(NEEDS[need] for need in sorted(objectives.needs(name)))
        body.append([f"`{name}`", title, needs, " ".join(fields), " ".join(mine)])
    return table(["`--method`", "what it is", "needs", "settings and defaults", "presets"], body)


def formulas() -> str:
    """The docstring of each method: what its inner problem maximises and its outer one minimises."""
    return "\n\n".join(f"## {name}\n\n```text\n{inspect.getdoc(METHODS.get(name))}\n```" for name in METHODS.names())


def attacks() -> str:
    """One row an attack: its settings with their defaults."""
    body = []
    for name in ATTACKS.names():
        run = named(name).run
        parameters = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
        told = [p for p in parameters if p.name not in ("rng", "journal", "batch_size", "sigma")]
        body.append([f"`{name}`", first(run), " ".join(f"`{p.name}={shown(p.default)}`" for p in told)])
    return table(["`--attack`", "what it is", "settings and defaults"], body)


def entries(catalog: Catalog) -> str:
    """One row an entry of a catalog whose entries have no settings."""
    return table([catalog.kind, "what it is"], [[f"`{name}`", first(catalog.get(name))] for name in catalog.names()])


def presets() -> str:
    """One row a preset: its method and what it sets."""
    found = METHODS.tables("PRESETS")
    rows = []
    for name, settings in sorted(found.items()):
        told = " ".join(f"`{key}={value}`" for key, value in settings.items() if key != "method")
        rows.append([f"`{name}`", f"`{settings['method']}`", told])
    return table(["`--preset`", "method", "what it sets"], rows)
