"""How figures from certification logs look: tables for people, Markdown and LaTeX for papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustkt.cli.fitting import say
from robustkt.cli.tables import Columns, percent, shift

if TYPE_CHECKING:
    from rich.console import Console

WITH_INTERVALS = 3  # logs side by side whose intervals fit into 80 columns
SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
GROWS = "average certified radius; grows with n"


def analyzed(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of analyze."""
    if len(result["logs"]) == 1:
        _one(console, result["logs"][0], 1 - result["rho"])
    else:
        _several(console, result)


def _one(console: Console, log: Mapping[str, Any], confidence: float) -> None:
    say(console, f"{log['file']}  {_made(log)}, {log['images']:,} images")
    bounded = log["alpha"] is not None
    last = [f"{confidence:.4g} bound".replace("0.", ".")] if bounded else []
    table = Columns("L2 radius", "certified accuracy", "95 % interval", *last, left=0)
    for radius, value in log["certified_accuracy"].items():
        bound = [percent(log["lower_bounds"][radius])] if bounded else []
        table.add_row(radius, percent(value), _interval(log, radius), *bound)
    table.show(console)
    say(console, f"abstained  {percent(log['abstain_rate'])}")
    say(console, f"ACR        {log['acr']:.4f}  ({GROWS})")
    if bounded:
        say(console, f"bound      on the true certified accuracy, right with probability {confidence:.6g}")
    if log["ecdf"] is not None:
        _ecdf(console, [("images", log)])


def _several(console: Console, result: Mapping[str, Any]) -> None:
    logs = result["logs"]
    letters = [_letter(i) for i in range(len(logs))]
    for letter, log in zip(letters, logs, strict=True):
        say(console, f"{letter}  {log['file']}  {_made(log)}, {log['images']:,} images")
    if result["differ"]:
        names = " and ".join(result["differ"])
        say(console, f"mixed: these logs differ in {names}, so that their radii and ACR do not compare")
    table = Columns("L2 radius", *letters)
    for radius in logs[0]["certified_accuracy"]:
        cells = [percent(log["certified_accuracy"][radius]) for log in logs]
        if len(logs) <= WITH_INTERVALS:
            cells = [f"{c} ({_interval(log, radius)})" for c, log in zip(cells, logs, strict=True)]
        table.add_row(radius, *cells)
    table.add_row("abstained", *(percent(log["abstain_rate"]) for log in logs))
    table.add_row("ACR", *(f"{log['acr']:.4f}" for log in logs))
    if result["differ"] or any(log["n"] is None for log in logs):
        table.add_row("at n", *(_number(log["n"]) for log in logs))
    table.show(console)
    say(console, f"95 % intervals in brackets. ACR: {GROWS}." if len(logs) <= WITH_INTERVALS else f"ACR: {GROWS}.")
    known = [(letter, log) for letter, log in zip(letters, logs, strict=True) if log["ecdf"] is not None]
    if known:
        _ecdf(console, known)


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _ecdf(console: Console, logs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    table = Columns("pA at most", *logs[0][1]["ecdf"])
    for name, log in logs:
        table.add_row(name, *(percent(share) for share in log["ecdf"].values()))
    console.print()
    table.show(console)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def _made(log: Mapping[str, Any]) -> str:
    mode = "" if log["mode"] in (None, "fixed") else f", {log['mode']}"
    return f"σ = {_number(log['sigma'])}, n = {_number(log['n'])}, α = {_number(log['alpha'])}{mode}"


def _interval(log: Mapping[str, Any], radius: str) -> str:
    low, high = log["intervals"][radius]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _cells(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a paper's table: a log a row with its n, α and σ, certified accuracy in %."""
    radii = list(result["logs"][0]["certified_accuracy"])
    headings = ["log", "σ", "n", "α", "images", *radii, "ACR", "abstained"]
    rows = [
        [
            log["file"], _number(log["sigma"]), _number(log["n"]), _number(log["alpha"]), f"{log['images']:,}",
            *(f"{100 * log['certified_accuracy'][r]:.1f}" for r in radii),
            f"{log['acr']:.3f}", f"{100 * log['abstain_rate']:.1f}",
        ]
        for log in result["logs"]
    ]  # fmt: skip
    return headings, rows


def _caption(result: Mapping[str, Any]) -> str:
    mixed = f" These logs differ in {' and '.join(result['differ'])}." if result["differ"] else ""
    return f"Certified accuracy in % at L2 radii, and abstentions in %. ACR grows with n.{mixed}"


def _markdown(console: Console, result: Mapping[str, Any]) -> None:
    headings, rows = _cells(result)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *([c.replace("|", "\\|") for c in r] for r in rows)]
    console.file.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{_caption(result)}\n")


def _latex(console: Console, result: Mapping[str, Any]) -> None:
    headings, rows = _cells(result)
    headings = [{"σ": r"$\sigma$", "α": r"$\alpha$"}.get(h, h) for h in headings]
    body = "".join(f"{' & '.join(map(_escaped, row))} \\\\\n" for row in rows)
    caption = _escaped(_caption(result)).replace("α", r"$\alpha$").replace("σ", r"$\sigma$")
    console.file.write(
        f"% {caption}\n\\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}\n\\toprule\n"
        f"{' & '.join(headings)} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def _escaped(text: str) -> str:
    return "".join(SIGNS.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


WRITTEN: dict[str, Callable[[Console, Mapping[str, Any]], None]] = {"markdown": _markdown, "latex": _latex}


def audited(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of audit for a log."""
    say(console, f"{result['file']}  {_made(result)}, {result['images']:,} images, radii: {result['printed']}")
    if result["candidates"]:
        table = Columns("n", "α", "odds", "unexplained", "at largest radius", "rounding", left=0)
        for c in result["candidates"]:
            odds = "best" if c is result["candidates"][0] else f"{c['odds']:.1g}"
            table.add_row(f"{c['n']:,}", f"{c['alpha']:g}", odds, f"{c['misfits']:,}", f"{c['pile']:,}", c["rounding"])
        table.show(console)
    for note in result["notes"]:
        say(console, f"note: {note}")
    for problem in result["problems"]:
        count, shown = problem["count"], problem["rows"]
        say(console, f"{problem['kind']}: {problem['text']}")
        if count:
            more = f" … ({count:,} in all)" if count > len(shown) else ""
            say(console, f"  images {', '.join(map(str, shown))}{more}")
    found = len(result["problems"])
    say(console, "nothing is wrong with it" if not found else f"{found} kind{'s' * (found > 1)} of problem found")


def audited_generation(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of audit for a generation."""
    for one in result["audits"]:
        noise = "" if one["noise"] == "gaussian" else f"{one['noise']} noise, "
        sigma = f"σ = {one['sigma']}, " if one["sigma"] else ""
        say(
            console,
            f"{result['generation']}  {noise}{sigma}{one['norm']}, {one['mode']}, n {one['n']:,}{shift(one)}: "
            f"{one['images']:,} certified images, {one['copies']:,} fresh copies each, {len(one['refuted'])} refuted",
        )
        for problem in one["problems"]:
            say(console, f"  {problem}")
    found = len(result["problems"])
    end = f"{found} problem{'s' * (found > 1)} found" if found else "nothing speaks against these certificates"
    say(console, f"{end}; sound ones are reported with probability at most {result['error']:g}, seed {result['seed']}")
