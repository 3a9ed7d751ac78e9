"""Accuracy under attack, and robustness class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from robustkt.numbers import number, wilson
from robustkt.registry.measurements import Table
from robustkt.report.figure import Figure, Spec, axis, between, percent, series, share, tips
from robustkt.report.gathering import CLEAN, Attacked, Subject

MOST_CLASSES = 25  # drawn of a data set with more: the weakest


def dots(values: Sequence[Mapping[str, Any]], names: Sequence[str], groups: Sequence[str], title: str) -> Spec:
    """Shares with their intervals, a row a group and within it one a series.

    Args:
        values: with `series`, `group`, `y` (the share), `low`, `high`, and as text `share`, `interval`, `of`.
        names: the series in their order.
        groups: the groups in their order.
        title: of the axis.
    """
    by = {"field": "group", "type": "nominal", "sort": list(groups), "title": None, "axis": {"grid": True}}
    offset = {"field": "series", "sort": list(names), "scale": {"paddingOuter": 0.4}}
    told = {"series": "generation", "group": "of", "share": "share", "interval": "95 % interval", "of": "images"}
    return {
        "data": {"values": list(values)},
        "height": len(groups) * (12 + 12 * len(names)),
        "encoding": {
            "y": by, **({"yOffset": offset} if len(names) > 1 else {}), **series(names, "color"),
            "tooltip": tips(**told),
        },
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
             "encoding": {"x": {**share("low", title)}, "x2": {"field": "high"}}},
            {"mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
             "encoding": {"x": share("y", title), **series(names, "shape")}},
        ],
    }  # fmt: skip


def _value(name: str, group: str, right: int, of: int) -> dict[str, Any]:
    low, high = wilson(right, of)
    return {
        "series": name, "group": group, "y": round(right / of, 6), "low": round(low, 6), "high": round(high, 6),
        "share": percent(right / of), "interval": between((low, high)), "of": f"{of:,}",
    }  # fmt: skip


def _cell(value: Mapping[str, Any] | None) -> str:
    return f"{value['share']} ({value['interval']})" if value else "–"


def attacks(subjects: Sequence[Subject]) -> list[Figure]:
    """A figure for each ball in which something was attacked."""
    figures = []
    there = [one for subject in subjects for one in subject.attacks]
    for ball in sorted({one.ball for one in there if one.attack != CLEAN}):
        alike = [one for one in there if one.ball == ball or (one.attack == CLEAN and one.ball[:2] == ball[:2])]
        names = list(dict.fromkeys(one.generation.name for one in alike))
        groups = list(dict.fromkeys(sorted((one.attack for one in alike), key=lambda a: (a != CLEAN, a))))
        values = [_value(one.generation.name, one.attack, sum(one.right), len(one.right)) for one in alike]
        by = {(v["series"], v["group"]): v for v in values}
        norm, eps, smoothed = ball
        rows = [[name, *(_cell(by.get((name, group))) for group in groups)] for name in names]
        alt = "; ".join(f"{v['series']} {v['group']} {v['share']}" for v in values) + "."
        notes = []
        base = [n for n in names if _is_base(alike, n)]
        if base and not smoothed:
            notes.append(
                f"Of {', '.join(base)} the base network was attacked, without the noise that it is used with: what "
                "certificates promise is about another classifier."
            )
        notes.append("Accuracy under attack is measured, not proven: a stronger attack may lower it.")
        whose = "the smoothed classifier" if smoothed else "the network"
        title = f"Accuracy of {whose} under attack, {norm} eps = {eps}"
        name = f"attacks-{norm}-{eps.replace('/', '-over-')}{'-smoothed' * smoothed}"
        sources = sorted({one.source.number for one in alike})
        spec = dots(values, names, groups, "accuracy")
        figures.append(Figure(name, title, alt, spec, ["generation", *groups], rows, notes, sources))
    return figures


def attacked_figure(verdicts: Mapping[str, Table], *, title: str) -> Figure:
    """Accuracy under each attack.

    Args:
        verdicts: what a series is called -> attack -> per image 1 where it stayed right.
        title: of the figure.
    """
    values = [
        _value(name, attack, sum(right), len(right))
        for name, kept in verdicts.items()
        for attack, right in kept.items()
    ]
    groups = list(dict.fromkeys(value["group"] for value in values))
    rows = [[value["series"], value["group"], _cell(value)] for value in values]
    alt = "; ".join(f"{v['series']} {v['group']} {v['share']}" for v in values) + "."
    spec = dots(values, list(verdicts), groups, "accuracy")
    return Figure("attacks", title, alt, spec, ["generation", "attack", "accuracy"], rows)


def compared_figure(compared: Mapping[str, Any]) -> Figure:
    """Every figure of two generations; `compared` is the answer of `api.compare`."""
    names = [compared["first"], compared["second"]]
    values = []
    for one in compared["comparisons"]:
        for row in one["figures"]:
            group = f"{row['name']}, {one['what']}" if row["name"] != one["kind"] else one["what"]
            for name, side in zip(names, ("first", "second"), strict=True):
                values.append(_value(name, group, round(row[side] * one["images"]), one["images"]))
    groups = list(dict.fromkeys(value["group"] for value in values))
    rows = [[value["series"], value["group"], _cell(value)] for value in values]
    alt = "; ".join(f"{v['series']} {v['group']} {v['share']}" for v in values) + "."
    spec = dots(values, names, groups, "share of the images")
    return Figure("compared", f"{names[0]} and {names[1]}", alt, spec, ["generation", "figure", "share"], rows)


def corrupted_figure(measured: Mapping[str, Any], *, title: str) -> Figure:
    """Accuracy under each corruption, a series a severity; `measured` is the answer of `api.evaluate_corruptions`."""
    images = measured["images"]
    values = [
        _value(f"severity {severity}", name, round(one["accuracy"] * images), images)
        for name, of in measured["corruptions"].items()
        for severity, one in of["severities"].items()
    ]
    names, groups = sorted({v["series"] for v in values}), list(measured["corruptions"])
    by = {(v["series"], v["group"]): v for v in values}
    rows = [[group, *(_cell(by.get((name, group))) for name in names)] for group in groups]
    means = "; ".join(f"{name} {percent(of['mean']['accuracy'])}" for name, of in measured["corruptions"].items())
    alt = f"Clean {percent(measured['clean']['accuracy'])}; means over the severities: {means}."
    return Figure("corruptions", title, alt, dots(values, names, groups, "accuracy"), ["corruption", *names], rows)


def gated_figure(gated: Mapping[str, Any], *, title: str) -> Figure:
    """Each check's change, the largest loss that is not excluded, and its margin; of the answer of `api.gate`."""
    values, rows = [], []
    for row in gated["checks"]:
        limit = row["margin"] if row["bound"] > row["difference"] else -row["margin"]  # `abstain` is lost upwards
        cells = [f"{100 * change:+.1f}" for change in (row["difference"], row["bound"], limit)]
        values.append(
            {"group": row["name"], "y": row["difference"], "low": row["bound"], "limit": limit,
             **dict(zip(("change", "worst", "margin"), cells, strict=True)), "status": row["status"]}
        )  # fmt: skip
        rows.append([row["name"], percent(row["against"]), percent(row["value"]), *cells, row["status"]])
    groups = [value["group"] for value in values]
    told = {"group": "check", "change": "change", "worst": "at worst", "margin": "margin", "status": "status"}
    x = axis("y", "change; ticks: margins", scale={"padding": 12}, axis={"format": "+.0%"})
    spec: Spec = {
        "data": {"values": values},
        "height": 28 * len(groups),
        "encoding": {
            "y": {"field": "group", "type": "nominal", "sort": groups, "title": None, "axis": {"grid": True}},
            "tooltip": tips(**told),
        },
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
             "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "y"}}},
            {"mark": {"type": "tick", "thickness": 2, "size": 20}, "encoding": {"x": {**x, "field": "limit"}}},
            {"mark": {"type": "point", "filled": True, "size": 75, "opacity": 1}, "encoding": {"x": x}},
        ],
    }  # fmt: skip
    alt = "; ".join(f"{row[0]} {row[3]}, at worst {row[4]}, margin {row[5]}: {row[6]}" for row in rows) + "."
    columns = ["check", gated["against"], gated["generation"], "change", "at worst", "margin", "status"]
    return Figure("gate", title, alt, spec, columns, rows, ["A tick is the margin; changes are in points."])


def _is_base(alike: Sequence[Attacked], name: str) -> bool:
    return any(one.generation.name == name and one.generation.sigma is not None for one in alike)


def hardest(subject: Subject, ball: tuple[str, str, bool]) -> Attacked | None:
    """The attack in this ball that left the least."""
    found = [one for one in subject.attacks if one.ball == ball and one.attack != CLEAN]
    return min(found, key=lambda one: (sum(one.right) / len(one.right), one.attack), default=None)


def main_ball(subjects: Sequence[Subject]) -> tuple[str, str, bool] | None:
    """The ball in which most of them were attacked."""
    balls = [one.ball for subject in subjects for one in subject.attacks if one.attack != CLEAN]
    counts = {ball: sum(hardest(s, ball) is not None for s in subjects) for ball in sorted(set(balls))}
    return max(counts, key=lambda ball: counts[ball], default=None)


# -- classes -----------------------------------------------------------------------------------------------------------


def classes(subjects: Sequence[Subject]) -> list[Figure]:
    """Certified accuracy at one radius, and accuracy under the strongest attack, class by class."""
    figures = []
    norms = [str(one.settings["norm"]) for subject in subjects for one in subject.certificates]
    for norm in sorted(set(norms)):
        radius = shared_radius(subjects, norm)
        if radius is None:
            continue
        logs, sources = {}, []
        for one in (one for subject in subjects for one in subject.certificates if one.settings["norm"] == norm):
            least = Fraction(radius)
            pairs = [(row.label, row.correct and row.radius_reaches(least)) for row in one.rows]
            logs[one.series] = one.generation.recipe.data.classes, pairs
            sources.append(one.source.number)
        title = f"Certified accuracy at {norm} radius {radius}, by class"
        figures += _by_class(f"classes-certified-{norm}", title, f"certified accuracy at {radius}", logs, sources)
    ball = main_ball(subjects)
    found = [(s, worst) for s in subjects if ball and (worst := hardest(s, ball)) is not None]
    if ball and found:
        logs = {
            s.name: (s.generation.recipe.data.classes, list(zip(worst.labels, map(bool, worst.right), strict=True)))
            for s, worst in found
        }
        told = ", ".join(sorted({worst.attack for _, worst in found}))
        title = f"Accuracy under {told}, {ball[0]} eps = {ball[1]}, by class"
        figures += _by_class("classes-attacked", title, "accuracy", logs, [worst.source.number for _, worst in found])
    return figures


def shared_radius(subjects: Sequence[Subject], norm: str) -> str | None:
    """The smallest radius above 0 that the tables of all certificates in this norm have; else of most of them."""
    told = [
        one.figures["certified_accuracy"] for s in subjects for one in s.certificates if one.settings["norm"] == norm
    ]
    radii = {r for table in told for r in table if number(r) > 0}
    return min(radii, key=lambda r: (-sum(r in table for table in told), number(r)), default=None)


def _by_class(
    name: str,
    title: str,
    measure: str,
    logs: Mapping[str, tuple[Sequence[str], Sequence[tuple[int, bool]]]],
    sources: Sequence[int],
) -> list[Figure]:
    """A figure, unless the generations have other classes."""
    words = {tuple(known) for known, _ in logs.values()}
    if len(words) > 1:
        return []  # of several data sets: there is no common axis
    (known,) = words
    values = []
    for label, (_, pairs) in logs.items():
        for k, word in enumerate(known):
            kept = [right for of, right in pairs if of == k]
            if kept:
                values.append(_value(label, f"{word}", sum(kept), len(kept)))
    by = {(v["series"], v["group"]): v for v in values}
    there = [word for word in dict.fromkeys(known) if any(v["group"] == word for v in values)]
    mean = {word: [v["y"] for v in values if v["group"] == word] for word in there}
    weakest = sorted(there, key=lambda word: sum(mean[word]) / len(mean[word]))
    drawn = [word for word in there if word in set(weakest[:MOST_CLASSES])]
    notes = [f"The {len(drawn)} weakest of {len(there)} classes are drawn; the table has all."] * (
        len(drawn) < len(there)
    )
    spec = dots([v for v in values if v["group"] in drawn], list(logs), drawn, measure)
    rows = [[word, *(_cell(by.get((label, word))) for label in logs)] for word in there]
    low = "; ".join(
        f"{label} is weakest on {worst['group']} ({worst['share']})"
        for label in logs
        if (worst := min((v for v in values if v["series"] == label), key=lambda v: v["y"], default=None))
    )
    return [Figure(name, title, f"{low}.", spec, ["class", *logs], rows, notes, sources)]
