"""compare: recipes and images of two generations under equal settings, σ by σ, and what one side lacks."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkt import api, paired
from robustkt.errors import IntegrityError, NotFoundError, UsageError
from robustkt.generation import Generation, Training
from robustkt.paired import Pairs
from robustkt.registry import Registry
from tests import twins
from tests.conftest import SMALL, Ran

Cli = Callable[..., Ran]
N = 400
LABELS = [i % 10 for i in range(N)]


@pytest.fixture
def two(registry: Registry) -> tuple[Generation, Generation]:
    """Of 400 images under PGD the old one gets 40 wrong, the new one 70, 30 of them others."""
    old = twins.generation(registry, "old")
    new = twins.generation(registry, "new", arch="resnet20", training=Training(epochs=7))
    clean, fell = twins.right(N, range(8)), [*range(40), *range(200, 230)]
    twins.evaluate(registry, old, {"clean": clean, "pgd-sat": twins.right(N, range(40))}, LABELS)
    twins.evaluate(registry, new, {"clean": clean, "pgd-sat": twins.right(N, fell)}, LABELS)
    twins.certify(registry, old, [-1.0] * 10 + [0.0] * 20 + [0.3] * 170 + [0.6] * 200, LABELS)
    twins.certify(registry, new, [-1.0] * 5 + [0.0] * 25 + [0.3] * 150 + [0.6] * 220, LABELS)
    return old, new


def figures(result: dict[str, Any], kind: str = "") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for c in result["comparisons"] if kind in c["what"] for row in c["figures"]}


def test_images_are_counted_pair_by_pair(registry: Registry, two: tuple[Generation, Generation]) -> None:
    result = api.compare("old", "new", registry=registry)
    rows = figures(result)
    pgd = rows["pgd-sat"]
    assert (pgd["won"], pgd["lost"], pgd["difference"]) == (0, 30, -0.075)
    assert pgd["interval"] == list(paired.interval(Pairs(0, 30, N)))
    assert pgd["winner"] == "first"
    assert rows["clean"]["p_value"] == 1.0
    assert rows["clean"]["winner"] is None
    half = rows["certified@0.5"]
    assert (half["first"], half["second"], half["won"], half["lost"]) == (0.5, 0.55, 20, 0)
    assert half["winner"] == "second"
    assert half["p_adjusted"] >= half["p_value"]
    assert rows["certified@0.25"]["difference"] == 0.0


def test_abstentions_grow_as_images_are_lost(registry: Registry, two: tuple[Generation, Generation]) -> None:
    row = figures(api.compare("new", "old", registry=registry))["abstain"]
    assert (row["first"], row["second"], row["won"], row["lost"]) == (pytest.approx(0.0125), pytest.approx(0.025), 0, 5)
    assert row["difference"] == pytest.approx(0.0125)
    assert row["interval"][0] < row["difference"] < row["interval"][1]


def test_the_average_radius_has_its_paired_interval(registry: Registry, two: tuple[Generation, Generation]) -> None:
    result = api.compare("old", "new", registry=registry)
    acr = result["comparisons"][-1]["acr"]
    assert acr["first"] == pytest.approx((170 * 0.3 + 200 * 0.6) / N)
    assert acr["difference"] == pytest.approx(20 * 0.3 / N)
    assert acr["interval"][0] < acr["difference"] < acr["interval"][1]


def test_recipes_differ_in_named_fields(registry: Registry, two: tuple[Generation, Generation]) -> None:
    recipe = api.compare("old", "new", registry=registry)["recipe"]
    assert recipe == {"arch": ["resnet8", "resnet20"], "training.epochs": [30, 7]}


def test_the_class_that_loses_is_named(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    threes = [i for i in range(N) if LABELS[i] == 3]
    twins.evaluate(registry, old, {"clean": twins.right(N, [])}, LABELS)
    twins.evaluate(registry, new, {"clean": twins.right(N, threes[:15])}, LABELS)
    classes = api.compare("old", "new", registry=registry)["comparisons"][0]["classes"]
    assert [row["class"] for row in classes if row["winner"]] == ["3"]
    (three,) = [row for row in classes if row["class"] == "3"]
    assert (three["images"], three["won"], three["lost"], three["winner"]) == (40, 0, 15, "first")
    assert three["p_adjusted"] == pytest.approx(10 * three["p_value"])


def test_a_negative_radius_is_refused(registry: Registry, two: tuple[Generation, Generation]) -> None:
    with pytest.raises(UsageError, match="a radius cannot be negative"):
        api.compare(two[0].name, two[1].name, radii=[-1], registry=registry)


def test_sigmas_are_compared_each_by_itself(registry: Registry, two: tuple[Generation, Generation]) -> None:
    for generation in two:
        twins.certify(registry, generation, [0.7] * N, LABELS, sigma="0.5")
    result = api.compare("old", "new", registry=registry)
    assert [c["settings"]["sigma"] for c in result["comparisons"] if c["kind"] == "certificate"] == ["0.25", "0.5"]
    assert any("never the best" in note for note in result["notes"])
    one = api.compare("old", "new", sigma="0.50", registry=registry)
    assert [c["settings"]["sigma"] for c in one["comparisons"] if c["kind"] == "certificate"] == ["0.5"]
    with pytest.raises(NotFoundError, match="no certificates at σ = 1 in common"):
        api.compare("old", "new", sigma=1, registry=registry)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n", 1000), ("alpha", 0.01), ("seed", 1), ("mode", "randomised"), ("norm", "linf"), ("noise", "quantised"),
     ("precision", "bf16"), ("skip", 2), ("data", "sha256:" + "0" * 64), ("sigma", "0.5"), ("alpha_image", 1e-5)],
)  # fmt: skip
def test_no_pair_under_other_settings(registry: Registry, setting: str, value: Any) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, [0.3] * N, LABELS)
    twins.certify(registry, new, [0.3] * N, LABELS, **{setting: value})
    result = api.compare("old", "new", registry=registry)
    assert result["comparisons"] == []
    assert [(one["has"], one["lacks"]) for one in result["missing"]] == [("old", "new"), ("new", "old")]
    assert list(result["missing"][0]["differs"]) == [setting]


def test_how_it_was_computed_makes_no_difference(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, [0.3] * N, LABELS)
    twins.certify(registry, new, [0.3] * N, LABELS, compiled=True, batch_size=4096)
    assert len(api.compare("old", "new", registry=registry)["comparisons"]) == 1


def test_what_one_side_lacks_comes_with_a_command_that_makes_it(registry: Registry) -> None:
    old, _ = (twins.generation(registry, name) for name in ("old", "new"))
    right = twins.right(N, [])
    twins.certify(registry, old, [0.3] * N, LABELS, mode="sequential", radii=["0", "0.25"])
    twins.evaluate(registry, old, {"clean": right, "cw": right, "pgd:steps=9": right}, LABELS)
    commands = [one["command"] for one in api.compare("old", "new", registry=registry)["missing"]]
    assert commands == [
        "robustkt certify new --sigma 0.25 --mode sequential --n 500 --n0 100 --alpha 0.001 --noise gaussian "
        "--norm l2 --radii 0,0.25 --skip 1 --max-images 400 --seed 0 --precision fp32",
        "robustkt evaluate new --attack cw,pgd:steps=9 --norm linf --eps 8/255 --seed 0 --max-images 400 --base",
    ]


def test_a_radius_that_was_not_decided_is_refused(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    for generation in (old, new):
        twins.certify(registry, generation, [0.3] * N, LABELS, mode="sequential", radii=["0", "0.25"])
    result = api.compare("old", "new", registry=registry)
    assert list(figures(result)) == ["certified@0", "certified@0.25", "abstain"]
    assert result["comparisons"][0]["acr"] is None
    with pytest.raises(UsageError, match=r"sequential has not decided the radius 0\.3"):
        api.compare("old", "new", radii=[twins.fraction("0.3")], registry=registry)


def test_logs_of_other_images_are_refused(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, [0.3] * N, LABELS)
    twins.certify(registry, new, [0.3] * N, LABELS[::-1])
    with pytest.raises(IntegrityError, match="not of the same images"):
        api.compare("old", "new", registry=registry)


def test_a_damaged_log_is_refused(registry: Registry, two: tuple[Generation, Generation]) -> None:
    log = next(registry.results_path(two[0].id).glob("evaluation-*.tsv"))
    log.write_text(log.read_text() + "x\n")
    with pytest.raises(IntegrityError, match="damaged"):
        api.compare("old", "new", registry=registry)


def test_the_last_weights_are_others(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, [0.3] * N, LABELS)
    twins.certify(registry, new, [0.3] * N, LABELS, weights=twins.digest(b"of the last epoch"))
    assert api.compare("old", "new", registry=registry)["comparisons"] == []


def test_the_command_tells_all_of_it(cli: Cli, registry: Registry, two: tuple[Generation, Generation]) -> None:
    twins.certify(registry, two[0], [0.3] * N, LABELS, sigma="0.5")
    ran = cli("compare", "old", "new", "--registry", registry.root)
    assert ran.code == 0, ran.err
    for told in ("training.epochs", "pgd-sat", "−7.5", "certified@0.25", "ACR", "old is better: pgd-sat",
                 "robustkt certify new --sigma 0.5"):  # fmt: skip
        assert told in ran.out, told
    assert cli("compare", "old", "new", "--registry", registry.root, "--json").json["first"] == "old"


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["old", "nwe"], 1, "did you mean 'new'"),
        (["old", "new", "--sigma", "0"], 2, "sigma must be above 0"),
        (["old", "new", "--confidence", "95"], 2, "must lie between 0.5 and 0.999999999"),
        (["old", "new", "--radii", "x"], 2, "is not a number"),
        (["old"], 2, "B"),
    ],
)
def test_wrong_options_are_answered(
    cli: Cli, registry: Registry, two: tuple[Generation, Generation], options: list[str], code: int, told: str
) -> None:
    ran = cli("compare", *options, "--registry", registry.root)
    assert ran.code == code
    assert told in ran.err


@pytest.mark.parametrize("command", [["compare", "old", "new"], ["gate", "new", "--against", "old"]])
def test_tables_fit_into_80_columns(
    registry: Registry, two: tuple[Generation, Generation], command: list[str], tmp_path: Path
) -> None:
    """On a terminal no cell is cut short."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "robustkt", *command, "--registry", str(registry.root)],
        stdout=follower, stderr=subprocess.DEVNULL, env=environment, cwd=tmp_path,
    )  # fmt: skip
    os.close(follower)
    seen = b""
    try:
        while block := os.read(leader, 65536):
            seen += block
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(leader)
    text = seen.decode()
    assert "certified@0.25" in text
    assert "…" not in "".join(line for line in text.splitlines() if " … " not in line)


def test_what_the_commands_store_makes_pairs(cli: Cli, registry: Registry) -> None:
    """The listed commands make the missing halves, and the pairs count what the stored figures say."""
    for seed in (0, 1):
        api.train(
            method="gaussian", arch="smallcnn", data="digits", given={**SMALL, "sigma": "0.25"}, seed=seed,
            registry=registry, device="cpu",
        )  # fmt: skip
    api.certify("gen0", n=100, mode="fixed", max_images=10, registry=registry, device="cpu")
    api.certify("gen0", n=150, max_images=10, simultaneous=True, registry=registry, device="cpu")
    api.evaluate("gen0", attacks=["fgsm"], max_images=20, registry=registry, device="cpu")
    lacking = api.compare("gen0", "gen1", registry=registry)["missing"]
    assert len(lacking) == 3
    for one in lacking:
        ran = cli(*shlex.split(one["command"])[1:], "--registry", registry.root, "--device", "cpu", "-q")
        assert ran.code == 0, ran.err
    result = api.compare("gen0", "gen1", registry=registry)
    assert result["missing"] == []
    assert result["recipe"] == {"seed": [0, 1]}
    evaluation = api.evaluate("gen1", attacks=["fgsm"], max_images=20, registry=registry, device="cpu")
    assert figures(result)["fgsm"]["second"] == evaluation["attacks"]["fgsm"]["accuracy"]
    certificate = api.certify("gen1", n=100, mode="fixed", max_images=10, registry=registry, device="cpu")
    told = figures(result, "fixed")
    for radius, value in certificate["certified_accuracy"].items():
        assert told[f"certified@{radius}"]["second"] == value
    assert told["abstain"]["second"] == pytest.approx(certificate["abstain_rate"])
