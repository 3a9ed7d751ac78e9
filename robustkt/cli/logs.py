"""analyze, audit: certification logs, ours and everybody's, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import logtables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.cli.registry import FOUND
from robustkt.errors import UsageError

ENDINGS = (".csv", ".json", ".log", ".tsv", ".txt")  # of no generation
FORMATS = ("table", "markdown", "latex")


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (analyze, audit):
        app.command()(guarded(command))


def analyze(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG…", help="Certification logs.")],
    sigma: Annotated[
        str | None, typer.Option("--sigma", help="Of the noise: one for all logs, or 0.5,1 in their order.")
    ] = None,
    radii: Annotated[str | None, typer.Option("--radii", help="Where to report, such as 0,0.25,0.5.")] = None,
    alpha: Annotated[str | None, typer.Option("--alpha", help="Of the certificates, if the logs do not tell.")] = None,
    confidence: Annotated[str, typer.Option("--confidence", help="Of the lower bound.")] = "0.999",
    mixed: Annotated[bool, typer.Option("--mixed", help="Logs of different n, α or σ side by side.")] = False,
    form: Annotated[str, typer.Option("--format", help="table, markdown or latex.")] = "table",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Certified accuracy at radii from certification logs, with intervals; several logs side by side.

    Reads everybody's logs: idx, label, predict, radius, correct, time, and whatever columns follow. n and α come from
    the header beside a log (LOG.json), from its counts, or, given σ, from the lattice that its radii lie on.

    Examples: `robustkt analyze log.tsv --sigma 0.5`, `robustkt analyze a.tsv b.tsv --sigma 0.5 --format latex`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    if form not in FORMATS:
        raise UsageError(f"there is no format '{form}'", f"There are {', '.join(FORMATS)}.")
    output = Output(as_json=as_json, quiet=quiet)
    result = api.analyze(
        logs,
        sigma=[s.strip() for s in sigma.split(",")] if sigma else [],
        alpha=float(fraction(alpha, "--alpha")) if alpha else None,
        radii=[fraction(r, "a radius") for r in radii.split(",")] if radii else None,
        rho=float(1 - fraction(confidence, "--confidence")),
        mixed=mixed,
    )
    for note in result["notes"]:
        output.note(f"note: {note}")
    output.answer(result, {"table": logtables.analyzed, **logtables.WRITTEN}[form])


def audit(
    subject: Annotated[str, typer.Argument(metavar="LOG|GEN", help="A certification log, or a generation.")],
    sigma: o.Sigma = None,
    n: Annotated[int | None, typer.Option("--n", help="The draws an image that the log claims.")] = None,
    alpha: Annotated[str | None, typer.Option("--alpha", help="The α that the log claims.")] = None,
    registry: o.Where = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Check a certification log's claims; exit status 3 when something is wrong with it.

    Every honest radius belongs to a whole count, so that n and α can be inferred from the radii, and a radius that
    nothing explains stands out. A log with counts is re-derived from them.

    Example: `robustkt audit log.tsv --sigma 0.5`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet)
    if not _is_file(subject):
        _audit_generation(subject, registry, output)
        return
    level = float(fraction(alpha, "--alpha")) if alpha else None
    result = api.audit_log(Path(subject), sigma=sigma, n=n, alpha=level)
    output.answer(result, logtables.audited)
    if not result["ok"]:
        raise typer.Exit(FOUND)


def _is_file(subject: str) -> bool:
    """Whether a log is meant, and no generation."""
    return Path(subject).is_file() or Path(subject).suffix.lower() in ENDINGS or os.sep in subject


def _audit_generation(generation: str, registry: Path | None, output: Output) -> None:
    """Re-measure a stored certificate."""
    from robustkt import api

    if "audit_generation" not in api.__all__:
        raise UsageError(
            f"there is no log {generation}, and generations cannot be audited yet", "Give the path of a log."
        )
    output.answer(api.audit_generation(generation, registry=o.registry_of(registry)), logtables.audited)
