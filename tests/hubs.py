"""Published lineages for the tests of push and pull: real networks, untrained, certified on a few images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from robustkt import api, data, report
from robustkt.generation import Generation, Recipe, Training
from robustkt.models import build
from robustkt.registry import Registry
from tests.hubstandin import HubStandIn
from tests.stores import RECORD, stored_files

RENDER = report.Figure.render
_DRAWN: dict[str, bytes] = {}
KEPT = ("objects", "generations", "records", "results")
FEW: dict[str, Any] = {"n": 50, "n0": 10, "max_images": 8, "device": "cpu"}


def add(registry: Registry, name: str, seed: int, teacher: Generation | None = None, **record: Any) -> Generation:
    """A generation as training would leave it: the selected and the last epoch differ."""
    spec = data.load("digits").spec
    weights = []
    for epoch in range(2):
        torch.manual_seed(10 * seed + epoch)
        weights.append(registry.put_object(save(build("smallcnn", spec).state_dict())))
    recipe = Recipe(
        method="crt" if teacher else "gaussian", settings={"sigma": "0.25"}, arch="smallcnn", data=spec,
        training=Training(), seed=seed,
    )  # fmt: skip
    parents = {"teacher": teacher.id} if teacher else {}
    made = Generation(name=name, recipe=recipe, weights=weights[0], last_weights=weights[1], parents=parents)
    return registry.add(made, {**RECORD, "seed": seed, **record})


def lineage(registry: Registry, **record: Any) -> Registry:
    """gen0 → gen1 → gen2, each certified, the last attacked too."""
    before = None
    for seed in range(3):
        before = add(registry, f"gen{seed}", seed, before, **(record if seed == 0 else {}))
        api.certify(before.name, sigma="0.25", mode="fixed", registry=registry, **FEW)
    api.evaluate("gen2", attacks=["clean", "fgsm"], eps="0.1", max_images=8, registry=registry, device="cpu")
    return registry


@contextmanager
def standing(**options: Any) -> Iterator[HubStandIn]:
    """A Hub on loopback that this process's client talks to, as alice."""
    with HubStandIn(**options) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", hub.token)
        patch.setattr("time.sleep", lambda seconds: None)
        patch.setattr(report.Figure, "render", drawn)
        yield hub


def drawn(figure: report.Figure, form: str, **told: bool) -> bytes:
    """The picture of certified accuracy; the same one, which is most of a small publication's work, is drawn once."""
    asked = repr((figure, form, told))
    if asked not in _DRAWN:
        _DRAWN[asked] = RENDER(figure, form, **told)
    return _DRAWN[asked]


def kept(registry: Registry) -> dict[str, bytes]:
    """What must be the same on the other side."""
    return {path: data for path, data in stored_files(registry.root).items() if path.split("/")[0] in KEPT}


def names(registry: Registry) -> dict[str, str]:
    return registry.refs()["names"]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
