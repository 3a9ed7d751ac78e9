"""An audit finds invented certificates and leaves sound ones alone at its stated rate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from robustkt import api, certlog
from robustkt.api.auditing import _Votes, judge
from robustkt.certificates import Certificate, lower_bound
from robustkt.errors import NotFoundError, UsageError
from robustkt.registry import Registry
from tests.conftest import Ran, gaussian_digits, l2

ALPHA = 0.001


@functools.cache
def bound_of(k: int, n: int) -> float:
    """What thousands of coins share."""
    return lower_bound(k, n, ALPHA)


def claims(p: np.ndarray, rng: np.random.Generator, n: int = 1_000, m: int = 2_000) -> list[_Votes]:
    """Honest certificates of coins and their fresh votes."""
    made = []
    for i, share in enumerate(p):
        k = int(rng.binomial(n, share))
        bound = bound_of(k, n)
        row = certlog.Row.of(i, 0, Certificate(0, l2(1.0).radius(bound), ALPHA, n, k, n, bound))
        made.append(_Votes(row, float(stats.norm.cdf(row.radius)), int(rng.binomial(m, share)), m))
    return made


def test_sound_certificates_are_reported_no_more_often_than_stated() -> None:
    rng, error, reported = np.random.default_rng(0), 0.05, 0
    for _ in range(300):
        fresh = claims(rng.uniform(0.6, 1, 30), rng)
        reported += bool(judge(fresh, ALPHA, error, len(fresh), 1.0, two_samples=True)["problems"])
    assert stats.binomtest(reported, 300, error, alternative="greater").pvalue > 1e-3


def test_borderline_images_of_which_few_are_certified_are_no_fault() -> None:
    """Certified by luck, at most a share alpha of them; what was left out by abstaining counts as well."""
    rng, error, reported, images = np.random.default_rng(3), 0.05, 0, 3_000
    least = next(k for k in range(500, 1_000) if lower_bound(k, 1_000, ALPHA) >= 0.5)
    for _ in range(200):
        k = rng.binomial(1_000, 0.5, size=images)
        fresh = []
        for i in np.flatnonzero(k >= least).tolist():
            bound = lower_bound(int(k[i]), 1_000, ALPHA)
            row = certlog.Row.of(i, 0, Certificate(0, l2(1.0).radius(bound), ALPHA, 1_000, int(k[i]), 1_000, bound))
            fresh.append(_Votes(row, max(0.5, bound), int(rng.binomial(2_000, 0.5)), 2_000))
        reported += bool(judge(fresh, ALPHA, error, images, 1.0, two_samples=True)["problems"])
    assert stats.binomtest(reported, 200, error, alternative="greater").pvalue > 1e-3


def test_inflated_radii_are_found() -> None:
    rng = np.random.default_rng(1)
    fresh = claims(rng.uniform(0.6, 0.95, 50), rng)
    inflated = [replace(v, needed=min(1 - 1e-9, v.needed + 0.04)) for v in fresh]
    found = judge(inflated, ALPHA, 0.001, 50, 1.0, two_samples=False)
    assert "refuted by fresh noise" in found["problems"][0]
    assert found["p_value"] < 1e-6
    assert not judge(fresh, ALPHA, 0.001, 50, 1.0, two_samples=False)["problems"]


def test_invented_counts_of_one_image_are_found() -> None:
    rng = np.random.default_rng(2)
    fresh = claims(rng.uniform(0.8, 0.95, 50), rng)
    fresh[7] = replace(fresh[7], row=replace(fresh[7].row, successes=1_000))
    (problem,) = judge(fresh, ALPHA, 0.001, 50, 1.0, two_samples=True)["problems"]
    assert problem.startswith("image 7: 1000 of 1000 copies agreed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = gaussian_digits(tmp_path_factory.mktemp("auditing"), "gen0", "other")
    for mode in ("fixed", "sequential"):
        api.certify("gen0", n=500, max_images=24, mode=mode, registry=registry, device="cpu")
    return registry


def test_an_audit_of_what_was_measured_finds_nothing(trained: Registry) -> None:
    ask: dict[str, Any] = {"images": 12, "n": 400, "seed": 5, "registry": trained, "device": "cpu"}
    found = api.audit_generation("gen0", **ask)
    assert [one["mode"] for one in found["audits"]] in (["fixed", "sequential"], ["sequential", "fixed"])
    assert found["problems"] == []
    assert all(one["images"] == 12 and one["copies"] == 400 for one in found["audits"])
    assert api.audit_generation("gen0", **ask) == found
    assert api.audit_generation("gen0", images=5, n=50, registry=trained, device="cpu")["seed"] > 2**20


def test_certificates_of_another_network_are_refuted(trained: Registry) -> None:
    """As when weights were changed after certification: the log of one generation under another's name."""
    other = trained.get("other")
    for result in trained.results(trained.get("gen0").id, "certificate"):
        settings = dict(result.content["settings"]) | {"weights": other.weights}
        log = certlog.parse(trained.log(result).decode())
        boasted = certlog.text([replace(r, radius=0.7, predict=r.label, correct=True, successes=499) for r in log])
        content = {k: v for k, v in result.content.items() if k in ("figures",)} | {"settings": settings}
        trained.put_result(other.id, "certificate", result.key, content, boasted.encode())
    found = api.audit_generation("other", images=24, n=400, registry=trained, device="cpu")
    assert len(found["problems"]) >= 2


def test_nothing_to_audit(trained: Registry) -> None:
    with pytest.raises(NotFoundError, match="no certificate at σ 1"):
        api.audit_generation("gen0", sigma="1", registry=trained)


@pytest.mark.parametrize(
    ("given", "told"),
    [({"images": 0}, "--images must be"), ({"n": 0}, "--copies must be"), ({"error": 0.5}, "--error must lie"),
     ({"sigma": "abc"}, "is not a number")],
)  # fmt: skip
def test_what_an_audit_is_told_is_checked(trained: Registry, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        api.audit_generation("gen0", registry=trained, **given)


def test_no_option_is_taken_for_one_left_out(trained: Registry, cli: Callable[..., Ran]) -> None:
    ran = cli("audit", "gen0", "--images", "0", "--registry", trained.root)
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: --images must be at least 1, not 0")


def test_what_was_pulled_is_audited_with_data_that_are_named(
    registry: Registry, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("mine", "other"):
        x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
        np.savez(tmp_path / f"{name}.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    mine, other = str(tmp_path / "mine.npz"), str(tmp_path / "other.npz")
    theirs, given = Registry(tmp_path / "theirs"), {"sigma": "0.25", "epochs": 1}
    api.train(
        method="gaussian", arch="smallcnn", data=mine, given=given, name="own", registry=theirs, device="cpu"
    )  # fmt: skip
    api.certify("own", n=50, n0=10, max_images=8, registry=theirs, device="cpu")
    api.push("own", to=tmp_path / "out", registry=theirs)
    api.pull(str(tmp_path / "out"), registry=registry)
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    told = cli("audit", "own", "--registry", theirs.root).err.splitlines()[-2:]
    assert told == [f"error: the data of own lay at {mine}, and are not there", "  → Say where they are: --data PATH."]
    mine = str(tmp_path / "moved.npz")
    command = ("audit", "own", "--images", "4", "--copies", "50", "--registry", registry.root)
    assert cli(*command).err.splitlines()[-2:] == [
        "error: where the data of own lie is not recorded here", "  → Name them: --data PATH."
    ]  # fmt: skip
    assert "other images than own was made with" in cli(*command, "--data", other).err
    assert cli(*command, "--data", mine, "--json").json["problems"] == []
    ran = cli("audit", tmp_path / "log.tsv", "--sigma", "1", "--data", mine)
    assert "--data means nothing for a log" in ran.err
