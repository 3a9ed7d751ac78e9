"""Measurements as a notebook has them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from robustkt import api
from robustkt.api.gateconfig import Gate
from robustkt.errors import IntegrityError, RobustKTError
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


def test_what_certify_answers_is_its_table_with_more(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(SHIPPED.root, registry)
    given = {"n": 128, "n0": 16, "max_images": 4, "radii": [Fraction(0), Fraction(1, 2)], "device": "cpu"}
    told = api.certify("digits-crt-2", registry=Registry(registry), **given)  # type: ignore[arg-type]
    assert isinstance(told, api.CertificateSet)
    assert json.loads(json.dumps(told)) == dict(told)
    frame = told.to_pandas()
    assert len(frame) == told["images"] == 4
    assert (frame["correct"] & (frame["radius"] >= 0.5)).mean() == told["certified_accuracy"]["0.5"]
    assert "certified at 0.5" in told._repr_html_()
    assert told.plot().rows
    assert pickle.loads(pickle.dumps(told)).to_pandas().equals(frame)
    every = api.certificates("digits-crt-2", registry=Registry(registry))
    (stored,) = (one for one in every if one["settings"]["n"] == 128)
    assert stored.to_pandas().equals(frame)


def test_what_evaluate_answers_is_its_table_with_more(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(SHIPPED.root, registry)
    given = {"attacks": ["fgsm"], "eps": "0.1", "max_images": 12, "device": "cpu", "registry": Registry(registry)}
    told = api.evaluate("digits-sat", **given)  # type: ignore[arg-type]
    assert isinstance(told, api.Evaluation)
    assert json.loads(json.dumps(told)) == dict(told)
    assert told.to_pandas()["fgsm"].mean() == pytest.approx(told["attacks"]["fgsm"]["accuracy"])
    assert f"{told['images']} images" in told._repr_html_()
    assert {value["group"] for value in told.plot().spec["data"]["values"]} == {"clean", "fgsm"}


def test_what_another_machine_keeps_says_so() -> None:
    def absent() -> bytes:
        raise IntegrityError("the log is missing", "Measure again.")

    told = api.CertificateSet({"log": None}, SHIPPED.get("digits-crt-2"), {}, {}, absent)
    assert "the first rank has them" in told._repr_html_()
    with pytest.raises(IntegrityError, match="missing"):
        told.to_pandas()


def test_a_comparison_is_a_table_of_its_figures() -> None:
    told = api.compare("digits-sat", "digits-rslad", registry=SHIPPED)
    frame = told.to_pandas()
    assert list(frame["name"]) == ["clean", "fgsm", "pgd-sat"]
    assert ((frame["low"] <= frame["difference"]) & (frame["difference"] <= frame["high"])).all()
    assert (frame["second"] - frame["first"]).tolist() == pytest.approx(frame["difference"].tolist())
    values = told.plot().spec["data"]["values"]
    assert {value["series"] for value in values} == {"digits-sat", "digits-rslad"}
    assert len(values) == 2 * len(frame)
    assert "differences in points" in told._repr_html_()


def test_corruptions_are_a_table_with_the_clean_images_first(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(SHIPPED.root, registry)
    given = {"corruption": "contrast:1,contrast:3", "max_images": 12, "device": "cpu", "registry": Registry(registry)}
    told = api.evaluate_corruptions("digits-sat", **given)  # type: ignore[arg-type]
    assert isinstance(told, api.CorruptedEvaluation)
    assert json.loads(json.dumps(told)) == dict(told)
    frame = told.to_pandas()
    assert list(zip(frame["corruption"], frame["severity"], strict=True)) == [
        ("clean", 0), ("contrast", 1), ("contrast", 3)
    ]  # fmt: skip
    assert frame["accuracy"][0] == told["clean"]["accuracy"]
    assert ((frame["low"] <= frame["accuracy"]) & (frame["accuracy"] <= frame["high"])).all()
    assert frame["accuracy"][1:].mean() == pytest.approx(told["mean"]["accuracy"])
    drawn = told.plot()
    values = drawn.spec["data"]["values"]
    assert {(v["group"], v["series"]) for v in values} == {("contrast", "severity 1"), ("contrast", "severity 3")}
    assert [v["y"] for v in values] == pytest.approx(list(frame["accuracy"][1:]), abs=1e-6)
    assert drawn._repr_mimebundle_()["image/svg+xml"].startswith("<svg")
    assert "mean of the corruptions" in told._repr_html_()
    assert "12 images each" in told._repr_html_()


@pytest.mark.parametrize("margin", [0.01, 0.5])
def test_a_gate_is_a_table_of_its_checks(margin: float) -> None:
    told = api.gate("digits-rslad", config=Gate(against="digits-sat", margin=margin, min_images=1), registry=SHIPPED)
    assert isinstance(told, api.GateVerdict)
    assert json.loads(json.dumps(told)) == dict(told)
    frame = told.to_pandas()
    assert list(frame["name"]) == [row["name"] for row in told["checks"]]
    assert (frame["value"] - frame["against"]).tolist() == pytest.approx(frame["difference"].tolist())
    assert frame["passed"].all() == all(row["passed"] for row in told["checks"])
    assert ("does not pass" in told._repr_html_()) != told["passed"]
    drawn = told.plot()
    assert [v["limit"] for v in drawn.spec["data"]["values"]] == [-margin] * len(frame)
    assert drawn._repr_mimebundle_()["image/svg+xml"].startswith("<svg")
    assert pickle.loads(pickle.dumps(told)).to_pandas().equals(frame)


def test_what_a_gate_says_of_abstentions_is_lost_upwards() -> None:
    row = {"name": "abstain", "against": 0.1, "value": 0.3, "difference": 0.2, "bound": 0.25, "margin": 0.05,
           "status": "worse"}  # fmt: skip
    losing = {"check": "clean", "class": "<b>", "difference": -0.4, "margin": 0.1, "passed": False}
    told = api.GateVerdict(
        {
            "generation": "new",
            "against": "old",
            "passed": False,
            "confidence": 0.95,
            "checks": [row],
            "classes": [losing],
        }
    )
    assert told.plot().spec["data"]["values"][0]["limit"] == 0.05
    assert "+20.0" in told._repr_html_()
    assert "class &lt;b&gt;" in told._repr_html_()


def test_a_pick_is_a_table_of_what_it_was_chosen_from() -> None:
    points = [{"beta": beta, "clean_accuracy": 0.9, "clean_interval": [0.8, 0.95]} for beta in (0.0, 1.0)]
    test = {"of": "digits", "images": 40, "attacks": {"clean": {"accuracy": 0.75, "interval": [0.6, 0.86]}}}
    told = api.SoupPick(
        {"generation": "two", "mode": "two@beta=1", "beta": 1.0, "chosen_by": "accuracy", "chosen_on": "9 images",
         "points": points, "test": test}
    )  # fmt: skip
    assert list(told.to_pandas()["beta"]) == [0.0, 1.0]
    assert told.plot().title == "two: β = 1 by accuracy, on 9 images"
    assert "two@beta=1 on 40 images of digits" in told._repr_html_()
    assert "75.0% (60.0% – 86.0%)" in told._repr_html_()


def test_a_sweep_is_a_table_of_its_mixtures() -> None:
    points = [
        {"beta": beta, "clean_accuracy": 0.9, "clean_interval": [0.8, 0.95], "robust_accuracy": beta / 2,
         "robust_interval": [0.0, 0.6]}
        for beta in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    asked = {"generation": "two", "attacks": ["pgd-sat"], "norm": "linf", "eps": "0.1", "images": 48, "split": "test"}
    told = api.Sweep({**asked, "points": points})
    frame = told.to_pandas()
    assert list(frame["robust_accuracy"]) == [0.0, 0.25, 0.5]
    assert set(frame["clean_low"]) == {0.8}
    assert "β = 0.5" in told._repr_html_()
    assert "pgd-sat" in told.plot().title
    clean = api.Sweep({**asked, "points": [{k: v for k, v in p.items() if "robust" not in k} for p in points]})
    assert "robust_accuracy" not in clean.to_pandas()
    assert "robust" not in clean._repr_html_()
