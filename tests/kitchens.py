"""Trained generations that several files look at: made once a run, whichever worker comes first, and copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.registry import Registry
from robustkt.registry.locks import locked

SHORT = {"epochs": 1, "batch_size": 256, "steps": 1, "eps": "0.1"}


def copied(factory: pytest.TempPathFactory, name: str, make: Callable[[Registry], None]) -> Registry:
    """A copy of one's own of the registry that `make` fills; the workers of a run fill it once between them."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    with locked(run / f"{name}.held", name, timeout=600):
        if not (run / name).exists():
            made = factory.mktemp(name) / "registry"
            make(Registry(made))
            shutil.copytree(made, run / f"{name}.part")
            (run / f"{name}.part").rename(run / name)
    return Registry(Path(shutil.copytree(run / name, factory.mktemp(name) / "registry")))


def cook(registry: Registry) -> None:
    """two (clean, robust) → one, other fine-tuned from it → retro, adapters on one; noisy with σ-adapters."""
    common: dict[str, Any] = {"arch": "smallcnn", "data": "digits", "registry": registry, "device": "cpu"}
    api.train(method="cotraining", name="two", given=SHORT, **common)
    api.train(method="sat", name="one", given=SHORT, init="two", **common)
    api.train(method="sat", name="other", given=SHORT, init="two", seed=1, **common)
    api.train(method="cotraining", name="retro", given={**SHORT, "frozen": True}, init="one", **common)
    noise = {"sigma": "0.25", "sigmas": "0.12,0.25", "epochs": 1, "batch_size": 256}
    api.train(method="sigmaadapters", name="noisy", given=noise, **common)
