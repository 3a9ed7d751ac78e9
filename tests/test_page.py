"""The page in a real browser: it draws, tells numbers, follows the theme, fits every width, and has no barriers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.registry import Registry
from tests import browser

SHIPPED = Path(__file__).resolve().parents[1] / "registry"
NAMES = ("digits-sat", "digits-smoothmix", "digits-crt-1", "digits-two-modes")
HOVER = """
const svg = document.getElementById("figure-" + arguments[0]).querySelector("svg");
svg.scrollIntoView({block: "center"});
const boxes = [...svg.querySelectorAll(".mark-symbol path")].map(p => p.getBoundingClientRect());
const box = boxes[boxes.length >> 1];
return [box.left + box.width / 2, box.top + box.height / 2];
"""
pytestmark = pytest.mark.skipif(not browser.there(), reason="needs chromium, chromedriver and selenium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    told = api.report(NAMES, out=out, registry=Registry(SHIPPED), device="cpu")
    return Path(told["files"][0])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.browsing(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def requested(driver: Any) -> list[str]:
    """The addresses that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome:")]  # not the new tab's
    return [url for url in own if not url.startswith("data:")]


def move(driver: Any, x: float, y: float) -> None:
    event = {"type": "mouseMoved", "x": x, "y": y, "button": "none"}
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)


def test_it_draws_without_an_error_or_a_request(chromium: Any, page: Path) -> None:
    chromium.get_log("performance")
    browser.opened(chromium, page)
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    assert requested(chromium) == [page.resolve().as_uri()]
    marks = chromium.execute_script(
        "return [...document.querySelectorAll('.vega')].map(v => [v.dataset.figure, v.querySelectorAll("
        "'.mark-line path, .mark-symbol path, .mark-area path, .mark-rule line').length])"
    )
    assert len(marks) >= 10
    assert all(count > 0 for _, count in marks), marks
    chromium.execute_script(
        "const b = document.createElement('script'); b.textContent = 'window.broken = 1'; document.body.append(b);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
    )
    assert chromium.execute_script("return window.broken") is None, "the policy refuses a script of anybody's"
    assert any("Content Security Policy" in entry["message"] for entry in chromium.get_log("browser"))


def test_a_chart_that_fails_leaves_the_others(chromium: Any, page: Path, tmp_path: Path) -> None:
    before, data = page.read_text().split('id="data">', 1)
    data, after = data.split("</script>", 1)
    told = json.loads(data)
    told["figures"]["certified-l2"] = {"mark": "none"}
    broken = tmp_path / "broken.html"
    broken.write_text(f'{before}id="data">{json.dumps(told)}</script>{after}')
    browser.opened(chromium, broken)
    chromium.get_log("browser")
    drawn = dict(
        chromium.execute_script(
            "return [...document.querySelectorAll('.vega')].map(v => [v.dataset.figure, "
            "v.querySelectorAll('svg').length])"
        )
    )
    assert [name for name, count in drawn.items() if not count] == ["certified-l2"]
    told = chromium.execute_script("return document.querySelector('#figure-certified-l2').textContent")
    assert told == "This chart could not be drawn; its numbers are below."


def test_hovering_tells_a_number(chromium: Any, page: Path) -> None:
    browser.opened(chromium, page)
    for figure, word in (("certified-l2", "certified accuracy"), ("attacks-linf-0.1", "95 % interval"), ("pa", "pA")):
        x, y = chromium.execute_script(HOVER, figure)
        move(chromium, 1, 1)
        move(chromium, x, y)
        told = chromium.execute_script("return document.querySelector('#vg-tooltip-element.visible')?.innerText")
        assert told is not None
        assert word in told
        assert "%" in told
        assert "undefined" not in told
        assert any(name in told for name in NAMES)


def test_the_theme_switches_and_charts_follow(chromium: Any, page: Path) -> None:
    ink = "return getComputedStyle(document.querySelector('#figure-pa .role-axis-title text')).fill"
    seen = {}
    for dark in (False, True):
        browser.opened(chromium, page, dark=dark)
        seen[dark] = (
            chromium.execute_script(ink),
            chromium.execute_script("return getComputedStyle(document.body).backgroundColor"),
        )
    assert seen[False] != seen[True]
    chromium.execute_script("document.getElementById('theme').focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " " * (kind == "keyDown")}
        chromium.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, **key})
    assert chromium.execute_script(ink) == seen[False][0], "from dark to light, by the keyboard"
    assert chromium.execute_script("return document.getElementById('theme').textContent") == "Dark"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_every_width_fits_and_has_no_barriers(chromium: Any, page: Path, width: int, dark: bool) -> None:
    browser.opened(chromium, page, width, dark=dark)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = chromium.execute_script("return [...document.querySelectorAll('.vega svg')].map(s => s.clientWidth)")
    assert max(sizes) <= width
    for found in browser.barriers(chromium):
        pytest.fail(f"{found['impact']} {found['id']}: {found['nodes'][0]['html'][:200]}")


@pytest.mark.slow
def test_it_prints_with_its_tables(chromium: Any, page: Path) -> None:
    browser.opened(chromium, page, 800, dark=True)
    printed = chromium.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert len(printed["data"]) > 50_000
    assert chromium.execute_script("return document.querySelectorAll('details[open]').length") == 0, "as it was before"
