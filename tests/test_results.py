"""Measurements as a notebook has them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from robustkt import api
from robustkt.errors import RobustKTError
from robustkt.registry import Registry

SHIPPED = Registry(Path(__file__).resolve().parents[1] / "registry")


def test_certificates() -> None:
    (found,) = api.certificates("digits-crt-2", registry=SHIPPED)
    frame = found.to_pandas()
    assert len(frame) == found["figures"]["images"]
    certified = (frame["correct"] & (frame["radius"] >= 0.25)).mean()
    assert certified == pytest.approx(found["figures"]["certified_accuracy"]["0.25"])
    assert json.loads(json.dumps(found))["id"] == SHIPPED.get("digits-crt-2").id
    assert "each wrong with probability at most α = 0.001" in found._repr_html_()
    shown = found.plot()._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg")
    assert shown["application/vnd.vegalite.v6+json"]["data"]["values"]


def test_evaluations_are_of_the_mode_that_is_meant() -> None:
    modes = {}
    for mode in ("clean", "robust"):
        (found,) = api.evaluations(f"digits-two-modes@{mode}", registry=SHIPPED)
        modes[mode] = found.to_pandas()["pgd-sat"].mean()
        assert modes[mode] == pytest.approx(found["figures"]["attacks"]["pgd-sat"]["accuracy"])
        assert f"digits-two-modes@{mode} under attack" in found._repr_html_()
        assert {v["group"] for v in found.plot().spec["data"]["values"]} == {"clean", "fgsm", "pgd-sat"}
    assert modes["clean"] != modes["robust"]


def test_a_generation_is_shown_letter_by_letter() -> None:
    found = SHIPPED.get("digits-crt-2")
    assert found.id in found._repr_html_()
    assert "σ = 0.25" in found._repr_html_()
    hostile = dataclasses.replace(found, recipe=dataclasses.replace(found.recipe, arch="<img src=x>"))
    assert "<img" not in hostile._repr_html_()


def test_without_pandas_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RobustKTError, match="pip install pandas"):
        api.evaluations("digits-sat", registry=SHIPPED)[0].to_pandas()
