"""What robustness costs: clean accuracy in a soup, and work in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustkt.numbers import wilson
from robustkt.report.attacks import hardest, main_ball, shared_radius
from robustkt.report.curves import lines
from robustkt.report.figure import Figure, Spec, axis, between, percent, series, share, tips
from robustkt.report.gathering import Subject
from robustkt.report.style import DASHES

# -- soups -------------------------------------------------------------------------------------------------------------


def soup_curve(points: Sequence[Mapping[str, Any]], title: str, name: str = "soup") -> Figure:
    """Clean and robust accuracy over β with their 95 % intervals; points as of `api.soup_sweep`."""
    kinds = [kind for kind in ("clean", "robust") if points and points[0].get(f"{kind}_accuracy") is not None]
    values = [
        {
            "series": kind, "x": p["beta"], "y": p[f"{kind}_accuracy"], "low": low, "high": high,
            "beta": f"{p['beta']:g}", "share": percent(p[f"{kind}_accuracy"]), "interval": between((low, high)),
        }
        for kind in kinds
        for p in points
        for low, high in [p[f"{kind}_interval"]]
    ]  # fmt: skip
    told = {"series": "accuracy", "beta": "β", "share": "share", "interval": "95 % interval"}
    x = axis("x", "β, weight of the robust adapter", scale={"nice": False})
    spec = lines(values, kinds, x, share("y", "accuracy"), told, band=True)
    rows = [
        [f"{p['beta']:g}", *(f"{percent(p[f'{k}_accuracy'])} ({between(p[f'{k}_interval'])})" for k in kinds)]
        for p in points
    ]
    ends = "; ".join(
        f"{k} accuracy from {percent(points[0][f'{k}_accuracy'])} to {percent(points[-1][f'{k}_accuracy'])}"
        for k in kinds
    )
    return Figure(name, title, f"Over β: {ends}.", spec, ["β", *kinds], rows)


def soups(subjects: Sequence[Subject]) -> list[Figure]:
    """A curve over β for each stored sweep, and all of them in the plane of clean and robust accuracy."""
    there = [(subject, one) for subject in subjects for one in subject.sweeps]
    figures = []
    for k, (subject, one) in enumerate(there, 1):
        s = one.settings
        title = f"{subject.name.partition('@')[0]}: {', '.join(s['attacks'])}, {s['norm']} eps = {s['eps']}, "
        title += f"{s['images']} {s['split']} images"
        made = soup_curve(one.points, title, f"soup-{k}")
        figures.append(Figure(made.name, title, made.alt, made.spec, made.columns, made.rows, (), [one.source.number]))
    attacked = [pair for pair in there if pair[1].points[0].get("robust_accuracy") is not None]
    if len(attacked) > 1:
        figures.append(_plane(attacked))
    return figures


def _plane(there: Sequence[tuple[Subject, Any]]) -> Figure:
    names, values = list[str](), list[dict[str, Any]]()
    for subject, one in there:
        s = one.settings
        label = f"{subject.name.partition('@')[0]}, {s['norm']} {s['eps']}, {s['split']}"
        label += f" ({names.count(label) + 1})" * (label in names)
        names.append(label)
        values += [
            {"series": label, "x": p["clean_accuracy"], "y": p["robust_accuracy"], "beta": f"{p['beta']:g}",
             "clean": percent(p["clean_accuracy"]), "robust": percent(p["robust_accuracy"])}
            for p in one.points
        ]  # fmt: skip
    x, y = (
        axis(f, t, scale={"zero": False}, axis={"format": ".0%"})
        for f, t in (("x", "clean accuracy"), ("y", "robust accuracy"))
    )
    dashes = {"range": [list(dash) for dash in DASHES]}
    told = tips(series="generation", beta="β", clean="clean", robust="robust")
    spec: Spec = {
        "data": {"values": values},
        "height": 300,
        "encoding": {"x": x, "y": y, **series(names, "color"), "tooltip": told},
        "layer": [
            {"mark": "line", "encoding": {"order": {"field": "beta"}, **series(names, "strokeDash", dashes)}},
            {"mark": {"type": "point", "filled": True, "size": 60}},
        ],
    }  # fmt: skip
    rows = [[v["series"], v["beta"], v["clean"], v["robust"]] for v in values]
    alt = "Robust against clean accuracy, one curve a soup: up and to the right is better."
    columns = ["generation", "β", "clean", "robust"]
    return Figure(
        "soup-plane",
        "Clean against robust accuracy",
        alt,
        spec,
        columns,
        rows,
        (),
        [one.source.number for _, one in there],
    )


# -- cost --------------------------------------------------------------------------------------------------------------


def bargain(subjects: Sequence[Subject]) -> list[Figure]:
    """Robustness against the work of training, with a line from each teacher to its student."""
    figures = []
    radius = shared_radius(subjects, "l2")
    if radius is not None:
        found = {}
        for subject in subjects:
            for one in subject.certificates:
                value = one.figures["certified_accuracy"].get(radius)
                if one.settings["norm"] == "l2" and value is not None and subject.name not in found:
                    found[subject.name] = (value, one.figures["intervals"][radius], one.source.number)
        title = f"Certified accuracy at l2 radius {radius} against the cost of training"
        figures += _cost("cost-certified", title, f"certified accuracy at {radius}", subjects, found)
    ball = main_ball(subjects)
    if ball is not None:
        found = {}
        for subject in subjects:
            worst = hardest(subject, ball)
            if worst is not None:
                right, of = sum(worst.right), len(worst.right)
                found[subject.name] = (right / of, wilson(right, of), worst.source.number)
        title = f"Accuracy under the strongest attack, {ball[0]} eps = {ball[1]}, against the cost of training"
        figures += _cost("cost-attacked", title, "robust accuracy", subjects, found)
    return figures


def _cost(
    name: str, title: str, measure: str, subjects: Sequence[Subject], found: Mapping[str, tuple[float, Any, int]]
) -> list[Figure]:
    drawn = [s for s in subjects if s.name in found and passes(s)]
    if not drawn:
        return []
    values = []
    for subject in drawn:
        value, (low, high), _ = found[subject.name]
        recipe = subject.generation.recipe
        values.append(
            {
                "series": subject.name, "x": passes(subject), "y": round(value, 6), "low": low, "high": high,
                "share": percent(value), "interval": between((low, high)), "passes": f"{passes(subject):,}",
                "seconds": f"{subject.record.get('seconds', 0):,.1f} s", "how": f"{recipe.method} {recipe.arch}",
            }
        )  # fmt: skip
    at = {s.generation.id: v for s, v in zip(drawn, values, strict=True)}
    steps = [
        {"x": at[p]["x"], "y": at[p]["y"], "x2": at[s.generation.id]["x"], "y2": at[s.generation.id]["y"]}
        for s in drawn
        if (p := s.generation.parents.get("teacher", "")) in at
    ]
    names = [s.name for s in drawn]
    x = axis(
        "x",
        "images through networks, forwards and backwards",
        scale={"type": "log", "nice": True, "padding": 20},
        axis={"format": "~s", "tickCount": 4},
    )
    y = axis("y", measure, scale={"zero": False, "nice": True, "padding": 14}, axis={"format": ".0%"})
    told = tips(
        series="generation",
        how="made by",
        share=measure,
        interval="95 % interval",
        passes="images through networks",
        seconds="time",
    )
    spec: Spec = {
        "height": 300,
        "layer": [
            *[{"data": {"values": steps}, "mark": {"type": "rule", "strokeDash": [4, 3], "opacity": 0.8},
               "encoding": {"x": x, "y": y, "x2": {"field": "x2"}, "y2": {"field": "y2"}}}] * bool(steps),
            {"data": {"values": values}, "mark": {"type": "rule", "opacity": 0.5, "strokeWidth": 2},
             "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **series(names, "color")}},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
             "encoding": {"x": x, "y": y, **series(names, "color"), **series(names, "shape"), "tooltip": told}},
        ],
    }  # fmt: skip
    rows = [[v["series"], v["how"], f"{v['share']} ({v['interval']})", v["passes"], v["seconds"]] for v in values]
    alt = "; ".join(f"{row[0]}: {row[2]} for {row[3]} images, {row[4]}" for row in rows) + "."
    columns = ["generation", "made by", measure, "images through networks", "time"]
    sources = [found[s.name][2] for s in drawn]
    sources += [source.number for s in drawn for source in s.sources if "records/" in source.path]
    notes = (
        ["A dashed line leads from a teacher to its student: up or level, and to the left, is a good bargain."]
        if steps
        else []
    )
    return [Figure(name, title, alt, spec, columns, rows, notes, sorted(set(sources)))]


def passes(subject: Subject) -> int:
    """Images that went through networks in training, forwards and backwards; 0 when it is not known."""
    cost = subject.record.get("cost")
    return sum(cost.values()) if isinstance(cost, dict) else 0
