"""A headless Chromium for the tests of pages, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--disable-extensions", "--force-color-profile=srgb", "--allow-file-access-from-files=false",
)  # fmt: skip


def there() -> bool:
    """Whether pages can be tried."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return False
    return CHROMIUM is not None and DRIVER is not None


@contextmanager
def browsing(profile: Path, *, dark: bool = False) -> Iterator[Any]:
    """A browser with a profile of its own, which tells its console and every request."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    if dark:
        options.add_argument("--force-prefers-color-scheme=dark")
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(str(DRIVER)))
    driver.set_script_timeout(180)
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, page: Path, width: int = 1440, height: int = 900, *, dark: bool = False) -> int:
    """Open a page at a size and wait until its charts are drawn: milliseconds since the navigation began."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
    )
    driver.get(page.resolve().as_uri())
    return int(
        WebDriverWait(driver, 180).until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
    )


def picture(driver: Any, path: Path) -> None:
    """The whole page, however long it is."""
    import base64

    size = driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))


def barriers(driver: Any) -> list[dict[str, Any]]:
    """What axe-core finds that is serious or critical, everything unfolded."""
    from axe_selenium_python import Axe

    driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    axe = Axe(driver)
    axe.inject()
    found = axe.run()
    return [one for one in found["violations"] if one["impact"] in ("serious", "critical")]


def section(driver: Any, name: str) -> bytes:
    """A section of the page as a PNG."""
    import base64

    where = "const b = document.getElementById(arguments[0]).getBoundingClientRect();"
    x, y, width, height = driver.execute_script(
        f"{where} return [b.left + scrollX - 10, b.top + scrollY - 10, b.width + 20, b.height + 20]", name
    )
    clip = {"x": max(x, 0), "y": max(y, 0), "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])
