"""analyze, audit: certification logs, ours and everybody's, without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
        app.command()(guarded(command, keeps=False))


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
    verbose: o.Verbose = False,
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
    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    result = api.analyze(
        logs,
        sigma=[s.strip() for s in sigma.split(",")] if sigma else [],
        alpha=float(fraction(alpha, "--alpha")) if alpha is not None else None,
        radii=[fraction(r, "a radius") for r in radii.split(",")] if radii is not None else None,
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
    images: Annotated[
        int | None, typer.Option("--images", help="Of GEN: certified images to measure again.", show_default="200")
    ] = None,
    copies: Annotated[
        int | None, typer.Option("--copies", help="Fresh noisy copies each.", show_default="2000")
    ] = None,
    error: Annotated[
        str | None, typer.Option("--error", help="Probability of reporting sound ones.", show_default="0.001")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of sample and noise.", show_default="unforeseeable")
    ] = None,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Check a log's claims, or measure a generation's certificates again; exit status 3 when something is wrong.

    Of a log: every honest radius belongs to a whole count, so that n and α can be inferred from the radii, and a radius
    that nothing explains stands out; a log with counts is derived from them again. Of a generation: a random sample of
    its certified images is voted on with fresh noise, and the claims are tested.

    Examples: `robustkt audit log.tsv --sigma 0.5`, `robustkt audit gen1 --images 200`,
    `robustkt audit theirs --data photos`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    measuring = {"--images": images, "--copies": copies, "--error": error, "--seed": seed, "--data": data}
    if _is_file(subject):
        _refuse(measuring, "a log; give the name of a generation to measure again")
        level = float(fraction(alpha, "--alpha")) if alpha is not None else None
        result = api.audit_log(Path(subject), sigma=sigma, n=n, alpha=level)
        output.answer(result, logtables.audited)
    else:
        _refuse({"--n": n, "--alpha": alpha}, "a generation, whose certificates say theirs")
        rate = float(fraction(error, "--error")) if error is not None else None
        asked: dict[str, Any] = {"images": images, "n": copies, "error": rate}
        result = api.audit_generation(
            subject, sigma=sigma, seed=seed, data=data, data_dir=data_dir, registry=o.registry_of(registry),
            device=device, progress=output, **{name: value for name, value in asked.items() if value is not None},
        )  # fmt: skip
        output.answer(result, logtables.audited_generation)
    if result["problems"]:
        raise typer.Exit(FOUND)


def _is_file(subject: str) -> bool:
    """Whether a log is meant, and no generation."""
    return Path(subject).is_file() or Path(subject).suffix.lower() in ENDINGS or os.sep in subject


def _refuse(options: Mapping[str, object], subject: str) -> None:
    """Options that mean nothing for what is audited."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} means nothing for {subject}", "Leave it out.")
