"""The numbers behind a figure as a table for papers: LaTeX (booktabs) or Markdown."""

from __future__ import annotations

import re

from robustkt.card import MARKUP
from robustkt.report.figure import Figure

ENDINGS = {"latex": ".tex", "markdown": ".md"}
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "[": "{[}", "]": "{]}", "*": "{*}", "`": r"\`{}", "|": r"\textbar{}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "σ": r"$\sigma$", "α": r"$\alpha$", "β": r"$\beta$", "–": "--", "·": r"$\cdot$", "×": r"$\times$",
}  # fmt: skip


def written(figure: Figure, form: str) -> bytes:
    """The table in one of the `ENDINGS`; texts of anybody's making are shown letter by letter."""
    return (_latex(figure) if form == "latex" else _markdown(figure)).encode()


def _latex(figure: Figure) -> str:
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (figure.columns, *figure.rows)]
    notes = [f"% {_line(note)}" for note in figure.notes]
    head = [
        r"% needs \usepackage{booktabs}",
        *notes,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(figure.title)}}}",
    ]
    body = [
        rf"\begin{{tabular}}{{{'l' * len(figure.columns)}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
    ]
    return "\n".join([*head, *body, r"\end{tabular}", r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(SPECIAL.get(sign, sign) for sign in _line(text))


def _markdown(figure: Figure) -> str:
    head, *rows = ("| " + " | ".join(map(_plain, row)) + " |" for row in (figure.columns, *figure.rows))
    lines = [f"**{_plain(figure.title)}**", "", head, "|" + "---|" * len(figure.columns), *rows]
    return "\n".join([*lines, *(["", *map(_plain, figure.notes)] if figure.notes else [])]) + "\n"


def _plain(text: str) -> str:
    return MARKUP.sub(r"\\\g<0>", _line(text))


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
