"""Figures that stand in sentences: what is computed from the records and is in no table as it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.found import Found
from benchmarks.written import paired, record, span


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


def natural_above() -> str:
    """By how many points natural training is above the clean modes of two adapters, of networks trained as long."""
    found = record("modes")["strong"]["found"]
    natural = mean(found["batch natural"], "clean_mode", "clean")
    arms = ("batch dualparams", "batch dualbatchnorm")
    return between([natural - mean(found[arm], "clean_mode", "clean") for arm in arms])


def two_modes(kind: str, figure: str, sign: int) -> str:
    """By how many points a mode of two-mode RSLAD is above RSLAD alone (below it, with a sign of -1), seed by seed."""
    found = record("modes")["rslad"]["found"]["rows"]
    return span([100 * sign * (row[kind][figure] - row["rslad"][figure]) for row in found])


def separated(arm: str) -> str:
    """By how many points the robust mode of a ViT withstands more than its clean mode."""
    found = record("modes")["tokens"]["found"][arm]
    return f"{mean(found, 'robust_mode', 'robust') - mean(found, 'clean_mode', 'robust'):.1f}"


def fewer_parameters() -> str:
    """How many times fewer parameters a token has than the norms."""
    found = record("modes")["tokens"]["found"]
    return f"{found['dualparams'][0]['adapters'] / found['dualtoken'][0]['adapters']:.0f}"


def shifts() -> list[tuple[str, float, dict[str, float]]]:
    """Corruption, accuracy with the β that was chosen for it, and with each β, in %; a row a corruption and seed."""
    rows = record("modes")["shift"]["found"]["rows"]
    each_ = [(row, {beta: 100 * share for beta, share in row["accuracy"].items()}) for row in rows]
    return [(row["corruption"], shares[f"{row['beta']:g}"], shares) for row, shares in each_]


def shift_against(beta: str) -> str:
    """By how many points the choice of β for each corruption is above one β for all of them."""
    return f"{statistics.fmean(chosen - shares[beta] for _, chosen, shares in shifts()):.1f}"


def shift_modes() -> list[tuple[str, float]]:
    """By how many points the choice is above the better of the two modes, by corruption."""
    return [(name, chosen - max(shares["0"], shares["1"])) for name, chosen, shares in shifts()]


def shift_worse() -> str:
    """In how many cases the choice is worse than the better of the two modes."""
    told = [points for _, points in shift_modes()]
    return f"{sum(points < 0 for points in told)} of {len(told)}"


def shift_worst() -> str:
    """The corruption where the choice loses most against the better mode, and how much."""
    told: dict[str, list[float]] = {}
    for name, points in shift_modes():
        told.setdefault(name, []).append(-points)
    worst = max(told, key=lambda name: statistics.fmean(told[name]))
    return f"{worst}, by {span(told[worst])} points"


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


def passes_of(first: str, second: str) -> str:
    """How many times the images of the second network the first one's training sends through it."""
    found = Found("certified")
    one, two = (found.networks(name)[0]["cost"]["student_backward"] for name in (first, second))
    return f"{one / two:.0f}"


def training(key: str, digits: int, name: str = "training", method: str = "rslad") -> str:
    """A method's steps on every network: a figure of the table of training."""
    return between([run["figures"][method][key] for run in record(name)["runs"]], digits=digits)


def below(first: str, second: str, radius: str, experiment: str = "certified") -> str:
    """By how many points the second network's certified accuracy is below the first's, seed by seed."""
    found = Found(experiment)
    return span(paired(found.certificates(first, radius), found.certificates(second, radius)))


def less(first: str, second: str, attack: str = "autoattack", experiment: str = "rslad") -> str:
    """By how many points the second network is below the first under an attack, seed by seed."""
    found = Found(experiment)
    return span(paired(found.accuracies(first, attack), found.accuracies(second, attack)))


def default_against(preset: str, name: str = "defaults-digits") -> str:
    """By how many points distill without options is above a preset on held-out images, seed by seed."""
    made = record(name)["networks"]
    teacher = next(row["teacher"] for row in made if row["name"] == preset)
    usual, other = (
        {row["seed"]: 100 * row["selected"]["score"] for row in made if row["name"] == arm}
        for arm in (f"{teacher}-default", preset)
    )
    return span(paired(usual, other))


def held_out(names: Sequence[str]) -> list[float]:
    """Accuracy under noise on held-out images of networks of certified.py at σ = 0.25, in %."""
    found = Found("certified")
    return [100 * row["selected"]["score"] for name in names for row in found.networks(f"{name}-0.25")]


def each(kind: str, other: str, radius: str, sigma: str = "0.25") -> str:
    """By how many points generations of a kind are below those of another: the lowest and the highest of the means."""
    found = Found("certified")
    certified = [[found.certificates(f"{name}-{n}-{sigma}", radius) for name in (other, kind)] for n in (1, 2, 3)]
    return between([statistics.fmean(paired(*both)) for both in certified])


def cheaper(kind: str) -> str:
    """How many times less CPU time an epoch of a kind takes than one of SmoothMix."""
    told = [one["cpu_seconds"] for one in record("certified")["prices"]]
    return between([statistics.fmean(one["smoothmix"]) / statistics.fmean(one[kind]) for one in told])


def whole_runs(kind: str, other: str) -> str:
    """CPU seconds of whole runs of a kind over those of another, by generation and σ: the means over the seeds."""
    found = Found("certified")
    ratios = []
    for name in (f"{n}-{sigma}" for n in (1, 2, 3) for sigma in ("0.25", "0.5")):
        one, two = ({r["seed"]: r["cpu_seconds"] for r in found.networks(f"{k}-{name}")} for k in (kind, other))
        ratios.append(statistics.fmean(one[seed] / two[seed] for seed in one.keys() & two.keys()))
    return between(ratios)


def long(first: str, second: str) -> str:
    """By how many points the second is below the first under AutoAttack, of the seeds that were trained for longer."""
    found = Found("rslad", ["long-sat", "long-rslad", first, second])
    return span(paired(found.accuracies(first, "autoattack"), found.accuracies(second, "autoattack")))


def warned() -> str:
    """Of how many rows of rslad.json Square broke images that no gradient attack did."""
    told = [row["warnings"] for row in record("rslad")["rows"]]
    return f"{sum(bool(warnings) for warnings in told)} of {len(told)}"


def shift_most(count: int = 2) -> tuple[list[str], float]:
    """The corruptions where the choice gains most on the clean mode, each with the points; the mean over the rest."""
    told: dict[str, list[float]] = {}
    for name, chosen, shares in shifts():
        told.setdefault(name, []).append(chosen - shares["0"])
    means = {name: statistics.fmean(points) for name, points in told.items()}
    first = sorted(means, key=lambda name: -means[name])[:count]
    rest = statistics.fmean(points for name, points in means.items() if name not in first)
    return [f"{name} ({means[name]:.1f})" for name in first], rest


def covered() -> str:
    """In how many cells of the table of coverage the interval lies above α."""
    return str(sum(row["interval"][0] > row["alpha"] for row in record("certification")["coverage"]))


VIT = ("dualtoken", "dualparams", "dualtoken+dualhead")
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
    "modes-rslad-robust": lambda: two_modes("robust_mode", "robust", -1),
    "modes-rslad-clean": lambda: two_modes("clean_mode", "clean", 1),
    "shift-clean": lambda: shift_against("0"),
    "shift-robust": lambda: shift_against("1"),
    "shift-half": lambda: shift_against("0.5"),
    "shift-modes": lambda: f"{statistics.fmean(points for _, points in shift_modes()):.1f}",
    "shift-worse": shift_worse,
    "shift-worst": shift_worst,
    "tokens-apart": lambda: separated("dualtoken"),
    "norms-apart": lambda: separated("dualparams"),
    "heads-apart": lambda: separated("dualtoken+dualhead"),
    "tokens-clean": lambda: between([modes("tokens", arm, "none", "clean_mode", "clean") for arm in VIT]),
    "tokens-robust": lambda: between([-modes("tokens", arm, "none") for arm in VIT]),
    "tokens-fewer": fewer_parameters,
    "sigmas-bytes": backbone,
    "sigmas-low": lambda: sigmas("0.12", "0"),
    "sigmas-high": lambda: sigmas("0.5", "0.75"),
    "generations-quarter": lambda: generations("0.25"),
    "generations-half": lambda: generations("0.5"),
    "generations-passes": passes,
    "certified-cheaper": lambda: cheaper("crt"),
    "certified-fresh": lambda: cheaper("crt-fresh"),
    "certified-least": lambda: cheaper("gaussian"),
    "rslad-trades": lambda: less("sat", "trades"),
    "rslad-iad": lambda: less("sat", "iad"),
    "rslad-rslad": lambda: less("sat", "rslad"),
    "rslad-ard": lambda: less("sat", "ard"),
    "rslad-teacher": lambda: less("teacher", "rslad"),
    "labels-loss": lambda: less("sat", "soft-outer"),
    "labels-attack": lambda: less("soft-outer", "soft-both"),
    "labels-clean": lambda: less("soft-both", "rslad"),
    "teachers-wider": lambda: less("teacher", "trades"),
    "teachers-student": lambda: less("rslad", "rslad-equal"),
    "defaults-crt": lambda: default_against("crt-neurips22"),
    "defaults-rslad": lambda: default_against("rslad-iccv21"),
    "defaults-ard": lambda: default_against("ard-aaai20"),
    "defaults-iad": lambda: default_against("iad-iclr22"),
    "fashion-crt": lambda: default_against("crt-neurips22", "defaults"),
    "fashion-rslad": lambda: default_against("rslad-iccv21", "defaults"),
    "fashion-ard": lambda: default_against("ard-aaai20", "defaults"),
    "fashion-iad": lambda: default_against("iad-iclr22", "defaults"),
    "strong-teacher": lambda: less("strong", "sat"),
    "strong-rslad": lambda: less("sat", "strong-rslad"),
    "strong-weak": lambda: less("strong-rslad", "rslad"),
    "kinds-teachers": lambda: less("trades", "smoothmix-0-0.25", "apgd-t", "kinds"),
    "kinds-students": lambda: less("rslad-from-trades", "rslad-from-smoothmix-0-0.25", "apgd-t", "kinds"),
    "kinds-natural": lambda: less("rslad-from-natural", "rslad-from-trades", "apgd-t", "kinds"),
    "long-sat": lambda: long("long-sat", "sat"),
    "long-rslad": lambda: long("long-rslad", "strong-rslad"),
    "long-apart": lambda: long("long-sat", "long-rslad"),
    "families-half": lambda: below("cnn-to-vit", "gaussian-vit", "0.5", "kinds"),
    "losses-kl": lambda: below("kl-0.25", "crt-1-0.25", "0.5"),
    "losses-probabilities": lambda: below("probabilities-0.25", "crt-1-0.25", "0.5"),
    "consistency-passes": lambda: passes_of("smoothmix-1-0.25", "consistency-1-0.25"),
    "certified-lost-far": lambda: below("smoothmix-0-0.5", "crt-3-0.5", "0.5"),
    "certified-half-far": lambda: each("crt", "smoothmix", "0.5", "0.5"),
    "certified-whole": lambda: whole_runs("smoothmix", "crt"),
    "certified-gaussian-cost": lambda: whole_runs("crt", "gaussian"),
    "views-fresh": lambda: below("fresh-0.25", "crt-1-0.25", "0.5"),
    "consistency-nought": lambda: below("smoothmix-1-0.25", "consistency-1-0.25", "0"),
    "consistency-small": lambda: below("smoothmix-1-0.25", "consistency-1-0.25", "0.25"),
    "shift-most": lambda: " and ".join(shift_most()[0]),
    "shift-rest": lambda: f"{shift_most()[1]:.1f}",
    "rslad-warned": warned,
    "rslad-adaad": lambda: less("rslad", "adaad"),
    "kinds-alone": lambda: less("sat-alone", "rslad-from-trades", "apgd-t", "kinds"),
    "kinds-alone-natural": lambda: less("sat-alone", "rslad-from-natural", "apgd-t", "kinds"),
    "modes-natural": natural_above,
    "long-before": lambda: long("sat", "strong-rslad"),
    "longer-nought": lambda: below("smoothmix-1-0.25", "epochs-60-0.25", "0"),
    "longer-quarter": lambda: below("smoothmix-1-0.25", "epochs-60-0.25", "0.25"),
    "longer-half": lambda: below("smoothmix-1-0.25", "epochs-60-0.25", "0.5"),
    "longer-gaussian-nought": lambda: below("gaussian-1-epochs-60-0.25", "smoothmix-1-0.25", "0"),
    "longer-gaussian-half": lambda: below("smoothmix-1-0.25", "gaussian-1-epochs-60-0.25", "0.5"),
    "consistency-student": lambda: below("from-consistency-0.25", "crt-1-0.25", "0.5"),
    "consistency-half": lambda: below("consistency-1-0.25", "from-consistency-0.25", "0.5"),
    "consistency-quarter": lambda: below("consistency-1-0.25", "from-consistency-0.25", "0.25"),
    "certified-half": lambda: each("crt", "smoothmix", "0.5"),
    "certified-gaussian-nought": lambda: each("crt", "gaussian", "0"),
    "certified-gaussian": lambda: each("gaussian", "crt", "0.5"),
    "certified-lost-half": lambda: below("smoothmix-0-0.25", "crt-3-0.25", "0.5"),
    "line-held-out": lambda: span(held_out(["smoothmix-1"])),
    "line-others-held-out": lambda: span(held_out(["smoothmix-0", "smoothmix-2", "smoothmix-3"])),
    "coverage-above": covered,
    "training-rslad-loop": lambda: training("times_plain_loop", 1),
    "training-rslad-minimum": lambda: training("of_minimum", 2),
    "training-amx-rslad": lambda: training("times_plain_loop", 1, "training-amx"),
    "training-amx-sat": lambda: training("times_plain_loop", 1, "training-amx", "sat"),
    "training-amx-minimum": lambda: training("of_minimum", 2, "training-amx"),
}
