"""The graph of generations: every ancestor once, figures beside their teacher's, forms for other tools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robustkt import api
from robustkt.registry import Registry
from tests.conftest import Ran
from tests.stores import commit, measure

Cli = Callable[..., Ran]


@pytest.fixture
def soup(full: Registry) -> Registry:
    """gen0 → gen1 → gen2, and gen3 of gen1 and gen2, from which gen4 descends."""
    first, second = full.get("gen1"), full.get("gen2")
    mixed = replace(commit(full, 3, "other"), name="gen3", parents={"soup.0": first.id, "soup.1": second.id})
    full.add(mixed, {})
    api.rm(["other"], registry=full)
    commit(full, 4, teacher=mixed)
    return full


def told(registry: Registry, generation: str | None = None) -> list[tuple[str, int, bool]]:
    rows = api.lineage(generation, registry=registry)["generations"]
    return [(row["generation"], row["depth"], row["again"]) for row in rows]


def test_one_with_several_parents_is_expanded_once(soup: Registry) -> None:
    assert told(soup) == [
        ("gen0", 0, False), ("gen1", 1, False), ("gen2", 2, False), ("gen3", 3, False), ("gen4", 4, False),
        ("gen3", 2, True),
    ]  # fmt: skip
    assert [name for name, *_ in told(soup, "gen2")] == ["gen0", "gen1", "gen2", "gen3", "gen4", "gen3"]
    assert [name for name, *_ in told(soup, "gen0")] == [name for name, *_ in told(soup)]


def test_a_ladder_of_soups_is_not_walked_path_by_path(registry: Registry) -> None:
    left, right = commit(registry, 0), commit(registry, 1)
    for level in range(30):  # 2^30 paths
        pair = {"soup.0": left.id, "soup.1": right.id}
        both = [replace(commit(registry, 2 + 2 * level + k), parents=pair, name="") for k in (0, 1)]
        left, right = (registry.add(generation, {}) for generation in both)
    assert len(told(registry)) < 500


def test_what_a_student_kept_of_its_teacher(full: Registry) -> None:
    measure(full, full.get("gen1"), "ff00", accuracy=0.8)
    measure(full, full.get("gen2"), "ff00", accuracy=0.6)
    api.rm(["gen2"], registry=full)
    rows = {row["generation"]: row for row in api.lineage(registry=full)["generations"]}
    assert rows["gen0"]["retained"] == {}
    assert rows["gen1"]["retained"] == {"certified@0": 0.8 / 0.5}
    assert "gen2" not in rows, "what was removed is no leaf of the lineage"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_picture_is_the_same_bytes_twice(full: Registry, tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    for place in (first, second):
        assert api.lineage(out=place, registry=full)["file"] == str(place)
    assert ending == "pdf" or first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[ending])


def test_forms(cli: Cli, soup: Registry) -> None:
    odd = replace(soup.get("gen4"), name="odd")
    recipe = replace(odd.recipe, arch='a"b]<c>\\n.py:Net', arch_source=soup.put_object(b"def Net(): ..."))
    soup.add(replace(odd, recipe=recipe, parents={'ro"le': soup.get("gen0").id}), {})
    text = cli("lineage", "--format", "dot").out
    assert text.startswith("digraph lineage {\n")
    assert text.endswith("}\n")
    assert len(re.findall(r"n\d+ -> n\d+", text)) == 6
    assert text.count("[label=") == 6 + 6
    assert r"gaussian a\"b]<c>\\n.py:Net" in text or r"crt a\"b]<c>\\n.py:Net" in text
    text = cli("lineage", "--format", "mermaid").out
    assert text.startswith("graph TD\n")
    assert "a#quot;b]#lt;c#gt;\\n.py:Net" in text
    assert '-- "ro#quot;le" -->' in text
    assert len(json.loads(cli("lineage", "--format", "json").out)["generations"]) == 7
    assert "gen3  as above" in " ".join(cli("lineage").out.split(" ")).replace("\n", " ")
    ran = cli("lineage", "--format", "xml")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: there is no format 'xml'")
    assert cli("lineage", "--out", "decay.txt").code == 2


def test_figures_over_generations(cli: Cli, full: Registry) -> None:
    measure(full, full.get("gen1"), "ff00", accuracy=0.4)
    out = cli("lineage", "--metrics").out.splitlines()
    assert out[0].split() == ["name", "certified", "kept", "ACR", "attacked", "kept", "fools", "passes"]
    assert out[2].split() == ["gen1", "40.0%", "@0", "80.0%", "0.400", "–", "–", "–", "–"]


MEASURE = """
import json, sys
from pathlib import Path
sys.argv = ["robustkt", *sys.argv[1:]]
from robustkt.cli import application
try:
    application(sys.argv[1])()
except SystemExit:
    pass
heavy = [m for m in ("torch", "scipy", "statsmodels", "vl_convert", "jinja2", "pandas") if m in sys.modules]
status = Path("/proc/self/status")  # the resource module would tell the parent's
peak = status.read_text().split("VmHWM:")[1].split()[0] if status.is_file() else 0
print(json.dumps([heavy, int(peak)]), file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["list", "show", "lineage", "tag", "gc --dry-run"])
def test_what_is_asked_often_stays_light(full: Registry, command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, *command.split(), "--registry", str(full.root)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    heavy, kilobytes = json.loads(ran.stderr.splitlines()[-1])
    assert heavy == []
    assert kilobytes < 200_000
