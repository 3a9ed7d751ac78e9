"""Generations whose measurements are made up image by image, without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustkt.certlog import Row, summarise, text
from robustkt.generation import DataSpec, Generation, Recipe, Training
from robustkt.numbers import canonical, digest, fraction
from robustkt.registry import Registry

DATA = digest(b"images")
CERTIFICATE = {
    "sigma": "0.25", "mode": "fixed", "n": 500, "n0": 100, "alpha": 0.001, "noise": "gaussian", "norm": "l2",
    "seed": 0, "skip": 1, "data": DATA, "precision": "fp32", "compiled": False, "batch_size": 256,
}  # fmt: skip
EVALUATION = {"norm": "linf", "eps": "8/255", "skip": 1, "seed": 0, "data": DATA}


def generation(registry: Registry, name: str, classes: Sequence[str] = "0123456789", **recipe: Any) -> Generation:
    """A generation with weights of its own; `recipe` goes before what all of them have."""
    weights = registry.put_object(name.encode())
    data = DataSpec(
        name="digits", fingerprint=DATA, classes=tuple(classes), shape=(1, 8, 8), mean=(0.3,), std=(0.3,), held_out=9
    )
    told = {"method": "crt", "settings": {"sigma": "0.25"}, "arch": "resnet8", "training": Training()} | recipe
    made = Generation(name=name, recipe=Recipe(data=data, **told), weights=weights, last_weights=weights, parents={})
    return registry.add(made, {"seconds": 1.0, "started": "2026-01-01T00:00:00+00:00", "epochs": []})


def certify(registry: Registry, of: Generation, reach: Sequence[float], labels: Sequence[int], **settings: Any) -> None:
    """A certificate; a reach below 0 is an abstention, one of 0 a wrong answer, others are right ones."""
    told = {**CERTIFICATE, "images": len(reach), "weights": of.weights, **settings}
    rows = [
        Row(i, y, -1 if r < 0 else (y + 1) % 10 if r == 0 else y, max(r, 0.0), r > 0, None, 499, 500, 0.98, 600)
        for i, (r, y) in enumerate(zip(reach, labels, strict=True))
    ]
    at = told["radii"] if told["mode"] == "sequential" else ("0", "0.25", "0.5")
    figures = summarise(rows, [fraction(r) for r in at])
    content = {"settings": told, "figures": figures}
    registry.put_result(of.id, "certificate", digest(canonical(told))[7:23], content, text(rows).encode())


def evaluate(
    registry: Registry, of: Generation, right: Mapping[str, Sequence[bool]], labels: Sequence[int], **settings: Any
) -> None:
    """An evaluation with what each attack left right."""
    told = {**EVALUATION, "attacks": sorted(right), "images": len(labels), "weights": of.weights, **settings}
    attacks = {
        name: {
            "accuracy": sum(kept) / len(kept), "interval": [0.0, 1.0],
            "norm": None if name == "clean" else told["norm"], "eps": None if name == "clean" else told["eps"],
        }
        for name, kept in right.items()
    }  # fmt: skip
    lines = [["idx", "label", *right]]
    lines += [[str(i), str(y), *(str(int(k[i])) for k in right.values())] for i, y in enumerate(labels)]
    log = "".join("\t".join(line) + "\n" for line in lines).encode()
    worst = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    content = {"settings": told, "figures": {"attacks": attacks, "warnings": [], "worst": worst}, "algorithm": 2}
    registry.put_result(of.id, "evaluation", digest(canonical(told))[7:23], content, log)


def right(images: int, wrong: Sequence[int]) -> list[bool]:
    """All right but those."""
    return [i not in set(wrong) for i in range(images)]
