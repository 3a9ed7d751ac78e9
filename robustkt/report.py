"""Pictures of certificates for people and model cards."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustkt.certlog import Row
from robustkt.numbers import number

if TYPE_CHECKING:
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure

PANELS = 3  # radii shown side by side
NEAR = 0.04  # points as near as that share a label

# Okabe and Ito's palette: told apart with every common colour blindness, and by dashes in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


def decay(rows: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Robustness from teacher to student as a PNG, SVG or PDF: a panel a figure, a line from each parent to its child.

    `rows` are those of `api.lineage`, each generation once.
    """
    at = {row["id"]: row for row in rows}
    largest = [row["certified"] for row in rows if row["certified"]]
    radii = list(dict.fromkeys(r for told in largest for r, v in told["certified_accuracy"].items() if v > 0))
    panels = [f"certified@{r}" for r in sorted(radii, key=number)[:PANELS]] + ["robust"]
    figure, canvas = _figure(3.2 * len(panels), 3.4)
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1)
        drawn = [(row, y) for row in rows if (y := _value(row, panel)) is not None]
        for row, y in drawn:
            if panel in row["retained"]:  # measured alike
                teacher = at[row["parents"]["teacher"]]
                before = _value(teacher, panel) or 0.0
                axes.plot([teacher["depth"], row["depth"]], [before, y], color=COLOURS[k], alpha=0.6)
            axes.plot(row["depth"], y, "o", color=COLOURS[k])
        for (depth, y), names in _labels([(row["depth"], y, row["generation"]) for row, y in drawn]):
            axes.annotate(", ".join(names), (depth, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        kind, _, radius = panel.partition("@")
        axes.set(
            title=f"{kind} accuracy" + (f" at r = {radius}" if radius else ""),
            xlabel="transfers from the first teacher",
            ylim=(0, 1.02),
        )
        axes.set_xticks(range(max(row["depth"] for row in rows) + 1))
        axes.margins(x=0.2)
        axes.grid(alpha=0.25)
    return _bytes(canvas, form)


def tradeoff(points: Sequence[Mapping[str, Any]], title: str, form: str) -> bytes:
    """Clean and robust accuracy over β with their 95 % intervals, as a PNG, SVG or PDF; points as of `soup_sweep`."""
    figure, canvas = _figure(5.2, 3.6)
    axes = figure.add_subplot()
    betas = [point["beta"] for point in points]
    for k, kind in enumerate(("clean", "robust")):
        low, high = zip(*(point[f"{kind}_interval"] for point in points), strict=True)
        axes.plot(betas, [point[f"{kind}_accuracy"] for point in points], "o-", ms=3, color=COLOURS[k], label=kind)
        axes.fill_between(betas, low, high, color=COLOURS[k], alpha=0.18, linewidth=0)
    axes.set(title=title, xlabel="β, weight of the robust adapter", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower left")
    axes.grid(alpha=0.25)
    return _bytes(canvas, form)


def _value(row: Mapping[str, Any], panel: str) -> float | None:
    radius = panel.partition("@")[2]
    if radius:
        told = row["certified"]
        return told["certified_accuracy"].get(radius) if told else None
    return row["robust"]["robust_accuracy"] if row["robust"] else None


def _labels(points: Sequence[tuple[int, float, str]]) -> Iterator[tuple[tuple[int, float], list[str]]]:
    """Names of points that would lie on one another, together."""
    ordered = sorted(points)
    while ordered:
        depth, y, _ = ordered[0]
        near = [point for point in ordered if point[0] == depth and point[1] - y < NEAR]
        ordered = [point for point in ordered if point not in near]
        yield (depth, max(point[1] for point in near)), [name for *_, name in near]


def certified_curves(logs: Mapping[str, Sequence[Row]], *, title: str, note: str) -> bytes:
    """A PNG of certified accuracy against L2 radius, one curve a log, from all its rows."""
    figure, canvas = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, (name, rows) in enumerate(logs.items()):
        radii = sorted(row.radius for row in rows if row.correct)
        count = len(radii)
        left = [(count - k) / len(rows) for k in range(count)]
        axes.step(
            [0.0, *radii, radii[-1] if radii else 0.0],
            [count / len(rows), *left, 0.0],
            where="pre",
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            linewidth=1.8,
            label=name,
        )
    axes.set(xlabel="L2 radius (images in [0, 1])", ylabel="certified accuracy", ylim=(0, 1.02))
    axes.set_title(title, pad=16)
    axes.text(0.5, 1.015, note, transform=axes.transAxes, ha="center", va="bottom", fontsize=7, color="#555555")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return _bytes(canvas, "png")


def _figure(width: float, height: float) -> tuple[Figure, FigureCanvasBase]:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _bytes(canvas: FigureCanvasBase, form: str) -> bytes:
    """The same figure gives the same bytes: no dates, no versions, no random names."""
    from matplotlib import rc_context

    data = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "robustkt"}):
        canvas.figure.savefig(data, format=form, metadata=nothing[form])
    return data.getvalue()
