"""Curves over a radius, a probability or the epochs of training."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from robustkt.certlog import Row
from robustkt.numbers import floored, number, wilson
from robustkt.report.figure import Figure, Spec, axis, between, hovered, percent, series, share, tips
from robustkt.report.gathering import Certified, Subject
from robustkt.report.style import DASHES

MOST = 150  # steps of one curve: more cannot be told apart; of more, none is drawn better than it is
PROBABILITIES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
STOPS = ("sequential", "looks")
DIGITS = 6
FEW = 6  # epochs, of which each has its tick: between so few Vega puts ticks at halves


def lines(
    values: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    x: Spec,
    y: Spec,
    told: Mapping[str, str],
    *,
    band: bool = False,
    steps: str = "linear",
    height: int = 300,
) -> Spec:
    """Curves told apart by colour and dashes, the points of which tell their numbers.

    Args:
        values: with `series`, `x`, `y`, the fields of `told`, and for a band `low` and `high`.
        names: the series in their order.
        x: the horizontal channel.
        y: the vertical one.
        told: what hovering shows, field -> title.
        band: draw the intervals.
        steps: how points are joined, in Vega-Lite's words.
        height: in pixels.
    """
    colour = series(names, "color")
    if colour["color"]["legend"] is not None:
        colour["color"]["legend"] |= {"symbolType": "stroke", "symbolSize": 300, "symbolStrokeWidth": 2.5}
    near = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0}
    layers: list[Spec] = []
    if band:
        mark = {"type": "area", "opacity": 0.14, "interpolate": steps, "aria": False}
        layers.append({"mark": mark, "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}}})
    dashed = series(names, "strokeDash", {"range": [list(dash) for dash in DASHES]})
    mark = {"type": "line", "interpolate": steps}
    layers.append({"mark": mark, "encoding": {"y": y, **dashed}})
    layers.append(
        {
            "params": [hovered(("x", "series"))],
            "mark": {"type": "point", "filled": True, "size": 160},
            "encoding": {"y": y, "opacity": near, "tooltip": tips(**told)},
        }
    )
    return {
        "data": {"values": list(values)},
        "height": height,
        "encoding": {"x": x, **colour},
        "layer": layers,
    }


# -- certified accuracy ------------------------------------------------------------------------------------------------


def certified_points(rows: Sequence[Row]) -> list[tuple[float, float, list[float]]]:
    """Radius, share of images that are right with at least this radius, and its 95 % Wilson interval.

    The share falls just after each radius, so that the points are the upper ends of the steps; of more than `MOST`
    steps some are left out, never the first and the last.
    """
    radii = sorted(row.radius for row in rows if row.correct)
    distinct = [radius for radius, _ in groupby(radii)]
    if len(distinct) > MOST:
        distinct = [distinct[i * (len(distinct) - 1) // (MOST - 1)] for i in range(MOST)]
    points = []
    for radius in dict.fromkeys([0.0, *distinct]):
        right = len(radii) - bisect.bisect_left(radii, radius)
        points.append((radius, right / len(rows), wilson(right, len(rows))))
    if radii:
        points.append((radii[-1] * 1.0001, 0.0, wilson(0, len(rows))))
    return points


def certified_figure(curves: Mapping[str, Sequence[Row]], *, norm: str = "l2", title: str, name: str = "") -> Figure:
    """Certified accuracy against radius, a curve a log, from all rows of each.

    Args:
        curves: what a curve is called -> the rows of its log.
        norm: of the radii.
        title: of the figure.
        name: of its file; by default `certified-NORM`.
    """
    values = [
        {
            "series": label, "x": round(x, DIGITS), "y": _down(y), "low": round(low, 4), "high": round(high, 4),
            "radius": f"{'above ' * (y == 0 < x)}{floored(x, 4)}", "share": percent(y),
            "interval": between((low, high)),
        }
        for label, rows in curves.items()
        for x, y, (low, high) in certified_points(rows)
    ]  # fmt: skip
    told = {"series": "generation", "radius": "radius", "share": "certified accuracy", "interval": "95 % interval"}
    spec = lines(
        values, list(curves), axis("x", f"{norm} radius, images in [0, 1]", scale={"nice": False}),
        share("y", "certified accuracy"), told, band=True, steps="step-before",
    )  # fmt: skip
    grid = _grid(curves.values())
    rows = [
        [label, *(percent(sum(row.correct and row.radius >= r for row in rows) / len(rows)) for r in grid)]
        for label, rows in curves.items()
    ]
    ends = "; ".join(f"{row[0]} from {row[1]} at 0 to {row[-1]} at {grid[-1]:g}" for row in rows)
    alt = f"Certified accuracy falls with the {norm} radius: {ends}." if grid else "No certificates."
    return Figure(name or f"certified-{norm}", title, alt, spec, ["generation", *(f"{r:g}" for r in grid)], rows)


def _grid(logs: Any) -> list[float]:
    """At most nine radii for a table, from 0."""
    largest = max((row.radius for rows in logs for row in rows if row.correct), default=0.0)
    step = next((s for s in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if largest / s <= 8), 250.0)
    return [step * k for k in range(int(largest / step) + 1)]


def certified(subjects: Sequence[Subject]) -> list[Figure]:
    """A figure for each norm in which something is certified."""
    figures = []
    there = [one for subject in subjects for one in subject.certificates]
    for norm in sorted({str(one.settings["norm"]) for one in there}):
        alike = [one for one in there if one.settings["norm"] == norm]
        made = certified_figure(
            {one.series: one.rows for one in alike}, norm=norm, title=f"Certified accuracy in {norm}"
        )
        rows = [_row(one) for one in alike]
        radii = list(dict.fromkeys(r for one in alike for r in one.figures["certified_accuracy"]))
        columns = ["generation", "σ", "procedure", "n", "α", "images", "ACR", "abstained"]
        ordered = sorted(radii, key=number)
        cells = [[*row, *(_at(one, r) for r in ordered)] for row, one in zip(rows, alike, strict=True)]
        figures.append(
            Figure(
                made.name, made.title, made.alt, made.spec, [*columns, *(f"at {r}" for r in ordered)], cells,
                _cautions(alike), [one.source.number for one in alike],
            )
        )  # fmt: skip
    return figures


def _row(one: Certified) -> list[str]:
    s, f = one.settings, one.figures
    settled = [str(s["sigma"]) or "–", str(s["mode"]), f"{s['n']:,}", f"{s['alpha']:g}", str(f["images"])]
    return [one.series, *settled, floored(f["acr"], 3), percent(f["abstain_rate"])]


def _at(one: Certified, radius: str) -> str:
    value = one.figures["certified_accuracy"].get(radius)
    return "–" if value is None else f"{percent(value)} ({between(one.figures['intervals'][radius])})"


def _cautions(alike: Sequence[Certified]) -> list[str]:
    """What keeps curves from being compared, and what stops early."""
    notes = []
    for key, word in (("n", "n"), ("alpha", "α"), ("mode", "procedures"), ("images", "numbers of images")):
        values = sorted({str(one.settings[key]) for one in alike})
        if len(values) > 1:
            notes.append(f"Not measured alike: the {word} are {', '.join(values)}. Compare these curves with care.")
    if any(one.settings["mode"] in STOPS for one in alike):
        notes.append(
            "A procedure that stops early decides only the radii of its table: between them the curve is a lower "
            "bound, and its average certified radius (ACR) is too."
        )
    return notes


# -- pA ----------------------------------------------------------------------------------------------------------------


def ecdf(subjects: Sequence[Subject]) -> list[Figure]:
    """The share of images whose lower bound on the top class's probability is at most p."""
    there = [one for subject in subjects for one in subject.certificates]
    if not there:
        return []
    values, rows = [], []
    for one in there:
        bounds = sorted(row.p_low for row in one.rows)
        for first, last, below in ecdf_points(bounds):
            point = {"series": one.series, "x": _down(first), "y": -_down(-below)}
            values.append({**point, "p": floored(last, 4), "share": percent(below)})
        table = [percent(bisect.bisect_right(bounds, p) / len(bounds)) for p in PROBABILITIES]
        rows.append([one.series, *table])
    names = [one.series for one in there]
    told = {"series": "generation", "p": "lower bound of pA", "share": "images at or below"}
    spec = lines(
        values, names, axis("x", "lower bound of pA", scale={"domain": [0, 1], "nice": False}),
        share("y", "share of images"), told, steps="step-after",
    )  # fmt: skip
    alt = "; ".join(f"{row[0]}: {row[1]} of images at most 0.5, {row[5]} at most 0.99" for row in rows)
    columns = ["generation", *(f"at most {p:g}" for p in PROBABILITIES)]
    sources = [one.source.number for one in there]
    title = "Distribution of the lower bound of pA"
    return [
        Figure(
            "pa", title, f"Share of images at or below a lower bound of pA. {alt}.", spec, columns, rows, (), sources
        )
    ]


def ecdf_points(bounds: Sequence[float]) -> list[tuple[float, float, float]]:
    """Steps of an empirical distribution: where each begins, where it ends, and the share at or below its end.

    Of more than `MOST` distinct bounds several make one step, which has all of its height where it begins: the curve
    shows too many images with a low bound rather than too few.

    Args:
        bounds: sorted.
    """
    distinct = [bound for bound, _ in groupby(bounds)]
    count = min(len(distinct), MOST)
    edges = [i * len(distinct) // count for i in range(count)]
    steps = [(distinct[a], distinct[b - 1]) for a, b in pairwise([*edges, len(distinct)])]
    return [(first, last, bisect.bisect_right(bounds, last) / len(bounds)) for first, last in steps]


def _down(value: float) -> float:
    """Rounded down to what a page holds."""
    return float(floored(value, DIGITS))


# -- training ----------------------------------------------------------------------------------------------------------


def training(subjects: Sequence[Subject]) -> list[Figure]:
    """The held-out score that epochs were selected by, and the loss."""
    figures = []
    for name, key, title in (
        ("training-score", "held_out", "Score on held-out images, by epoch"),
        ("training-loss", "loss", "Training loss, by epoch"),
    ):
        curves = {one.name: [e for e in one.record.get("epochs", []) if _is_number(e.get(key))] for one in subjects}
        curves = {label: epochs for label, epochs in curves.items() if epochs}
        if not curves:
            continue
        text = percent if key == "held_out" else "{:.4g}".format
        values = [
            {"series": label, "x": e["epoch"] + 1, "y": round(e[key], DIGITS), "told": text(e[key])}
            for label, epochs in curves.items()
            for e in epochs
        ]
        flat = len({value["y"] for value in values}) == 1  # an axis of one number would tell it rounded
        y = share("y", "score") if key == "held_out" else axis("y", "loss", scale={"zero": flat})
        last = max(value["x"] for value in values)
        whole = {"tickMinStep": 1, "format": "d", **({"values": [*range(1, last + 1)]} if last < FEW else {})}
        told = {"series": "generation", "x": "epoch", "told": "score" if key == "held_out" else "loss"}
        spec = lines(values, list(curves), axis("x", "epoch", axis=whole, scale={"nice": False}), y, told, height=240)
        chosen = {one.name: one.record.get("selected") or {} for one in subjects}
        rows = [
            [label, text(epochs[0][key]), text(epochs[-1][key]), str(len(epochs)), *_selected(chosen[label])]
            for label, epochs in curves.items()
        ]
        alt = "; ".join(f"{row[0]} from {row[1]} to {row[2]} in {row[3]} epochs" for row in rows) + "."
        sources = [s.number for one in subjects if one.name in curves for s in one.sources if "records/" in s.path]
        columns = ["generation", "first epoch", "last epoch", "epochs", "selected epoch", "by"]
        figures.append(Figure(name, title, alt, spec, columns, rows, (), sources))
    return figures


def _selected(selected: Mapping[str, Any]) -> list[str]:
    return [str(selected["epoch"] + 1), str(selected["metric"])] if selected else ["–", "–"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
