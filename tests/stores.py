"""Registries of small made-up generations, for the tests of the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from robustkt.generation import DataSpec, Generation, Recipe, Training
from robustkt.numbers import digest
from robustkt.registry import Registry, Result, verify
from robustkt.registry.binding import HEADER, Binding

DATA = DataSpec(
    name="digits", fingerprint=digest(b""), classes=("0", "1"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,), held_out=9
)
RECORD = {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.5, "epochs": [{"epoch": 0, "loss": 0.5}]}


def commit(
    registry: Registry,
    seed: int,
    name: str = "",
    teacher: Generation | None = None,
    source: bytes | None = None,
    best: bytes | None = None,
) -> Generation:
    """A generation with objects of its own, stored as a job does it; its weights are safetensors."""
    recipe = Recipe(
        method="crt" if teacher else "gaussian",
        settings={"sigma": "0.25"},
        arch="net.py:Net" if source else "smallcnn",
        arch_source=registry.put_object(source) if source else None,
        data=DATA,
        training=Training(),
        seed=seed,
    )
    generation = Generation(
        name=name,
        recipe=recipe,
        weights=registry.put_object(best or weights(seed)),
        last_weights=registry.put_object(weights(seed + 0.5)),
        parents={"teacher": teacher.id} if teacher else {},
    )
    return registry.add(generation, {**RECORD, "seed": seed})


def modal(registry: Registry, seed: int, name: str = "", base: bytes | None = None) -> Generation:
    """A generation with a clean and a robust adapter, those of its two epochs different."""
    whole = commit(registry, seed)
    bases = [registry.put_object(base) if base else whole.weights, whole.last_weights]
    epochs = [
        {d: registry.put_object(adapter(weights_, d, seed + epoch)) for d in ("clean", "robust")}
        for epoch, weights_ in enumerate(bases)
    ]
    made = replace(
        whole, name=name, recipe=replace(whole.recipe, method="cotraining"), weights=bases[0], adapters=epochs[0],
        last_adapters=epochs[1], mode="robust", format=2,
    )  # fmt: skip
    return registry.add(made, {**RECORD, "seed": seed})


def adapter(base: str, domain: str, fill: float) -> bytes:
    """An adapter's file, bound to the base with this hash."""
    return save({"w": np.full(5, fill)}, {HEADER: Binding(base, domain, "dualparams").text()})


def weights(fill: float) -> bytes:
    return save({"w": np.full(50, fill)})


def measure(registry: Registry, generation: Generation, key: str = "ab12", accuracy: float = 0.5) -> Result:
    settings = {
        "sigma": "0.25", "mode": "fixed", "n": 50, "n0": 10, "alpha": 0.001, "noise": "gaussian", "norm": "l2",
        "seed": 0, "images": 2, "skip": 1, "weights": generation.weights, "data": DATA.fingerprint, "precision": "fp32",
    }  # fmt: skip
    shares = {"abstain_rate": 0.0, "certified_accuracy": {"0": accuracy}, "intervals": {"0": [0.0, 1.0]}}
    content = {"settings": settings, "figures": {"images": 2, "acr": accuracy, **shares}}
    return registry.put_result(generation.id, "certificate", key, content, log=b"idx\tlabel\n%r\n" % accuracy)


def damage(registry: Registry) -> list[str]:
    return [f"{f.what}: {f.path.relative_to(registry.root)}" for f in verify(registry) if f.damage]


def notes(registry: Registry) -> list[str]:
    return [f.what for f in verify(registry) if not f.damage]


def stored_files(root: Path) -> dict[str, bytes]:
    """What the registry holds, without locks and jobs."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in ("lock", "lock.owner"))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files if "jobs" not in p.parts}
