"""Writes the tables and values of README.md and docs/ from the records beside this file.

    python -m benchmarks.tables [--check]    with --check it only says whether they agree

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, a value in a sentence between `<!-- value: NAME -->`
and `<!-- end -->`.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import evidence
from benchmarks.values import VALUES
from benchmarks.written import ROOT, again, over_seeds, percent, record, rows, span

PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "docs" / "certification.md",
    ROOT / "docs" / "gate.md",
    ROOT / "docs" / "registry.md",
    ROOT / "docs" / "containers.md",
)
INLINE = re.compile(r"(<!-- value: ([\w.-]+) -->).*?(<!-- end -->)")
BLOCK = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def quickstart() -> str:
    """What `robustkt quickstart` printed."""
    result = record("quickstart")["result"]
    head = ["generation", "method", "network", "r = 0", "r = ¼", "r = ½", "ACR", "abstains", "clean", "PGD", "training"]
    body = []
    for row in result["table"]:
        radii = row.get("certified_accuracy") or {}
        body.append(
            [
                row["generation"], row["method"], row["arch"], *(percent(radii.get(r)) for r in ("0", "0.25", "0.5")),
                f"{row['acr']:.3f}" if "acr" in row else "–", percent(row.get("abstain_rate")),
                percent(row["clean_accuracy"]), percent(row["robust_accuracy"]), f"{row['train_seconds']:.0f} s",
            ]
        )  # fmt: skip
    told = (
        f"\n\nIn %. Certified accuracy at L2 radius r on {result['table'][-1]['images']} test images: smoothed with "
        f"σ = {result['sigma']}, n = {result['n']}, α = 0.001. Clean and PGD: the network without noise, "
        f"linf eps = {result['eps']}. Carrying the robustness to gen1 took {result['speedup']:.1f} times less time "
        f"than training the same network from scratch; gen2 keeps {percent(result['retained'])} % of gen0's certified "
        "accuracy at r = ¼."
    )
    return rows(head, *body) + told


def parity() -> str:
    """Images that each attack leaves right, ours and torchattacks', over seeds."""
    found = record("parity")
    body = []
    for name, row in found["attacks"].items():
        spans = ["–".join(map(str, sorted({*row[key]}))) for key in ("spread_ours", "spread_torchattacks")]
        seeds = " / ".join(str(len(row[side]["robust"])) for side in ("ours", "torchattacks"))
        body.append([name, *spans, seeds, f"{row['mean_difference']:+.1f}", "yes" if row["agree"] else "no"])
    told = (
        f"\n\n{again(found['command'])} against torchattacks {found['torchattacks']}; {found['threat']}, "
        f"{found['clean']} of {found['images']} test images of Fashion-MNIST right without an attack. "
        f"PGD from the same start, step for step: largest difference of a pixel {found['pgd_largest_difference']:.1e}. "
        f"Commit {found['machine']['commit']}."
    )
    return rows(["attack", "ours", "torchattacks", "runs", "mean difference", "agree"], *body) + told


def bench_train() -> str:
    """An RSLAD step and AutoAttack against plain loops."""
    found = record("bench-train")
    body = [
        [name.replace("_", " "), f"{f['ours_seconds']:.2f}", f"{f['plain_seconds']:.2f}", f"{f['ratio']:.2f}"]
        for name, f in found["figures"].items()
    ]
    machine = found["machine"]
    told = (
        f"\n\n`robustkt bench train --images {found['images']}`: {found['arch']}, batches of {found['batch_size']}; "
        f"{machine['processors']} cores, {machine['threads']} threads, torch {machine['versions']['torch']}."
    )
    return rows(["what", "ours, s", "plain loop, s", "times faster"], *body) + told


def scale() -> str:
    """Two ranks on two cores against one process."""
    found = record("scale")
    alone = found["speed"]["one process, 2 threads"]["images_per_second"]
    body = []
    for name, way in found["speed"].items():
        ratios = [mine / theirs for mine, theirs in zip(way["images_per_second"], alone, strict=True)]
        body.append(
            [name, f"{way['median']:.0f}", f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"]
        )
    machine = found["machine"]
    told = (
        f"\n\n`{found['command']} --part speed`: plain training of {found['arch']} on 32×32 images, "
        f"{found['batch_size']} a step, {len(alone)} rounds of {found['steps']} steps in turn. {machine['processors']} "
        f"cores, load {machine['load']:.1f}, torch {machine['torch']}, commit {machine['commit']}."
    )
    return rows(["way", "images/s", "of two threads"], *body) + told


def scale_curves() -> str:
    """How far loss curves are apart that should be one, in fp32 and in fp64."""
    found = record("scale")
    exact = found["curves"]
    body = [[pair, *(f"{told[pair]:.1e}" for told in exact.values())] for pair in exact["fp32"]]
    machine = found["curves_machine"]
    told = (
        f"\n\n`{found['command']} --part curves`: the largest difference over {found['curve_steps']} steps of "
        f"{found['arch']}, {found['batch_size']} images a step; torch {machine['torch']}, commit {machine['commit']}."
    )
    return rows(["loss curves", *exact], *body) + told


def training(name: str) -> str:
    """Steps of training against plain training, their arithmetic minimum and plain loops, on one machine."""
    found = record(name)
    body = []
    for run in found["runs"]:
        for name, f in run["figures"].items():
            shares = [f"{f[key]:.2f}" if f[key] else "–" for key in ("cost", "of_minimum", "times_plain_loop")]
            network = f"{run['arch']}, {run['image_size']}², {run['batch_size']}"
            peak = f"{f['peak_bytes'] / 2**20:,.0f}"
            body.append([network, name, f"{f['images_per_second']:,.0f}", *shares, peak])
    first = found["runs"][0]
    machine = first["machine"]
    told = (
        f"\n\n`{found['command']}`: medians of {first['repeats']} rounds; {first['precision']}, "
        f"{'compiled' if first['compiled'] else 'not compiled'}; {machine['processors']} cores, {machine['threads']} "
        f"threads, {found['load_before']:.1f} processes waiting when it began, torch {machine['versions']['torch']}, "
        f"commit {found['git']['commit'][:7]}."
    )
    head = ["network, size, batch", "objective", "images/s", "× natural", "of minimum", "× plain loop", "peak MiB"]
    return rows(head, *body) + told


def sequential() -> str:
    """What each mode of certification costs and finds, on coins with a published model's probabilities."""
    found = record("sequential")
    radii = [r for r in ("0.0", "0.5", "1.0", "1.5") if r in found["rows"][0]["certified_accuracy"]]
    body = []
    for row in found["rows"]:
        shares = [f"{100 * row['certified_accuracy'][r]:.2f}" if r in row["certified_accuracy"] else "" for r in radii]
        draws = row["draws"]
        body.append([row["title"], f"{draws['mean']:,.0f}", f"{draws['median']:,.0f}", *shares, f"{row['acr']:.3f}"])
    told = (
        f"\n\n`{found['command']}`: {found['images']:,} images of that log as coins, σ = {found['sigma']:g}, "
        f"n = {found['n']:,}, α = {found['alpha']:g}; certified accuracy in %."
    )
    head = ["mode", "copies an image", "median", *(f"r = {float(r):g}" for r in radii), "ACR"]
    return rows(head, *body) + told


def bench_certify() -> str:
    """The sampler against the reference's loop and the bare forward pass, and a whole table of radii."""
    body = []
    for name in ("bench-certify", "bench-certify-table"):
        found = record(name)
        machine, speed, ratios = found["machine"], found["samples_per_second"], found["ratios"]
        shape = "×".join(map(str, found["shape"]))
        table = found["figures"].get("table")
        body.append(
            [
                f"{found['arch']}, {shape}", str(machine["threads"]),
                f"{speed['ours']:,.0f}", f"{speed['reference_loop']:,.0f}",
                f"{speed['bare_forward']:,.0f}", f"{ratios['reference_loop']:.2f}", f"{ratios['bare_forward']:.2f}",
                f"{table['samples_per_image']:,.0f}" if table else "", f"{ratios['table']:.1f}" if table else "",
            ]
        )  # fmt: skip
    told = (
        f"\n\n`robustkt bench certify`, and with a generation whose table of radii is timed at n = {found['n']:,} on "
        f"{found['images']} images (the reference's seconds for it are extrapolated); {found['precision']}, "
        f"{'compiled' if found['compiled'] else 'not compiled'}; {machine['processors']} cores, "
        f"torch {machine['versions']['torch']}."
    )
    head = [
        "network",
        "threads",
        "ours, copies/s",
        "reference",
        "bare",
        "× reference",
        "share of bare",
        "copies an image",
        "× table",
    ]
    return rows(head, *body) + told


def gate_margin() -> str:
    """How often a model that lost exactly the margin passes."""
    found = record("gate")
    body = [
        [
            f"{row['images']:,}", f"{100 * max(row['discordance'], found['margin']):g}", f"{100 * row['passed']:.2f}",
            f"{100 * row['normal']:.2f}", f"{row['p_above_alpha']:.2f}",
        ]
        for row in found["at_the_margin"]
    ]  # fmt: skip
    told = (
        f"\n\n`{found['command']}`: {found['sets']:,} simulated data sets a row, margin {100 * found['margin']:g} "
        f"points, at most {100 * found['alpha']:g} % allowed; in %. The last column is the exact binomial p-value of "
        "the hypothesis that it is no more."
    )
    return rows(["images", "differ on", "passes", "by the normal approximation", "p of more"], *body) + told


def gate_power() -> str:
    """How often an equally good model passes, as stated and as simulated, and what is recommended."""
    found = record("gate")
    recommended = {row["discordance"]: row for row in found["at_the_size_needed"]}
    seen = {(row["images"], row["discordance"]): row for row in found["at_the_resolution"]}
    body = []
    for row in found["of_equals"]:
        drop, more = seen[row["images"], row["discordance"]], recommended[row["discordance"]]
        body.append(
            [
                f"{row['images']:,}", f"{100 * row['discordance']:g}", f"{100 * row['stated']:.1f}",
                f"{100 * row['passed']:.1f}", f"{100 * drop['loss']:.1f}", f"{100 * drop['seen']:.1f}",
                f"{row['images_needed']:,}", f"{100 * more['passed']:.1f}",
            ]
        )  # fmt: skip
    head = [
        "images",
        "differ on",
        "stated power",
        "simulated",
        "drop seen",
        "simulated",
        "images needed",
        "power there",
    ]
    return rows(head, *body) + f"\n\nIn % and points, margin {100 * found['margin']:g} points, α = {found['alpha']:g}."


def gate_classes() -> str:
    """How often any class is reported although each has lost exactly its margin."""
    found = record("gate")
    body = [
        [str(row["classes"]), str(row["images"]), f"{100 * max(row['discordance'], found['class_margin']):g}",
         f"{100 * row['alarms']:.2f}"]
        for row in found["of_classes"]
    ]  # fmt: skip
    told = f"\n\nIn %; class margin {100 * found['class_margin']:g} points, at most {100 * found['alpha']:g} % allowed."
    return rows(["classes", "images of each", "differ on", "any class reported"], *body) + told


def faults() -> str:
    """Jobs that were struck at each of their file-system calls."""
    found = record("faults")
    kinds = {"kill": "killed there", "fail": "disk refuses"}
    body = [
        [row["doing"], kinds[row["mode"]], f"{row['calls']}", f"{row['attempts']}", f"{len(row['wrong'])}"]
        for row in found["jobs"]
    ]
    told = (
        f"\n\n`python -m tests.faults`: {found['points']} faults. Wrong: a registry that `verify` finds damaged, a job "
        "that cannot be repeated, or another result than the undisturbed one."
    )
    return rows(["job", "fault", "calls", "struck", "wrong"], *body) + told


def startup() -> str:
    """How fast the command line answers."""
    found = record("startup")
    body = [
        [f"`{name}`", f"{f['median']:.2f}", f"{f['first']:.2f}", f"{f['megabytes']:.0f}"]
        for name, f in found["seconds"].items()
    ]
    told = (
        f"\n\n`python -m benchmarks.startup`: {found['generations']:,} generations with a certificate and an evaluation"
        f" each; whole processes, median of {found['runs']}; the first `list` and `lineage` fill the cache."
    )
    return rows(["command", "seconds", "first time", "MB"], *body) + told


def image() -> str:
    """How large the image is, and of what."""
    variants = record("image")["variants"]
    parts = list(variants["cuda"]["parts"])
    body = [
        [
            f"`{name}`",
            *(f"{size / 1e3:.1f}" for size in (found["megabytes"], *(found["parts"][part] for part in parts))),
        ]
        for name, found in variants.items()
    ]
    told = f"\n\n`python -m benchmarks.image`; on {variants['cuda']['base']}."
    return rows(["`VARIANT`", "GB", *(f"of it {part}" for part in parts)], *body) + told


def _budget(part: str, how: str = "") -> str:
    found = record("modes")[part]
    told = found["budget"]
    how = how or f"{_inner(told)}; mean over {told['seeds']} seeds ± half the range, in %"
    name, _, suffix = part.partition("-")
    command = (
        f"python -m benchmarks.modes --only {name} --images {told['images']} --test-images {told['test_images']} "
        f"--epochs {told['epochs']} --seeds {told['seeds']}"
    )
    called = again(command, f"--suffix {suffix}" if suffix else "", "--data-dir DIR --work DIR")
    return (
        f"\n\n{called}: {told['data']}, {told['images']:,} training and {told['test_images']:,} test images, {how}; "
        + (f"{found['processor']}, one thread, " if "processor" in found else "")
        + f"torch {found['torch']}, commit {found['git']['commit'][:7]}."
    )


def _inner(told: dict[str, Any]) -> str:
    """What networks were trained against, and how they were attacked."""
    inner = told["inner"]
    if inner is None:
        return "trained under noise; n = 2,000, α = 0.001"
    steps = "one step" if inner["steps"] == 1 else f"{inner['steps']} steps"
    return (
        f"{told['norm']} {told['eps']}, PGD of {steps} of {inner.get('step_size', 'eps/4')} in training, "
        f"the worst of {' and '.join(told['attacks'][1:])} in evaluation"
    )


def modes(part: str) -> str:
    """Co-trained networks by their adapters: both modes, clean and under attack."""
    body = []
    for name, seeds in record("modes")[part]["found"].items():
        own = seeds[0].get("adapters")
        body.append(
            [
                name, over_seeds(seeds, "clean_mode", "clean"), over_seeds(seeds, "clean_mode", "robust"),
                over_seeds(seeds, "robust_mode", "clean"), over_seeds(seeds, "robust_mode", "robust"),
                "–" if own is None else f"{own // 2:,}",
            ]
        )  # fmt: skip
    head = ["trained", "clean mode: clean", "attacked", "robust mode: clean", "attacked", "parameters a mode"]
    return rows(head, *body) + _budget(part)


def modes_curve() -> str:
    """Accuracy over β, seed by seed."""
    found = record("modes")["curve"]["found"]
    body = [
        [f"{points[0]['beta']:g}", *(percent(p[k]) for p in points for k in ("clean_accuracy", "robust_accuracy"))]
        for points in zip(*found.values(), strict=True)
    ]
    head = ["β", *(f"{kind}, seed {seed}" for seed in found for kind in ("clean", "robust"))]
    return rows(head, *body) + _budget("curve")


def modes_rslad() -> str:
    """RSLAD against two-mode RSLAD."""
    found = record("modes")["rslad"]["found"]["rows"]
    kinds = {"teacher": "teacher (SAT)", "rslad": "RSLAD", "robust_mode": "two-mode RSLAD, robust mode"}
    kinds |= {"clean_mode": "two-mode RSLAD, clean mode"}
    body = [
        [shown, over_seeds(found, kind, "clean"), over_seeds(found, kind, "robust")] for kind, shown in kinds.items()
    ]
    told = f" Its adapters have {found[0]['adapters'] // 2:,} of {found[0]['parameters']:,} parameters a mode."
    return rows(["network", "clean", "attacked"], *body) + _budget("rslad") + told


def modes_shift() -> str:
    """β from a few labelled images of a shifted domain, beside both modes and the best β on the test images."""
    found = record("modes")["shift"]["found"]
    # corruption -> a row a seed: clean mode, robust mode, β, accuracy with it, with the best β
    figures: dict[str, list[list[float]]] = {}
    for row in found["rows"]:
        shares = {beta: 100 * share for beta, share in row["accuracy"].items()}
        told = [shares["0"], shares["1"], row["beta"], shares[f"{row['beta']:g}"], max(shares.values())]
        figures.setdefault(row["corruption"], []).append(told)
    figures["all"] = [
        [statistics.fmean(one) for one in zip(*seed, strict=True)] for seed in zip(*figures.values(), strict=True)
    ]
    body = [[name, *map(span, zip(*told, strict=True))] for name, told in figures.items()]
    head = ["corruption", "clean mode", "robust mode", "β chosen", "with it", "with the best β"]
    how = f"severity {found['severity']}, β from {found['few']} labelled images; mean, lowest and highest, in %"
    return rows(head, *body) + _budget("shift", how)


def modes_sigmas() -> str:
    """σ-adapters on one backbone against a network a level."""
    found = record("modes")["sigmas"]["found"]["rows"]
    radii = ("0", "0.25", "0.5", "0.75")
    body = [
        [f"σ {sigma}", shown, *(over_seeds(found, "levels", sigma, kind, r) for r in radii)]
        for sigma in found[0]["levels"]
        for kind, shown in (("adapter", "one backbone"), ("network", "its own network"))
    ]
    one, three = found[0]["bytes"], found[0]["bytes_apart"]
    told = f" One backbone with three adapters takes {one:,} bytes, three networks take {three:,}."
    return rows(["noise", "", *(f"r = {r}" for r in radii)], *body) + _budget("sigmas") + told


def replay_quality(method: str) -> str:
    """A student by the number of views: the mean over seeds, and the lowest and highest."""
    found = [row for row in record("replay")["rows"] if row["method"] == method]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(row["views"], []).append(row)
    figure, digits = ("certified_accuracy", 3) if method == "crt" else ("accuracy", 1)
    names = list(found[0][figure])
    body = []
    for views, runs in groups.items():
        cells = [span([100 * run[figure][name] for run in runs]) for name in names]
        cells += [span([run["acr"] for run in runs], digits)] if method == "crt" else []
        passes = statistics.fmean(run["cost"]["teacher_forward"] for run in runs)
        body.append([str(views or "fresh"), *cells, f"{passes:,.0f}", str(len(runs))])
    shown = [f"r = {name}" for name in names] + ["ACR"] if method == "crt" else names
    command, machine = record("replay")["command"], found[-1]["machine"]
    told = f"\n\n{again(command, f'--part {method}')}: {found[0]['images']} test images; commit {machine['commit']}."
    return rows(["views", *shown, "teacher passes", "seeds"], *body) + told


def replay_price() -> str:
    """An epoch's CPU seconds over those of Gaussian training of the same student, in turn in one process."""
    found = record("replay")["prices"]
    kinds = {
        "kept": "logits kept",
        "fresh": "fresh views",
        "filling": "keeping them",
        "teacher": "teacher's pass alone",
    }
    body = [
        [f"{one['arch']}, {one['side']}x{one['side']}"]
        + [f"{one[k]['median']:.3f} ({one[k]['lowest']:.2f}–{one[k]['highest']:.2f})" for k in kinds]
        + [str(one["rounds"])]
        for one in found
    ]
    machine = found[-1]["machine"]
    told = (
        f"\n\n{again(record('replay')['command'], '--part price')}: median (lowest–highest); {machine['processor']}, "
        f"{machine['threads']} thread, torch {machine['torch']}, commit {machine['commit']}."
    )
    return rows(["student and teacher", *kinds.values(), "rounds"], *body) + told


def replay_memory() -> str:
    """The file of a view, and the memory of its own that a process needs to write it and to read it at random."""
    found = record("replay")["memory"]
    body = [
        [f"{one['images']:,}", f"{one['classes']:,}", f"{one['file'] / 1e6:.1f}", f"{one['gained'] / 1e6:.1f}"]
        for one in found
    ]
    machine = found[-1]["machine"]
    told = f"\n\n{again(record('replay')['command'], '--part price')}: commit {machine['commit']}."
    return rows(["images", "classes", "file, MB", "memory, MB"], *body) + told


def generations() -> str:
    """Three generations of CRT against SmoothMix and Gaussian training from scratch: price and certified accuracy."""
    found = record("generations")
    body, seeds = [], sorted({row["seed"] % 100 for row in found["rows"]})
    for number in range(4):
        for kind in ("smoothmix", "crt", "gaussian"):
            mine = [row for row in found["rows"] if (row["kind"], row["generation"]) == (kind, number)]
            if not mine:
                continue
            radii = (
                span([100 * row["certified_accuracy"][r] for row in mine if r in row["certified_accuracy"]])
                for r in ("0", "0.25", "0.5")
            )
            ratios = [
                scratch["cpu_seconds"] / row["cpu_seconds"]
                for row in mine
                for scratch in found["rows"]
                if (scratch["kind"], scratch["generation"]) == ("smoothmix", number)
                and scratch["seed"] % 100 == row["seed"] % 100
            ]
            price = span([row["cpu_seconds"] for row in mine], 0)
            body.append([str(number), mine[0]["arch"], kind, *radii, price, span(ratios)])
    head = ["generation", "network", "trained by", "r = 0", "r = ¼", "r = ½", "CPU s", "cheaper than SmoothMix"]
    first = found["rows"][0]
    return rows(head, *body) + (
        f"\n\n{again(found['command'])}: digits, {len(seeds)} seeds, the mean and the lowest and highest; "
        f"{first['images']} test images, n = {first['n']:,}, α = {first['alpha']}; "
        f"one thread of {first['machine']['processor']}, torch {first['machine']['torch']}, "
        f"commit {first['machine']['commit']}."
    )


TABLES: dict[str, Callable[[], str]] = {
    "quickstart": quickstart,
    "parity": parity,
    "bench-train": bench_train,
    "scale": scale,
    "scale-curves": scale_curves,
    "training": lambda: training("training"),
    "training-amx": lambda: training("training-amx"),
    "sequential": sequential,
    "bench-certify": bench_certify,
    "gate-margin": gate_margin,
    "gate-power": gate_power,
    "gate-classes": gate_classes,
    "faults": faults,
    "startup": startup,
    "image": image,
    "modes-figure2": lambda: modes("figure2"),
    "modes-figure2-10": lambda: modes("figure2-10"),
    "modes-strong": lambda: modes("strong"),
    "modes-tokens": lambda: modes("tokens"),
    "modes-curve": modes_curve,
    "modes-rslad": modes_rslad,
    "modes-sigmas": modes_sigmas,
    "modes-shift": modes_shift,
    "replay-crt": lambda: replay_quality("crt"),
    "replay-rslad": lambda: replay_quality("rslad"),
    "replay-price": replay_price,
    "generations": generations,
    "replay-memory": replay_memory,
    **evidence.TABLES,
}


def rendered(page: str) -> str:
    """The page with every table and value written anew."""
    page = BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + "\n" + m[3], page)
    return INLINE.sub(lambda m: m[1] + VALUES[m[2]]() + m[3], page)


def main() -> None:
    """Update the pages, or with --check exit 1 when one is stale."""
    stale = [page for page in PAGES if rendered(page.read_text()) != page.read_text()]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(p.name for p in stale)}; run python -m benchmarks.tables" if stale else 0)
    for page in stale:
        page.write_text(rendered(page.read_text()))


if __name__ == "__main__":
    main()
