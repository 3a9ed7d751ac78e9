"""The page: sections of figures, tables and sentences in one file that loads nothing."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustkt import __version__, places
from robustkt.errors import RobustKTError
from robustkt.registry.files import write_atomic
from robustkt.report import attacks, curves, lineages, tradeoffs, words
from robustkt.report.examples import Examples
from robustkt.report.figure import Figure, in_order
from robustkt.report.gathering import Source, Subject
from robustkt.report.style import DARK, LIGHT, PAGE, SANS, config
from robustkt.report.words import Missing

GLOBALS = "window.vegaEmbed = vegaEmbed;"  # all that page.js needs
FOLDER = Path(__file__).parent / "page"
GROUND = {
    "paper": ("#ffffff", "#15161a"),
    "panel": ("#f6f7f9", "#1d1f25"),
    "line": ("#d5d8de", "#3a3d45"),
    "link": ("#0b5a94", "#7cc4f5"),
}
INTROS = {
    "certified": "The share of test images that are classified rightly and certified at least this far; the shading is "
    "the 95 % interval. Higher and further right is better.",
    "pa": "pA is the probability that a noisy copy gets the most frequent class. A certificate rests on a lower bound "
    "of it: the more images have a bound near 1, the further right the curve lies, and the larger the radii. Below ½ "
    "the classifier abstains.",
    "attacks": "The share of test images that stay right under each attack, with 95 % intervals.",
    "classes": "An average can hide a class that has lost its robustness.",
    "soups": "β mixes a clean and a robust adapter: 0 is the clean one, 1 the robust one. Each mixture was attacked "
    "through itself.",
    "cost": "What training cost against what it bought: images that went through networks, forwards and backwards, "
    "against robustness.",
    "training": "As the run record has them; the epoch was selected on held-out images.",
}


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    figures: Sequence[Figure] = ()
    missing: Sequence[Missing] = ()
    intro: str | None = None
    claimed: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Everything that a page says."""

    title: str
    subtitle: str
    subjects: Sequence[Subject]
    sections: Sequence[Section]
    examples: Sequence[Examples]

    @property
    def figures(self) -> list[Figure]:
        """All of them, in their order."""
        return [figure for section in self.sections for figure in section.figures]

    @property
    def missing(self) -> list[Missing]:
        """What has not been measured."""
        return list(dict.fromkeys(one for section in self.sections for one in section.missing))


def compose(
    subjects: Sequence[Subject],
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Examples],
    without: str | None,
    shown: str,
) -> Report:
    """The report on some generations.

    Args:
        subjects: what is known of each.
        rows: of `api.lineage`: those and their ancestors.
        examples: of images.
        without: why there are none.
        shown: which generations these are, in words.
    """
    chosen = [subject.generation.id for subject in subjects]
    unique = [row for row in rows if not row.get("again")]
    drawn = {
        "lineage": [lineages.graph(rows, chosen), *_some(lineages.decay(unique))],
        "certified": curves.certified(subjects),
        "pa": curves.ecdf(subjects),
        "attacks": attacks.attacks(subjects),
        "classes": attacks.classes(subjects),
        "soups": tradeoffs.soups(subjects),
        "cost": tradeoffs.bargain(subjects),
        "training": curves.training(subjects),
    }
    order = series_of(subjects)
    drawn = {
        name: [replace(one, spec=in_order(one.spec, order)) for one in figures] if name != "soups" else figures
        for name, figures in drawn.items()
    }
    lack = {
        "certified": words.lacking(subjects, "certificate"),
        "attacks": words.lacking(subjects, "attack"),
        "soups": words.lacking(subjects, "sweep"),
        "training": words.lacking(subjects, "training"),
    }
    titles = {
        "lineage": "Lineage", "certified": "Certified accuracy", "pa": "Probability of the top class",
        "attacks": "Under attack", "classes": "Class by class", "soups": "Soups", "cost": "Cost and robustness",
        "training": "Training",
    }  # fmt: skip
    made = [
        Section(name, title, drawn[name], lack.get(name, ()), INTROS.get(name), _claims(drawn[name], subjects))
        for name, title in titles.items()
        if drawn[name] or lack.get(name)
    ]
    told = without or "The network looks at test images as the measurements did; everything is seeded."
    before = [one for one in made if one.id != "training"]
    sections = [
        Section("summary", "Summary"), *before, Section("examples", "Examples", intro=told),
        *[one for one in made if one.id == "training"],
        Section("settings", "Settings and provenance"),
        Section("sources", "Sources", intro="Every number above was read from these files of the registry."),
    ]  # fmt: skip
    names = ", ".join(subject.name for subject in subjects)
    return Report(
        f"Robustness of {names}" if len(names) < 90 else "Robustness of a lineage", shown, subjects, sections, examples
    )


def series_of(subjects: Sequence[Subject]) -> list[str]:
    """All that curves are called, in the order of the generations, so that each has one colour."""
    labels = [[*(one.series for one in subject.certificates), subject.name] for subject in subjects]
    return list(dict.fromkeys(label for own in labels for label in own))


def _some(figure: Figure) -> list[Figure]:
    return [figure] if any(row[-1] != "–" for row in figure.rows) else []


def _claims(figures: Sequence[Figure], subjects: Sequence[Subject]) -> list[str]:
    used = {number for figure in figures for number in figure.sources}
    sources = {s.number: s for subject in subjects for s in subject.sources if s.number in used and s.claimed}
    return [f"{s.generation}’s [{number}], by {s.claimed}" for number, s in sorted(sources.items())]


def html(report: Report) -> bytes:
    """The page; whatever texts the registry holds are shown letter by letter."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script, library = (FOLDER / "page.js").read_text(), bundle()
    data = {
        "config": config(PAGE, background=None, font=SANS),
        "figures": {f.name: _drawn(f) for f in report.figures},
    }
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    subjects = report.subjects
    text = environment.get_template("page.html").render(
        title=report.title,
        subtitle=report.subtitle,
        version=__version__,
        css=Markup(style()),
        script=Markup(script),
        library=Markup(library),
        data=Markup(embedded(data)),
        hashes=Markup(" ".join(f"'sha256-{_hash(text)}'" for text in (library, script))),
        sections=report.sections,
        verdicts=[
            {
                "name": one.name, "told": words.verdict(one, subjects), "warnings": one.warnings,
                "made": " · ".join(getattr(one.generation.recipe, what) for what in ("method", "arch"))
                + f" · {one.generation.recipe.data.name}",
                "claimed": any(source.claimed for source in one.sources),
            }
            for one in subjects
        ],
        guarantees=words.guarantees(subjects),
        examples=report.examples,
        settings=[{"name": one.name, "told": words.settings(one)} for one in subjects],
        sources=_sources(subjects),
    )  # fmt: skip
    return text.encode()


def _sources(subjects: Sequence[Subject]) -> list[Source]:
    found = {source.number: source for subject in subjects for source in subject.sources}
    return [found[number] for number in sorted(found)]


def _drawn(figure: Figure) -> dict[str, Any]:
    return {**figure.drawn, "description": f"{figure.title}. {figure.alt}"}


def embedded(value: Any) -> str:
    """JSON that no text in it can end a script element with, or begin one."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def style() -> str:
    """The style sheet with the inks of both lights."""
    light = {**LIGHT, **{name: pair[0] for name, pair in GROUND.items()}}
    dark = {**DARK, **{name: pair[1] for name, pair in GROUND.items()}}
    bright, dim = ("".join(f"--{name}:{value};" for name, value in inks.items()) for inks in (light, dark))
    return (
        f":root{{{bright}color-scheme:light}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dim}color-scheme:dark}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{{dim}color-scheme:dark}}}}\n" + (FOLDER / "page.css").read_text()
    )


@functools.cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; kept in the user's cache, as making it takes seconds."""
    import vl_convert

    versions = (
        vl_convert.get_vega_version(),
        vl_convert.get_vegalite_versions()[-1],
        vl_convert.get_vega_embed_version(),
    )
    place = places.cache() / f"vega-{'-'.join(versions)}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return place.read_text()
    made = vl_convert.javascript_bundle(GLOBALS).replace("</script", "<\\/script")
    with contextlib.suppress(RobustKTError):  # a home that cannot be written
        write_atomic(place, made.encode())
    return made
