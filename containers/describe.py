"""Writes into the environment of an image what it was built from; `robustkt/provenance.py` reads it for run records.

python describe.py ENVIRONMENT LOCK variant=cpu base=python:3.11-slim-bookworm revision=…
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main() -> None:
    """Put the lock file and `image.json` into the folder `robustkt` of the environment."""
    environment, lock, *facts = sys.argv[1:]
    folder = Path(environment) / "robustkt"
    folder.mkdir()
    shutil.copyfile(lock, folder / Path(lock).name)
    told = {name: value for name, _, value in (fact.partition("=") for fact in facts) if value}
    (folder / "image.json").write_text(json.dumps({"lock": Path(lock).name, **told}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
