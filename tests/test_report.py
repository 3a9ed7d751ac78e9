"""The page and its figures, from the shipped registry: what they say, what they refuse, and that nothing breaks out."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from robustkt import api
from robustkt.certlog import Row
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.numbers import floored, wilson
from robustkt.registry import Registry
from robustkt.registry.seal import sealed, unsealed
from robustkt.report import Figure, attacks, certified_figure, making, tables
from robustkt.report.curves import MOST, certified_points, ecdf_points
from robustkt.report.gathering import gather
from tests.conftest import Ran

Cli = Callable[..., Ran]
SHIPPED = Path(__file__).resolve().parents[1] / "registry"
FIVE = ("digits-sat", "digits-smoothmix", "digits-crt-1", "digits-crt-2", "digits-two-modes")
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br", "input"}


@pytest.fixture(scope="module")
def shipped() -> Registry:
    return Registry(SHIPPED)


@pytest.fixture
def mine(tmp_path: Path) -> Registry:
    return Registry(Path(shutil.copytree(SHIPPED, tmp_path / "registry")))


@pytest.fixture(scope="module")
def made(shipped: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("made")
    return api.report(FIVE, out=out, registry=shipped, device="cpu")


class Elements(HTMLParser):
    """Every element with its attributes, the headings, and the text of the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]


def page_of(result: dict[str, Any]) -> str:
    return Path(result["files"][0]).read_text()


def data_of(page: str) -> dict[str, Any]:
    return dict(json.loads(Elements(page).scripts[0]))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_loads_nothing(made: dict[str, Any]) -> None:
    page = page_of(made)
    assert made["bytes"] == len(page.encode()) <= 3_000_000
    elements = Elements(page)
    assert elements.open == []
    policy = next(m["content"] for m in elements.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not any("src" in attrs for attrs in elements.of("script"))
    assert elements.of("link") == elements.of("iframe") == elements.of("object") == []
    assert all((attrs["src"] or "").startswith("data:image/png;base64,") for attrs in elements.of("img"))
    assert all((attrs["href"] or "").startswith("#") for attrs in elements.of("a"))
    assert all(attrs["alt"] for attrs in elements.of("img"))


def test_headings_are_in_order_and_every_anchor_is_there(made: dict[str, Any]) -> None:
    elements = Elements(page_of(made))
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in elements.found if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert {(attrs["href"] or "")[1:] for attrs in elements.of("a")} <= set(ids)
    for landmark in ("header", "nav", "main", "footer"):
        assert len(elements.of(landmark)) == 1


def test_every_section_and_every_number_has_its_source(made: dict[str, Any], shipped: Registry) -> None:
    page = page_of(made)
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == [
        "summary", "lineage", "certified", "pa", "attacks", "classes", "soups", "cost", "examples", "training",
        "settings", "sources",
    ]  # fmt: skip
    told = re.findall(r"<td><code>([\w/.-]+)</code></td><td><code>([0-9a-f]{64})</code>", page)
    assert len(told) == 18
    for path, hashed in told:
        assert (
            subprocess.run(["sha256sum", SHIPPED / path], capture_output=True, text=True, check=True).stdout[:64]
            == hashed
        )
    certificate = api.show("digits-crt-2", registry=shipped)["certificates"][0]["figures"]
    value, (low, high) = certificate["certified_accuracy"]["0.25"], certificate["intervals"]["0.25"]
    assert f"{100 * value:.1f} % ({100 * low:.1f} – {100 * high:.1f} %)" in page
    for figure in made["figures"]:
        assert f'data-figure="{figure}"' in page
    assert {one["command"] for one in made["missing"]} == {
        "robustkt certify digits-sat --sigma 0.25", "robustkt certify digits-two-modes --sigma 0.25",
        "robustkt soup sweep digits-two-modes",
    }  # fmt: skip
    assert all(one["command"].partition(" ")[0] in page for one in made["missing"])


def test_the_examples_are_of_the_images(made: dict[str, Any]) -> None:
    page = page_of(made)
    shown = page[page.index('<section id="examples"') : page.index('<section id="training"')]
    assert "The noisy copies that vote, σ = 0.25" in shown
    votes = [int(n.replace(",", "")) for n in re.findall(r'<th scope="row">\d</th><td>([\d,]+)</td>', shown)]
    assert sum(votes) == 1_000
    assert "The perturbation is magnified 5 times" in shown, "half of the range, over eps 0.1"
    assert shown.count("<img") > 20


def test_the_same_files_give_the_same_page(made: dict[str, Any], shipped: Registry, tmp_path: Path) -> None:
    again = api.report(FIVE, out=tmp_path, registry=shipped, device="cpu")
    assert page_of(again) == page_of(made)


def test_without_a_name_it_is_the_latest_and_its_ancestors(shipped: Registry, tmp_path: Path) -> None:
    told = api.report(out=tmp_path / "new" / "folder", registry=shipped, examples=False)
    assert [one["name"] for one in told["generations"]] == ["digits-smoothmix", "digits-crt-1", "digits-crt-2"]
    assert told["shown"] == "@latest, which is digits-crt-2, and what it comes from"
    assert "as the report was made with --no-examples" in page_of(told)


def test_nothing_imports_torch_without_examples(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from robustkt import api; from robustkt.registry import Registry;"
        f"api.report(['digits-smoothmix'], out=Path({str(tmp_path)!r}), registry=Registry(Path({str(SHIPPED)!r})),"
        "examples=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modes(mine: Registry, tmp_path: Path) -> None:
    told = api.report(["digits-two-modes@clean", "digits-two-modes"], out=tmp_path / "o", registry=mine, examples=False)
    assert [one["name"] for one in told["generations"]] == ["digits-two-modes@clean", "digits-two-modes"]
    values = data_of(page_of(told))["figures"]["attacks-linf-0.1"]["data"]["values"]
    by = {(v["series"], v["group"]): v["share"] for v in values}
    for name in ("digits-two-modes@clean", "digits-two-modes"):
        stored = next(
            r for r in mine.results(mine.mode(name).id, "evaluation")
            if r.content["settings"]["weights"] == mine.mode(name).network()
        )  # fmt: skip
        kept = stored.content["figures"]["attacks"]["pgd-sat"]["accuracy"]
        assert by[name, "pgd-sat"] == f"{100 * kept:.1f} %"


def test_a_generation_without_measurements(mine: Registry, tmp_path: Path) -> None:
    found = mine.get("digits-crt-1")
    shutil.rmtree(mine.results_path(found.id))
    mine.record_path(found.id).unlink()
    told = api.report(["digits-crt-1"], out=tmp_path / "o", registry=mine)
    assert {one["command"] for one in told["missing"]} == {
        "robustkt certify digits-crt-1 --sigma 0.25", "robustkt evaluate digits-crt-1",
        "robustkt reproduce digits-crt-1",
    }  # fmt: skip
    assert told["figures"] == ["lineage"]
    assert "Nothing about its robustness has been measured yet." in page_of(told)
    assert "nothing has been measured that they could show" in page_of(told)


def test_a_student_that_was_only_certified_alike_tells_what_it_kept_of_that(mine: Registry, tmp_path: Path) -> None:
    for file in mine.results_path(mine.get("digits-crt-1").id).glob("evaluation-*"):
        file.unlink()
    page = page_of(api.report(["digits-crt-1"], out=tmp_path / "o", registry=mine, examples=False))
    assert re.search(r"Of its teacher [^<]* it kept [\d.]+ % of its certified accuracy at radius [\d.]+, both", page)
    assert "of its accuracy under attack" not in page


def test_examples_without_the_weights_are_said_to_be_missing(mine: Registry, tmp_path: Path) -> None:
    mine.object_path(mine.get("digits-crt-1").weights).unlink()
    page = page_of(api.report(["digits-crt-1"], out=tmp_path / "o", registry=mine, device="cpu"))
    assert "There are no images of digits-crt-1: " in page


def test_sweeps_are_drawn(mine: Registry, tmp_path: Path) -> None:
    api.soup_sweep("digits-two-modes", betas="0,1", attacks=["fgsm"], max_images=40, registry=mine, device="cpu")
    told = api.report(["digits-two-modes"], out=tmp_path / "o", registry=mine, examples=False)
    assert "soup-1" in told["figures"]
    values = data_of(page_of(told))["figures"]["soup-1"]["data"]["values"]
    assert {(v["series"], v["x"]) for v in values} == {("clean", 0), ("clean", 1), ("robust", 0), ("robust", 1)}
    assert not any("soup sweep" in one["command"] for one in told["missing"])


# -- hostile text ------------------------------------------------------------------------------------------------------


def test_text_of_a_registry_is_shown_letter_by_letter(mine: Registry, tmp_path: Path) -> None:
    """A warning, an attack's name and a claim are anybody's text."""
    found = mine.get("digits-sat")
    (result,) = mine.results(found.id, "evaluation")
    content = {
        k: v
        for k, v in unsealed(result.path, "").items()
        if k not in ("format", "kind", "generation", "log", "log_hash")
    }
    content["figures"] = {**content["figures"], "warnings": [SCRIPT, "{{ 7 * 7 }}"]}
    attacks = dict(content["figures"]["attacks"])
    attacks[SCRIPT] = attacks.pop("fgsm")
    content["figures"]["attacks"] = attacks
    log = mine.log(result).replace(b"fgsm", SCRIPT.encode())
    mine.put_result(found.id, "evaluation", result.key, content, log)
    told = api.report(
        ["digits-sat"], out=tmp_path / "o", registry=mine, examples=False, formats=["latex", "markdown", "svg"]
    )
    page = page_of(told)
    elements = Elements(page)
    assert len(elements.scripts) == 3
    assert not any("onerror" in attrs for _, attrs in elements.found)
    assert SCRIPT not in page
    assert "&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    groups = {v["group"] for v in data_of(page)["figures"]["attacks-linf-0.1"]["data"]["values"]}
    assert SCRIPT in groups, "as data it is what it was"
    for path in (tmp_path / "o/figures").iterdir():
        assert b"<script" not in path.read_bytes()
    assert "\\<script\\>" in (tmp_path / "o/tables/attacks-linf-0.1.md").read_text()
    assert "textless" in (tmp_path / "o/tables/attacks-linf-0.1.tex").read_text()


def test_json_ends_no_script() -> None:
    text = making.embedded({"<!--": "</script>\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"<!--": "</script>\u2028&"}


def test_claims_are_marked(mine: Registry, tmp_path: Path) -> None:
    api.push("digits-rslad", to=tmp_path / "published", with_ancestors=True, registry=mine)
    other = Registry(tmp_path / "other")
    api.pull(str(tmp_path / "published"), registry=other)
    page = page_of(api.report(out=tmp_path / "o", registry=other, examples=False))
    assert "Claimed, not measured here" in page
    assert "This is a claim of " in page
    assert "claimed by " in page


# -- figures -----------------------------------------------------------------------------------------------------------


def test_points_of_a_curve_are_counted() -> None:
    def row(radius: float, correct: bool) -> Row:
        return Row(0, 0, 0 if correct else 1, radius, correct, None, 9, 10, 0.6, 20)

    rows = [row(0.5, True), row(0.2, True), row(0.2, True), row(0.9, False)]
    points = certified_points(rows)
    assert [(x, y) for x, y, _ in points[:-1]] == [(0.0, 0.75), (0.2, 0.75), (0.5, 0.25)]
    assert points[-1][1] == 0
    assert points[1][2] == wilson(3, 4)
    many = certified_points([row(k / 1000, True) for k in range(1, 900)])
    assert len(many) <= MOST + 2
    assert many[-2][0] == 0.899
    assert certified_points([row(0.1, False)]) == [(0.0, 0.0, wilson(0, 1))]
    thinned = [(x, y) for x, y, _ in many]
    for radius in (k / 1000 for k in range(900)):  # drawn as the share of the next point that is kept
        drawn = next(y for x, y in thinned if x >= radius)
        assert drawn <= sum(k / 1000 >= radius for k in range(1, 900)) / 899


@pytest.mark.parametrize("count", [1, 7, MOST, MOST + 1, 3 * MOST - 1, 1_000])
def test_few_steps_of_a_distribution_are_exact_and_of_many_none_is_too_low(count: int) -> None:
    bounds = sorted([*(1 - (k / count) ** 2 for k in range(count)), 1.0])  # one of them twice
    steps = ecdf_points(bounds)
    assert len(steps) == min(count, MOST)
    assert steps[0][0] == bounds[0]
    assert steps[-1][1:] == (1.0, 1.0)
    for bound in bounds:
        true = sum(other <= bound for other in bounds) / len(bounds)
        drawn = [share for first, _, share in steps if first <= bound][-1]
        assert drawn == true if count <= MOST else drawn >= true
    for _, last, share in steps:  # what hovering tells is so
        assert share == sum(other <= last for other in bounds) / len(bounds)


def test_no_radius_is_shown_larger_than_it_is() -> None:
    rows = [Row(k, 0, 0, radius, True, None, 9, 10, 0.6, 20) for k, radius in enumerate((0.29, 0.56789, 0.499999))]
    shown = [v["radius"] for v in certified_figure({"a": rows}, title="").spec["data"]["values"]]
    assert shown == ["0.0000", "0.2900", "0.4999", "0.5678", "above 0.5679"]
    assert [floored(value, 3) for value in (0.29, 1 / 3, 0.9999, 12.0)] == ["0.290", "0.333", "0.999", "12.000"]


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_a_figure_is_the_same_every_time(shipped: Registry, form: str) -> None:
    subject = gather(shipped, [shipped.get("digits-crt-2")], api.lineage(registry=shipped)["generations"])[0]
    figure = certified_figure({"a": subject.certificates[0].rows}, title="T")
    first = figure.render(form)
    assert form == "pdf" or first == figure.render(form)
    assert first.startswith({"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}[form])
    if form == "svg":
        assert b"certified accuracy" in first
        assert b"#0072B2" in first


def test_a_generation_has_one_colour_in_every_figure(made: dict[str, Any]) -> None:
    figures = data_of(page_of(made))["figures"]
    domains = set()
    for name in ("certified-l2", "pa", "attacks-linf-0.1", "classes-attacked", "cost-certified", "training-loss"):
        found = re.findall(r'"domain": (\["digits-[^\]]*\])', json.dumps(figures[name]))
        domains |= set(found)
        assert found
    assert len(domains) == 1


def test_tables_for_papers() -> None:
    figure = Figure("x", "50 % & more_of #1", "", {}, ["a_b", "σ"], [["x|y", "1 \\ 2"], ["{~}", "^"]], ["a note"])
    latex = tables.written(figure, "latex").decode()
    assert r"\caption{50 \% \& more\_of \#1}" in latex
    assert r"x\textbar{}y & 1 \textbackslash{} 2 \\" in latex
    assert r"a\_b & $\sigma$ \\" in latex
    markdown = tables.written(figure, "markdown").decode()
    assert r"| x\|y | 1 \\ 2 |" in markdown
    assert markdown.endswith("\n\na note\n")


def test_no_name_of_a_class_is_read_as_markup() -> None:
    rows = [["[b]", "1"], ["*", "2"], ["__x__ &lt; a_b", "~~3~~ $4$"]]
    figure = Figure("x", "title", "", {}, ["class", "share"], rows)
    latex = tables.written(figure, "latex").decode()
    starts = [line[:1] for line in latex.splitlines() if line.endswith(r"\\")]
    assert starts == ["c", "{", "{", "\\"], "a line that ends takes [ as its argument, and * as its own"
    markdown = tables.written(figure, "markdown").decode()
    assert r"| \_\_x\_\_ \&lt; a_b | \~\~3\~\~ \$4\$ |" in markdown


@pytest.mark.parametrize("name", ["constructor", "toString", "valueOf", "hasOwnProperty", "__proto__"])
def test_names_that_javascript_knows_are_drawn(name: str) -> None:
    values = [attacks._value(one, group, 3, 10) for one in (name, "other") for group in (name, "last")]
    spec = attacks.dots(values, [name, "other"], [name, "last"], "share")
    drawn = Figure("x", "title", "", spec, [], []).render("svg").decode()
    assert drawn.count(f">{name}\u2060<") == 2, "in the legend and beside the axis"


def test_examples_are_of_the_images_that_were_measured(mine: Registry, tmp_path: Path) -> None:
    for part, label, k in itertools.product(("train", "test"), mine.get("digits-sat").recipe.data.classes, range(4)):
        place = tmp_path / "others" / part / label / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * k).save(place)
    told = api.report(["digits-sat"], out=tmp_path / "o", registry=mine, data=str(tmp_path / "others"), device="cpu")
    page = page_of(told)
    assert "There are no images of digits-sat" in page
    assert "holds other images than digits-sat was made with" in page
    assert "data:image/png" not in page


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 6, 30])
def test_no_epoch_is_told_twice(shipped: Registry, epochs: int) -> None:
    from robustkt.report.curves import training

    subject = gather(shipped, [shipped.get("digits-sat")], api.lineage(registry=shipped)["generations"])[0]
    record = {"epochs": [{"epoch": e, "loss": 0.7 + 0.1 / (e + 1)} for e in range(epochs)]}
    (figure,) = training([replace(subject, record=record)])
    told = re.findall(r">(\d+)</text>", figure.render("svg").decode())
    assert 0 < len(told) == len(set(told)), "nor is the loss of a single one told as a whole number"


def test_series_are_in_the_order_of_the_generations() -> None:
    """Also where the name of one begins with another's."""
    subjects = [SimpleNamespace(name=name, certificates=[]) for name in ("gen1", "gen2", "gen10")]
    assert making.series_of(subjects) == ["gen1", "gen2", "gen10"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    where = ("--registry", str(SHIPPED), "--no-examples", "--out", str(tmp_path / "o"))
    ran = cli("report", "digits-sat", "digits-rslad", "--format", "png,latex", "--json", *where)
    told = json.loads(ran.out)
    assert all(Path(path).is_file() for path in told["files"])
    assert {Path(path).suffix for path in told["files"]} == {".html", ".png", ".tex"}
    ran = cli("report", *where)
    assert "report.html" in ran.out
    assert "@latest, which is digits-crt-2" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--format", "gif"], 2, "there is no format 'gif'"),
        (["--format", ""], 2, "there is no format ''"),
        (["digits-nothing"], 1, "digits-nothing"),
        (["digits-sat@clean"], 1, "digits-sat has no modes"),
        (["digits-sat"] * 13, 2, "13 generations are more than the 12 of a page"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_wrong_options_are_told_in_two_lines(cli: Cli, tmp_path: Path, words: list[str], code: int, what: str) -> None:
    ran = cli("report", *words, "--registry", str(SHIPPED), "--out", str(tmp_path / "o"))
    assert ran.code == code
    assert what in ran.err
    assert "→" in ran.err
    assert not (tmp_path / "o").exists()


def test_a_place_that_cannot_be_written(shipped: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RobustKTError, match="file"):
        api.report(out=tmp_path / "file" / "o", registry=shipped)


def test_an_empty_registry(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no generation"):
        api.report(out=tmp_path / "o", registry=Registry(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["certificate", "evaluation"])
def test_a_damaged_log_is_named_and_no_page_is_left(mine: Registry, tmp_path: Path, kind: str) -> None:
    result = mine.results(mine.get("digits-crt-2").id, kind)[0]
    mine.log_path(result).write_bytes(mine.log(result)[:-5])
    with pytest.raises(IntegrityError, match="is damaged: its SHA-256 is another"):
        api.report(out=tmp_path / "o", registry=mine)
    assert list((tmp_path / "o").iterdir()) == []


def test_a_log_that_fits_its_hash_and_is_none(mine: Registry, tmp_path: Path) -> None:
    result = mine.results(mine.get("digits-crt-2").id, "evaluation")[0]
    content = {
        **unsealed(result.path, ""),
        "log": "x-00.tsv",
        "log_hash": __import__("robustkt.numbers").numbers.digest(b"?\n"),
    }
    result.path.with_name("x-00.tsv").write_bytes(b"?\n")
    result.path.write_bytes(sealed(content))
    with pytest.raises(IntegrityError, match="is not one of an evaluation"):
        api.report(out=tmp_path / "o", registry=mine)


def test_formats_are_checked_before_anything_is_made(shipped: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no format 'bmp'"):
        api.report(out=tmp_path / "o", registry=shipped, formats=["svg", "bmp"])
    assert not (tmp_path / "o").exists()


def test_epochs_that_are_no_numbers_are_left_out(shipped: Registry) -> None:
    subject = gather(shipped, [shipped.get("digits-sat")], api.lineage(registry=shipped)["generations"])[0]
    from robustkt.report.curves import training

    assert training([replace(subject, record={"epochs": [{"epoch": 0, "loss": None, "held_out": "x"}]})]) == []
