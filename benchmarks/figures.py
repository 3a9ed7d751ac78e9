"""The pictures of the experiments in docs/images, drawn from the records in the manner of `robustkt report`.

    python -m benchmarks.figures

A picture names in its first line the digest of what it was drawn from; a test compares it with the record.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.evidence import ATTACKS, RSLAD
from benchmarks.found import Found
from benchmarks.written import ROOT
from robustkt.report.attacks import dots
from robustkt.report.figure import Figure, between, percent

IMAGES = ROOT / "docs" / "images"
KINDS = ("smoothmix", "crt", "gaussian")


def drawn(name: str, title: str, axis: str, shares: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """(group, series) -> a share a seed: their mean, and a line from the lowest to the highest."""
    values, body = [], []
    for (group, series), told in shares.items():
        if told:
            y, low, high = statistics.fmean(told), min(told), max(told)
            share, interval = percent(y), between([low, high])
            values.append({
                "series": series, "group": group, "y": y, "low": low, "high": high, "share": share,
                "interval": interval, "of": f"{len(told)} seeds",
            })  # fmt: skip
            body.append([group, series, share, interval])
    names = list(dict.fromkeys(str(value["series"]) for value in values))
    groups = list(dict.fromkeys(str(value["group"]) for value in values))
    alt = "; ".join(f"{group}, {series}: {share} ({interval})" for group, series, share, interval in body)
    return Figure(
        name, title, alt, dots(values, names, groups, axis), ("", "trained by", "mean", "lowest to highest"), body
    )


def generations(sigma: str, radius: str) -> Figure:
    """Certified accuracy of three generations, against training from scratch."""
    found = Found("certified")
    shares = {}
    for number in range(4):
        for kind in KINDS:
            name = f"{kind}-{number}-{sigma}"
            if found.rows(name, "certificates") and (number or kind == "smoothmix"):
                group = f"{number}: {found.networks(name)[0]['arch']}"
                shares[group, kind] = [told / 100 for told in found.certified(name, radius)]
    title = f"Three generations at σ = {sigma}"
    return drawn(f"certified-{sigma}", title, f"certified accuracy at r = {radius}", shares)


def objectives() -> Figure:
    """Objectives under attack."""
    found = Found("rslad")
    shares = {
        (ATTACKS[attack], shown): [told / 100 for told in found.accuracy(name, attack)]
        for attack in ("clean", "pgd-trades", "autoattack")
        for name, shown in RSLAD.items()
        if found.rows(name, "attacks")
    }
    return drawn("rslad", "Objectives of one budget under attack", "accuracy", shares)


FIGURES: dict[str, Callable[[], Figure]] = {
    "certified-0.25": lambda: generations("0.25", "0.5"),
    "certified-0.5": lambda: generations("0.5", "1"),
    "rslad": objectives,
}


def digest(figure: Figure) -> str:
    """Of all that decides how it is drawn."""
    return hashlib.sha256(json.dumps(figure.whole(titled=True), sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Draw those whose record has changed."""
    for name, make in FIGURES.items():
        figure, path = make(), IMAGES / f"{name}.svg"
        first = f"<!-- {digest(figure)} -->\n"
        if not path.is_file() or not path.read_text().startswith(first):
            path.write_text(first + figure.render("svg", titled=True).decode())
            print(f"drew {path.relative_to(ROOT)}\n{figure.alt}")


if __name__ == "__main__":
    main()
