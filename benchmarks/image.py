"""How large the two variants of the image are, and what fills them.

make image && make image VARIANT=cpu && python -m benchmarks.image
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.written import RECORDS, ROOT
from robustkt.numbers import digest

RECORD = RECORDS / "image.json"
PARTS = {"torch": ["torch"], "CUDA": ["nvidia", "cuda"], "Triton": ["triton"]}  # folders of site-packages


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docker", default="docker", help="the client")
    client = parser.parse_args().docker
    variants = {variant: measured(client, f"robustkt:{variant}") for variant in ("cuda", "cpu")}
    lock = digest((ROOT / "requirements-runtime.lock").read_bytes())
    RECORD.write_text(json.dumps({"lock": lock, "variants": variants}, indent=1, sort_keys=True) + "\n")


def measured(client: str, image: str) -> dict[str, Any]:
    """Megabytes of the image and of its largest parts, and what it was built from."""

    def run(*words: str) -> str:
        return subprocess.run([client, *words], capture_output=True, text=True, check=True).stdout

    facts = json.loads(run("run", "--rm", "--entrypoint", "cat", image, "/opt/venv/robustkt/image.json"))
    listed = run("run", "--rm", "--entrypoint", "sh", image, "-c", "du -sk /opt/venv/lib/python3*/site-packages/*")
    sizes = {Path(place).name: int(size) for size, place in (line.split("\t") for line in listed.splitlines())}
    return {
        "base": facts["base"],
        "revision": facts.get("revision"),
        "megabytes": int(run("inspect", "--format", "{{.Size}}", image)) / 1e6,
        "parts": {name: sum(sizes.get(one, 0) for one in folders) * 1024 / 1e6 for name, folders in PARTS.items()},
    }


if __name__ == "__main__":
    main()
