"""Pictures of certificates for people and model cards."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from robustkt.certlog import Row

# Okabe and Ito's palette: told apart with every common colour blindness, and by dashes in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")


def certified_curves(logs: Mapping[str, Sequence[Row]], *, title: str, note: str) -> bytes:
    """A PNG of certified accuracy against L2 radius, one curve a log, from all its rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
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
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
