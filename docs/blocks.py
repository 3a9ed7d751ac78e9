"""The fenced blocks of a page, each with the remark above it: `file: NAME`, or `not run: WHY`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- (?P<remark>(?:file|not run): .*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: Path
    line: int  # of its first line of text
    language: str
    remark: str  # the comment directly above it, or nothing
    text: str

    @property
    def file(self) -> str | None:
        """The name that it is to be saved under."""
        return self.remark.removeprefix("file: ") if self.remark.startswith("file: ") else None

    @property
    def why_not(self) -> str | None:
        """Why nothing in it is run."""
        return self.remark.removeprefix("not run: ") if self.remark.startswith("not run: ") else None

    @property
    def commands(self) -> list[str]:
        """The lines that are commands, without remarks behind them."""
        lines = (re.split(r"(?:^|\s)#\s", line)[0].strip() for line in self.text.splitlines())
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, m.start("text")) + 1, m["language"], m["remark"] or "", m["text"])
        for m in FENCE.finditer(text)
    ]
