"""A report: one page that shows what has been measured of some generations, and the same figures for papers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustkt.api.descent import lineage
from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.generation import Generation
from robustkt.numbers import counted
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.files import write_atomic, writing
from robustkt.report import PICTURES, making, tables
from robustkt.report.examples import Examples
from robustkt.report.gathering import Subject, gather

FORMATS = (*PICTURES, *tables.ENDINGS)
MOST = 12  # generations of a page: more cannot be told apart
PAGE = "report.html"


def report(
    generations: Sequence[str] = (),
    *,
    out: Path,
    formats: Sequence[str] = (),
    examples: bool = True,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`/report.html on some generations: one file, readable without a network; nothing is measured.

    Args:
        generations: references, each with a mode if it has several; by default @latest and those that it comes from.
        out: the folder, made if it is not there.
        formats: also the figures as `svg`, `pdf` or `png` in `out`/figures, and the numbers behind them as `latex` or
            `markdown` in `out`/tables.
        examples: show test images, an adversarial example and noisy copies, where the data and the weights are here.
        data: where the data of the examples lie now, if not where they did.
        data_dir: where named data sets lie.
        registry: the nearest one by default; it may be a remote one.
        device: that makes the examples: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generations [{name, id}], shown (in words), files, bytes (of the page), figures (their names), missing [{text,
        command}], seconds.

    Raises:
        UsageError: an unknown format, or too many generations.
        IntegrityError: a file or a log is damaged.
        RobustKTError: anything else the user can fix.
    """
    began = time.monotonic()
    registry, progress = registry or Registry.locate(), progress or Silent()
    check_formats(formats)
    chosen, shown = choose(registry, generations)
    with writing(out):  # before the work, not after it
        out.mkdir(parents=True, exist_ok=True)
    rows = lineage(registry=registry)["generations"]
    family = {one.id for found in chosen for one in (found, *registry.ancestors(found))}
    rows = [row for row in rows if row["id"] in family]
    subjects = gather(registry, chosen, rows)
    shots, without = _examples(registry, subjects, data, data_dir, device, progress) if examples else ([], NO_EXAMPLES)
    made = making.compose(subjects, rows, shots, without, shown)
    page = making.html(made)
    files = [(out / PAGE, page)]
    files += [
        (out / "figures" / f"{f.name}.{form}", f.render(form))
        for f in made.figures
        for form in formats
        if form in PICTURES
    ]
    files += [
        (out / "tables" / f"{f.name}{tables.ENDINGS[form]}", tables.written(f, form))
        for f in made.figures
        for form in formats
        if form in tables.ENDINGS
    ]
    for path, content in files:
        write_atomic(path, content)
    return {
        "generations": [{"name": one.name, "id": one.id} for one in chosen],
        "shown": shown,
        "files": [str(path) for path, _ in files],
        "bytes": len(page),
        "figures": [figure.name for figure in made.figures],
        "missing": [{"text": one.text, "command": one.command} for one in made.missing],
        "seconds": time.monotonic() - began,
    }


NO_EXAMPLES = "There are no images, as the report was made with --no-examples."


def check_formats(formats: Sequence[str]) -> None:
    """Raise a UsageError for a format that nothing is written in."""
    for form in formats:
        if form not in FORMATS:
            raise UsageError(f"there is no format '{form}'", f"There are {', '.join(FORMATS)}.")


def choose(registry: Registry, references: Sequence[str]) -> tuple[list[Generation], str]:
    """The generations of a page, parents before children where they were not named, and what they are in words.

    Raises:
        NotFoundError: there is none.
        UsageError: there are too many.
    """
    if len(references) > MOST:
        raise UsageError(f"{len(references)} generations are more than the {MOST} of a page", "Name fewer.")
    if references:
        found = [registry.mode(reference) for reference in references]
        unique = {(one.id, one.name): one for one in found}
        return list(unique.values()), f"{counted(len(unique), 'generation')}, as named on the command line"
    if not registry.refs()["names"]:
        raise NotFoundError(f"there is no generation in {registry.label}", "Make one with `robustkt quickstart`.")
    latest = registry.mode("@latest")
    line = [latest, *registry.ancestors(latest)]
    named = [one for one in line if registry.names_of(one.id)[0] != one.id]
    kept = [registry.mode(registry.names_of(one.id)[0]) if one is not latest else one for one in named[:MOST]]
    told = f"@latest, which is {latest.name}"
    told += ", and what it comes from" if len(kept) > 1 else ", which comes from no other"
    told += f"; {len(line) - len(kept)} more are left out" if len(line) > len(kept) else ""
    return kept[::-1], told


def _examples(
    registry: Registry,
    subjects: Sequence[Subject],
    data: str | None,
    data_dir: Path | None,
    device: str,
    progress: Progress,
) -> tuple[list[Examples], str | None]:
    """Images of the last generation that has something to show, and why there are none."""
    from robustkt.api.exampling import exemplify

    able = [one for one in subjects if one.certificates or one.attacks]
    if not able:
        return [], "There are no images: nothing has been measured that they could show."
    made, reasons = [], []
    certified = [one for one in able if one.certificates][-1:]
    attacked = [one for one in able if not one.certificates and one.attacks][-1:]
    for subject in (*certified, *attacked):
        try:
            progress.note(f"making examples of {subject.name}")
            made.append(exemplify(registry, subject, data=data, data_dir=data_dir, device=device))
        except RobustKTError as error:
            reasons.append(f"There are no images of {subject.name}: {error.what}. {error.fix}")
    return made, " ".join(reasons) if reasons else None
