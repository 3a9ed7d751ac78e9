"""How large a page of five generations is and how long a browser takes to draw it; takes the pictures of the docs too.

    python -m benchmarks.report            writes records/report.json
    python -m benchmarks.report --pictures writes docs/images too

Drawing is told twice: from the navigation to the last figure by the clock, and the time that the page's main thread
computed. A busy machine stretches only the first.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.written import RECORDS, ROOT
from robustkt import api
from robustkt.registry import Registry
from tests import browser

RECORD = RECORDS / "report.json"
IMAGES = ROOT / "docs" / "images"
NAMES = ("digits-sat", "digits-smoothmix", "digits-crt-1", "digits-crt-2", "digits-two-modes")
REPEATS = 3
COLOURS = 128  # of a picture in the docs


def main() -> None:
    """Make the page, draw it, write the record."""
    with tempfile.TemporaryDirectory() as folder:
        told = api.report(NAMES, out=Path(folder) / "page", registry=Registry(ROOT / "registry"), device="cpu")
        page = Path(told["files"][0])
        with browser.browsing(Path(folder) / "profile") as driver:
            driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            drawn, computed = [], []
            for _ in range(REPEATS):
                drawn.append(browser.opened(driver, page) / 1000)
                metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
                computed.append(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))
            version = driver.capabilities["browserVersion"]
            if "--pictures" in sys.argv[1:]:
                pictures(driver, page)
    record = {
        "generations": len(NAMES),
        "bytes": told["bytes"],
        "figures": len(told["figures"]),
        "make_seconds": told["seconds"],
        "drawn_seconds": {"median": statistics.median(drawn), "all": drawn},
        "main_thread_seconds": {"median": statistics.median(computed), "all": computed},
        "machine": {
            "processors": os.cpu_count(),
            "load": os.getloadavg()[0],
            "architecture": platform.machine(),
            "chromium": version,
        },
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


def pictures(driver: object, page: Path) -> None:
    """Parts of the page as the docs show them: light, dark, and on a phone."""
    IMAGES.mkdir(exist_ok=True)
    for name, width, section, dark in (
        ("report", 1000, "certified", False),
        ("report-dark", 1000, "cost", True),
        ("report-phone", 360, "attacks", False),
    ):
        browser.opened(driver, page, width, dark=dark)
        shot = browser.section(driver, section)
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        image.crop((0, 0, image.width, min(image.height, 1100))).quantize(COLOURS).save(
            IMAGES / f"{name}.png", optimize=True
        )


if __name__ == "__main__":
    main()
