"""How figures look: a palette that every common colour blindness tells apart, dashes, and inks for light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Okabe and Ito, Color Universal Design (2008); on dark ground those of them that are bright enough, the rest lightened.
LIGHT: Mapping[str, str] = {
    "ink": "#1b1c1f", "faint": "#4a4d55", "grid": "#dfe1e6",
    "c1": "#0072B2", "c2": "#D55E00", "c3": "#009E73", "c4": "#CC79A7", "c5": "#56B4E9",
    "c6": "#E69F00", "c7": "#000000",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "ink": "#e8e8ea", "faint": "#b9bbc2", "grid": "#3a3d45",
    "c1": "#56B4E9", "c2": "#E69F00", "c3": "#2CC5A0", "c4": "#E8A0C8", "c5": "#9DB4FF",
    "c6": "#F0E442", "c7": "#FFFFFF",
}  # fmt: skip
PAGE = {name: f"var(--{name})" for name in LIGHT}  # the page's style sheet has both, so that charts follow it
DASHES = ([1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 2], [1, 3], [12, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
SANS = "Liberation Sans, Helvetica Neue, Helvetica, Arial, sans-serif"  # the first one comes with the renderer


def config(inks: Mapping[str, str] = LIGHT, *, background: str | None = "#ffffff", font: str = SANS) -> dict[str, Any]:
    """The configuration of Vega-Lite that all figures share."""
    ink, faint = inks["ink"], inks["faint"]
    return {
        "background": background,
        "font": font,
        "title": {"color": ink, "fontSize": 13, "anchor": "start", "fontWeight": 600},
        "axis": {
            "labelColor": faint, "titleColor": ink, "gridColor": inks["grid"], "domainColor": faint, "tickColor": faint,
            "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500, "labelLimit": 140, "titlePadding": 8,
        },
        "legend": {
            "labelColor": ink, "titleColor": faint, "orient": "top", "symbolSize": 120, "symbolStrokeWidth": 2,
            "labelFontSize": 11, "titleFontSize": 11, "labelLimit": 230, "columns": 2, "title": None,
        },
        "range": {"category": [inks[name] for name in inks if name[0] == "c"], "symbol": list(SHAPES)},
        "line": {"strokeWidth": 2},
        "text": {"color": ink, "fontSize": 11},
        "rule": {"color": faint},
        "view": {"stroke": None},
    }  # fmt: skip
