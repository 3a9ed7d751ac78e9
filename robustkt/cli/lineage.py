"""lineage: ancestors and descendants as a tree, a graph for other tools, or figures over the generations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import options as o
from robustkt.cli.fitting import say
from robustkt.cli.inventory import CURVE, attacked, certified, curve
from robustkt.cli.output import Output, guarded
from robustkt.cli.tables import Columns, duration, percent
from robustkt.errors import UsageError
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree


MOST, REACH = 200, 10  # rows of a tree, and transfers from the one that was asked for, where there are more


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(guarded(lineage, keeps=False))


def lineage(
    generation: Annotated[
        str | None, typer.Argument(metavar="[GEN]", autocompletion=o._generations, help="Only its family.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="tree, dot, mermaid or json.")] = "tree",
    metrics: Annotated[bool, typer.Option("--metrics", help="Figures over the generations instead.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Draw robustness over generations: a .png, .svg or .pdf.")
    ] = None,
    registry: o.ReadWhere = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Ancestors and descendants as a tree.

    Examples: `robustkt lineage gen2`, `robustkt lineage --metrics --out decay.png`, `robustkt lineage --format mermaid`
    """
    from robustkt import api

    if form not in FORMATS:
        raise UsageError(f"there is no format '{form}'", f"There are {', '.join(FORMATS)}.")
    result = api.lineage(generation, out=out, registry=o.readable(registry))
    output = Output(as_json=as_json or form == "json", verbose=verbose)
    output.answer(result, _metrics if metrics else FORMATS[form])


def _tree(console: Console, result: Mapping[str, Any]) -> None:
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.text import Text
    from rich.tree import Tree

    trees: list[Tree] = []

    def label(row: Mapping[str, Any]) -> str:
        name = f"[bold]{row['generation']}[/bold]" + (" ←" if row["generation"] == result["focus"] else "")
        if row["again"]:
            return f"{name}  [dim]as above[/dim]"
        figures, made = _figures(row), f"{name}  {escape(_made(row))}, {duration(row['seconds'])}"
        if figures and row["certified"]:
            figures[0] += f" {curve(row['certified'])}"
        room = console.width - 4 * (row["depth"] - top)
        if cell_len(Text.from_markup(made).plain + ", ".join(figures)) + 2 > room:  # then what was measured is below
            return "\n".join([made, *(f"  [dim]{told}[/dim]" for told in figures)])
        return made + (f"  [dim]{', '.join(figures)}[/dim]" if figures else "")

    rows = _near(result)
    top = min(row["depth"] for row in rows)
    path: list[Tree] = []  # the node at each depth above the present row
    for row in rows:
        del path[row["depth"] - top :]
        if not path and row["depth"] == top:
            tree = Tree(label(row))
            trees.append(tree)
        else:
            tree = path[-1].add(label(row))
        path.append(tree)
    for tree in trees:
        console.print(tree)
    if len(rows) < len(result["generations"]):
        say(console, f"{len(result['generations']) - len(rows):,} more; `robustkt lineage GEN` shows those near one")
    _drawn(console, result)


def _near(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All rows, or of many those a few transfers from the one that was asked for, else from the first teachers."""
    rows: list[Mapping[str, Any]] = result["generations"]
    if len(rows) <= MOST:
        return rows
    depth = next((row["depth"] for row in rows if row["generation"] == result["focus"]), 0)
    return [row for row in rows if abs(row["depth"] - depth) <= REACH][:MOST]


def _metrics(console: Console, result: Mapping[str, Any]) -> None:
    table = Columns("name", "certified", "kept", "ACR", "attacked", "kept", "fools", "passes", "curve", wide=("curve",))
    for row in result["generations"]:
        if not row["again"]:
            at = certified(row).partition("@")[2]
            kept, robust = row["retained"], row["robust"]
            table.add_row(
                "  " * row["depth"] + row["generation"],
                certified(row), percent(kept.get(f"certified@{at}")),
                f"{row['certified']['acr']:.3f}" if row["certified"] else "–",
                f"{percent(robust['robust_accuracy'])} @{robust['eps']}" if robust else "–",
                percent(kept.get("robust")), percent(row["transfer"]), _passes(row["cost"]),
                curve(row["certified"]) or "–",
            )  # fmt: skip
    shown = table.show(console)
    say(
        console,
        "kept: the share of the teacher's figure, where both were measured alike; fools: of the adversarial "
        "examples that fool the student, those that fool its teacher too; passes: images forwards and backwards in "
        "training.",
    )
    if "curve" in shown:
        say(console, CURVE)
    _drawn(console, result)


def _drawn(console: Console, result: Mapping[str, Any]) -> None:
    if result["file"]:
        say(console, f"picture: {result['file']}")


def _made(row: Mapping[str, Any]) -> str:
    """`cotraining resnet20, 2 modes`."""
    modes = f", {counted(len(row['modes']), 'mode')}" if row["modes"] else ""
    return f"{row['method']} {row['arch']}{modes}"


def _figures(row: Mapping[str, Any]) -> list[str]:
    told = [f"certified {certified(row)}" if row["certified"] else "", attacked(row["robust"]) if row["robust"] else ""]
    return [text for text in told if text]


def _passes(cost: Mapping[str, int] | None) -> str:
    total = sum((cost or {}).values())
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if total >= size:
            return f"{total / size:.3g} {unit}"
    return str(total) if cost else "–"


def _dot(console: Console, result: Mapping[str, Any]) -> None:
    lines = ["digraph lineage {", '  node [shape=box, fontname="sans-serif"];']
    lines += [f"  n{i} [label={_quoted(text)}];" for i, text in _nodes(result)]
    lines += [f"  n{parent} -> n{child} [label={_quoted(role)}];" for parent, child, role in _edges(result)]
    _plain(console, [*lines, "}"])


def _mermaid(console: Console, result: Mapping[str, Any]) -> None:
    lines = ["graph TD"]
    lines += [f'  n{i}["{_entities(text)}"]' for i, text in _nodes(result)]
    lines += [f'  n{parent} -- "{_entities(role)}" --> n{child}' for parent, child, role in _edges(result)]
    _plain(console, lines)


FORMATS = {"tree": _tree, "dot": _dot, "mermaid": _mermaid, "json": _tree}


def _plain(console: Console, lines: list[str]) -> None:
    console.print("\n".join(lines), markup=False, soft_wrap=True, emoji=False)


def _unique(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in result["generations"] if not row["again"]]


def _nodes(result: Mapping[str, Any]) -> list[tuple[int, str]]:
    texts = [[row["generation"], _made(row), *_figures(row)] for row in _unique(result)]
    return [(i, "\n".join(text)) for i, text in enumerate(texts)]


def _edges(result: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    number = {row["id"]: i for i, row in enumerate(_unique(result))}
    return [
        (number[parent], number[row["id"]], role)
        for row in _unique(result)
        for role, parent in sorted(row["parents"].items())
        if parent in number
    ]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _entities(text: str) -> str:
    table = {"&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;", "\n": "<br/>"}
    return "".join(table.get(letter, letter) for letter in text)
