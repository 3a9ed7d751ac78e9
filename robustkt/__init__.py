"""Carry the robustness of image classifiers from each generation to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkt.api.pretrained import RobustModel, SmoothedClassifier

__all__ = ["RobustModel", "SmoothedClassifier", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("RobustModel", "SmoothedClassifier"):  # they import torch
        raise AttributeError(f"module 'robustkt' has no attribute {name!r}")
    from robustkt.api import pretrained

    return getattr(pretrained, name)
