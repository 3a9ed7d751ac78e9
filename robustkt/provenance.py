"""What a run was made with, for its record: packages, lock file, working copy; no names of people or hosts."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from robustkt.numbers import digest

LOCKS = ("requirements.lock", "uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "conda-lock.yml")
PATIENCE = 5.0  # seconds for git, which may look at a slow disk


def circumstances(folder: Path) -> dict[str, Any]:
    """`environment` (hash of all installed packages and versions), and where there are any `lock` and `git`.

    Args:
        folder: where the run was started; a lock file lies there or in a folder above, up to the working copy's root.
    """
    found: dict[str, Any] = {"environment": environment()}
    top = _git(folder, "rev-parse", "--show-toplevel")
    lock = _lock(folder, Path(top) if top else folder)
    if lock is not None:
        found["lock"] = {"file": lock.name, "hash": digest(lock.read_bytes())}
    commit = _git(folder, "rev-parse", "--verify", "HEAD") if top else None
    if commit:
        changed = _git(folder, "-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no")
        found["git"] = {"commit": commit, "dirty": changed is None or bool(changed)}
    return found


def environment() -> str:
    """One hash of the names and versions of everything installed: equal environments have equal ones."""
    told = {f"{one.metadata['Name']}=={one.version}".lower() for one in importlib.metadata.distributions()}
    return digest("\n".join(sorted(told)).encode())


def _lock(folder: Path, top: Path) -> Path | None:
    for place in (folder, *folder.parents):
        for name in LOCKS:
            if (place / name).is_file():
                return place / name
        if place == top:
            break
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or no working copy."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None
