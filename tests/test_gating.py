"""gate: passes what is shown to be no worse, fails the rest with status 3, and says what it could have seen."""

from __future__ import annotations

import json
import xml.etree.ElementTree as Tree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkt import api, paired
from robustkt.api import gateconfig
from robustkt.api.gateconfig import Gate
from robustkt.cli import gatetables
from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.generation import Generation
from robustkt.paired import Pairs
from robustkt.registry import Registry
from tests import twins
from tests.conftest import Ran

Cli = Callable[..., Ran]
N = 1000
LABELS = [i % 10 for i in range(N)]
REACH = [-1.0] * 10 + [0.0] * 40 + [0.3] * 450 + [0.6] * 500


def two(registry: Registry, lost: int = 3, won: int = 3, **names: Any) -> tuple[Generation, Generation]:
    """Under PGD the new one has lost so many images and won so many; all else is equal."""
    old, new = (twins.generation(registry, name, **names) for name in ("old", "new"))
    clean = twins.right(N, range(20))
    twins.evaluate(registry, old, {"clean": clean, "pgd-sat": twins.right(N, range(200))}, LABELS)
    fell = [*range(won, 200), *range(500, 500 + lost)]
    twins.evaluate(registry, new, {"clean": clean, "pgd-sat": twins.right(N, fell)}, LABELS)
    twins.certify(registry, old, REACH, LABELS)
    twins.certify(registry, new, REACH, LABELS)
    return old, new


def checks(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["checks"]}


def gated(registry: Registry, **told: Any) -> dict[str, Any]:
    return api.gate("new", config=gateconfig.given(Gate(against="old"), told), registry=registry)


# -- verdicts ----------------------------------------------------------------------------------------------------


def test_as_good_a_generation_passes(registry: Registry) -> None:
    two(registry)
    result = gated(registry)
    assert result["passed"]
    assert list(checks(result)) == ["clean", "pgd-sat", "certified@0", "certified@0.25", "certified@0.5", "abstain"]
    pgd = checks(result)["pgd-sat"]
    counts = Pairs(3, 3, N)
    assert pgd["p_value"] == paired.non_inferior(counts, 0.02) <= 0.05
    assert -0.02 <= pgd["bound"] <= pgd["difference"] == 0.0
    assert (pgd["value"], pgd["against"], pgd["won"], pgd["lost"], pgd["images"]) == (0.8, 0.8, 3, 3, N)
    assert pgd["power"] == paired.power(N, 0.007, 0.02, 0.05)
    assert pgd["resolution"] == paired.resolution(N, 0.007, 0.05)
    assert pgd["images_needed"] == paired.images_needed(0.007, 0.02, 0.05)


def test_a_loss_that_is_not_excluded_fails(registry: Registry) -> None:
    two(registry, lost=20)
    pgd = checks(gated(registry))["pgd-sat"]
    assert (pgd["passed"], pgd["status"]) == (False, "not excluded")
    assert pgd["bound"] < -0.02
    assert checks(gated(registry, fail_on="shown"))["pgd-sat"]["passed"]
    assert checks(gated(registry, margins={"pgd-sat": 0.05}))["pgd-sat"]["passed"]
    assert checks(gated(registry, margins={"robust": "1/20"}))["pgd-sat"]["margin"] == 0.05


def test_a_loss_that_is_shown_is_called_one(registry: Registry) -> None:
    two(registry, lost=90)
    for fail_on in gateconfig.FAIL_ON:
        result = gated(registry, fail_on=fail_on)
        assert not result["passed"]
        row = checks(result)["pgd-sat"]
        assert row["status"] == "worse"
        assert row["p_loss"] == pytest.approx(6 * paired.shown_loss(Pairs(3, 90, N), 0.02))


def test_a_class_that_loses_more_than_its_margin_fails_alone(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    threes = [i for i in range(N) if LABELS[i] == 3]
    twins.evaluate(registry, old, {"clean": twins.right(N, [])}, LABELS)
    twins.evaluate(registry, new, {"clean": twins.right(N, threes[:40])}, LABELS)
    result = gated(registry, margin=0.06)
    assert [row["class"] for row in result["classes"] if not row["passed"]] == ["3"]
    assert checks(result)["clean"]["passed"]
    assert not result["passed"]
    assert gated(registry, margin=0.06, class_margin=1)["passed"]
    assert gated(registry, margin=0.06, class_margin=0.5)["passed"]
    three = result["classes"][3]
    assert three["p_adjusted"] == pytest.approx(10 * paired.shown_loss(Pairs(0, 40, 100), 0.1))


def test_more_abstentions_are_a_loss(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, REACH, LABELS)
    twins.certify(registry, new, [-1.0] * 50 + REACH[50:], LABELS)
    row = checks(gated(registry))["abstain"]
    assert (row["value"], row["against"], row["lost"], row["passed"]) == (0.05, 0.01, 40, False)
    assert row["bound"] > row["difference"] == pytest.approx(0.04)


def test_every_sigma_has_to_pass(registry: Registry) -> None:
    old, new = two(registry)
    twins.certify(registry, old, [0.6] * N, LABELS, sigma="0.5")
    twins.certify(registry, new, [0.3] * N, LABELS, sigma="0.5")
    result = gated(registry)
    rows = checks(result)
    assert rows["certified@0.5:sigma=0.25"]["passed"]
    assert not rows["certified@0.5:sigma=0.5"]["passed"]
    assert any("never the best of several" in note for note in result["notes"])
    assert gated(registry, sigma="0.25")["passed"]
    wide = {"certified@0.5:sigma=0.5": 0.1, "certified": 0.03}
    told = checks(gated(registry, margins=wide))
    assert told["certified@0.5:sigma=0.5"]["margin"] == 0.1
    assert told["certified@0.25:sigma=0.5"]["margin"] == 0.03


def test_the_measurement_on_the_most_images_decides(registry: Registry) -> None:
    for generation in two(registry):
        twins.certify(registry, generation, REACH[:300], LABELS[:300], n=10_000)
    result = gated(registry)
    assert checks(result)["abstain"]["images"] == N
    assert any("300 images" in note for note in result["notes"])


def test_a_procedure_that_has_not_decided_the_radius_does_not_decide(registry: Registry) -> None:
    for generation in two(registry):
        twins.certify(registry, generation, REACH, LABELS, mode="sequential", n=10_000, radii=["0", "0.25"])
    assert "sequential" in checks(gated(registry))["abstain"]["what"]
    assert "fixed" in checks(gated(registry, radii=["0.5"]))["abstain"]["what"]


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "value"), [("n", 1000), ("alpha", 0.01), ("seed", 1), ("mode", "randomised")])
def test_certificates_of_other_settings_are_not_mixed(registry: Registry, setting: str, value: Any) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.certify(registry, old, REACH, LABELS)
    twins.certify(registry, new, REACH, LABELS, **{setting: value})
    with pytest.raises(NotFoundError, match=f"under equal settings \\({setting}: ") as caught:
        gated(registry, radii=["0.25"])
    assert "robustkt certify new" in caught.value.fix


def test_other_data_are_not_mixed(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    twins.evaluate(registry, old, {"clean": twins.right(N, [])}, LABELS)
    twins.evaluate(registry, new, {"clean": twins.right(N, [])}, LABELS, data=twins.digest(b"others"))
    with pytest.raises(NotFoundError, match="under equal settings"):
        gated(registry)


@pytest.mark.parametrize(
    ("told", "what", "fix"),
    [
        ({"attacks": ["cw"]}, "accuracy under cw", "`robustkt evaluate GEN --attack cw` for old and for new"),
        ({"sigma": "1"}, "certified accuracy at σ = 1", "`robustkt certify GEN --sigma 1` for old and for new"),
    ],
)
def test_a_named_check_that_nobody_measured_is_an_error(
    registry: Registry, told: dict[str, Any], what: str, fix: str
) -> None:
    two(registry)
    with pytest.raises(NotFoundError, match=what) as caught:
        gated(registry, **told)
    assert fix in caught.value.fix


def test_a_named_check_that_one_side_lacks_says_how_to_get_it(registry: Registry) -> None:
    old, _ = two(registry)
    twins.evaluate(registry, old, {"clean": twins.right(N, []), "cw": twins.right(N, [])}, LABELS, eps="4/255")
    with pytest.raises(NotFoundError, match="accuracy under cw") as caught:
        gated(registry, attacks=["cw"])
    assert "robustkt evaluate new --attack cw --norm linf --eps 4/255 --seed 0 --max-images 1000" in caught.value.fix


@pytest.mark.parametrize(("setting", "value"), [("radii", 3), ("sigma", "x")])
def test_made_up_settings_are_answered(registry: Registry, setting: str, value: Any) -> None:
    made = [twins.generation(registry, name) for name in ("old", "new")]
    for generation in made:
        with pytest.raises(RobustKTError):  # refused when it is stored already
            twins.certify(registry, generation, REACH, LABELS, mode="fixed", **{setting: value})
    with pytest.raises(RobustKTError):
        gated(registry)


def test_few_images_decide_nothing(registry: Registry) -> None:
    for generation in (twins.generation(registry, name) for name in ("old", "new")):
        twins.evaluate(registry, generation, {"clean": twins.right(60, [])}, LABELS[:60])
    with pytest.raises(RobustKTError, match="too few to decide by") as caught:
        gated(registry)
    assert "--min-images 60" in caught.value.fix
    result = gated(registry, min_images=60)
    assert not result["passed"]  # 0.98^60 is far from 5 %
    assert result["checks"][0]["images_needed"] > 149


def test_nothing_in_common_is_an_error(registry: Registry) -> None:
    for name in ("old", "new"):
        twins.generation(registry, name)
    with pytest.raises(NotFoundError, match="for anything under equal settings"):
        gated(registry)
    with pytest.raises(UsageError, match="against which generation"):
        api.gate("new", registry=registry)


def test_a_margin_of_no_check_is_an_error(registry: Registry) -> None:
    two(registry)
    with pytest.raises(UsageError, match="did you mean 'certified@0\\.5'"):
        gated(registry, margins={"certified@0.55": 0.1})


def test_a_margin_of_a_kind_that_is_not_checked_is_an_error(registry: Registry) -> None:
    old, new = (twins.generation(registry, name) for name in ("old", "new"))
    for generation in (old, new):
        twins.evaluate(registry, generation, {"clean": twins.right(N, [])}, LABELS)
    twins.certify(registry, old, REACH, LABELS)
    for name in ("certified", "abstain", "robust"):
        with pytest.raises(NotFoundError, match=f"{name}, which has a margin") as caught:
            gated(registry, margins={name: 0.1})
        assert ("robustkt evaluate GEN" if name == "robust" else "robustkt certify new") in caught.value.fix
    left_out = {"certified": 0.1, "certified@0.5": 0.1, "abstain": 0.1, "robust": 0.1}
    result = gated(registry, margins=left_out, radii="none", attacks="none")
    assert list(checks(result)) == ["clean"]
    assert any("of the base network" in note for note in result["notes"])


def test_other_data_than_its_own_are_named(registry: Registry) -> None:
    for generation in (twins.generation(registry, name) for name in ("old", "new")):
        twins.evaluate(registry, generation, {"clean": twins.right(N, [])}, LABELS, data=twins.digest(b"others"))
    result = gated(registry)
    assert "measured on other data than new's own" in result["notes"]


# -- robustkt.toml -----------------------------------------------------------------------------------------------


def test_the_nearest_table_is_read_and_the_command_line_goes_before(cli: Cli, registry: Registry) -> None:
    two(registry, lost=20)
    Path("robustkt.toml").write_text(
        '[gate]\nagainst = "old"\nmargin = 0.04\nattacks = ["pgd-sat"]\nradii = [0.25, "1/2"]\n'
        'margins = { clean = 0.03, "certified@0.50" = 0.05 }\n'
    )
    folder = Path("deep/er")
    folder.mkdir(parents=True)
    assert gateconfig.read(folder=folder).margins == {"clean": 0.03, "certified@0.5": 0.05}
    ran = cli("gate", "new", "--registry", registry.root, "--json")
    assert ran.code == 0, ran.out
    assert "robustkt.toml" in ran.err
    assert {name: row["margin"] for name, row in checks(ran.json).items()} == {
        "clean": 0.03, "pgd-sat": 0.04, "certified@0.25": 0.04, "certified@0.5": 0.05, "abstain": 0.04,
    }  # fmt: skip
    ran = cli("gate", "new", "--registry", registry.root, "--margin", "0.02", "--margin", "clean=0.1", "--json")
    assert ran.code == 3
    assert checks(ran.json)["clean"]["margin"] == 0.1
    assert checks(ran.json)["certified@0.5"]["margin"] == 0.05
    assert checks(ran.json)["pgd-sat"]["margin"] == 0.02


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[gates]\n", "unknown table of robustkt.toml 'gates': did you mean 'gate'?"),
        ("[gate]\nmargn = 1\n", "unknown key of [gate] in robustkt.toml 'margn': did you mean 'margin'?"),
        ("[gate]\nmargin = 0\n", "margin must lie between 0 and 1"),
        ("[gate]\nmargin = true\n", "margin must be a number"),
        ("[gate]\nmargin = nan\n", "margin must be a number"),
        ("[gate]\nmargins = 0.1\n", "margins must be a table"),
        ("[gate]\nmargins = { clean = 2 }\n", "margin clean must lie between 0 and 1"),
        ('[gate]\nmargins = { "certified@x" = 0.1 }\n', "a radius 'x' is not a number"),
        ("[gate]\nradii = 0.5\n", "radii must be a list"),
        ("[gate]\nradii = [-1]\n", "a radius cannot be below 0"),
        ("[gate]\nattacks = [1]\n", "attacks must be a list"),
        ("[gate]\nconfidence = 95\n", "confidence must lie between"),
        ("[gate]\nmin_images = 0.5\n", "min-images must be a whole number"),
        ('[gate]\nfail_on = "never"\n', "unknown value of fail-on 'never'"),
        ("[gate]\nagainst = 3\n", "against must be a text"),
        ("[gate]\nsigma = -1\n", "sigma must be above 0"),
        ("gate = 3\n", "is no table"),
        ("[gate\n", "is not TOML"),
    ],
)
def test_a_wrong_table_is_answered(cli: Cli, registry: Registry, text: str, told: str) -> None:
    two(registry)
    Path("robustkt.toml").write_text(text)
    ran = cli("gate", "new", "--against", "old", "--registry", registry.root)
    assert ran.code == 2
    assert told in ran.err


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--margin", "x"], 2, "is not a number"),
        (["--margin", "0.1", "--margin", "0.2"], 2, "given twice"),
        (["--margin", "clean=0.1", "--margin", "clean=0.2"], 2, "given twice"),
        (["--margin", "1"], 2, "margin must lie between 0 and 1"),
        (["--confidence", "1"], 2, "confidence must lie between"),
        (["--radii", "0.25,y"], 2, "is not a number"),
        (["--config", "no.toml"], 1, "there is no no.toml"),
        (["--fail-on", "both"], 2, "unknown value of fail-on"),
        (["--markdown", "/dev/null/x.md"], 1, "cannot write"),
        (["--markdown", "x", "--junit", "x"], 2, "both name x"),
    ],
)
def test_wrong_options_are_answered(cli: Cli, registry: Registry, options: list[str], code: int, told: str) -> None:
    two(registry)
    ran = cli("gate", "new", "--against", "old", *options, "--registry", registry.root)
    assert ran.code == code
    assert told in ran.err


def test_a_margin_of_an_attack_with_settings() -> None:
    assert gateconfig.margins_of(["0.01", "pgd:steps=9=0.03"]) == ("0.01", {"pgd:steps=9": "0.03"})
    assert Gate().alpha == 0.05


def test_the_examples_of_the_page_can_be_used(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "gate.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    (tmp_path / "robustkt.toml").write_text(example)
    told = gateconfig.read(folder=tmp_path)
    assert (told.against, told.margin_of("clean"), told.radii) == ("gen1", 0.01, ("0.25", "0.5"))
    assert {key for key in gateconfig.KEYS if f"{key} =" in example} == set(gateconfig.KEYS)
    steps = pytest.importorskip("yaml").safe_load(page.split("```yaml\n")[1].split("```")[0])["jobs"]["gate"]["steps"]
    assert any("robustkt gate" in step.get("run", "") for step in steps)


# -- answers -----------------------------------------------------------------------------------------------------


def test_status_and_answer(cli: Cli, registry: Registry) -> None:
    two(registry)
    ran = cli("gate", "new", "--against", "old", "--registry", registry.root)
    assert ran.code == 0, ran.err
    assert "passed: new against old" in ran.out
    assert "class figures: none of 50" in ran.out
    ran = cli("gate", "new", "--against", "old", "--registry", registry.root, "--margin", "pgd-sat=0.001")
    assert ran.code == 3
    assert "pgd-sat: with 1,000 images a drop of" in ran.out
    assert "failed: new against old, at 95 % confidence: a loss beyond the margin is not excluded in pgd-sat" in ran.out


def test_a_check_that_nobody_can_fail_is_said_to_be_one(registry: Registry) -> None:
    two(registry)
    result = gated(registry, radii=["0.5", 9])
    assert checks(result)["certified@9"]["passed"]
    assert any("nothing can be lost: certified@9" in note for note in result["notes"])


def test_only_some_checks(registry: Registry) -> None:
    two(registry)
    assert list(checks(gated(registry, attacks="none", radii="none"))) == ["clean"]
    assert list(checks(gated(registry, attacks="pgd-sat", radii="0.30"))) == [
        "clean", "pgd-sat", "certified@0.3", "abstain",
    ]  # fmt: skip


CLASSES = ["a|b", "<b>&\"'", "`x`", "*y*", "_z_", "[l](m)", "#", "~", "{}", "\\"]


def test_files_for_ci_hold_whatever_a_class_is_called(cli: Cli, registry: Registry) -> None:
    old, new = (twins.generation(registry, name, classes=CLASSES) for name in ("old", "new"))
    kept = twins.right(N, [i for i in range(N) if LABELS[i] in (0, 1)])
    twins.evaluate(registry, old, {"clean": twins.right(N, [])}, LABELS)
    twins.evaluate(registry, new, {"clean": kept}, LABELS)
    options = ["--markdown", "out/gate.md", "--junit", "out/gate.xml", "--json"]
    ran = cli("gate", "new", "--against", "old", "--registry", registry.root, *options)
    assert ran.code == 3
    assert json.loads(ran.out)["passed"] is False
    page = Path("out/gate.md").read_text()
    assert "class a\\|b has lost clean" in page
    assert "\\<b\\>\\&" in page
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {9, 8}

    suites = Tree.parse("out/gate.xml").getroot()
    suite = suites[0]
    cases = list(suite)
    assert suites.tag == "testsuites"
    assert int(suite.get("tests", "")) == len(cases) == 2
    assert int(suite.get("failures", "")) == sum(case.find("failure") is not None for case in cases) == 2
    assert [case.get("name") for case in cases] == ["clean", "clean, each class"]
    assert "<b>&\"'" in (cases[1].find("failure").text or "")  # type: ignore[union-attr]


def test_no_character_breaks_the_xml() -> None:
    from robustkt.cli import gatefiles

    assert gatefiles._clean("a\x00b\x1b[0m\ud800\uffffc\tσ") == "a�b�[0m��c\tσ"


def test_counts_in_the_xml_are_those_of_a_pass(registry: Registry) -> None:
    from robustkt.cli import gatefiles

    two(registry)
    suite = Tree.fromstring(gatefiles.junit(gated(registry)).split("\n", 1)[1])[0]
    assert (suite.get("failures"), suite.get("tests")) == ("0", str(len(suite)))
    assert len(suite) == 6 + 5


@pytest.mark.parametrize(("margin", "told"), [(0.01, "for 1 point"), (0.02, "for 2 points"), (0.005, "for 0.5 points")])
def test_a_margin_of_one_point_is_one_point(margin: float, told: str) -> None:
    row = {"name": "clean", "images": 200, "resolution": 0.021, "power": 0.5, "images_needed": 370, "margin": margin}
    assert gatetables.power_told(row).endswith(told)
