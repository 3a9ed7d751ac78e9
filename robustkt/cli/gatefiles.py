"""What gate writes for CI systems: a page in Markdown, and JUnit XML."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustkt.cli.gatetables import (
    CHECKS,
    POWERS,
    check_cells,
    class_failure,
    class_told,
    power_cells,
    power_told,
    verdict,
)

NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML 1.0 has none for
MARKS = re.compile(r"([\\`*_{}\[\]<>|~&#])")

Render = Callable[[Mapping[str, Any]], str]


def write(files: Mapping[Path | None, Render], result: Mapping[str, Any]) -> None:
    """Each file whole or not at all, and none where one cannot be written; None is not wanted."""
    from robustkt.registry.files import write_atomic, writing

    wanted = {path: render(result).encode() for path, render in files.items() if path is not None}
    for path in wanted:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK) or path.is_dir():
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    for path, data in wanted.items():
        write_atomic(path, data)


def markdown(result: Mapping[str, Any]) -> str:
    """The answer as a page."""
    sign = "✅" if result["passed"] else "❌"
    parts = [
        f"### {sign} {_marked(verdict(result))}",
        _table([h.format(**result) for h in CHECKS], [check_cells(row) for row in result["checks"]]),
        "Change, at worst (the loss that is not excluded) and margin in points.",
        _table(list(POWERS), [power_cells(row) for row in result["checks"]]),
        "Power: the probability that an equally good generation passes; drop seen: 80 % of the time; images for the "
        "margin: for a power of 80 %.",
        _marked(class_told(result)),
        "\n".join(f"- {_marked(class_failure(row))}" for row in result["classes"] if not row["passed"]),
        "\n".join(f"- {_marked(note)}" for note in result["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(map(_marked, headings)), ["---", *["---:"] * (len(headings) - 1)], *(map(_marked, r) for r in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _marked(text: str) -> str:
    """Text that stands for itself, whatever a class is called."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))


def junit(result: Mapping[str, Any]) -> str:
    """The answer as JUnit XML: a test case a check, and one for the classes of each accuracy."""
    from xml.etree import ElementTree as Tree

    cases: list[tuple[str, str, list[str]]] = []
    for row in result["checks"]:
        cells = dict(zip(("change", "at worst", "margin", "p"), check_cells(row)[3:7], strict=True))
        told = ", ".join(f"{name} {value}" for name, value in cells.items())
        cases.append((row["name"], power_told(row), [] if row["passed"] else [f"{row['status']}: {told}"]))
    for check in dict.fromkeys(row["check"] for row in result["classes"]):
        rows = [row for row in result["classes"] if row["check"] == check]
        cases.append((f"{check}, each class", class_told(result), [class_failure(r) for r in rows if not r["passed"]]))
    name = f"gate {result['generation']} against {result['against']}"
    failures = sum(bool(failed) for _, _, failed in cases)
    counts = {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "time": "0"}
    suites = Tree.Element("testsuites", {"name": "robustkt", **counts})
    suite = Tree.SubElement(suites, "testsuite", {"name": _clean(name), **counts, "skipped": "0"})
    for title, about, failed in cases:
        case = Tree.SubElement(suite, "testcase", {"classname": "robustkt.gate", "name": _clean(title), "time": "0"})
        if failed:
            failure = Tree.SubElement(case, "failure", {"message": _clean(failed[0]), "type": "inferior"})
            failure.text = _clean("\n".join([*failed, about]))
        else:
            Tree.SubElement(case, "system-out").text = _clean(about)
    Tree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Tree.tostring(suites, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    return NO_XML.sub("�", text)
