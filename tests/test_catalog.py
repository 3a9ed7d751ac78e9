"""Names come from the sources without running them, a new method is one new file, and a typo gets the nearest name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustkt.catalog import ARCHITECTURES, ATTACKS, CERTIFIERS, METHODS, Catalog, literal, plain, unknown
from robustkt.errors import UsageError

PACKAGE = "catalogued_for_a_test"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of methods, one of which cannot even be imported."""
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text('"""Methods."""\n')
    (package / "explosive.py").write_text('__all__ = ["Boom", "Big_Boom"]\nraise RuntimeError("was imported")\n')
    (package / "calm.py").write_text('__all__ = ["SmoothMix"]\nPRESETS = {"calm-1": {"eta": 5.0}}\nSmoothMix = "it"\n')
    (package / "_private.py").write_text('__all__ = ["Hidden"]\n')
    (package / "bare.py").write_text("Unlisted = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_names_are_read_without_an_import(folder: Path) -> None:
    assert Catalog(PACKAGE, "method").names() == ["big_boom", "boom", "smoothmix"]
    assert Catalog(PACKAGE, "attack", dashed=True).names() == ["big-boom", "boom", "smoothmix"]
    assert f"{PACKAGE}.explosive" not in sys.modules
    with pytest.raises(RuntimeError, match="was imported"):
        Catalog(PACKAGE, "method").get("boom")


@pytest.mark.parametrize("name", ["smoothmix", "SmoothMix", "SMOOTHMIX"])
def test_any_case_finds_it(folder: Path, name: str) -> None:
    assert Catalog(PACKAGE, "method").get(name) == "it"
    assert Catalog(PACKAGE, "method").has(name)


@pytest.mark.parametrize("name", ["big_boom", "big-boom", "BIG-Boom"])
def test_a_dash_is_an_underscore(folder: Path, name: str) -> None:
    assert Catalog(PACKAGE, "method").has(name)


@pytest.mark.parametrize("name", ["hidden", "Unlisted", "bigboom", "boom ", ""])
def test_what_is_not_listed_is_not_there(folder: Path, name: str) -> None:
    assert not Catalog(PACKAGE, "method").has(name)
    with pytest.raises(UsageError, match="unknown method"):
        Catalog(PACKAGE, "method").get(name)


def test_a_new_method_is_one_new_file(folder: Path) -> None:
    catalog = Catalog(PACKAGE, "method")
    before = catalog.names()
    (folder / "fresh.py").write_text(
        '__all__ = ["Fresh"]\nPRESETS = {"fresh-1": {"epochs": 3}}\nclass Fresh:\n    """New."""\n'
    )
    importlib.invalidate_caches()
    assert catalog.names() == sorted([*before, "fresh"])
    assert catalog.get("fresh").__doc__ == "New."
    assert catalog.tables("PRESETS") == {"calm-1": {"eta": 5.0}, "fresh-1": {"epochs": 3}}


def test_a_package_that_is_not_there_holds_nothing() -> None:
    assert Catalog("robustkt.nothing_of_this_name", "method").names() == []


def test_literal_takes_constants_only(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text("A: list[str] = ['x']\nB, C = 1, 2\nif True:\n    D = 4\nE = 5\nE = 6\n")
    assert [literal(source, name) for name in "ABCDE"] == [["x"], None, None, None, 5]


# -- names that are not known ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catalog", "typo", "meant"),
    [
        (METHODS, "smothmix", "smoothmix"),
        (METHODS, "rslda", "rslad"),
        (METHODS, "TRADE", "trades"),
        (ATTACKS, "pgdsat", "pgd-sat"),
        (ATTACKS, "pgd_trade", "pgd-trades"),
        (ARCHITECTURES, "resnet-20", "resnet20"),
        (ARCHITECTURES, "smalcnn", "smallcnn"),
        (CERTIFIERS, "fixd", "fixed"),
    ],
)
def test_a_typo_gets_the_nearest_name_and_all_of_them(catalog: Catalog, typo: str, meant: str) -> None:
    with pytest.raises(UsageError) as error:
        catalog.get(typo)
    assert error.value.what == f"unknown {catalog.kind} '{typo}': did you mean '{meant}'?"
    assert error.value.fix == f"Known: {', '.join(catalog.names())}."


def test_nothing_near_nothing_suggested() -> None:
    assert unknown("method", "qqqq", ["smoothmix", "sat"]).what == "unknown method 'qqqq'"


@pytest.mark.parametrize("catalog", [METHODS, ATTACKS, ARCHITECTURES, CERTIFIERS], ids=lambda c: c.kind)
def test_every_name_of_the_project_is_found_by_what_is_shown(catalog: Catalog) -> None:
    names = catalog.names()
    assert names
    assert len({plain(name) for name in names}) == len(names)
    for name in names:
        assert plain(getattr(catalog.get(name), "__name__", "")) == plain(name)
