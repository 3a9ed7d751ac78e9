"""Who learnt from whom, and what was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustkt.numbers import number
from robustkt.report.figure import Figure, Spec, axis, percent, series, share, tips

ROW, STEP = 40, 26  # pixels between generations, and between a parent and its child
PANELS = 3  # radii shown at once
MOST = 60  # generations of a graph


def graph(rows: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> Figure:
    """Every generation under its parents, as a tree with the lines that a tree cannot have.

    Args:
        rows: of `api.lineage`, parents before children.
        chosen: ids of those that the page is about.
    """
    kept = [row for row in rows if not row.get("again")][:MOST]
    place = {row["id"]: (row["depth"], k) for k, row in enumerate(kept)}
    nodes = [
        {
            "x": row["depth"], "y": k, "name": row["generation"], "made": f"{row['method']} · {row['arch']}",
            "what": _what(row), "figures": _figures(row), "chosen": "yes" if row["id"] in chosen else "no",
        }
        for k, row in enumerate(kept)
    ]  # fmt: skip
    edges = []
    for row in kept:
        for role, parent in sorted(row["parents"].items()):
            if parent in place:
                (x0, y0), (x1, y1) = place[parent], place[row["id"]]
                corner = [(x0, y0), (x0, y1), (x1, y1)]
                edges += [
                    {"edge": f"{parent}{row['id']}{role}", "order": i, "x": x, "y": y}
                    for i, (x, y) in enumerate(corner)
                ]
    depth = max(row["depth"] for row in kept)
    x = {
        "field": "x",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, max(1, depth)], "range": [9, 9 + STEP * max(1, depth)], "nice": False},
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [len(kept) - 0.3, -0.7], "nice": False},
    }
    told = tips(name="generation", made="made by", what="trained for", figures="measured")
    chosen_or_not = {"field": "chosen", "type": "nominal", "legend": None, "scale": {"domain": ["yes", "no"]}}
    text = {"type": "text", "align": "left", "baseline": "middle", "dx": 12, "limit": 330}
    spec: Spec = {
        "height": ROW * len(kept),
        "layer": [
            {"data": {"values": edges}, "mark": {"type": "line", "strokeWidth": 1.5, "color": "#8a8d96"},
             "encoding": {"x": x, "y": y, "detail": {"field": "edge"}, "order": axis("order", "")}},
            {"data": {"values": nodes}, "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
             "encoding": {"x": x, "y": y, "tooltip": told, "color": chosen_or_not, "shape": chosen_or_not}},
            {"data": {"values": nodes}, "mark": {**text, "dy": -7, "fontWeight": 600, "fontSize": 12},
             "encoding": {"x": x, "y": y, "text": {"field": "name"}, "tooltip": told}},
            {"data": {"values": nodes}, "mark": {**text, "dy": 8, "opacity": 0.85, "fontSize": 10.5},
             "encoding": {"x": x, "y": y, "text": {"field": "made"}, "tooltip": told}},
        ],
    }  # fmt: skip
    by_id = {row["id"]: row["generation"] for row in kept}
    above = [", ".join(f"{role} {by_id.get(i, i[7:19])}" for role, i in sorted(row["parents"].items())) for row in kept]
    table = [
        [node["name"], node["made"], parents or "–", node["what"], node["figures"]]
        for parents, node in zip(above, nodes, strict=True)
    ]
    alt = "; ".join(f"{row[0]} from {row[2]}" if row[2] != "–" else f"{row[0]} from nothing" for row in table) + "."
    columns = ["generation", "made by", "parents", "trained for", "measured"]
    more = sum(not row.get("again") for row in rows) - len(kept)
    notes = [f"{more} more are left out."] if more else []
    return Figure("lineage", "Who learnt from whom", alt, spec, columns, table, notes)


def _what(row: Mapping[str, Any]) -> str:
    return str(row["guarantee"] or "clean accuracy")


def _figures(row: Mapping[str, Any]) -> str:
    told = []
    if row["certified"]:
        table = sorted(row["certified"]["certified_accuracy"].items(), key=lambda item: number(item[0]))
        radius, value = table[min(1, len(table) - 1)] if table else ("", None)
        told += [f"certified {percent(value)} at {radius}"] if table else []
    if row["robust"]:
        robust = row["robust"]
        told.append(f"{percent(robust['robust_accuracy'])} under {robust['attack']}, {robust['norm']} {robust['eps']}")
    return "; ".join(told) or "nothing"


def decay(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Robustness over a lineage: a line from each teacher to each student that was measured alike.

    `rows` are those of `api.lineage`, each generation once.
    """
    largest = [row["certified"] for row in rows if row["certified"]]
    radii = list(dict.fromkeys(r for told in largest for r, v in told["certified_accuracy"].items() if v > 0))
    panels = [f"certified@{r}" for r in sorted(radii, key=number)[:PANELS]] + ["robust"]
    titles = {panel: panel.replace("certified@", "certified at ").replace("robust", "under attack") for panel in panels}
    order = [row["generation"] for row in sorted(rows, key=lambda row: row["depth"])]
    at = {row["id"]: row for row in rows}
    values: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for panel in panels:
        for row in rows:
            value = _value(row, panel)
            if value is None:
                continue
            kept = row["retained"].get(panel)
            told = {"share": percent(value), "kept": percent(kept) if kept is not None else "–"}
            values.append({"series": titles[panel], "name": row["generation"], "y": round(value, 6), **told})
            teacher = at.get(row["parents"].get("teacher", ""))
            before = _value(teacher, panel) if teacher and kept is not None else None
            if teacher and before is not None:
                edge = {"series": titles[panel], "edge": f"{panel} {row['id']}"}
                edges += [
                    {**edge, "name": teacher["generation"], "y": before},
                    {**edge, "name": row["generation"], "y": value},
                ]
    names = [titles[panel] for panel in panels if any(v["series"] == titles[panel] for v in values)]
    names_axis = {"labelAngle": -30, "labelOverlap": False}
    scale = {"type": "point", "padding": 0.5}
    x = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": names_axis, "scale": scale}
    hover = tips(name="generation", series="accuracy", share="share", kept="of the teacher's")
    y = share("y", "accuracy")
    spec: Spec = {
        "height": 300,
        "layer": [
            {"data": {"values": edges}, "mark": {"type": "line", "opacity": 0.7},
             "encoding": {"x": x, "y": y, "detail": {"field": "edge"}, **series(names, "color")}},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
             "encoding": {"x": x, "y": y, **series(names, "color"), **series(names, "shape"),
                          "tooltip": hover}},
        ],
    }  # fmt: skip
    table = [[v["name"], v["series"], v["share"], v["kept"]] for v in values]
    kept_most = "; ".join(
        f"{v['name']} keeps {v['kept']} of its teacher's accuracy {v['series']}" for v in values if v["kept"] != "–"
    )
    alt = kept_most + "." if kept_most else "No student was measured as its teacher was."
    return Figure(
        "retained",
        "What students kept of their teachers",
        alt,
        spec,
        ["generation", "accuracy", "share", "of the teacher's"],
        table,
    )


def _value(row: Mapping[str, Any], panel: str) -> float | None:
    radius = panel.partition("@")[2]
    if radius:
        told = row["certified"]
        return told["certified_accuracy"].get(radius) if told else None
    return row["robust"]["robust_accuracy"] if row["robust"] else None
