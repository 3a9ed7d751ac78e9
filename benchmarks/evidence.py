"""The tables of the experiments, from their records; how the arms came about stands in benchmarks/experiments."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.written import again, exists, paired, record, rows, span

ATTACKS = {
    "clean": "clean", "fgsm": "FGSM", "pgd-sat": "PGD_SAT", "pgd-trades": "PGD_TRADES", "cw": "CW∞", "autoattack": "AA",
}  # fmt: skip
RSLAD = {
    "teacher": "TRADES, the teacher", "sat": "SAT", "trades": "TRADES", "ard": "ARD", "iad": "IAD", "rslad": "RSLAD",
    "adaad": "AdaAD",
}  # fmt: skip
LABELS = {
    "sat": ("hard", "hard", "–"), "soft-outer": ("hard", "soft", "–"), "soft-both": ("soft", "soft", "–"),
    "rslad": ("soft", "soft", "1/6, soft"),
}  # fmt: skip
STRONG = {
    "strong": ("its teacher: SAT, wider, 40,000 other images", "", ""),
    "sat": ("SAT", "hard", "hard"), "strong-soft-outer": ("soft labels in the loss", "hard", "soft"),
    "strong-ard": ("ARD", "hard", "soft, τ = 30"), "strong-soft-both": ("soft labels in both", "soft", "soft"),
    "strong-rslad": ("RSLAD", "soft", "soft"),
}  # fmt: skip
VARIANTS = {
    "crt-1": "CRT: un-squared L2 of the logits, one draw, a view an epoch",
    "squared": "squared L2", "probabilities": "L2 of the probabilities", "kl": "KL",
    "draws-2": "two draws an image", "draws-4": "four draws an image",
}  # fmt: skip
VIEWS = {"views-1": "1", "views-8": "8", "crt-1": "one an epoch", "fresh": "fresh ones"}
TEACHERS = {
    "gaussian-0": ("", "gaussian"), "consistency-0": ("", "consistency"), "smoothmix-0": ("", "smoothmix"),
    "from-gaussian": ("gaussian-0", "crt"), "from-consistency": ("consistency-0", "crt"),
    "crt-1": ("smoothmix-0", "crt"), "to-wide": ("smoothmix-0", "crt"),
}  # fmt: skip


class Found:
    """A record of an experiment, by name of the network; with `alike` only the seeds that all of those have.

    Or, with `beside`, the seeds of another.
    """

    def __init__(self, name: str, alike: Iterable[str] = (), beside: Found | None = None) -> None:
        self.whole = record(name)
        measured = [{row["seed"] for row in self.whole["rows"] if row["name"] == one} for one in alike]
        there = [seeds for seeds in measured if seeds]
        alone = set.intersection(*there) if there else None
        self.seeds: set[int] | None = beside.seeds if beside else alone

    def _mine(self, row: dict[str, Any]) -> bool:
        return self.seeds is None or row["seed"] in self.seeds

    def rows(self, name: str, kind: str, **told: Any) -> list[dict[str, Any]]:
        """What was measured of a network, a row a seed."""
        asked = {"name": name, "kind": kind, **told}
        rows_ = filter(self._mine, self.whole["rows"])
        return [row for row in rows_ if all(row.get(key) == value for key, value in asked.items())]

    def networks(self, name: str) -> list[dict[str, Any]]:
        """What a network cost, a row a seed."""
        return [row for row in filter(self._mine, self.whole["networks"]) if row["name"] == name]

    def certificates(self, name: str, radius: str) -> dict[int, float]:
        """Certified accuracy at a radius in %, by seed."""
        return {row["seed"]: 100 * row["certified_accuracy"][radius] for row in self.rows(name, "certificates")}

    def certified(self, name: str, radius: str) -> list[float]:
        """Certified accuracy at a radius in %, a figure a seed."""
        return [*self.certificates(name, radius).values()]

    def accuracies(self, name: str, attack: str, checkpoint: str = "best") -> dict[int, float]:
        """Accuracy under an attack in %, by seed; of the last epoch that of the best where they are one."""
        seeds = {row["seed"]: row for row in self.rows(name, "attacks", checkpoint="best")}
        if checkpoint == "last":
            chosen = {r["seed"]: r["selected"]["epoch"] == r["given"]["epochs"] - 1 for r in self.networks(name)}
            seeds = {seed: row for seed, row in seeds.items() if chosen[seed]}
            seeds |= {row["seed"]: row for row in self.rows(name, "attacks", checkpoint="last")}
        told = {seed: row["attacks"] for seed, row in seeds.items()}
        return {seed: 100 * found[attack]["accuracy"] for seed, found in told.items() if attack in found}

    def accuracy(self, name: str, attack: str, checkpoint: str = "best") -> list[float]:
        """The same, a figure a seed."""
        return [*self.accuracies(name, attack, checkpoint).values()]

    def told(self, names: Sequence[str], parts: str) -> str:
        """The line under a table of these parts of the experiment."""
        made = [row for row in filter(self._mine, self.whole["rows"]) if row["name"] in names]
        first, seeds = made[0], sorted({row["seed"] for row in made})
        spread = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds, the mean and the lowest and highest"
        where = [row["machine"] for row in made]
        commits, machines, torches = (
            ", ".join(sorted({str(machine[key]) for machine in where})) for key in ("commit", "processor", "torch")
        )
        minutes = sum(row["cpu_seconds"] for name in names for row in self.networks(name)) / 60
        intervals = [one["interval"] for row in made for one in row.get("attacks", {}).values()]
        intervals += [one for row in made for one in row.get("intervals", {}).values()]
        half = 50 * max(high - low for low, high in intervals)
        how = f"n = {first['n']:,}, α = {first['alpha']}" if "n" in first else f"linf eps = {first['eps']}"
        seeded = f"--seeds {' '.join(map(str, seeds))} --only {parts}"
        return (
            f"\n\n{again(self.whole['command'], seeded)}: {spread}; {first['images']} test images (95 % of "
            f"one seed: ± {half:.1f} at most), {how}; training alone took {minutes:,.0f} CPU minutes: "
            f"{machines}, one thread, torch {torches}, commit {commits}."
        )


def cells(values: Mapping[str, Sequence[float]]) -> list[str]:
    """A cell a column; a dash where nothing was measured."""
    return [span(told) if told else "–" for told in values.values()]


def rslad() -> str:
    """Objectives of one budget under every attack, the chosen epoch and the last."""
    found = Found("rslad")
    body = []
    for name, shown in RSLAD.items():
        if not found.rows(name, "attacks"):
            continue
        for checkpoint in ("best", "last"):
            if checkpoint == "last" and not found.rows(name, "attacks", checkpoint="last"):
                continue
            told = {attack: found.accuracy(name, attack, checkpoint) for attack in ATTACKS}
            body.append([shown, checkpoint, *cells(told), str(len(told["clean"]))])
    parts = "table adaad" if found.networks("adaad") else "table"
    return rows(["objective", "checkpoint", *ATTACKS.values(), "seeds"], *body) + found.told([*RSLAD], parts)


def labels() -> str:
    """From hard labels to soft ones, one problem after the other."""
    found, shown = Found("rslad", LABELS), ("clean", "pgd-trades", "cw", "autoattack")
    body = [
        [*told, *cells({attack: found.accuracy(name, attack) for attack in shown})]
        for name, told in LABELS.items()
        if found.rows(name, "attacks")
    ]
    head = ["labels of the attack", "of the loss", "clean term", *(ATTACKS[a] for a in shown)]
    return rows(head, *body) + found.told([*LABELS], "table labels")


def teachers() -> str:
    """RSLAD from a teacher of the student's own size and from a wider one."""
    names = ["rslad-equal", "trades", "rslad", "teacher"]
    found, body = Found("rslad", names), []
    for student, teacher, shown in (("rslad-equal", "trades", "as wide"), ("rslad", "teacher", "wider")):
        figures = {"autoattack": found.accuracy(teacher, "autoattack")}
        figures |= {attack: found.accuracy(student, attack) for attack in ("clean", "pgd-trades")}
        body.append([shown, *cells(figures), *cells({"aa": found.accuracy(student, "autoattack")})])
    head = ["teacher", "its AA", "student: clean", "PGD_TRADES", "AA"]
    return rows(head, *body) + found.told(names, "table teachers")


def strong() -> str:
    """Students of a teacher that has seen other and more images, by their labels."""
    found, shown = Found("rslad", STRONG), ("clean", "pgd-trades", "cw", "autoattack")
    body = [
        [*told, *cells({attack: found.accuracy(name, attack) for attack in shown}), str(len(found.networks(name)))]
        for name, told in STRONG.items()
        if found.rows(name, "attacks")
    ]
    head = ["student", "labels of the attack", "of the loss", *(ATTACKS[attack] for attack in shown), "seeds"]
    return rows(head, *body) + found.told([*STRONG], "table strong")


def generations(sigma: str, experiment: str = "certified") -> str:
    """Three generations of CRT against SmoothMix and Gaussian training of the same networks from scratch."""
    found, body, names = Found(experiment), [], []
    for number in range(4):
        for kind in ("smoothmix", "crt", "gaussian"):
            name = f"{kind}-{number}-{sigma}"
            mine = found.rows(name, "certificates")
            if not mine or (number == 0 and kind != "smoothmix"):
                continue
            names.append(name)
            radii = list(mine[0]["certified_accuracy"])
            figures = cells({r: found.certified(name, r) for r in radii})
            made = found.networks(name)
            first = {
                row["seed"]: row["certified_accuracy"] for row in found.rows(f"smoothmix-0-{sigma}", "certificates")
            }
            kept = [100 * row["certified_accuracy"]["0.5"] / first[row["seed"]]["0.5"] for row in mine]
            body.append([
                str(number), made[0]["arch"], kind, *figures, span([row["acr"] for row in mine], 3),
                span([100 * row["abstain_rate"] for row in mine]), span(kept),
                f"{statistics.fmean(row['cost']['student_backward'] for row in made):,.0f}", str(len(mine)),
            ])  # fmt: skip
    head = ["generation", "network", "trained by", *(f"r = {r}" for r in radii), "ACR", "abstains", "kept at 0.5"]
    head += ["student's passes", "seeds"]
    return rows(head, *body) + found.told(names, f"generations-{sigma}")


def prices() -> str:
    """CPU seconds of an epoch of each method, in turn in one process."""
    found = record("certified")
    body = []
    for one in found["prices"]:
        told = one["cpu_seconds"]
        ratios = [[a / b for a, b in zip(told["smoothmix"], told[kind], strict=True)] for kind in ("crt", "crt-fresh")]
        seconds = (span(told[kind]) for kind in ("gaussian", "crt", "crt-fresh", "smoothmix"))
        body.append([one["arch"], *seconds, *(span(ratio) for ratio in ratios)])
    machine = found["prices"][-1]["machine"]
    told_ = (
        f"\n\n{again('python -m benchmarks.experiments.certified', '--only prices')}: CPU seconds of an epoch of "
        f"{found['prices'][0]['images']:,} images with the selection after it, the mean and the lowest and highest; "
        f"{machine['processor']}, one thread, torch {machine['torch']}, commit {machine['commit']}."
    )
    head = ["network", "Gaussian", "CRT, kept logits", "CRT, fresh views", "SmoothMix"]
    head += ["SmoothMix / CRT, kept", "SmoothMix / CRT, fresh"]
    return rows(head, *body) + told_


def second_line() -> str:
    """Three generations of CRT that begin at another network, against SmoothMix from scratch of the same ones."""
    found, body, names = Found("certified", ["line-1-0.25", "line-2-0.25", "line-3-0.25"]), [], []
    for name, scratch in (
        ("smoothmix-1", ""),
        ("line-1", "smoothmix-2"),
        ("line-2", "smoothmix-3"),
        ("line-3", "smoothmix-0"),
    ):
        mine, alone = f"{name}-0.25", f"{scratch}-0.25"
        if not found.rows(mine, "certificates"):
            continue
        names.append(mine)
        figures = cells({r: found.certified(mine, r) for r in ("0", "0.25", "0.5")})
        behind = [
            span(paired(found.certificates(alone, r), found.certificates(mine, r))) if scratch else "–"
            for r in ("0.25", "0.5")
        ]
        network = found.networks(mine)[0]
        body.append([network["arch"], network["method"], *figures, *behind])
    head = ["network", "trained by", "r = 0", "r = 0.25", "r = 0.5", "below SmoothMix at 0.25", "at 0.5"]
    return rows(head, *body) + found.told(names, "generations-0.25 line")


def variants(names: Mapping[str, str], first: str, part: str) -> str:
    """CRT into one network with one thing changed."""
    found, body = Found("certified", [f"{name}-0.25" for name in names]), []
    for name, shown in names.items():
        made, mine = found.networks(f"{name}-0.25"), found.rows(f"{name}-0.25", "certificates")
        if not mine:
            continue
        passes = statistics.fmean(row["cost"]["student_backward"] for row in made)
        body.append([
            shown, *cells({r: found.certified(f"{name}-0.25", r) for r in mine[0]["certified_accuracy"]}),
            span([row["acr"] for row in mine], 3), f"{passes:,.0f}", str(len(mine)),
        ])  # fmt: skip
    head = [first, "r = 0", "r = 0.25", "r = 0.5", "ACR", "student's passes", "seeds"]
    return rows(head, *body) + found.told([f"{name}-0.25" for name in names], f"generations-0.25 {part}")


def certified_teachers() -> str:
    """CRT by the method of its teacher and into a larger network."""
    found, body = Found("certified", [f"{name}-0.25" for name in TEACHERS]), []
    for name, (teacher, method) in TEACHERS.items():
        made, mine = found.networks(f"{name}-0.25"), found.rows(f"{name}-0.25", "certificates")
        if mine:
            figures = cells({r: found.certified(f"{name}-0.25", r) for r in mine[0]["certified_accuracy"]})
            acr = span([row["acr"] for row in mine], 3)
            body.append([made[0]["arch"], method, teacher.removesuffix("-0") or "–", *figures, acr, str(len(mine))])
    head = ["network", "trained by", "teacher", "r = 0", "r = 0.25", "r = 0.5", "ACR", "seeds"]
    return rows(head, *body) + found.told([f"{name}-0.25" for name in TEACHERS], "generations-0.25 teachers")


def smoothed_kinds() -> str:
    """CRT from teachers that were not trained under noise, beside their own certificates."""
    names = ["crt-from-natural", "crt-from-sat", "crt-from-rslad"]
    found = Found("kinds", names)
    own = Found("certified", beside=found)
    arms = {
        "natural": "natural", "sat": "SAT", "rslad": "RSLAD", "gaussian-0-0.25": "gaussian",
        "smoothmix-0-0.25": "smoothmix",
    }  # fmt: skip
    students = {"gaussian-0-0.25": "from-gaussian-0.25", "smoothmix-0-0.25": "crt-1-0.25"}
    body = []
    for teacher, shown in arms.items():
        source = own if teacher in students else found
        student = students.get(teacher, f"crt-from-{teacher}")
        if source.rows(student, "certificates"):
            figures = [source.certified(name, r) for name in (teacher, student) for r in ("0", "0.25", "0.5")]
            body.append([shown, *(span(told) if told else "–" for told in figures)])
    head = ["teacher", *(f"{whose}: r = {r}" for whose in ("its own", "CRT student") for r in ("0", "0.25", "0.5"))]
    return rows(head, *body) + found.told(names, "smoothed")


def attacked_kinds() -> str:
    """RSLAD from teachers that were trained under noise, beside a teacher trained against attacks."""
    found = Found("kinds", ["rslad-from-trades", "rslad-from-smoothmix-0-0.25"])
    shown = {"clean": "clean", "pgd-trades": "PGD_TRADES", "apgd-t": "APGD-T"}
    body = []
    for teacher, told in {"trades": "TRADES", "smoothmix-0-0.25": "smoothmix", "gaussian-0-0.25": "gaussian"}.items():
        student = f"rslad-from-{teacher}"
        if found.rows(student, "attacks"):
            own = {attack: found.accuracy(teacher, attack) for attack in shown}
            body.append([told, *cells(own), *cells({attack: found.accuracy(student, attack) for attack in shown})])
    head = [
        "teacher",
        *(f"its own: {name}" for name in shown.values()),
        *(f"student: {name}" for name in shown.values()),
    ]
    return rows(head, *body) + found.told(["rslad-from-trades", "rslad-from-smoothmix-0-0.25"], "attacked")


def families() -> str:
    """CRT between convolutions and a transformer."""
    names = ["gaussian-vit", "smoothmix-vit", "cnn-to-vit", "vit-to-cnn"]
    found = Found("kinds", names)
    own = Found("certified", beside=found)
    arms = [
        (own, "smoothmix-0-0.25", "Strided", "smoothmix", "–"),
        (found, "gaussian-vit", "Transformer", "gaussian", "–"),
        (found, "smoothmix-vit", "Transformer", "smoothmix", "–"),
        (found, "cnn-to-vit", "Transformer", "crt", "Strided, by smoothmix"),
        (own, "crt-1-0.25", "Residual", "crt", "Strided, by smoothmix"),
        (own, "from-gaussian-0.25", "Residual", "crt", "Strided, by gaussian"),
        (found, "vit-to-cnn", "Residual", "crt", "Transformer, by gaussian"),
    ]
    body = []
    for source, name, *told in arms:
        mine = source.rows(name, "certificates")
        if mine:
            figures = cells({r: source.certified(name, r) for r in ("0", "0.25", "0.5")})
            body.append([*told, *figures, span([row["acr"] for row in mine], 3), str(len(mine))])
    head = ["network", "trained by", "teacher", "r = 0", "r = 0.25", "r = 0.5", "ACR", "seeds"]
    return rows(head, *body) + found.told(names, "families")


def defaults() -> str:
    """What distill takes when it is told nothing against the presets, on held-out training images."""
    body, told_of = [], []
    for name in filter(exists, ("defaults", "defaults-digits")):
        made = record(name)["networks"]
        data = "digits" if name.endswith("digits") else "fashion-mnist"
        teacher = ""
        for arm in dict.fromkeys(row["name"] for row in made):
            mine = {row["seed"]: 100 * row["selected"]["score"] for row in made if row["name"] == arm}
            first = next(row for row in made if row["name"] == arm)
            if first["teacher"] is None:
                continue
            teacher = first["teacher"]
            usual = {r["seed"]: 100 * r["selected"]["score"] for r in made if r["name"] == f"{teacher}-default"}
            apart = [mine[seed] - usual[seed] for seed in sorted(mine.keys() & usual.keys())]
            shown = "no options" if arm.endswith("-default") else f"`--preset {arm}`"
            body.append([
                data, {"certified": "Gaussian", "attacked": "SAT"}[teacher], shown, first["selected"]["metric"],
                span([*mine.values()]), "–" if arm.endswith("-default") else span(apart), str(len(mine)),
            ])  # fmt: skip
        machine, given = made[-1]["machine"], made[-1]["given"]
        told_of.append(
            f"{again(record(name)['command'])}: {given['epochs']} epochs, batches of {given['batch_size']}; "
            f"{machine['processor']}, one thread, torch {machine['torch']}, commit {machine['commit']}"
        )
    head = ["data", "teacher", "`distill` with", "figure on held-out images", "%", "against no options", "seeds"]
    return rows(head, *body) + "\n\n" + "; ".join(told_of) + "."


def precision() -> str:
    """Networks trained in bf16 against the same ones in fp32, measured in fp32."""
    found = record("precision")["rows"]
    body = []
    for method in dict.fromkeys(row["method"] for row in found):
        mine = [row for row in found if row["method"] == method]
        for figure in mine[0]["figures"]:
            told = {
                kind: {row["seed"]: 100 * row["figures"][figure] for row in mine if row["precision"] == kind}
                for kind in ("fp32", "bf16")
            }
            seeds = sorted(told["fp32"].keys() & told["bf16"].keys())
            if seeds:
                apart = span([told["bf16"][seed] - told["fp32"][seed] for seed in seeds])
                cells_ = [span([told[kind][seed] for seed in seeds]) for kind in ("fp32", "bf16")]
                body.append([method, figure, *cells_, apart, str(len(seeds))])
    machine, last = found[-1]["machine"], found[-1]
    told_ = (
        f"\n\n{again(record('precision')['command'])}: smallcnn on the digits, {last['images']} test images, measured "
        f"in fp32; torch {machine['torch']}, commit {machine['commit']}."
    )
    return rows(["method", "figure", "fp32", "bf16", "bf16 − fp32, seed by seed", "seeds"], *body) + told_


def certifying(part: str, found: Sequence[dict[str, Any]]) -> str:
    """How a part of certification.py is run again, and the commits that it comes from."""
    commits = ", ".join(sorted({row["machine"]["commit"] for row in found}))
    return f"{again(record('certification')['command'], f'--only {part}', '--registry registry')}, commit {commits}"


def coverage() -> str:
    """Coins of known probability through every mode: the share of false certificates."""
    found = record("certification")["coverage"]
    body = []
    for alpha in dict.fromkeys(row["alpha"] for row in found):
        for mode in dict.fromkeys(row["mode"] for row in found):
            mine = [row for row in found if (row["alpha"], row["mode"]) == (alpha, mode)]
            shares = [f"{row['false'] / row['coins']:.5f}" for row in mine]
            body.append([f"{alpha:g}", mode, *shares])
    first = found[0]
    told = (
        f"\n\n{certifying('coverage', found)}: {first['coins']:,} coins a cell, "
        + "; ".join(
            f"α = {a:g}: n0 = {n0}, n = {n:,}" for a, n0, n in sorted({(r["alpha"], r["n0"], r["n"]) for r in found})
        )
        + "."
    )
    chances = [f"p = {p:g}" for p in dict.fromkeys(row["p"] for row in found)]
    return rows(["α", "mode", *chances], *body) + told


def agreement() -> str:
    """Every mode on the same images, beside the fixed procedure."""
    found = record("certification")["modes"]
    body = []
    for row in found:
        figures = [f"{100 * share:.1f}" for share in row["certified_accuracy"].values()]
        differ = [str(images) for images in row["differ"].values()]
        body.append([
            row["name"], row["mode"], *figures, f"{row['acr']:.3f}", f"{row['copies']:,.0f}", *differ,
            str(row["other_class"]),
        ])  # fmt: skip
    first = found[0]
    radii = [f"r = {r}" for r in first["certified_accuracy"]]
    told = (
        f"\n\n{certifying('modes', found)}: {first['images']} test images of the digits, "
        f"σ = 0.25, n = {first['n']:,}, α = {first['alpha']}."
    )
    head = ["generation", "mode", *radii, "ACR", "copies an image", *(f"differ, {r}" for r in radii), "other class"]
    return rows(head, *body) + told


def half() -> str:
    """A certification in bf16 beside the same one in fp32."""
    found = record("certification")["precision"]
    body = []
    for row in found:
        shares = [f"{100 * row[kind][r]:.1f}" for r in row["fp32"] for kind in ("fp32", "bf16")]
        counts = (str(row[key]) for key in ("other_class", "abstained_in_one", "votes"))
        body.append([row["name"], *shares, *counts, f"{row['radius']:.4f}"])
    first = found[0]
    told = (
        f"\n\n{certifying('precision', found)}: {first['images']} test images of the digits, "
        f"σ = 0.25, n = {first['n']:,} of the same noise, α = {first['alpha']}."
    )
    shown = [f"r = {r}: {kind}" for r in first["fp32"] for kind in ("fp32", "bf16")]
    head = ["generation", *shown, "other class", "abstains in one", "votes, at most", "radius, at most"]
    return rows(head, *body) + told


TABLES: dict[str, Callable[[], str]] = {
    "rslad": rslad,
    "rslad-labels": labels,
    "rslad-teachers": teachers,
    "rslad-strong": strong,
    "defaults": defaults,
    "certified-0.25": lambda: generations("0.25"),
    "certified-0.5": lambda: generations("0.5"),
    "certified-cifar10": lambda: generations("0.25", "certified-cifar10"),
    "certified-prices": prices,
    "certified-line": second_line,
    "certified-losses": lambda: variants(VARIANTS, "form", "losses"),
    "certified-views": lambda: variants(VIEWS, "views", "views"),
    "certified-teachers": certified_teachers,
    "kinds-smoothed": smoothed_kinds,
    "kinds-attacked": attacked_kinds,
    "kinds-families": families,
    "precision": precision,
    "coverage": coverage,
    "agreement": agreement,
    "certified-bf16": half,
}
