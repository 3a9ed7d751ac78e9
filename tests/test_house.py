"""The rooms stay in their order, and what starts lean stays lean."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robustkt"

# Each room imports only from rooms of the layers before its own, or from its own.
LAYERS = [
    {"errors", "catalog", "numbers", "places", "settings", "generation", "mixture", "progress", "provenance"}
    | {"shapes", "texts", "hardware"},
    {"core", "losses", "ranks", "syncnorm"},
    {
        "registry",
        "metadata",
        "data",
        "models",
        "modes",
        "adapters",
        "corruptions",
        "attacks",
        "certificates",
        "certlog",
        "noises",
        "schedules",
        "streams",
    }
    | {"foreignlog", "lattice", "logchecks", "paired"},
    {
        "imports",
        "exports",
        "objectives",
        "inference",
        "smooth",
        "soup",
        "votes",
        "card",
        "report",
        "checkpoint",
        "parts",
        "decided",
        "attacked",
        "feed",
        "passes",
        "plain",
        "updates",
        "replay",
    },
    {"engine", "bench", "evaluate", "hub"},
    {"masking"},
    {"api"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "robustkt":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("robustkt.")}
    return found


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LEVEL], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_from_the_layers_before(path: Path) -> None:
    late = {other for other in imported(path) if other in LEVEL and LEVEL[other] > LEVEL[room(path)]}
    same = {o for o in imported(path) if LEVEL.get(o) == LEVEL[room(path)]} - {room(path)}
    assert not late, f"{room(path)} must not import {late}"
    assert not same or LEVEL[room(path)] in (0, 2, 3), f"{room(path)} imports its neighbour {same}"


def test_every_room_has_its_layer() -> None:
    assert {room(path) for path in FILES} - set(LEVEL) == {"__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_opens_with_a_sentence_and_stays_short(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert docstring[0].isupper() or docstring[0] in "`" or docstring.split()[0].islower()
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "code",
    [
        "import robustkt.cli",
        "import robustkt.api as a; a.list_generations",
        "import robustkt.api as a; a.analyze, a.audit_log",
        "import robustkt.api as a; a.compare, a.gate",
        "import robustkt.api as a; a.push, a.pull",
        "import robustkt.api as a; a.report",
        "import robustkt.api as a; a.status, a.doctor",
        "from robustkt.registry import Registry",
        "from robustkt.catalog import METHODS, ARCHITECTURES; METHODS.names(), ARCHITECTURES.names()",
    ],
)
def test_no_torch_before_it_is_needed(code: str) -> None:
    check = (
        f"import sys; {code}; sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'statsmodels', 'vl_convert')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
