"""Where generations come from and what became of their robustness; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkt.api.upkeep import rows_of
from robustkt.errors import NotFoundError, UsageError
from robustkt.registry import Registry
from robustkt.registry.files import write_atomic

PICTURES = (".png", ".svg", ".pdf")
SAME_CERTIFICATE = ("sigma", "n", "alpha", "mode", "images")
SAME_ATTACK = ("norm", "eps", "images", "attacks", "network")


def lineage(
    generation: str | None = None, *, out: Path | None = None, registry: Registry | None = None
) -> dict[str, Any]:
    """Ancestors and descendants of a generation, or all, as a graph and in the order of a tree.

    Args:
        generation: only its family.
        out: also draw robustness over generations there, as PNG, SVG or PDF.
        registry: the nearest one by default.

    Returns:
        focus, file, generations [{…, parents {role: id}, depth, again, retained}]: parents before children; one that
        has several parents stands under each, and `again` marks all but the first. `retained` is the share of its
        teacher's figures that it kept, where both were measured alike: {certified, robust}.

    Raises:
        NotFoundError: there is no generation.
        UsageError: a picture of another kind.
    """
    registry = registry or Registry.locate()
    if out is not None and out.suffix.lower() not in PICTURES:
        raise UsageError(f"cannot draw a '{out.suffix}'", f"Name a file that ends in {', '.join(PICTURES)}.")
    everything = rows_of(registry)
    named = [row for row in everything.values() if row["named"]]
    if not named:
        raise NotFoundError(f"there is no generation in {registry.label}", "Make one with `robustkt quickstart`.")
    children: dict[str, list[str]] = {}
    for identity, row in everything.items():
        for parent in sorted(set(row["parents"].values())):
            children.setdefault(parent, []).append(identity)
    focus = registry.get(generation) if generation else None
    kept = _reached(everything, [focus.id] if focus else [row["id"] for row in named])
    if focus:
        below = [focus.id]
        while below:
            fresh = [i for i in children.get(below.pop(), []) if i not in kept]
            kept |= set(fresh)
            below += fresh
    rows = _ordered(everything, children, kept)
    for row in rows:
        row["retained"] = _retained(row, everything.get(row["parents"].get("teacher", "")))
    if out is not None:
        from robustkt import report

        figure = report.decay([row for row in rows if not row["again"]])
        write_atomic(out, figure.render(out.suffix.lower()[1:], titled=True))
    return {"focus": focus.name if focus else None, "file": str(out) if out else None, "generations": rows}


def _reached(everything: Mapping[str, Mapping[str, Any]], start: list[str]) -> set[str]:
    """These and their ancestors, as far as they can be read."""
    found: set[str] = set()
    while start:
        identity = start.pop()
        if identity in everything and identity not in found:
            found.add(identity)
            start += everything[identity]["parents"].values()
    return found


def _ordered(
    everything: Mapping[str, Mapping[str, Any]], children: Mapping[str, list[str]], kept: set[str]
) -> list[dict[str, Any]]:
    """Depth first from the roots; not recursive, as a lineage may be thousands of generations long."""
    roots = [i for i, row in everything.items() if i in kept and not kept & set(row["parents"].values())]
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    stack = [(identity, 0) for identity in reversed(roots)]
    while stack:
        identity, depth = stack.pop()
        rows.append({**everything[identity], "depth": depth, "again": identity in seen})
        if identity not in seen:
            stack += [(child, depth + 1) for child in reversed(children.get(identity, [])) if child in kept]
        seen.add(identity)
    return rows


def _retained(row: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> dict[str, float]:
    """Shares of the teacher's certified accuracy, by radius, and of its robust accuracy."""
    found: dict[str, float] = {}
    if teacher is None:
        return found
    ours, theirs = row["certified"], teacher["certified"]
    if ours and theirs and all(ours[name] == theirs[name] for name in SAME_CERTIFICATE):
        both = ((r, ours["certified_accuracy"][r], v) for r, v in theirs["certified_accuracy"].items())
        found |= {f"certified@{r}": ours_r / v for r, ours_r, v in both if v and r in ours["certified_accuracy"]}
    ours, theirs = row["robust"], teacher["robust"]
    if ours and theirs and theirs["robust_accuracy"] and all(ours[name] == theirs[name] for name in SAME_ATTACK):
        found["robust"] = ours["robust_accuracy"] / theirs["robust_accuracy"]
    return found
