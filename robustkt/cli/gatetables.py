"""How the answers of compare and gate look to a person; 80 columns are enough."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustkt.cli.fitting import command, say
from robustkt.cli.sparklines import sparkline
from robustkt.cli.tables import Columns, percent
from robustkt.corruptions import SEVERITIES
from robustkt.errors import clip
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

CLASSES = 8  # told of one answer; --json has all
FIELDS = 40  # characters of a recipe's value; more where a terminal has them
CORRUPTION = re.compile(r" --corruption (\S+)")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p-value as people write them."""
    return "<.0001" if value < 0.0001 else f"{value:.4f}".lstrip("0") if value < 0.99995 else "1"


def compared(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of compare."""
    first, second = result["first"], result["second"]
    if result["recipe"]:
        room = max(FIELDS, (console.width - FIELDS) // 2 if console.is_terminal else 0)
        table = Columns("recipe", first, second, left=3)
        for field, (a, b) in result["recipe"].items():
            table.add_row(field, _value(a, room), _value(b, room))
        table.show(console)
    else:
        say(console, f"{first} and {second} have the same recipe")
    level = f"{100 * result['confidence']:g} %"
    for c in result["comparisons"]:
        _compared(console, c, first, second, level)
    if not result["comparisons"]:
        console.print()
        say(console, f"{first} and {second} have no measurement under equal settings")
    else:
        _summary(console, result)
    for note in result["notes"]:
        say(console, f"note: {note}")
    lacking(console, result["missing"])


def _compared(console: Console, c: Mapping[str, Any], first: str, second: str, level: str) -> None:
    console.print()
    say(console, c["what"])
    table = Columns("", first, second, "difference", level, "won", "lost", "p")
    for row in c["figures"]:
        low, high = row["interval"]
        table.add_row(
            row["name"], percent(row["first"]), percent(row["second"]), points(row["difference"]),
            f"{points(low)} … {points(high)}", f"{row['won']:,}", f"{row['lost']:,}", p_text(row["p_value"]),
        )  # fmt: skip
    if c["acr"]:
        acr = c["acr"]
        low, high = acr["interval"]
        told = [f"{acr[side]:.4f}" for side in ("first", "second")]
        table.add_row("ACR", *told, f"{acr['difference']:+.4f}", f"{low:+.4f} … {high:+.4f}", "", "", "")
    certified = [row for row in c["figures"] if row["name"].startswith("certified@")]
    if len(certified) > 1:
        curves = (sparkline([row[side] for row in certified], scale=(0, 1)) for side in ("first", "second"))
        table.add_row("curve", *curves, *[""] * 5)
    table.show(console)


def _summary(console: Console, result: Mapping[str, Any]) -> None:
    names = {side: result[side] for side in ("first", "second")}
    rows = [(c["what"], row) for c in result["comparisons"] for row in c["figures"]]
    console.print()
    say(
        console,
        f"Differences in points, {names['second']} − {names['first']}; won and lost: images on which "
        f"{names['second']} is better, and worse; p: McNemar's, for each figure alone.",
    )
    for side, name in names.items():
        found = [f"{row['name']} ({what.partition(',')[0]})" for what, row in rows if row["winner"] == side]
        if found:
            say(console, f"{name} is better: {'; '.join(found)}")
    if not any(row["winner"] for _, row in rows):
        alpha = f"{1 - result['confidence']:.4g}"
        say(console, f"no difference is shown: no p, Holm-adjusted over {counted(len(rows), 'figure')}, is ≤ {alpha}")
    classes = [row for c in result["comparisons"] for row in c["classes"] if row["winner"]]
    for row in sorted(classes, key=lambda row: row["p_adjusted"])[:CLASSES]:
        loses = "loses" if row["winner"] == "first" else "gains"
        say(
            console,
            f"class {row['class']} {loses} {row['figure']}: {points(row['difference'])} points of {row['images']} "
            f"images, won {row['won']}, lost {row['lost']}, Holm-adjusted p {p_text(row['p_adjusted'])}",
        )
    if len(classes) > CLASSES:
        say(console, f"and {counted(len(classes) - CLASSES, 'further class figure')}: --json has all")
    if not classes:
        say(console, "no class is shown to lose or gain (Holm-adjusted over all classes and figures)")


def lacking(console: Console, missing: list[dict[str, Any]]) -> None:
    """What only one side has, with the commands that mend it; many corruptions of one measurement are told as one."""
    if missing:
        console.print()
        say(console, "measured on one side only:")
    for one in _together(missing):
        say(console, f"{one['has']}: {one['what']}{_difference(one)}", "  ")
        command(console, one["command"], 4)


def _together(missing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; those of `evaluate` that differ in their corruption alone are one, whose command measures all."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in missing:
        key = one["command"] if " certify " in one["command"] else CORRUPTION.sub("", one["command"])
        groups.setdefault((key, one["has"], str(CORRUPTION.search(one["command"]) is None)), []).append(one)
    told = []
    for group in groups.values():
        first = group[0]
        if len(group) > 1:
            names = [found[1] for one in group if (found := CORRUPTION.search(one["command"]))]
            what = first["what"].replace(f" under {names[0]}", f" under {len(names)} corruptions")
            shifts = ",".join(_spelled(names))
            first = {**first, "what": what, "command": CORRUPTION.sub(f" --corruption {shifts}", first["command"])}
            first["differs"] = {} if any(not one["differs"] for one in group) else first["differs"]
        told.append(first)
    return told


def _spelled(names: list[str]) -> list[str]:
    """Corruptions as `--corruption` takes them, one whose severities are all there by its name alone."""
    severities: dict[str, set[str]] = {}
    for name, _, severity in (name.partition(":") for name in names):
        severities.setdefault(name, set()).add(severity)
    whole = set(map(str, SEVERITIES))
    return [n for name, s in severities.items() for n in ([name] if s == whole else [f"{name}:{x}" for x in sorted(s)])]


def _difference(one: Mapping[str, Any]) -> str:
    if not one["differs"]:
        return f"; {one['lacks']} has none"
    told = [f"{key} {clip(_spoken(there), 30)}" for key, (_, there) in one["differs"].items() if there is not None]
    return f"; {one['lacks']} has it with {', '.join(told)}" if told else f"; {one['lacks']} has it otherwise"


def _value(value: Any, room: int) -> str:
    return "–" if value is None else clip(_spoken(value), room)


def _spoken(value: Any) -> str:
    """A value of JSON as a person would write it."""
    if isinstance(value, list):
        return ", ".join(map(_spoken, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# -- gate --------------------------------------------------------------------------------------------------------

CHECKS = ("check", "{generation}", "{against}", "change", "at worst", "margin", "p", "verdict")
POWERS = ("check", "images", "won", "lost", "power", "drop seen", "images for the margin")


def check_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A check's row under the headings of CHECKS."""
    return (
        row["name"], percent(row["value"]), percent(row["against"]), points(row["difference"]), points(row["bound"]),
        f"{100 * row['margin']:.4g}", p_text(row["p_value"]), row["status"],
    )  # fmt: skip


def power_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A check's row under the headings of POWERS."""
    return (
        row["name"], f"{row['images']:,}", f"{row['won']:,}", f"{row['lost']:,}", f"{row['power']:.0%}",
        f"{100 * row['resolution']:.1f}", f"{rounded(row['images_needed']):,}",
    )  # fmt: skip


def rounded(number: int) -> int:
    """A number of images to two digits, upwards: it rests on an observed share."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit


def power_told(row: Mapping[str, Any]) -> str:
    """What a check's images can tell, in a sentence."""
    margin = f"{100 * row['margin']:.4g}"
    return (
        f"{row['name']}: with {row['images']:,} images a drop of {100 * row['resolution']:.1f} points would be seen "
        f"80 % of the time, and an equally good one passes {row['power']:.0%}; use ≥ {rounded(row['images_needed']):,} "
        f"for {margin} {'point' if margin == '1' else 'points'}"
    )


def class_told(result: Mapping[str, Any]) -> str:
    """What the checks of classes can tell, in a sentence."""
    if not result["classes"]:
        return "classes are not checked"
    failed = sum(not row["passed"] for row in result["classes"])
    found = f"{failed} of {len(result['classes'])}" if failed else f"none of {len(result['classes'])}"
    return (
        f"class figures: {found} shown to have lost more than {100 * result['class_margin']:.4g} points; with "
        f"{result['class_images']:,} images a class's loss of {100 * result['class_resolution']:.0f} would "
        "be seen 80 % of the time"
    )


def class_failure(row: Mapping[str, Any]) -> str:
    """A class that has lost too much."""
    return (
        f"class {row['class']} has lost {row['check']}: {points(row['difference'])} points of {row['images']:,} images "
        f"(won {row['won']:,}, lost {row['lost']:,}), Holm-adjusted p {p_text(row['p_adjusted'])}"
    )


def verdict(result: Mapping[str, Any]) -> str:
    """Passed or failed, and by what."""
    pair = f"{result['generation']} against {result['against']}"
    level = f"{100 * result['confidence']:g} %"
    if result["passed"]:
        shown = "shown to have lost less" if result["fail_on"] != "shown" else "not shown to have lost more"
        return f"passed: {pair}, each figure {shown} than its margin, at {level} confidence"
    parts = []
    for status in ("worse", "not excluded"):
        names = [row["name"] for row in result["checks"] if not row["passed"] and row["status"] == status]
        said = "shown" if status == "worse" else "not excluded"
        parts += [f"a loss beyond the margin is {said} in {', '.join(names)}"] if names else []
    classes = dict.fromkeys(str(row["class"]) for row in result["classes"] if not row["passed"])
    parts += [f"too much is lost by the classes {clip(', '.join(classes), 200)}"] if classes else []
    return f"failed: {pair}, at {level} confidence: {'; '.join(parts)}"


def gated(console: Console, result: Mapping[str, Any]) -> None:
    """The answer of gate."""
    table = Columns(*(heading.format(**result) for heading in CHECKS))
    for row in result["checks"]:
        table.add_row(*check_cells(row))
    table.show(console)
    powers = Columns(*POWERS)
    for row in result["checks"]:
        powers.add_row(*power_cells(row))
    console.print()
    powers.show(console)
    say(
        console,
        "change, at worst (what is not excluded), margin: in points. power: the probability that an equally good "
        "one passes; drop seen: 80 % of the time; images for the margin: for 80 % power.",
    )
    for row in result["checks"]:
        if not row["passed"] and row["status"] != "worse":
            say(console, power_told(row))
    say(console, class_told(result))
    for row in _failed(result)[:CLASSES]:
        say(console, class_failure(row), "  ")
    for note in result["notes"]:
        say(console, f"note: {note}")
    say(console, verdict(result))


def _failed(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted((row for row in result["classes"] if not row["passed"]), key=lambda row: row["p_adjusted"])
