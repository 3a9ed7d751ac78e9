"""Figures that stand in sentences: what is computed from the records and is in no table as it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.evidence import Found
from benchmarks.written import record


def mean(rows: Sequence[dict[str, Any]], *path: str) -> float:
    """The mean over rows of a share, in %."""
    values: list[Any] = [*rows]
    for key in path:
        values = [value[key] for value in values]
    return 100 * statistics.fmean(values)


def between(values: Sequence[float], word: str = "to", digits: int = 1) -> str:
    """`2.0 to 5.1`, the smallest and the largest, or one number where they are the same."""
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} {word} {high}"


def views(method: str, number: int, figure: str, name: str) -> str:
    """By how many points a student of so many views is below one of fresh views."""
    found = [row for row in record("replay")["rows"] if row["method"] == method]
    kept, fresh = ([row for row in found if row["views"] == views] for views in (number, None))
    return f"{mean(fresh, figure, name) - mean(kept, figure, name):.1f}"


def modes(part: str, one: str, two: str, mode: str = "robust_mode", figure: str = "robust") -> float:
    """By how many points an arm of co-training is above another; adversarial training has its robust mode alone."""
    found = record("modes")[part]["found"]
    return mean(found[one], mode, figure) - mean(found[two], "robust_mode", figure)


def shared_keeps() -> str:
    """What a shared BatchNorm network withstands of what one with DualParams does, in %."""
    found = record("modes")["figure2"]["found"]
    shared, dual = (mean(found[f"batch {arm}"], "robust_mode", "robust") for arm in ("none", "dualparams"))
    return f"{100 * shared / dual:.0f} %"


NORMS = ("batch", "group", "layer")


def above_adversarial(part: str, arms: Sequence[str]) -> str:
    """By how many points the clean modes of arms are above adversarial training's clean accuracy."""
    return between([modes(part, arm, f"{arm.split()[0]} sat", "clean_mode", "clean") for arm in arms])


def below_adversarial(part: str, arms: Sequence[str]) -> str:
    """By how many points the robust modes of arms are below adversarial training."""
    return between([-modes(part, arm, f"{arm.split()[0]} sat") for arm in arms])


def two_modes(kind: str, figure: str) -> str:
    """Two-mode RSLAD against RSLAD alone."""
    found = record("modes")["rslad"]["found"]["rows"]
    return f"{abs(mean(found, kind, figure) - mean(found, 'rslad', figure)):.1f}"


def shifted() -> str:
    """By how many points the β chosen for a shift is above the better of the two modes, over all corruptions."""
    told: dict[str, list[float]] = {"0": [], "1": [], "chosen": []}
    for row in record("modes")["shift"]["found"]["rows"]:
        for kind, beta in (("0", "0"), ("1", "1"), ("chosen", f"{row['beta']:g}")):
            told[kind].append(100 * row["accuracy"][beta])
    clean, robust, chosen = (statistics.fmean(one) for one in told.values())
    return f"{chosen - max(clean, robust):.1f}"


def sigmas(sigma: str, radius: str) -> str:
    """By how many points one backbone is below a network for a noise level."""
    found = record("modes")["sigmas"]["found"]["rows"]
    own, shared = (mean(found, "levels", sigma, kind, radius) for kind in ("network", "adapter"))
    return f"{own - shared:.1f}"


def backbone() -> str:
    """Bytes of one backbone with three adapters of those of three networks, in %."""
    found = record("modes")["sigmas"]["found"]["rows"][0]
    return f"{100 * found['bytes'] / found['bytes_apart']:.0f} %"


def generations(radius: str) -> str:
    """By how many points CRT is below SmoothMix from scratch, generation by generation."""
    found = record("generations")["rows"]
    behind = []
    for number in (1, 2, 3):
        scratch, crt = (
            [row for row in found if (row["kind"], row["generation"]) == (kind, number)]
            for kind in ("smoothmix", "crt")
        )
        behind.append(mean(scratch, "certified_accuracy", radius) - mean(crt, "certified_accuracy", radius))
    return ", ".join(f"{points:.1f}" for points in behind)


def passes() -> str:
    """How many times the images of CRT SmoothMix sends through the student."""
    found = record("generations")["rows"]
    sent = {row["kind"]: row["cost"]["student_backward"] for row in found}
    return f"{sent['smoothmix'] / sent['crt']:.0f}"


def training(key: str, digits: int, name: str = "training", method: str = "rslad") -> str:
    """A method's steps on every network: a figure of the table of training."""
    return between([run["figures"][method][key] for run in record(name)["runs"]], digits=digits)


def certified(name: str, radius: str) -> dict[int, float]:
    """Certified accuracy of a network of certified.py at σ = 0.25 in %, by seed."""
    rows = Found("certified").rows(f"{name}-0.25", "certificates")
    return {row["seed"]: 100 * row["certified_accuracy"][radius] for row in rows}


def behind(first: str, second: str, radius: str) -> float:
    """By how many points the second network is below the first, the mean over the seeds that both have."""
    one, two = certified(first, radius), certified(second, radius)
    return statistics.fmean(one[seed] - two[seed] for seed in one.keys() & two.keys())


def each(kind: str, other: str, radius: str) -> str:
    """By how many points three generations of a kind are below those of another."""
    return ", ".join(f"{behind(f'{other}-{n}', f'{kind}-{n}', radius):.1f}" for n in (1, 2, 3))


def cheaper(kind: str) -> str:
    """How many times less CPU time an epoch of a kind takes than one of SmoothMix."""
    told = [one["cpu_seconds"] for one in record("certified")["prices"]]
    return between([statistics.fmean(one["smoothmix"]) / statistics.fmean(one[kind]) for one in told])


def covered() -> str:
    """In how many cells of the table of coverage the interval lies above α."""
    return str(sum(row["interval"][0] > row["alpha"] for row in record("certification")["coverage"]))


DUAL = [f"{norm} dualparams" for norm in NORMS]
VALUES: dict[str, Callable[[], str]] = {
    "views-crt-1": lambda: views("crt", 1, "certified_accuracy", "0.5"),
    "views-rslad-8": lambda: views("rslad", 8, "accuracy", "pgd-sat"),
    "views-rslad-1": lambda: views("rslad", 1, "accuracy", "pgd-sat"),
    "modes-kept": shared_keeps,
    "modes-shared-norms": lambda: between([modes("figure2", f"{n} dualparams", f"{n} none") for n in NORMS[1:]]),
    "modes-clean": lambda: above_adversarial("figure2", DUAL),
    "modes-robust-batch": lambda: below_adversarial("figure2", DUAL[:1]),
    "modes-robust-norms": lambda: below_adversarial("figure2", DUAL[1:]),
    "modes-short": lambda: between([modes("figure2-10", f"{n} dualparams", f"{n} none") for n in NORMS[:2]]),
    "modes-strong-clean": lambda: above_adversarial("strong", ["batch dualparams", "batch dualbatchnorm"]),
    "modes-strong-robust": lambda: below_adversarial("strong", ["batch dualparams", "batch dualbatchnorm"]),
    "modes-rslad-robust": lambda: two_modes("robust_mode", "robust"),
    "modes-rslad-clean": lambda: two_modes("clean_mode", "clean"),
    "shift-gain": shifted,
    "sigmas-bytes": backbone,
    "sigmas-low": lambda: sigmas("0.12", "0"),
    "sigmas-high": lambda: sigmas("0.5", "0.75"),
    "generations-quarter": lambda: generations("0.25"),
    "generations-half": lambda: generations("0.5"),
    "generations-passes": passes,
    "certified-cheaper": lambda: cheaper("crt"),
    "certified-fresh": lambda: cheaper("crt-fresh"),
    "certified-least": lambda: cheaper("gaussian"),
    "certified-quarter": lambda: each("crt", "smoothmix", "0.25"),
    "certified-half": lambda: each("crt", "smoothmix", "0.5"),
    "certified-gaussian": lambda: each("gaussian", "crt", "0.5"),
    "certified-lost-quarter": lambda: f"{behind('smoothmix-0', 'crt-3', '0.25'):.1f}",
    "certified-lost-half": lambda: f"{behind('smoothmix-0', 'crt-3', '0.5'):.1f}",
    "coverage-above": covered,
    "training-rslad-loop": lambda: training("times_plain_loop", 1),
    "training-rslad-minimum": lambda: training("of_minimum", 2),
    "training-amx-rslad": lambda: training("times_plain_loop", 1, "training-amx"),
    "training-amx-sat": lambda: training("times_plain_loop", 1, "training-amx", "sat"),
    "training-amx-minimum": lambda: training("of_minimum", 2, "training-amx"),
}
