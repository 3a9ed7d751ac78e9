"""Certification logs: anybody's are read, n and α inferred, and what is wrong with one is found, nothing else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from statsmodels.stats.proportion import proportion_confint

from robustkt import api, certlog, foreignlog, lattice
from robustkt.api import logs
from robustkt.certificates import Certificate, lower_bound
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.registry import Registry
from tests.conftest import SHARED, Ran, gaussian_digits, l2

Cli = Callable[..., Ran]
PUBLISHED = SHARED / "data" / "certify_logs"
there = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published logs in ../shared/data")
HALF, ONE = (
    PUBLISHED / "cifar10_resnet110_gaussian_sigma_0.50.tsv",
    PUBLISHED / "cifar10_resnet110_gaussian_sigma_1.00.tsv",
)
IMAGENET = PUBLISHED / "imagenet_resnet50_gaussian_sigma_0.50.tsv"
FIELD = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
ROWS = "0\t3\t3\t0.48\t1\t0:00:14.037966\n1\t8\t7\t1.02\t0\t15.4\n2\t8\t-1\t0.0\t0\tnan\n3\t0\t0\t0.25\t1\t-\n"


def three(r: float) -> str:
    return f"{r:.3g}"


def four(r: float) -> str:
    return f"{r:.4f}"


def six_down(r: float) -> str:
    return f"{math.floor(r * 1e6) / 1e6:.6f}"


def four_down(r: float) -> str:
    return f"{math.floor(r * 1e4) / 1e4:.4f}"


@dataclass(frozen=True)
class Coins:
    """Images as coins, certified by Cohen's procedure."""

    n: int
    alpha: float
    sigma: float
    images: int = 800

    def rows(self, printing: Callable[[float], str]) -> list[list[str]]:
        random = np.random.default_rng([self.n, round(1 / self.alpha), self.images])
        p = np.where(random.random(self.images) < 0.15, 1 - 0.01 / self.n, random.beta(3, 0.8, self.images))
        counts = random.binomial(self.n, p)
        bound = proportion_confint(counts, self.n, 2 * self.alpha, method="beta")[0]
        radii = np.where(bound > 0.5, self.sigma * ndtri(np.maximum(bound, 0.5)), 0.0)
        rows = []
        for i, (low, radius) in enumerate(zip(bound, radii, strict=True)):
            label = i % 10
            predict = -1 if low < 0.5 else label if random.random() < 0.8 else (label + 1) % 10
            printed = printing(float(radius)) if predict != -1 else "0.0"
            rows.append([str(20 * i), str(label), str(predict), printed, str(int(predict == label)), "1.5"])
        return rows


def written(path: Path, rows: list[list[str]], first: str = FIELD) -> Path:
    path.write_text(first + "".join("\t".join(row) + "\n" for row in rows))
    return path


def own(path: Path, n: int, alpha: float, sigma: float, images: int = 60) -> Path:
    """A log of ours in mode fixed."""
    random = np.random.default_rng(n)
    text = certlog.text([])
    for i, k in enumerate(random.binomial(n, random.uniform(0.4, 1, images)).tolist()):
        p = lower_bound(k, n, alpha)
        radius = l2(sigma).radius(p)
        text += certlog.Row.of(2 * i, 1, Certificate(1 if p >= 0.5 else None, radius, alpha, n + 100, k, n, p)).line()
    path.write_text(text)
    return path


def kinds(result: dict[str, Any]) -> dict[str, int]:
    return {p["kind"]: p["count"] for p in result["problems"]}


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        FIELD + ROWS,
        (FIELD + ROWS).replace("\n", "\r\n"),
        FIELD + ROWS + "\n \n\n",
        FIELD + ROWS.rstrip("\n"),
        "\ufeff" + FIELD + ROWS,
        FIELD + ROWS + "4\t3\t3\t0.4",
        FIELD.replace("\n", "\tnotes\n") + ROWS.replace("\n", "\tfine\n"),
        FIELD + ROWS.replace("15.4", "1 day, 2:00:01"),
    ],
    ids=["plain", "crlf", "blank", "no last newline", "bom", "torn", "extra", "days"],
)
def test_every_printing_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(text.encode())
    log = foreignlog.read(path)
    assert [(x.idx, x.label, x.predict, x.radius, x.correct) for x in log.lines] == [
        (0, 3, 3, 0.48, True), (1, 8, 7, 1.02, False), (2, 8, -1, 0.0, False), (3, 0, 0, 0.25, True),
    ]  # fmt: skip
    assert log.lines[0].seconds == pytest.approx(14.037966)
    assert math.isnan(log.lines[2].seconds)
    assert math.isnan(log.lines[3].seconds)
    assert log.torn == ("0.4" in text.splitlines()[-1].split("\t")[3:4])
    assert not log.faults


def test_ours_is_read_like_everybodys(tmp_path: Path) -> None:
    path = own(tmp_path / "log.tsv", 1_000, 0.001, 0.25)
    theirs, ours = foreignlog.read(path).lines, certlog.parse(path.read_text())
    assert [(x.idx, x.predict, x.radius, x.correct) for x in theirs] == [
        (x.idx, x.predict, x.radius, x.correct) for x in ours
    ]
    radii = [Fraction(i, 16) for i in range(8)]
    assert certlog.summarise(theirs, radii) == certlog.summarise(ours, radii)
    path.write_text(path.read_text()[:-1])  # the digits of `drawn` may be missing too
    assert len(foreignlog.read(path).lines) == len(ours) - 1


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (FIELD.encode(), "nothing is certified yet"),
        (FIELD.encode() + b"0\t3", "nothing is certified yet"),
        (b"\x89PNG\r\n\x1a\n\0\0", "binary"),
        (b"idx\xff\xfe", "not UTF-8"),
        (ROWS.encode(), "lacks the column idx"),
        (FIELD.replace("radius", "r").encode() + ROWS.encode(), "lacks the column radius"),
        (FIELD.replace("\n", "\tidx\n").encode(), "twice"),
        ((FIELD + ROWS.replace("0.48", "inf")).encode(), "radius 'inf' is not a finite"),
        ((FIELD + ROWS.replace("0.48", "1e999")).encode(), "not a finite"),
        ((FIELD + ROWS.replace("0.48", "nan")).encode(), "line 2"),
        ((FIELD + ROWS.replace("0.48", "-0.48")).encode(), "negative"),
        ((FIELD + ROWS.replace("0\t3\t3", "0\t3\t3.5")).encode(), "predict '3.5' is not an integer"),
        ((FIELD + ROWS.replace("0\t3\t3", "0\t3\t" + "3" * 10_000)).encode(), "too long"),
        ((FIELD + ROWS.replace("15.4", "soon")).encode(), "time 'soon'"),
        ((FIELD + ROWS.replace("0.48\t1", "0.48\t2")).encode(), "neither 0 nor 1"),
        ((FIELD + ROWS.replace("\t15.4", "")).encode(), "5 fields instead of 6"),
        ((FIELD + ROWS + ROWS).encode(), "image 0 twice"),
    ],
)  # fmt: skip
def test_what_is_no_log_is_refused(tmp_path: Path, cli: Cli, data: bytes, what: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(data)
    ran = cli("analyze", path)
    assert (ran.code, ran.out) == (1, "")
    said, advice = ran.err.splitlines()
    assert what in said
    assert len(said) < 400
    assert advice.startswith("  → ")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no"):
        foreignlog.read(tmp_path / "no.tsv")


# -- the lattice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "alpha", "largest"),
    [(1_000, 0.001, 2.463), (10_000, 0.001, 3.199), (100_000, 0.001, 3.811), (1_000_000, 0.001, 4.347),
     (100_000, 0.01, 3.911)],
)  # fmt: skip
def test_largest_radius(n: int, alpha: float, largest: float) -> None:
    assert lattice.lattice(n, alpha)[-1] == pytest.approx(largest, abs=5e-4)


@pytest.mark.parametrize(("n", "alpha"), [(100, 0.05), (9_999, 0.001), (100_000, 1e-5), (1_000_000, 0.001)])
def test_lattice_is_that_of_clopper_and_pearson(n: int, alpha: float) -> None:
    radii = lattice.lattice(n, alpha)
    k = np.arange(n, n - len(radii), -1)[:: max(1, len(radii) // 500)]
    exact = ndtri(proportion_confint(k, n, 2 * alpha, method="beta")[0])
    assert np.abs(radii[::-1][:: max(1, len(radii) // 500)] - exact).max() < 1e-9
    assert lattice.bounds(k.astype(float), float(n), alpha)[3] == lower_bound(int(k[3]), n, alpha)
    assert lower_bound(n - len(radii), n, alpha) <= 0.5


@pytest.mark.parametrize(
    ("texts", "printing"),
    [
        (["0.48", "1.3", "0.0426", "3.63e-05", "0.123"], "3 significant digits"),
        (["0.4800", "1.1145", "0.0036"], "4 decimals"),
        (["0.123", "1.21", "0.345", "1.2345"], "3 significant digits"),
        (["0.480001", "1.114500"], "6 decimals"),
    ],
)
def test_printing(texts: list[str], printing: str) -> None:
    radii = lattice.gather(texts)
    assert radii is not None
    assert str(radii.printing) == printing


MADE = [
    Coins(1_000, 0.001, 0.25), Coins(10_000, 0.001, 0.5), Coins(100_000, 0.001, 0.12), Coins(100_000, 0.01, 1.0),
    Coins(1_000_000, 0.001, 0.5), Coins(500, 0.05, 0.25), Coins(20_000, 0.0001, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("coins", "printing"),
    [(coins, p) for coins in MADE for p in (three, six_down)]
    + [(MADE[i], p) for i in (1, 2) for p in (four, four_down)],
    ids=lambda v: getattr(v, "__name__", None) or f"{v.n}-{v.alpha}-{v.sigma}",
)
def test_honest_logs_are_inferred_and_clean(tmp_path: Path, coins: Coins, printing: Callable[[float], str]) -> None:
    rows = coins.rows(printing)
    result = api.audit_log(written(tmp_path / "log.tsv", rows), sigma=coins.sigma)
    assert (result["n"], result["alpha"]) == (coins.n, coins.alpha)
    for rival in result["candidates"]:  # .01 at n and .0001 at 2n have the same largest radius, where the images gather
        same = math.isclose(math.log(rival["alpha"]) / rival["n"], math.log(coins.alpha) / coins.n)
        assert same or rival["odds"] < 1e-4, rival
    if printing in (six_down, four_down):
        assert result["ok"], result["problems"]
        assert result["printed"].endswith("rounded down")
        return
    assert set(kinds(result)) <= {"rounded-up"}
    printed = {int(row[0]): float(row[3]) for row in rows}
    exact = {int(row[0]): float(row[3]) for row in coins.rows(repr)}
    for problem in result["problems"]:
        assert all(printed[idx] > exact[idx] for idx in problem["rows"])  # an over-claim, each of them


@pytest.mark.parametrize("n", [12_345, 3_000_000])
def test_another_n_is_found_when_named(tmp_path: Path, n: int) -> None:
    path = written(tmp_path / "log.tsv", Coins(n, 0.002, 0.5).rows(six_down))
    result = api.audit_log(path, sigma=0.5, n=n, alpha=0.002)
    assert (result["n"], result["alpha"], result["ok"], result["sure"]) == (n, 0.002, True, True)
    other = api.audit_log(written(tmp_path / "b.tsv", Coins(12_345, 0.002, 0.5).rows(six_down)), sigma=0.5)
    assert kinds(other) == {"no-lattice": sum(float(r[3]) > 0 for r in Coins(12_345, 0.002, 0.5).rows(six_down))}
    assert other["n"] is None


def test_a_small_log_says_that_it_is_not_sure(tmp_path: Path) -> None:
    result = api.audit_log(written(tmp_path / "log.tsv", [["0", "1", "1", "0.5", "1", "1"]]), sigma=0.5)
    assert not result["sure"]
    assert len(result["candidates"]) > 10
    assert result["ok"]
    claimed = api.audit_log(tmp_path / "log.tsv", sigma=0.5, n=20_000, alpha=0.01)
    assert (claimed["n"], claimed["alpha"], claimed["ok"]) == (20_000, 0.01, True)


def test_all_abstained(tmp_path: Path) -> None:
    result = api.audit_log(written(tmp_path / "log.tsv", [["0", "1", "-1", "0.0", "0", "1"]]), sigma=0.5)
    assert (result["n"], result["ok"]) == (None, True)
    (log,) = api.analyze([tmp_path / "log.tsv"], sigma=["0.5"])["logs"]
    assert (log["acr"], log["abstain_rate"], log["certified_accuracy"]) == (0, 1, {"0": 0})


TAMPERED: dict[str, tuple[Callable[[list[list[str]]], Any], int]] = {
    "off-lattice": (lambda rows: [row.__setitem__(3, "0.612353") for row in rows[3:6]], 3),
    "too-large": (lambda rows: rows[7].__setitem__(3, "2.100000"), 1),
    "duplicate": (lambda rows: rows.append(list(rows[4])), 1),
    "missing": (lambda rows: [rows.pop(30), rows.pop(50)], 2),
    "irregular": (lambda rows: rows[9].__setitem__(0, "181"), 1),
    "unreadable": (lambda rows: rows[11].__setitem__(3, "lots"), 1),
}


@pytest.mark.parametrize("kind", sorted(TAMPERED))
def test_tampered_logs_are_flagged(tmp_path: Path, kind: str) -> None:
    coins = Coins(100_000, 0.001, 0.5)
    rows = [[*row[:2], row[1], *row[3:4], "1", row[5]] for row in coins.rows(six_down) if row[2] != "-1"]
    for i, row in enumerate(rows):
        row[0] = str(20 * i)
    change, count = TAMPERED[kind]
    change(rows)
    result = api.audit_log(written(tmp_path / "log.tsv", rows), sigma=0.5)
    found = kinds(result)
    assert found.pop(kind) == count
    assert set(found) <= ({"irregular"} if kind == "missing" else {"missing"} if kind == "irregular" else set())
    assert (result["n"], result["alpha"], result["sure"]) == (100_000, 0.001, True)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("40\t3\t4\t0.5\t1\t1", "correct"),
        ("40\t3\t3\t0.5\t0\t1", "correct"),
        ("40\t3\t-1\t0.5\t0\t1", "abstained-radius"),
        ("40\t3\t-1\t0.0\t1\t1", "abstained-correct"),
        ("40\t3\t-2\t0.0\t0\t1", "class"),
    ],
)
def test_columns_that_contradict_each_other(tmp_path: Path, row: str, kind: str) -> None:
    rows = [["0", "1", "1", "0.5", "1", "1"], ["20", "1", "1", "0.25", "1", "1"], row.split("\t")]
    result = api.audit_log(written(tmp_path / "log.tsv", rows), sigma=0.5)
    assert kinds(result) == {kind: 1}
    assert result["problems"][0]["rows"] == [40]


def test_a_false_claim(tmp_path: Path) -> None:
    path = written(tmp_path / "log.tsv", Coins(100_000, 0.01, 0.25).rows(four_down))
    assert kinds(api.audit_log(path, sigma=0.25, alpha=0.001)) == {"claim": 0}
    (tmp_path / "log.tsv.json").write_text(json.dumps({"sigma": "0.25", "alpha": 0.001, "n": 100_000}))
    result = api.audit_log(path)
    assert kinds(result) == {"claim": 0}
    assert (result["n"], result["alpha"]) == (100_000, 0.01)
    assert "claim" in kinds(api.audit_log(path, sigma=0.5))


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha", "sigma"), [(1_000, 0.001, 0.25), (100_000, 0.01, 1.0), (777, 0.05, 0.5)])
def test_our_log_is_clean(tmp_path: Path, n: int, alpha: float, sigma: float) -> None:
    path = own(tmp_path / "log.tsv", n, alpha, sigma)
    result = api.audit_log(path, sigma=sigma)
    assert (result["n"], result["alpha"], result["mode"], result["ok"]) == (n, alpha, "fixed", True), result
    (tmp_path / "log.tsv.json").write_text(json.dumps({"sigma": str(sigma), "alpha": alpha, "n": n, "mode": "fixed"}))
    assert api.audit_log(path)["ok"]
    assert kinds(api.audit_log(path, n=n + 1)) == {"claim": 0}


@pytest.mark.parametrize(
    ("column", "change", "kind"),
    [
        ("radius", lambda v: f"{float(v) + 1e-6:.6f}", "radius"),
        ("radius", lambda v: f"{float(v) - 1e-6:.6f}", "radius"),
        ("nA", lambda v: str(int(v) - 1), "p-low"),
        ("nA", lambda v: "2000", "counts"),
        ("nA", lambda v: "many", "unreadable"),
        ("p_low", lambda v: f"{float(v) + 2e-9:.9f}", "p-low"),
        ("drawn", lambda v: "999", "drawn"),
        ("predict", lambda v: "-1", "abstention"),
    ],
)
def test_our_log_tampered(tmp_path: Path, column: str, change: Callable[[str], str], kind: str) -> None:
    path = own(tmp_path / "log.tsv", 1_000, 0.001, 0.25)
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    at = certlog.COLUMNS.index(column)
    row = next(row for row in rows if row[2] != "-1")
    row[at] = change(row[at])
    result = api.audit_log(written(path, rows, certlog.text([])), sigma=0.25)
    assert kinds(result).get(kind) == 1, result
    assert result["problems"][-1]["rows"] == [int(row[0])]


@pytest.mark.parametrize("mode", ["sequential", "looks", "adaptive"])
def test_logs_of_the_other_modes_are_clean(tmp_path: Path, mode: str) -> None:
    from robustkt.catalog import CERTIFIERS
    from robustkt.certificates import drive

    ball = l2(0.25)
    given = {} if mode == "adaptive" else {"radii": [0.0, 0.25, 0.5]}
    random = np.random.default_rng(3)
    text = certlog.text([])
    for i, p in enumerate(random.uniform(0.45, 1, 40)):
        certifying = CERTIFIERS.get(mode)(ball=ball, alpha=0.001, n0=100, n=5_000, **given)
        certificate = drive(certifying, lambda k, p=p: random.multinomial(k, [1 - p, p]).tolist())
        text += certlog.Row.of(i, 1, certificate).line()
    path = tmp_path / "log.tsv"
    path.write_text(text)
    for header in ({"sigma": 0.25, "alpha": 0.001, "n": 5_000, "mode": mode}, {"sigma": 0.25}):
        (tmp_path / "log.tsv.json").write_text(json.dumps(header))
        assert api.audit_log(path)["ok"], api.audit_log(path)["problems"]
    radius = max(line.split("\t")[3] for line in text.splitlines()[1:])
    path.write_text(text.replace(radius, f"{float(radius) + 1e-5:.6f}"))
    assert "radius" in kinds(api.audit_log(path))


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(FIELD + ROWS)
    (log,) = api.analyze([path], sigma=["0.5"], alpha=0.001, radii=[Fraction(0), Fraction(1, 4), Fraction(1, 2)])[
        "logs"
    ]
    assert (log["images"], log["abstain_rate"]) == (4, 0.25)
    assert log["acr"] == pytest.approx((0.48 + 0.25) / 4)
    assert log["certified_accuracy"] == {"0": 0.5, "0.25": 0.5, "0.5": 0.0}  # a radius of 0.25 counts at 0.25
    assert log["ecdf"]["0.5"] == 0.25
    assert log["ecdf"]["0.7"] == 0.5  # Φ(0.5) = 0.69
    assert log["ecdf"]["0.99"] == 1.0
    assert log["lower_bounds"]["0"] == 0  # four images tell nothing
    doubt = math.log(1_000)
    bound = 0.657 - 0.001 - math.sqrt(0.001 * 0.999 * doubt / 10_000) - doubt / 30_000
    assert logs.lower_bound(0.657, 0.001, 10_000, 0.001) == pytest.approx(bound)


def test_unlike_logs_are_refused(tmp_path: Path) -> None:
    a = written(tmp_path / "a.tsv", Coins(10_000, 0.001, 0.5).rows(three))
    b = written(tmp_path / "b.tsv", Coins(100_000, 0.001, 0.5).rows(three))
    with pytest.raises(RobustKTError, match=r"n is 10,000 and 100,000"):
        api.analyze([a, b], sigma=["0.5"])
    result = api.analyze([a, b], sigma=["0.5"], mixed=True)
    assert (result["differ"], [log["n"] for log in result["logs"]]) == (["n"], [10_000, 100_000])
    assert api.analyze([a, a], sigma=["0.5"])["differ"] == []
    unknown = api.analyze([a, b])
    assert sum("not known" in note for note in unknown["notes"]) == 2
    (tmp_path / "a.tsv.json").write_text('{"sigma": "0.25", "n": 10000, "alpha": 0.001, "mode": "fixed"}')
    (tmp_path / "b.tsv.json").write_text('{"sigma": "0.5"}')
    with pytest.raises(RobustKTError, match=r"n is .*; σ is 0.25 and 0.5"):
        api.analyze([a, b])
    with pytest.raises(RobustKTError, match="says σ"):
        api.analyze([a], sigma=["0.5"])


@pytest.mark.parametrize(
    "header",
    ["{", "[]", '{"sigma": "x"}', '{"n": 1e300}', '{"alpha": 7}', '{"sigma": -1}', '{"n": 0}', '{"sigma": 1e-300}'],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(FIELD + ROWS)
    (tmp_path / "log.tsv.json").write_text(header)
    with pytest.raises(RobustKTError):
        api.analyze([path])
    with pytest.raises(RobustKTError):
        api.audit_log(path)


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.7}, {"rho": 0.0}, {"rho": 1.0}, {"radii": []}, {"radii": [Fraction(-1)]}, {"sigma": ["0.5", "1"]},
     {"sigma": ["0"]}, {"sigma": ["x"]}],
)  # fmt: skip
def test_options_that_mean_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "log.tsv"
    path.write_text(FIELD + ROWS)
    with pytest.raises(UsageError):
        api.analyze([path], **options)


# -- the published logs -----------------------------------------------------------------------------------------------


@there
def test_published_figures() -> None:
    (log,) = api.analyze([HALF], sigma=["0.5"])["logs"]
    assert (log["images"], log["n"], log["alpha"]) == (10_000, 100_000, 0.001)
    assert log["acr"] == pytest.approx(0.5251, abs=5e-5)
    radii = {"0": 0.657, "0.25": 0.549, "0.5": 0.428, "0.75": 0.325, "1": 0.220}
    assert {r: log["certified_accuracy"][r] for r in radii} == pytest.approx(radii, abs=6e-4)


@there
@pytest.mark.parametrize(("path", "sigma"), [(HALF, 0.5), (ONE, 1.0), (IMAGENET, 0.5)], ids=lambda v: str(v)[-12:])
def test_published_logs_are_inferred_and_only_rounded_up(path: Path, sigma: float) -> None:
    start = time.monotonic()
    result = api.audit_log(path, sigma=sigma)
    assert time.monotonic() - start < 20  # 2 s on a quiet machine
    assert (result["n"], result["alpha"], result["sure"]) == (100_000, 0.001, True)
    assert set(kinds(result)) == {"rounded-up"}


@there
def test_published_log_cut_anywhere(tmp_path: Path) -> None:
    text = HALF.read_text()
    path = tmp_path / "log.tsv"
    for cut in range(30_000, 30_040):
        path.write_text(text[:cut])
        whole = foreignlog.read(path)
        assert not whole.faults
        assert len(whole.lines) + whole.torn in (text[:cut].count("\n") - 1, text[:cut].count("\n"))


@there
def test_published_header_only(cli: Cli) -> None:
    for command in (["analyze"], ["audit", "--sigma", "0.5"]):
        ran = cli(*command, PUBLISHED / "header_only.tsv")
        assert ran.code == 1
        assert "nothing is certified yet" in ran.err


# -- the command line -------------------------------------------------------------------------------------------------


def test_analyze_prints(tmp_path: Path, cli: Cli) -> None:
    path = written(tmp_path / "a_1.tsv", Coins(10_000, 0.001, 0.5).rows(six_down))
    ran = cli("analyze", path.name, "--sigma", "0.5", "--json")
    (log,) = ran.json["logs"]
    keys = "file images acr abstain_rate certified_accuracy intervals lower_bounds ecdf n alpha sigma mode"
    assert set(keys.split()) == set(log)
    ran = cli("analyze", path.name, "--sigma", "0.5")
    assert "σ = 0.5, n = 10,000, α = 0.001, 800 images" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    written(tmp_path / "b.tsv", Coins(100_000, 0.001, 0.5).rows(six_down))
    assert cli("analyze", path.name, "b.tsv", "--sigma", "0.5").code == 1
    ran = cli("analyze", path.name, "b.tsv", "--sigma", "0.5", "--mixed")
    assert "mixed: these logs differ in n" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    for form in ("markdown", "latex"):
        ran = cli("analyze", path.name, "b.tsv", "--sigma", "0.5", "--mixed", "--format", form)
        assert ran.code == 0
        assert "These logs differ in n." in ran.out
        assert "100,000" in ran.out
    assert r"a\_1.tsv & 0.5 & 10,000 & 0.001 & 800" in ran.out
    assert cli("analyze", path.name, "--format", "html").code == 2


def test_audit_exits(tmp_path: Path, cli: Cli) -> None:
    rows = Coins(10_000, 0.001, 0.5).rows(six_down)
    path = written(tmp_path / "log.tsv", rows)
    assert cli("audit", path, "--sigma", "0.5").code == 0
    assert cli("audit", path).code == 2
    rows[4][3] = "3.5"
    ran = cli("audit", written(path, rows), "--sigma", "0.5", "--json")
    assert ran.code == 3
    assert {"n", "alpha", "sigma", "images", "problems", "candidates"} <= set(ran.json)
    assert ran.json["problems"][0]["rows"] == [80]
    assert "too-large" in cli("audit", path, "--sigma", "0.5").out
    assert cli("audit", "no.tsv", "--sigma", "0.5").code == 1


def test_logs_need_no_torch(tmp_path: Path) -> None:
    written(tmp_path / "log.tsv", Coins(1_000, 0.001, 0.5, 50).rows(three))
    code = (
        "import sys; from pathlib import Path; from robustkt import api, cli; p = Path(sys.argv[1]);"
        "api.analyze([p], sigma=['0.5']); api.audit_log(p, sigma='0.5'); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log.tsv")], check=False)
    assert done.returncode == 0


def test_an_audit_of_counts_is_quick(tmp_path: Path) -> None:
    path = own(tmp_path / "log.tsv", 100_000, 0.001, 0.25, images=2_000)
    start = time.monotonic()
    assert api.audit_log(path, sigma=0.25)["ok"]
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "given",
    [
        {"mode": "fixed"}, {"mode": "randomised"}, {"mode": "adaptive"}, {"mode": "sequential"},
        {"mode": "fixed", "simultaneous": True}, {"mode": "fixed", "norm": "linf"}, {"mode": "fixed", "norm": "l4"},
        {"noise": "quantised", "mode": "fixed"}, {"noise": "uniform", "mode": "fixed"}, {"noise": "laplace"},
        {"noise": "ablation:keep=60", "sigma": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_certify_writes_passes_the_audit_and_is_found_out_when_changed(
    tmp_path: Path, noisy: Registry, given: dict[str, Any]
) -> None:
    path = tmp_path / "log.tsv"
    few = {"sigma": "0.25", "n": 400, "n0": 32, "max_images": 12, "registry": noisy, "device": "cpu"}
    found = api.certify("gen0", **few | given, out=path)
    result = api.audit_log(path)
    assert result["problems"] == [], result
    assert api.analyze([path])["logs"][0]["certified_accuracy"]["0"] == found["certified_accuracy"]["0"]
    stored = noisy.results(noisy.get("gen0").id, "certificate")
    assert all(api.audit_log(noisy.log_path(one))["ok"] for one in stored)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    place = next(i for i, row in enumerate(rows) if (i and float(row[3]) > 0) or i == len(rows) - 1)
    rows[place][3] = f"{float(rows[place][3]) + 1:.6f}"
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    assert "radius" in kinds(api.audit_log(path))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return gaussian_digits(tmp_path_factory.mktemp("noisy"))


@pytest.mark.parametrize(
    "norm",
    ["l1", "l0.5", "l2.0", "linfinity", "", "l", "1", "none", [], 1e300, True, 0, "ablation:keep=20", "lq", "lnan"],
)  # fmt: skip
def test_a_norm_that_the_noise_does_not_certify_is_refused(tmp_path: Path, norm: object) -> None:
    log = tmp_path / "log.tsv"
    log.write_text("\t".join(certlog.COLUMNS) + "\n0\t0\t0\t9.000000\t1\tnan\t1000\t1000\t0.993116047\t1100\n")
    header = {"sigma": "0.25", "alpha": 0.001, "n": 1000, "mode": "fixed", "noise": "gaussian", "norm": norm}
    log.with_name("log.tsv.json").write_text(json.dumps({**header, "preprocessing": {"shape": [1, 8, 8]}}))
    with pytest.raises(IntegrityError, match="the header of"):
        api.audit_log(log, sigma="0.25")


@pytest.mark.parametrize("side", [10**200, 0, True, 2**20])
def test_a_shape_of_no_image_tells_nothing(tmp_path: Path, side: int) -> None:
    log = tmp_path / "log.tsv"
    log.write_text("\t".join(certlog.COLUMNS) + "\n0\t0\t0\t0.100000\t1\tnan\t1000\t1000\t0.993116047\t1100\n")
    header = {"sigma": "0.25", "alpha": 0.001, "n": 1000, "mode": "fixed", "noise": "gaussian", "norm": "l4"}
    log.with_name("log.tsv.json").write_text(json.dumps({**header, "preprocessing": {"shape": [side, 8, 8]}}))
    assert "to derive the radii again" in " ".join(api.audit_log(log, sigma="0.25")["notes"])


def test_many_columns_take_no_time(tmp_path: Path) -> None:
    log = tmp_path / "log.tsv"
    columns = ["idx", "label", "predict", "radius", "correct", "time", *(f"c{i}" for i in range(200_000))]
    log.write_text("\t".join(columns) + "\n" + "\t".join(["0"] * len(columns)) + "\n")
    assert api.analyze([log], sigma=["0.25"], alpha=0.001, radii=[Fraction(0)])["logs"][0]["images"] == 1


def test_a_randomised_count_of_too_many_draws_is_a_problem(tmp_path: Path) -> None:
    log = tmp_path / "log.tsv"
    head = "\t".join([*certlog.COLUMNS, "u"])
    log.write_text(f"{head}\n0\t0\t0\t0.1\t1\tnan\t999999999999999\t999999999999999\t0.9\t999999999999999\t0.5\n")
    found = api.audit_log(log, sigma="0.25")
    assert "no draws or too many" in found["problems"][0]["text"]
