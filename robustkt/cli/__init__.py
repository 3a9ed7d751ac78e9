"""The command line: parse, one api call, print. No torch at import."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

FAMILIES = {
    "train": ("quickstart", "train", "distill"),
    "reproduce": ("reproduce",),
    "foreign": ("import", "export"),
    "measure": ("certify", "evaluate", "predict", "bench"),
    "logs": ("analyze", "audit"),
    "registry": ("list", "show"),
    "status": ("status",),
    "doctor": ("doctor",),
    "lineage": ("lineage",),
    "report": ("report",),
    "gate": ("compare", "gate"),
    "keeping": ("tag", "rename", "rm", "gc", "verify"),
    "soup": ("soup",),
    "hub": ("push", "pull", "copy"),
}  # the commands of each module


def application(first: str | None = None) -> typer.Typer:
    """The commands; if `first`, the first word of a command line, is one of them, its family alone is read in."""
    app = typer.Typer(
        name="robustkt",
        help="Carry the robustness of image classifiers from each generation to the next.",
        epilog="Start with `robustkt quickstart`. Every command has --json and examples in its --help.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    own = [family for family, commands in FAMILIES.items() if first in commands]
    for family in own or FAMILIES:
        importlib.import_module(f"robustkt.cli.{family}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from robustkt import __version__

        typer.echo(f"robustkt {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Carry the robustness of image classifiers from each generation to the next."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def prepared() -> typer.Typer:
    """The command line, to be called; SIGTERM is handled like Ctrl-C, so that a pre-empted job keeps what it has."""
    signal.signal(signal.SIGTERM, _terminate)
    # OpenMP threads that spin while they wait make a busy machine fifty times slower; sleeping costs a few per cent
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(200_000, 20, 20)  # ten thousand generations are many objects and no cycles
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for σ instead of failing
    return application(next(iter(sys.argv[1:]), None))
