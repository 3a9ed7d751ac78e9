"""Where a user's own caches and lists lie: the XDG folders, which count only when they are absolute."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Files that can be made again: downloads, drawn facts."""
    return _under("XDG_CACHE_HOME", "~/.cache")


def state() -> Path:
    """Files that a user would miss: the list of trusted code."""
    return _under("XDG_STATE_HOME", "~/.local/state")


def _under(variable: str, default: str) -> Path:
    given = os.environ.get(variable, "")
    return (Path(given) if os.path.isabs(given) else Path(default).expanduser()) / "robustkt"
