"""Architectures, a file a family, and what turns an architecture's name into a classifier.

torch is imported when `build`, `known`, `Classifier` or `Normalize` is first used, so that reading a user's source and
printing help cost no such import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robustkt.catalog import is_user_arch
from robustkt.models._user import UserSource, load_callable, read_source

if TYPE_CHECKING:
    from robustkt.models._build import Classifier, Normalize, blamed, build, check_training, known, library_version

__all__ = [
    "Classifier",
    "Normalize",
    "UserSource",
    "blamed",
    "build",
    "check_training",
    "is_user_arch",
    "known",
    "library_version",
    "load_callable",
    "read_source",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("robustkt.models._build"), name)
