"""status: the jobs of a registry that run or were interrupted, once or drawn again until Ctrl-C."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import options as o
from robustkt.cli.fitting import HANG
from robustkt.cli.output import Output, guarded, stdout_console
from robustkt.cli.sparklines import sparkline
from robustkt.cli.tables import duration, percent, program
from robustkt.errors import UsageError, clip
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.text import Text

    from robustkt.registry import Registry

SHOWN = 10  # of the jobs that do not run
EVERY, LEAST = 2.0, 0.2  # seconds between two drawings, and the fewest
WIDTH = 24  # marks of a curve
STYLES = {"running": "bold green", "silent": "bold yellow", "interrupted": "bold"}


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(guarded(status, keeps=False))


def status(
    seconds: Annotated[
        float | None, typer.Argument(metavar="[SECONDS]", help="With --watch: between two drawings.", show_default="2")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw again until Ctrl-C; on a terminal.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help=f"All interrupted jobs; else the latest {SHOWN} are shown.")
    ] = False,
    registry: o.Where = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """The jobs of this registry: what runs, how far it is, and how to go on with what was interrupted.

    Examples: `robustkt status`, `robustkt status --watch 5`, `robustkt status --json`
    """
    from robustkt import api

    found = o.registry_of(registry)
    if seconds is not None and not watch:
        raise UsageError(f"{seconds:g} seconds are for --watch", f"Type: {program()} status --watch {seconds:g}")
    if seconds is not None and not LEAST <= seconds <= 86_400:
        raise UsageError(
            f"--watch {seconds:g} is no time between two drawings", f"Give {LEAST:g} to 86400 seconds, such as 2."
        )
    if watch:
        if as_json or not sys.stdout.isatty():
            why = "--json prints one object" if as_json else "the output is no terminal"
            raise UsageError(f"--watch draws again and again, but {why}", "Leave --watch out, and call it again.")
        _watch(found, seconds or EVERY, everything)
        return
    output = Output(as_json=as_json, verbose=verbose)
    output.answer(api.status(found), lambda console, result: _print(console, result, everything))


def _watch(registry: Registry, seconds: float, everything: bool) -> None:
    """Until Ctrl-C, which is how one ends looking: no error."""
    from rich.live import Live

    from robustkt import api

    console = stdout_console()
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                live.update(_drawn(api.status(registry), everything), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        return


def _drawn(result: Mapping[str, Any], everything: bool) -> Group:
    from rich.console import Group

    return Group(*_lines(result, everything))


def _print(console: Console, result: Mapping[str, Any], everything: bool) -> None:
    for line in _lines(result, everything):
        for part in _fitting(line, console) if line.no_wrap else [line]:
            console.print(part, soft_wrap=True)


def _fitting(line: Text, console: Console) -> Iterator[Text]:
    """A line that is too long for the terminal in several, the further ones below its text."""
    from rich.text import Text

    if line.cell_len <= console.width:
        yield line
        return
    indent = len(line.plain) - len(line.plain.lstrip()) + HANG
    for i, part in enumerate(line.wrap(console, max(console.width - indent, 1), no_wrap=False, overflow="fold")):
        part.rstrip()
        yield Text(" " * indent).append_text(part) if i else part


def _lines(result: Mapping[str, Any], everything: bool) -> Iterator[Text]:
    """The answer, a line each; what is not to be typed is cut, or broken, where the terminal ends."""
    jobs = result["jobs"]
    idle = [job for job in jobs if job["state"] == "interrupted"]
    hidden = [] if everything else idle[SHOWN:]
    counts = [f"{counted(result['running'], 'job')} running" if jobs else "no job runs, and none was interrupted,"]
    silent = sum(job["state"] == "silent" for job in jobs)
    counts += [f"{silent} without a sign of life"] if silent else []
    counts += [f"{len(idle)} interrupted"] if idle else []
    yield _line(f"{', '.join(counts)} in {result['registry']}", style="dim")
    for job in jobs[: len(jobs) - len(hidden)]:
        yield from _job(job)
    if hidden:
        yield _line(f"and {len(hidden)} more that were interrupted: --all shows them, `gc` removes old ones", "dim")
    if result["strange"]:
        names = clip(", ".join(result["strange"]), 60)
        yield _line(f"{counted(len(result['strange']), 'folder')} in jobs/ of no job's name: {names}", "dim")


def _job(job: Mapping[str, Any]) -> Iterator[Text]:
    head = _line("", "")
    head.append(job["state"], style=STYLES[job["state"]])
    head.append(f"  {_verb(job)} ", style="bold").append(job["what"]).append(f"  {job['job']}", style="dim")
    yield head
    if far := _far(job):
        yield _line("  " + far)
    if any(value is not None for value in job["curve"]):
        yield _line("  " + _course(job))
    if job["figures"] and not job["curve"]:  # a training's are the curve's last
        yield from (_line("  " + figure) for figure in job["figures"])
    yield _line("  " + _life(job), "dim")
    if job["state"] == "running":
        return
    if job["state"] == "silent":
        yield _line("  hung or suspended, or its machine is gone: end it, if it is there, before going on", "yellow")
    from rich.text import Text

    if job["resume"]:
        there = f"cd {shlex.quote(job['folder'])} && " if _elsewhere(job["folder"]) else ""
        yield Text(f"  to go on, type: {there}{job['resume']}")
    else:
        yield _line("  to go on, give the same command, or make the same call, again")


def _line(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _verb(job: Mapping[str, Any]) -> str:
    return "distill" if job["kind"] == "train" and job["teacher"] else str(job["kind"])


def _far(job: Mapping[str, Any]) -> str:
    """How far, how fast, how long still."""
    parts = []
    if job["epochs"]:
        running = job["state"] == "running"
        parts.append(
            f"epoch {job['epoch']} of {job['epochs']}" if running else f"{job['epoch']} of {job['epochs']} epochs"
        )
    elif job["images"]:
        parts += [] if job["figures"] else [f"{job['certified']:,} of {job['images']:,} images"]  # which begin with it
        parts += [f"the first of {job['processes']} processes"] if job["processes"] > 1 else []
    elif job["total"]:
        parts.append(f"{job['done']:,.0f} of {job['total']:,.0f} {job['unit']}")
    if job["share"] is not None:
        parts.append(percent(job["share"]))
    if job["state"] != "running":
        return "   ".join(parts)
    if job["images_per_second"] and job["epochs"]:
        parts.append(f"{job['images_per_second']:,.0f} images/s")
    elif job["rate"]:
        parts.append(f"{job['rate']:,.{0 if job['rate'] >= 10 else 2}f} {job['unit']}/s")
    if job["seconds_left"] is not None:
        parts.append(f"about {duration(job['seconds_left'])} left")
    return "   ".join(parts)


def _course(job: Mapping[str, Any]) -> str:
    """The curve, its last value and its best."""
    known = [(value, epoch) for epoch, value in enumerate(job["curve"], 1) if value is not None]
    loss = job["metric"] == "loss"
    show = (lambda value: f"{value:.4f}") if loss else percent
    best, epoch = min(known) if loss else max(known)
    last = f"{show(known[-1][0])}, best {show(best)} in epoch {epoch}"
    return f"{sparkline(job['curve'], WIDTH)}  {last}: {clip(job['metric'], 60)}"


def _life(job: Mapping[str, Any]) -> str:
    """Who is at it, since when, and when it last gave a sign."""
    parts = [f"process {job['pid']} on {job['host']}"] if job["pid"] and job["state"] != "interrupted" else []
    if job["since"] is not None:
        since = datetime.datetime.fromisoformat(job["since"]).astimezone()
        today = since.date() == datetime.datetime.now().astimezone().date()
        parts.append(f"since {since:%H:%M}" if today else f"since {since:%Y-%m-%d %H:%M}")
    if job["seen_seconds"] is not None:
        parts.append(f"last sign of life {duration(job['seen_seconds'])} ago")
    return ", ".join(parts)


def _elsewhere(folder: str | None) -> bool:
    """Whether a job was started in another folder than this one, which is still there."""
    return folder is not None and Path(folder).is_dir() and os.path.realpath(folder) != os.path.realpath(os.curdir)
