"""What fits a terminal: sentences broken between words, columns by how much room there is."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

HANG = 2  # columns by which the further lines of a sentence are indented
LEAST = 8  # columns that a text is cut to at most
PIECE = re.compile(r"[^\s_/.:-]*[\s_/.:-]*")  # where a heading may be broken: behind a hyphen, between words


def say(console: Console, text: str, head: str = "", style: str = "") -> None:
    """Print a sentence in `style`, after `head` in bold.

    In a pipe it is one line, on a terminal as many as it takes, broken at spaces. What has no space and is longer than
    a line, as a path is, stays whole, so that it can be copied.
    """
    from rich.text import Text

    lines = broken(text, console.width, head) if console.is_terminal else [head + text]
    for i, line in enumerate(lines):
        shown = Text(line, style)
        if i == 0:
            shown.stylize("bold", 0, len(head))
        console.print(shown, soft_wrap=True)


def broken(text: str, width: int, head: str = "") -> list[str]:
    """`text` as lines of at most `width` columns behind and below `head`; a longer word has a line of its own."""
    from rich.cells import cell_len

    hang = cell_len(head) if head.strip() else max(HANG, 2 * cell_len(head))
    letters, columns = len(text), max(cell_len(text), 1)
    room = max((width - hang) * letters // columns + hang, hang + 1)  # fewer letters where some are two columns wide
    found = textwrap.wrap(
        text, room, initial_indent=head, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )
    lines: list[str] = []
    for line in found or [head]:
        if cell_len(line) <= width:
            lines.append(line)
            continue
        word = line[len(head) :] if not lines else line.strip()
        lines += [head.rstrip()] if not lines and head.strip() else []
        lines.append(" " * max(0, min(hang, width - cell_len(word))) + word)
    return lines


def command(console: Console, text: str, indent: int) -> None:
    """Print what can be typed; on a terminal that is too narrow in several lines that the shell takes as one."""
    room = console.width - indent if console.is_terminal else len(text)
    lines = [text]
    if len(text) > room and not {"'", '"'} & set(text):
        glued = re.sub(r" (?!--)", "\0", text)  # an option and its value stay together
        lines = textwrap.wrap(glued, room - 4, break_long_words=False, break_on_hyphens=False)
        lines = [line.replace("\0", " ") + " \\" * (line is not lines[-1]) for line in lines]
    for i, line in enumerate(lines):
        console.print(" " * (indent + HANG * (i > 0)) + line, markup=False, soft_wrap=True)


def folded(heading: str, width: int) -> str:
    """A heading in lines of at most `width` columns, broken behind hyphens and between words."""
    lines = [""]
    for piece in PIECE.findall(heading):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def fitted(
    headings: Sequence[str], rows: Sequence[Sequence[str]], room: int, *, left: int, spare: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Which columns of a table fit `room`, and how wide they are, one column apart.

    Too wide a table first leaves out the `spare` columns in their order, then folds headings, then cuts the texts of
    the first `left` columns, the longest first and the very first last.

    Returns:
        The places of the columns that stay, and the width of each of them.
    """
    from rich.cells import cell_len

    kept = list(range(len(headings)))
    cells = [max((cell_len(row[i]) for row in rows), default=0) for i in kept]
    widths = [max(cells[i], cell_len(headings[i])) for i in kept]

    def over() -> int:
        return sum(widths[i] + 1 for i in kept) - 1 - room

    for name in spare:
        if over() > 0 and name in headings:
            kept.remove(headings.index(name))
    for i in sorted(kept, key=lambda i: cells[i] - widths[i]):
        longest = max(cell_len(piece.rstrip()) for piece in PIECE.findall(headings[i]))
        widths[i] = max(widths[i] - max(over(), 0), cells[i], min(longest, widths[i]))
    texts = [i for i in kept if 0 < i < left]
    while over() > 0 and texts and max(widths[i] for i in texts) > LEAST:
        widths[max(texts, key=lambda i: widths[i])] -= 1
    if kept and kept[0] == 0:
        widths[0] = max(widths[0] - max(over(), 0), min(widths[0], LEAST))
    return kept, [widths[i] for i in kept]
