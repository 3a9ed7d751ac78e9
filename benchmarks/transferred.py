"""The tables of certified transfer, from the records of benchmarks/experiments/certified.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.found import Found, cells
from benchmarks.written import again, paired, record, rows, span

VARIANTS = {
    "crt-1": "CRT: un-squared L2 of the logits, one draw, a view an epoch",
    "squared": "squared L2", "probabilities": "L2 of the probabilities", "kl": "KL",
    "draws-2": "two draws an image", "draws-4": "four draws an image",
}  # fmt: skip
VIEWS = {"views-1": "1", "views-8": "8", "crt-1": "one an epoch", "fresh": "fresh ones"}
TEACHERS = {
    "gaussian-0": ("", "gaussian"), "consistency-0": ("", "consistency"), "smoothmix-0": ("", "smoothmix"),
    "gaussian-1": ("", "gaussian"), "consistency-1": ("", "consistency"), "smoothmix-1": ("", "smoothmix"),
    "from-gaussian": ("gaussian-0", "crt"), "from-consistency": ("consistency-0", "crt"),
    "crt-1": ("smoothmix-0", "crt"), "to-wide": ("smoothmix-0", "crt"),
}  # fmt: skip


def passes(made: Sequence[dict[str, Any]]) -> str:
    """Images that training sent through networks with their gradients, on average."""
    return f"{statistics.fmean(row['cost']['student_backward'] for row in made):,.0f}"


def distances(found: Found, one: str, two: str, radii: Iterable[str]) -> list[str]:
    """Certified accuracy of a network less another's, a cell a radius, paired by the seed."""
    return cells({r: paired(found.certificates(one, r), found.certificates(two, r)) for r in radii})


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
                passes(made), str(len(mine)),
            ])  # fmt: skip
    head = ["generation", "network", "trained by", *(f"r = {r}" for r in radii), "ACR", "abstains", "kept at 0.5"]
    head += ["student's passes", "seeds"]
    return rows(head, *body) + found.told(names, f"generations-{sigma}")


def apart(sigma: str, experiment: str = "certified") -> str:
    """CRT less what it is measured against, generation by generation."""
    found = Found(experiment)
    radii = [*found.rows(f"crt-1-{sigma}", "certificates")[0]["certified_accuracy"]]
    others = {
        "SmoothMix from scratch": "smoothmix-{}",
        "Gaussian training": "gaussian-{}",
        "the teacher that began the line": "smoothmix-0",
    }
    body = [
        [shown, str(number), *distances(found, f"crt-{number}-{sigma}", f"{other.format(number)}-{sigma}", radii)]
        for shown, other in others.items()
        for number in (1, 2, 3)
    ]
    return rows(["CRT less", "generation", *(f"r = {r}" for r in radii)], *body)


def choice() -> str:
    """What might be CRT's default, on training images that no network saw."""
    arms = {name: VARIANTS[name] for name in ("crt-1", "probabilities", "kl")} | {"fresh": "fresh views"}
    names = [f"{name}-0.25" for name in arms]
    found, body = Found("certified", names, of="unseen"), []
    for name, shown in zip(names, arms.values(), strict=True):
        mine = found.rows(name, "certificates")
        above = ["–", "–"] if name == names[0] else distances(found, name, names[0], ("0.25", "0.5"))
        figures = cells({r: found.certified(name, r) for r in mine[0]["certified_accuracy"]})
        body.append([shown, *figures, span([row["acr"] for row in mine], 3), *above, str(len(mine))])
    head = ["form", "r = 0", "r = 0.25", "r = 0.5", "ACR", "above CRT's own at 0.25", "at 0.5", "seeds"]
    parts = "generations-0.25 losses views choice"
    return rows(head, *body) + found.told(names, parts, "training images that no network saw")


def longer() -> str:
    """CRT and Gaussian training with more epochs, beside SmoothMix."""
    arms = {
        "smoothmix-1": "smoothmix",
        **dict.fromkeys(("crt-1", "epochs-30", "epochs-60"), "crt"),
        **dict.fromkeys(("gaussian-1", "gaussian-1-epochs-30", "gaussian-1-epochs-60"), "gaussian"),
    }
    names, radii = [f"{name}-0.25" for name in arms], ("0", "0.25", "0.5")
    found, body = Found("certified", names), []
    for name, shown in zip(names, arms.values(), strict=True):
        made, mine = found.networks(name), found.rows(name, "certificates")
        figures = cells({r: found.certified(name, r) for r in radii})
        less = ["–"] * len(radii) if name == names[0] else distances(found, name, names[0], radii)
        acr = span([row["acr"] for row in mine], 3)
        body.append([str(made[0]["given"]["epochs"]), shown, *figures, acr, *less, passes(made)])
    head = ["epochs", "trained by", "r = 0", "r = 0.25", "r = 0.5", "ACR", "less SmoothMix at 0", "at 0.25", "at 0.5"]
    return rows([*head, "student's passes"], *body) + found.told(names, "generations-0.25 longer")


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
        behind = distances(found, alone, mine, ("0.25", "0.5")) if scratch else ["–", "–"]
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
        body.append([
            shown, *cells({r: found.certified(f"{name}-0.25", r) for r in mine[0]["certified_accuracy"]}),
            span([row["acr"] for row in mine], 3), passes(made), str(len(mine)),
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
            told = (made[0]["arch"], method, teacher.removesuffix("-0") or "–")
            body.append([*told, *figures, acr, passes(made), str(len(mine))])
    head = ["network", "trained by", "teacher", "r = 0", "r = 0.25", "r = 0.5", "ACR", "student's passes", "seeds"]
    return rows(head, *body) + found.told([f"{name}-0.25" for name in TEACHERS], "generations-0.25 teachers")


TABLES: dict[str, Callable[[], str]] = {
    "certified-0.25": lambda: generations("0.25"),
    "certified-0.5": lambda: generations("0.5"),
    "certified-cifar10": lambda: generations("0.25", "certified-cifar10"),
    "certified-apart-0.25": lambda: apart("0.25"),
    "certified-apart-0.5": lambda: apart("0.5"),
    "certified-apart-cifar10": lambda: apart("0.25", "certified-cifar10"),
    "certified-choice": choice,
    "certified-longer": longer,
    "certified-prices": prices,
    "certified-line": second_line,
    "certified-losses": lambda: variants(VARIANTS, "form", "losses"),
    "certified-views": lambda: variants(VIEWS, "views", "views"),
    "certified-teachers": certified_teachers,
}
