"""What a run was made with, for its record: packages, lock file, image, working copy; no names of people or hosts."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkt.errors import UsageError, clip
from robustkt.numbers import digest

BUILT = Path(sys.prefix) / "robustkt" / "image.json"  # what containers/describe.py writes when an image is built
NAMED = "ROBUSTKT_IMAGE"
BY_DIGEST = re.compile(r"([a-z0-9][a-z0-9._:/-]{0,400}(:[\w.-]{1,128})?@)?sha256:[0-9a-f]{64}")
LOCKS = ("requirements.lock", "uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "conda-lock.yml")
PATIENCE = 5.0  # seconds for git, which may look at a slow disk


def circumstances(folder: Path) -> dict[str, Any]:
    """`environment` (hash of all installed packages and versions), and where there are any `image`, `lock` and `git`.

    Args:
        folder: where the run was started; a lock file lies there or in a folder above, up to the working copy's root.
            An image's own lock file comes before these, as its environment was made from it.

    Raises:
        UsageError: $ROBUSTKT_IMAGE names no image by its digest.
    """
    found: dict[str, Any] = {"environment": environment()}
    built = _built()
    image = {**{name: told for name, told in built.items() if name != "lock"}, **_named()}
    if image:
        found["image"] = image
    top = _git(folder, "rev-parse", "--show-toplevel")
    lock = lock_file(folder, top)
    if lock is not None:
        found["lock"] = {"file": lock.name, "hash": digest(lock.read_bytes())}
    commit = _git(folder, "rev-parse", "--verify", "HEAD") if top else None
    if commit:
        changed = _git(folder, "-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no")
        found["git"] = {"commit": commit, "dirty": changed is None or bool(changed)}
    return found


def lock_file(folder: Path, top: str | None = None) -> Path | None:
    """The lock file that the environment was made from: an image's own, else one in `folder` or above.

    Args:
        folder: where to look first.
        top: the root of the working copy that `folder` is in, where that is known; the search ends there.
    """
    built = _built()
    if "lock" in built:
        return BUILT.with_name(built["lock"])
    top = top or _git(folder, "rev-parse", "--show-toplevel")
    return _lock(folder, Path(top) if top else folder)


@functools.cache  # a process keeps what it has imported, and some hundred files are read for it
def environment() -> str:
    """One hash of the names and versions of everything installed: equal environments have equal ones."""
    own = [place for place in sys.path if Path(place).name != "_vendor"]  # setuptools adds its copies when imported
    installed = (one.metadata for one in importlib.metadata.distributions(path=own))
    told = {f"{one['Name']}=={one['Version']}".lower() for one in installed}
    return digest("\n".join(sorted(told)).encode())


def _built() -> Mapping[str, str]:
    """What this image was built from: lock (a file's name), variant, base, revision; nothing outside of one."""
    try:
        told: Mapping[str, str] = json.loads(BUILT.read_text())
    except FileNotFoundError:
        return {}
    return told


def _named() -> dict[str, str]:
    """The image by its digest, which only whoever starts it can know."""
    given = os.environ.get(NAMED, "")
    if given and not BY_DIGEST.fullmatch(given):
        raise UsageError(
            f"${NAMED} must be an image's digest, name@sha256:… or its id, sha256:…, not {clip(given)!r}",
            "`docker inspect --format '{{.Id}}' IMAGE` prints the id; or leave the variable out.",
        )
    return {"digest": given} if given else {}


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
