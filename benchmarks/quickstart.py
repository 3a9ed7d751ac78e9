"""Runs the quickstart in an empty folder and records what it printed, for the README's table.

    python -m benchmarks.quickstart

Paths in the record are relative to that folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.shared import machine
from benchmarks.written import RECORDS

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run, time, record."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-m", "robustkt", "quickstart", "--json"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - began
        result = json.loads(ran.stdout.replace(f"{Path(folder).resolve()}{os.sep}", ""))
    record = {
        "command": "robustkt quickstart --json",
        "wall_seconds": round(seconds, 1),
        "machine": machine(),
        "result": result,
    }
    (RECORDS / "quickstart.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
