"""The site: built strictly, without a network, complete, and asking nobody for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md"))
LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}
REMOTE = re.compile(r"^(https?:)?//")
PASSIVE = {"canonical", "next", "prev", "license"}  # links that name a page and load nothing


class Loaded(HTMLParser):
    """What a page loads by itself, and the ids it has."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.formulas = 0
        self.bare_images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.formulas += tag == "math"
        self.bare_images += tag == "img" and "alt" not in given
        url = given.get(LOADS.get(tag, ""))
        if url and not (tag == "link" and given.get("rel") in PASSIVE):
            self.urls.append(url)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "--fresh-env"]
    return subprocess.run([*words, str(source), str(out)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT / "docs", out)
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / page.with_suffix(".html")).is_file(), page
        assert page.name == "index.md" or f'href="{page.with_suffix(".html").as_posix()}"' in index, page


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = Loaded()
        found.feed(page.read_text())
        assert found.urls
        assert [url for url in found.urls if REMOTE.match(url)] == [], page.name
        assert not found.bare_images, page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import\s+(url\()?[\"']?(https?:)?//|url\([\"']?(https?:)?//", sheet.read_text()), sheet
    assert not [p.name for p in site.rglob("*") if p.suffix in (".woff", ".woff2", ".ttf")]


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    text = (site / "concepts" / "smoothing.html").read_text()
    found = Loaded()
    found.feed(text)
    assert found.formulas >= 5
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<script[^>]*(mathjax|katex)", text, re.IGNORECASE)
    for page in site.rglob("*.html"):  # a command that the converter does not know stays there as it is written
        for formula in re.findall(r"<math.*?</math>", page.read_text(), re.DOTALL):
            assert "\\" not in formula, f"{page.name}: {formula}"


def test_the_pages_above_the_folder_are_taken_in(site: Path) -> None:
    assert "robustkt" in (site / "changelog.html").read_text()
    assert "A new method touches one file" in (site / "contributing.html").read_text()


BROKEN = {
    "[gone](gone.md)": "'gone.md'",
    "[no such part](other.md#no-such-part)": "no-such-part",
    "![no picture](gone.png)": "gone.png",
    "### A heading that skips a level": "Non-consecutive header",
}


@pytest.mark.slow
def test_what_is_broken_stops_the_build(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    settings = (ROOT / "docs" / "conf.py").read_text().replace('html_static_path = ["_static"]', "")
    (source / "conf.py").write_text(re.sub(r"PARTS = \{.*?\n\}", 'PARTS = {"All": ["*"]}', settings, flags=re.DOTALL))
    (source / "other.md").write_text("# Other\n\n## A part\n")
    (source / "index.md").write_text("# Index\n\n[a part](other.md#a-part)\n")
    whole = build(source, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for number, broken in enumerate(BROKEN):
        (source / f"page{number}.md").write_text(f"# Page\n\n{broken}\n")
    built = build(source, tmp_path / "site")
    assert built.returncode != 0
    for number, warning in enumerate(BROKEN.values()):
        assert re.search(rf"page{number}\.md.*{re.escape(warning)}", built.stderr), built.stderr
