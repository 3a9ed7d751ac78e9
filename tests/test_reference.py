"""The generations that ship in registry/: sound, small, what their script says, and to be had again from it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from robustkt import api
from robustkt.progress import Silent
from robustkt.registry import Registry
from tests.conftest import SHARED, Ran

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "registry"
MOST = 1_000_000  # bytes of a file
REACH = 0.5  # near the largest radius that n copies certify, single votes decide
TOLERANCE = 0.05  # of accuracies, on a machine that rounds otherwise

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return importlib.import_module("benchmarks.reference")


@pytest.fixture
def shipped(tmp_path: Path, reference: ModuleType) -> Registry:
    """A copy of what ships, without what whoever works here has made beside it."""
    registry = Registry(shutil.copytree(SHIPPED, tmp_path / "registry"))
    ours = {made.name for made in reference.REFERENCE}
    with registry.changing() as refs:
        for name in sorted(set(refs["names"]) - ours):
            del refs["names"][name]
        refs["tags"].clear()
    return registry


def test_it_is_sound_and_small_and_what_the_script_makes(shipped: Registry, reference: ModuleType) -> None:
    assert api.verify(registry=shipped)["problems"] == []
    assert list(shipped.refs()["names"]) == [made.name for made in reference.REFERENCE]
    for made in reference.REFERENCE:
        found = shipped.get(made.name)
        assert (found.recipe.method, found.recipe.arch, found.recipe.data.name) == (made.method, made.arch, made.data)
        assert made.teacher is None or shipped.get(f"{made.name}~1").name == made.teacher
        training = {**found.recipe.settings, **vars(found.recipe.training)}
        assert {key: str(training[key]) for key in made.given} == {key: str(value) for key, value in made.given.items()}
        for identity in (found.weights, found.last_weights):
            assert shipped.object_path(identity).stat().st_size < MOST
        kinds = {result.kind for result in shipped.results(found.id)}
        assert kinds >= {"evaluation"} | ({"certificate"} if found.recipe.sigma else set())
        assert ("transfer" in kinds) == (made.teacher is not None)


def test_no_machine_is_told(shipped: Registry) -> None:
    texts = [path.read_text() for path in shipped.root.rglob("*.json")]
    assert not [text for text in texts if '"/' in text or str(Path.home()) in text]


def test_there_is_something_to_show_at_once(cli: Cli, shipped: Registry) -> None:
    where = ("--registry", shipped.root)
    assert "digits-crt-2" in cli("list", *where).out
    assert "fashion-crt" in cli("lineage", "--metrics", *where).out
    assert cli("compare", "digits-crt-1", "digits-crt-2", *where).code == 0
    ran = cli(
        "gate", "digits-crt-2", "--against", "digits-smoothmix", "--margin", "0.2", "--class-margin", "0.5", *where
    )
    assert ran.code in (0, 3), ran.err
    ran = cli("certify", "--sigma", "0.25", "--n", "200", "--max-images", "5", *where)
    assert ran.code == 0
    assert "@latest is digits-crt-2" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
def test_it_is_made_again_from_its_recipes(tmp_path: Path, shipped: Registry, reference: ModuleType, data: str) -> None:
    if data != "digits" and not (SHARED / "data" / "FashionMNIST").is_dir():
        pytest.skip("no Fashion-MNIST in ../shared/data")
    again = Registry(tmp_path / "again")
    for made in reference.REFERENCE:
        if made.data != data:
            continue
        reference.train(made, again, SHARED / "data", Silent())
        reference.measure(made, again, SHARED / "data", Silent())
        old, new = (_figures(registry, made.name) for registry in (shipped, again))
        assert old.keys() == new.keys()
        assert {key: old[key] for key in old if abs(old[key] - new[key]) > TOLERANCE} == {}


def _figures(registry: Registry, name: str) -> dict[str, float]:
    found = {}
    for result in registry.results(registry.get(name).id):
        figures = result.content["figures"]
        if result.kind == "certificate":
            shares = figures["certified_accuracy"].items()
            found |= {f"certified@{radius}": value for radius, value in shares if float(radius) <= REACH}
        elif result.kind == "evaluation":
            mode = result.content["settings"].get("domain", "")
            found |= {f"{mode} {attack}": told["accuracy"] for attack, told in figures["attacks"].items()}
    return found
