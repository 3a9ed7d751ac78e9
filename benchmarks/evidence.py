"""The tables of the experiments, from their records; how the arms came about stands in benchmarks/experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import transferred
from benchmarks.found import Found, cells
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
BESIDE = " {} are those of certified.py."  # under a table of kinds.py


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


def long() -> str:
    """Adversarial training and RSLAD with more epochs, the chosen one and the last."""
    arms = {"sat": "SAT", "strong-rslad": "RSLAD", "long-sat": "SAT", "long-rslad": "RSLAD"}
    found, shown, body = Found("rslad", arms), ("clean", "pgd-trades", "cw", "autoattack"), []
    for name, told in arms.items():
        epochs = [row["given"]["epochs"] for row in found.networks(name)]
        for checkpoint in ("best", "last"):
            figures = {attack: found.accuracy(name, attack, checkpoint) for attack in shown}
            if epochs:
                body.append([str(epochs[0]), told, checkpoint, *cells(figures), str(len(epochs))])
    head = ["epochs", "objective", "checkpoint", *(ATTACKS[attack] for attack in shown), "seeds"]
    return rows(head, *body) + found.told([*arms], "table strong long")


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
            chosen = span([row["selected"]["epoch"] + 1 for row in source.networks(student)], 0)
            body.append([shown, *(span(told) if told else "–" for told in figures), chosen])
    head = ["teacher", *(f"{whose}: r = {r}" for whose in ("its own", "CRT student") for r in ("0", "0.25", "0.5"))]
    return rows([*head, "its epoch"], *body) + found.told(names, "smoothed") + BESIDE.format("The last two rows")


def attacked_kinds() -> str:
    """RSLAD from teachers that were trained under noise, beside a teacher trained against attacks."""
    shown = {"clean": "clean", "pgd-trades": "PGD_TRADES", "apgd-t": "APGD-T"}
    body = []
    teachers_ = {
        "trades": "TRADES", "smoothmix-0-0.25": "smoothmix", "gaussian-0-0.25": "gaussian", "natural": "natural",
    }  # fmt: skip
    names = ["sat-alone", *(f"rslad-from-{teacher}" for teacher in teachers_)]
    found = Found("kinds", names)
    alone = cells({attack: found.accuracy("sat-alone", attack) for attack in shown})
    body.append(["none, but SAT", *("–" for _ in shown), *alone])
    for teacher, told in teachers_.items():
        student = f"rslad-from-{teacher}"
        if found.rows(student, "attacks"):
            own = {attack: found.accuracy(teacher, attack) for attack in shown}
            body.append([told, *cells(own), *cells({attack: found.accuracy(student, attack) for attack in shown})])
    head = [
        "teacher",
        *(f"its own: {name}" for name in shown.values()),
        *(f"student: {name}" for name in shown.values()),
    ]
    return rows(head, *body) + found.told(names, "attacked")


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
    return (
        rows(head, *body) + found.told(names, "families") + BESIDE.format("Strided, and Residual by a Strided teacher,")
    )


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
            shown = "no options" if arm.endswith("-default") else f"`--preset {arm}`"
            body.append([
                data, {"certified": "Gaussian", "attacked": "SAT"}[teacher], shown, first["selected"]["metric"],
                span([*mine.values()]), "–" if arm.endswith("-default") else span(paired(mine, usual)), str(len(mine)),
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
                apart = span(paired(told["bf16"], told["fp32"]))
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
    "rslad-long": long,
    "defaults": defaults,
    **transferred.TABLES,
    "kinds-smoothed": smoothed_kinds,
    "kinds-attacked": attacked_kinds,
    "kinds-families": families,
    "precision": precision,
    "coverage": coverage,
    "agreement": agreement,
    "certified-bf16": half,
}
