"""doctor: what this machine has and will use, what is missing for which command, how long things take here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import early, tables
from robustkt.cli import options as o
from robustkt.cli.fitting import say
from robustkt.cli.output import Output, guarded
from robustkt.numbers import counted

if TYPE_CHECKING:
    from rich.console import Console

BROKEN = 1  # exit status when something is broken that every command needs
NAMED = 6  # packages of another version than the lock's


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command()(guarded(doctor, keeps=False))


def doctor(
    generation: Annotated[
        str | None,
        typer.Argument(
            metavar="[GEN]",
            autocompletion=o._generations,
            help="Whose certify and distill are timed.",
            show_default="@latest",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", autocompletion=o._architectures, help="The student's network.", show_default="GEN's own"),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="To measure, in all.")] = 5.0,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Time some of certify and distill.")] = True,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """What this machine has, will use and lacks, and how long certify and distill take here.

    Nothing is written into the registry, and no network is asked.

    Examples: `robustkt doctor`, `robustkt doctor gen2 --to resnet18 --seconds 20`, `robustkt doctor --no-measure`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device)
    if to is not None:
        o.check_names(None, to, None)
    result = api.doctor(
        generation, to=to, seconds=seconds, measure=measure, data=data, data_dir=data_dir,
        registry=o.registry_of(registry), device=device, progress=output,
    )  # fmt: skip
    output.answer(result, functools.partial(_shown, measure=measure))
    if not result["ok"]:
        raise typer.Exit(BROKEN)


def _shown(console: Console, result: Mapping[str, Any], measure: bool) -> None:
    _headed(console, "has", _has(result))
    if result["uses"] is not None:
        _headed(console, "uses", _uses(result["uses"]))
    for name, wants in (("missing", result["missing"]), ("problems", result["problems"])):
        if wants:
            console.print(f"[bold]{name}[/bold]")
        for one in wants:
            needed = f", for {one['commands']}" if "commands" in one else ""
            say(console, f"{one['what']}{needed}", "  ")
            say(console, one["fix"], "    → ")
    if result["estimates"] is not None:
        console.print("[bold]takes here, by estimate[/bold]")
        for command, told in result["estimates"].items():
            _estimated(console, command, told)
    elif measure and result["ok"]:
        place = result["machine"]["disk"]["place"]
        say(console, f"no times: there is no generation in {place} yet whose certify and distill could be timed")
    if result["estimates"] is None and result["ok"] and not result["problems"]:
        console.print("nothing stands in the way", style="dim")


def _headed(console: Console, heading: str, told: Mapping[str, str]) -> None:
    console.print(f"[bold]{heading}[/bold]")
    width = max(map(len, told))
    for name, value in told.items():
        say(console, value, f"  {name:<{width}}  ")


def _has(result: Mapping[str, Any]) -> dict[str, str]:
    machine = result["machine"]
    processor, memory, disk = machine["processor"], machine["memory"], machine["disk"]
    features = f", {', '.join(processor['features'])}" if processor["features"] else ""
    limit = f", the control group allows {_size(memory['limit'])}" if memory["limit"] is not None else ""
    told = {
        "processor": f"{processor['model']} ({processor['architecture']}){features}",
        "cores": f"{processor['usable']:g} usable of {processor['cores']}{_busy(processor)}",
        "memory": f"{_size(memory['total'])}, {_size(memory['available'])} of it free{limit}",
        "disk": f"{_size(disk.get('free'))} free at {disk['place']}",
    }
    if result["uses"] is not None:
        gpus = [f"{g['name']}, {_size(g['memory'])}, capability {g['capability']}" for g in machine["gpus"]]
        told["GPU"] = "; ".join(gpus) or "none that torch can use"
    told["versions"] = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    told["lock file"] = _locked(result["lock"])
    return told


def _busy(processor: Mapping[str, Any]) -> str:
    """What else is at work: it makes times here longer, and estimates unsure."""
    load = processor["load"]
    busy = load is not None and load > processor["usable"] / 2
    return f", load {load:.1f}: other programs are at work, and times here change with them" if busy else ""


def _locked(lock: Mapping[str, Any] | None) -> str:
    if lock is None:
        return "none here to compare the versions with"
    differ = [f"{name} {here} (locked: {wanted})" for name, (wanted, here) in lock["differ"].items()]
    if not differ:
        return f"{lock['file']}: what is installed is what it says"
    more = f" and {len(differ) - NAMED} more" if len(differ) > NAMED else ""
    return f"{lock['file']}: {counted(len(differ), 'package')} of another version: {', '.join(differ[:NAMED])}{more}"


def _uses(uses: Mapping[str, Any]) -> dict[str, str]:
    if not uses["compiler"]:
        compiled = "no: there is no compiler"
    else:
        training = "long trainings" if uses["compile_training"] else "no training here"
        compiled = f"in long certifications, in {training}"
    return {
        "device": uses["device"],
        "precision": f"{uses['precision_measuring']} to certify and predict, {uses['precision_training']} to train",
        "compile": compiled,
        "threads": str(uses["threads"]),
    }


def _estimated(console: Console, command: str, told: Mapping[str, Any]) -> None:
    if told["seconds"] is None:
        say(console, f"{told['why']}", f"  {command} {told['generation']}: ")
        say(console, told["fix"], "    → ")
        return
    words = f"--from {told['generation']} --to {told['to']}" if "to" in told else told["generation"]
    say(console, f"about {tables.duration(told['seconds'])}", f"  {command} {words}: ")
    for line in told["assumes"]:
        say(console, line, "    ", style="dim")


def _size(size: int | None) -> str:
    """Bytes as people say them."""
    if size is None:
        return "unknown"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
