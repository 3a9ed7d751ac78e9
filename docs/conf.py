"""How Sphinx builds these pages: strict, offline, formulas as MathML; `make docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).parent

project = "robustkt"
author = "the robustkt authors"
extensions = ["myst_parser"]
exclude_patterns = ["_*"]
highlight_language = "text"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # links to headings are checked, by the anchors that GitHub gives them too
nitpicky = True

html_theme = "furo"
html_title = "robustkt"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

PARTS = {
    "Start": ["tutorial", "usage"],
    "How to": ["howto/*"],
    "Concepts": [
        "concepts/threat-models", "concepts/smoothing", "concepts/certificates", "concepts/gradient-masking",
        "concepts/transfer", "concepts/adapters-and-soups",
    ],
    "Guides": ["*"],
    "Reference": ["reference/cli", "objectives", "reference/*"],
    "Project": ["results", "architecture", "comparison", "faq", "changelog", "contributing"],
}  # fmt: skip
OUTSIDE = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}  # pages that stand above this folder


def navigation() -> dict[str, list[str]]:
    """The pages of each part in order; a pattern takes the pages of its folder that nothing else names."""
    named = {page for pages in PARTS.values() for page in pages} | {"index"}

    def matching(pattern: str) -> list[str]:
        found = sorted(p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.glob(f"{pattern}.md"))
        return [pattern] if "*" not in pattern else [page for page in found if page not in named]

    return {part: [page for pattern in patterns for page in matching(pattern)] for part, patterns in PARTS.items()}


def page_of(app: Any, name: str, source: list[str]) -> None:
    """What is read for a page: the index with its navigation; a page from above this folder as if it were here."""
    if name in OUTSIDE:
        source[0] = (DOCS.parent / OUTSIDE[name]).read_text(encoding="utf-8").replace("](docs/", "](")
    if name == "index":
        for part, pages in navigation().items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n" + "\n".join(pages) + "\n```\n"


def inline_formula(self: Any, node: Any) -> None:
    """A formula in a line, as MathML: no script, no font, nothing from the network."""
    _formula(self, node, "inline")


def block_formula(self: Any, node: Any) -> None:
    """A formula of its own line."""
    _formula(self, node, "block")


def _formula(self: Any, node: Any, display: str) -> None:
    from docutils.nodes import SkipNode

    self.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register what this file adds to Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline_formula, None), block_renderers=(block_formula, None))
    app.connect("source-read", page_of)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
