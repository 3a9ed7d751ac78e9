"""Markdown that both GitHub and Sphinx read alike."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; bars inside cells are escaped."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def flat(text: str | None) -> str:
    """A text on one line."""
    return " ".join((text or "").split())


def docstring(text: str) -> str:
    """A docstring whose sections Args, Returns and Raises become lists."""
    parts = re.split(r"^(Args|Returns|Yields|Raises):\n", text, flags=re.MULTILINE)
    pieces = [parts[0].strip()]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries = re.split(r"\n(?=    \S)", body.rstrip())
        if title in ("Returns", "Yields"):
            pieces.append(f"**{title}** {flat(body)}")
            continue
        named = [re.match(r"\s*([\w*, ]+): (.*)", flat(entry)) for entry in entries]
        told = [
            f"- `{found[1]}`: {found[2]}" if found else f"- {flat(e)}" for found, e in zip(named, entries, strict=True)
        ]
        pieces.append("\n".join([f"**{title}**", "", *told]))
    return "\n\n".join(pieces)
