"""Two generations side by side: what their recipes differ in, and what their measurements differ in, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import Any

from robustkt import paired
from robustkt.api.gateconfig import check_confidence
from robustkt.api.pairing import ABSTAIN, STOPS, Shared, Verdicts, common, missing, verdicts
from robustkt.api.results import Comparison
from robustkt.errors import NotFoundError, UsageError
from robustkt.generation import Generation
from robustkt.numbers import exact, fraction, noise_level
from robustkt.registry import Registry
from robustkt.shapes import to_json

NEVER_BEST = "each σ is compared by itself, never the best of several: a classifier has to choose its σ beforehand"


def compare(
    first: str,
    second: str,
    *,
    sigma: str | float | Fraction | None = None,
    radii: Sequence[Fraction] | None = None,
    confidence: float = 0.95,
    registry: Registry | None = None,
) -> Comparison:
    """What two generations differ in: their recipes, and figures of the same images under the same settings.

    Intervals of a difference are Tango's for pairs (Statistics in Medicine 17, 1998), p-values McNemar's exact ones,
    adjusted by Holm's procedure over all figures, and over all classes of all figures.

    Args:
        first: the one that differences are taken from.
        second: the one that has won or lost images against it.
        sigma: only certificates of this noise level.
        radii: of certified accuracy; those of the certificates' tables by default.
        confidence: of the intervals, and 1 − the largest p-value that counts as a difference.
        registry: the nearest one by default.

    Returns:
        first, second, ids, recipe {field: [first, second]}, comparisons [{kind, settings, images, figures [{name,
        first, second, difference, interval, won, lost, p_value, p_adjusted, winner}], classes [{figure, class, images,
        difference, won, lost, p_value, p_adjusted, winner}], acr or None}], missing [{what, has, lacks, differs,
        command}], notes. Differences are second − first; won images are better with the second, lost ones worse. With
        `.to_pandas()` and `.plot()`.

    Raises:
        NotFoundError: nothing was certified at `sigma` on both sides.
        UsageError: a radius below 0, or no confidence.
        RobustKTError: anything else the user can fix.
    """
    registry = registry or Registry.locate()
    check_confidence(confidence)
    if any(radius < 0 for radius in radii or ()):
        raise UsageError("a radius cannot be negative", "Give radii such as --radii 0,0.25,0.5.")
    old, new = registry.mode(first), registry.mode(second)
    both = common(registry, old, new)
    level = exact(noise_level(sigma)) if sigma is not None else None
    shared = [s for s in both.shared if level is None or s.settings.get("sigma") in (None, level)]
    levels = sorted({s.settings["sigma"] for s in both.shared if s.kind == "certificate" and s.settings["sigma"]})
    if level is not None and level not in levels:
        told = f"Both have {', '.join(levels)}." if levels else "Measure both with `robustkt certify`."
        raise NotFoundError(f"{old.name} and {new.name} have no certificates at σ = {level} in common", told)
    comparisons = [_compared(registry, s, new, radii, confidence) for s in sorted(shared, key=_place)]
    _adjust([row for c in comparisons for row in c["figures"]], 1 - confidence)
    _adjust([row for c in comparisons for row in c["classes"]], 1 - confidence)
    notes = base_networks(shared, old, new) + ([NEVER_BEST] if len(levels) > 1 else [])
    if old.id == new.id:
        notes.append("both names are of the same generation")
    answer = {
        "first": old.name,
        "second": new.name,
        "ids": [old.id, new.id],
        "recipe": _differing(_recipe(registry, old), _recipe(registry, new)),
        "confidence": confidence,
        "comparisons": comparisons,
        "missing": missing(both, old, new),
        "notes": notes,
    }
    return Comparison(answer)


def _place(shared: Shared) -> tuple[Any, ...]:
    """Attacks first, clean before all; then certificates by σ, of the most images first; each corruption after."""
    s = shared.settings
    certificate = shared.kind == "certificate"
    told = (s["noise"], s["norm"], float(fraction(s["sigma"] or 0, "sigma"))) if certificate else (shared.kind,)
    size = (-s["images"], -s.get("n", 0), str(sorted(s.items())))
    return s.get("corruption") or "", certificate, shared.kind != "clean", *told, *size


def _compared(
    registry: Registry, shared: Shared, of: Generation, radii: Sequence[Fraction] | None, confidence: float
) -> dict[str, Any]:
    told = verdicts(registry, shared, radii)
    figures = [_row(name, *sides, confidence) for name, sides in told.figures.items()]
    return {
        "kind": shared.kind,
        "what": shared.new.told(),
        "settings": dict(shared.settings),
        "images": len(told.labels),
        "figures": figures,
        "classes": [row for name in told.figures if name != ABSTAIN for row in _classes(told, name, of)],
        "acr": None if shared.settings.get("mode") in (None, *STOPS) else _acr(told, confidence),
    }


def _row(name: str, old: Sequence[bool], new: Sequence[bool], confidence: float) -> dict[str, Any]:
    """A figure of both; of `abstain` the share without an answer, so that its differences are turned round."""
    counts = paired.pairs(new, old)
    low, high = paired.interval(counts, confidence)
    difference, ends = (-counts.difference, [-high, -low]) if name == ABSTAIN else (counts.difference, [low, high])
    return {
        "name": name, "first": share(name, old), "second": share(name, new), "difference": difference + 0.0,
        "interval": ends, "won": counts.won, "lost": counts.lost, "p_value": paired.mcnemar(counts),
    }  # fmt: skip


def share(name: str, side: Sequence[bool]) -> float:
    """The figure itself: the share of images that count; of `abstain` of those without an answer."""
    return sum(not kept if name == ABSTAIN else kept for kept in side) / len(side)


def _classes(told: Verdicts, name: str, of: Generation) -> list[dict[str, Any]]:
    rows = []
    for label, counts in by_class(told, name).items():
        rows.append(
            {
                "figure": name, "class": class_name(of, label), "images": counts.images,
                "difference": counts.difference, "won": counts.won, "lost": counts.lost,
                "p_value": paired.mcnemar(counts),
            }
        )  # fmt: skip
    return rows


def by_class(told: Verdicts, name: str) -> dict[int, paired.Pairs]:
    """The counts of a figure for each label that has images."""
    sides: dict[int, tuple[list[bool], list[bool]]] = {}
    for label, old, new in zip(told.labels, *told.figures[name], strict=True):
        kept = sides.setdefault(label, ([], []))
        kept[0].append(old)
        kept[1].append(new)
    return {label: paired.pairs(new, old) for label, (old, new) in sorted(sides.items())}


def base_networks(shared: Sequence[Shared], *generations: Generation) -> list[str]:
    """That attacks are on networks without the noise that a generation is used with, where they are."""
    names = [g.name for g in generations if g.sigma is not None]
    if not names or all(s.kind == "certificate" or s.settings.get("smoothed") for s in shared):
        return []
    return [f"clean accuracy and attacks are of the base network, without the noise of {' and '.join(names)}"]


def class_name(of: Generation, label: int) -> str:
    """What the data set calls a label."""
    classes = of.recipe.data.classes
    return classes[label] if 0 <= label < len(classes) else str(label)


def _adjust(rows: Sequence[dict[str, Any]], alpha: float) -> None:
    """Holm's p-values into the rows, and who won where a difference is shown."""
    adjusted = paired.holm({i: row["p_value"] for i, row in enumerate(rows)})
    for i, row in enumerate(rows):
        shown = adjusted[i] <= alpha
        row["p_adjusted"] = adjusted[i]
        row["winner"] = None if not shown else "second" if row["won"] > row["lost"] else "first"


def _acr(told: Verdicts, confidence: float) -> dict[str, Any] | None:
    """Average certified radius of both; the difference's normal interval over images."""
    if told.radii is None or len(told.labels) < 2:
        return None
    old, new = told.radii
    differences = [b - a for a, b in zip(old, new, strict=True)]
    half = NormalDist().inv_cdf((1 + confidence) / 2) * stdev(differences) / math.sqrt(len(differences))
    middle = fmean(differences)
    return {
        "first": fmean(old), "second": fmean(new), "difference": middle, "interval": [middle - half, middle + half]
    }  # fmt: skip


def _recipe(registry: Registry, generation: Generation) -> dict[str, Any]:
    """The recipe and the parents by dotted names."""
    parents = {role: registry.names_of(identity)[0] for role, identity in generation.parents.items()}
    return _flat({**to_json(generation.recipe), "parents": parents})


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*old, *new])
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}
