"""Runs docs/tutorial.md in an empty folder, records what its commands print, and writes that into the page.

    python -m benchmarks.tutorial

`--check` only says whether the page and the record agree.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.written import RECORDS, ROOT
from docs.blocks import blocks

PAGE = ROOT / "docs" / "tutorial.md"
RECORD = RECORDS / "tutorial.json"
HOME = "/home/me/my-photos"  # what the page calls the folder that it was run in
PRINTED = re.compile(r"(<!-- printed: (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A block of commands that was run."""

    commands: list[str]
    printed: str


def walk(folder: Path, run: Callable[[str, Path], str]) -> list[Step]:
    """Do what the page says in `folder`, each command through `run`, which gives what it printed."""
    steps = []
    for block in blocks(PAGE):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "bash" and not block.why_not:
            steps.append(Step(block.commands, "\n".join(run(one, folder) for one in block.commands)))
    return steps


def in_a_shell(command: str, folder: Path) -> str:
    """What a command prints on stdout at 80 columns; `robustkt` and `python` are this very installation's."""
    tools = folder.with_name(folder.name + "-tools")
    tools.mkdir(exist_ok=True)
    for name, words in {"robustkt": [sys.executable, "-m", "robustkt"], "python": [sys.executable]}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (tools / name).chmod(0o755)
    homes = {name: str(tools / name.lower()) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HF_HOME")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROBUSTKT_", "HF_"))}
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=folder, text=True, encoding="utf-8", capture_output=True, check=False,
        env={**kept, **homes, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTHONUTF8": "1"},
    )  # fmt: skip
    if ran.returncode:
        raise SystemExit(f"`{command}` ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}")
    return "\n".join(line.rstrip() for line in ran.stdout.replace(str(folder), HOME).splitlines())


def rendered(page: str, record: dict[str, Any]) -> str:
    """The page with what its commands printed written anew."""
    return PRINTED.sub(lambda m: f"{m[1]}```text\n{record['steps'][int(m[2])]['printed']}\n```\n{m[3]}", page)


def main() -> None:
    """Run, record, write; or with --check exit 1 when the page is stale."""
    if "--check" not in sys.argv:
        from benchmarks.shared import machine

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "my-photos").resolve()
            folder.mkdir()
            steps = [{"commands": step.commands, "printed": step.printed} for step in walk(folder, in_a_shell)]
        RECORD.write_text(json.dumps({"machine": machine(), "steps": steps}, indent=1, ensure_ascii=False) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    new = rendered(page, json.loads(RECORD.read_text(encoding="utf-8")))
    if "--check" in sys.argv and new != page:
        sys.exit("docs/tutorial.md is stale: python -m benchmarks.tutorial")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
