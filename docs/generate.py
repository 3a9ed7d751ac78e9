"""Writes the parts of these pages that come from the code; `--check` only says whether they agree.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. Run as `python -m docs.generate`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from docs._reference import catalogs, commands, failures, formats, functions
from robustkt.catalog import ADAPTERS, ARCHITECTURES, CERTIFIERS, CORRUPTIONS, NOISES

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

PARTS: dict[str, Callable[[], str]] = {
    "methods": catalogs.methods,
    "formulas": catalogs.formulas,
    "attacks": catalogs.attacks,
    "architectures": partial(catalogs.entries, ARCHITECTURES),
    "adapters": partial(catalogs.entries, ADAPTERS),
    "certifiers": partial(catalogs.entries, CERTIFIERS),
    "noises": partial(catalogs.entries, NOISES),
    "corruptions": partial(catalogs.entries, CORRUPTIONS),
    "presets": catalogs.presets,
    "commands": commands.commands,
    "functions": functions.functions,
    "errors": failures.failures,
    "manifest": partial(formats.shapes, formats.MANIFEST),
    "record": partial(formats.shapes, formats.RECORD),
    "results": partial(formats.shapes, formats.RESULTS),
    "log": formats.log,
}


def pages() -> list[Path]:
    """Every page that has such a part."""
    return [path for path in sorted(DOCS.rglob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def rendered(text: str) -> str:
    """The page with its parts written anew."""
    return BLOCK.sub(lambda m: m[1] + PARTS[m[2]]() + "\n" + m[3], text)


def main() -> None:
    """Update the pages, or with --check exit 1 when one is stale."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        if "--check" in sys.argv and rendered(text) != text:
            sys.exit(f"{path.name} is stale: run python -m docs.generate")
        if "--check" not in sys.argv:
            path.write_text(rendered(text), encoding="utf-8")


if __name__ == "__main__":
    main()
