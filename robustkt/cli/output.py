"""The one sink: Rich on a terminal, plain lines in a pipe, one JSON object with --json; the rest goes to stderr."""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from robustkt.cli.company import Alone, Company, company, where
from robustkt.cli.fitting import say
from robustkt.errors import RobustKTError, anonymous, clip
from robustkt.progress import Bar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

P = ParamSpec("P")
INTERRUPTED = 130


class Output:
    """Where a command's answer and everything said on the way go."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        from rich.console import Console

        logging.getLogger("huggingface_hub.utils._http").addFilter(_without_passwords)
        self.spare = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first speaks for all
        self.as_json, self.quiet, self.verbose = as_json, quiet or self.spare, verbose
        self.began = time.monotonic()
        self.stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def answer(self, result: Mapping[str, Any], render: Callable[[Console, Mapping[str, Any]], None]) -> None:
        """Print the command's result on stdout: as one JSON object, or as `render` draws it."""
        if self.spare:
            return
        if self.as_json:
            sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str) + "\n")
            sys.stdout.flush()
        else:
            render(stdout_console(), result)
        if self.verbose:
            self.note("done")

    # -- Progress ------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line for a person, on stderr."""
        if not self.quiet:
            stamp = f"{time.monotonic() - self.began:.1f} s  " if self.verbose else ""
            say(self.stderr, text, stamp, style="dim")

    def bar(self, title: str, total: float, done: float = 0) -> AbstractContextManager[Bar]:
        """A bar with ETA on a terminal; a line a milestone otherwise."""
        if self.quiet or not self.stderr.is_terminal:
            return self._lines(title)
        return self._drawn(title, total, done)

    @contextmanager
    def _lines(self, title: str) -> Iterator[Bar]:
        self.note(title)
        yield _Lines(self)

    @contextmanager
    def _drawn(self, title: str, total: float, done: float) -> Iterator[Bar]:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.table import Column

        room = self.stderr.width - BESIDE
        title = clip(title, max(room - BAR[0], 1))
        size = max(BAR[0], min(BAR[1], room - len(title)))
        columns = (
            TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
            BarColumn(bar_width=size),
            TaskProgressColumn(),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=8)),
        )
        with _told_below()(*columns, console=self.stderr, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=int(done), text="")
            yield _Drawn(self, progress, task)


BAR, BESIDE = (10, 40), 17  # columns of a bar, at least and at most; of percentage, ETA and the gaps


def _told_below() -> type[RichProgress]:
    """Rich's bars, each with its latest figures in lines below it that are cut where the terminal ends."""
    from rich.progress import Progress
    from rich.text import Text

    class Told(Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                for line in task.fields["text"].splitlines():
                    yield Text(line, style="dim", no_wrap=True, overflow="ellipsis")

    return Told


class _Lines:
    """Milestones as lines, where no bar can be drawn."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def advance(self, amount: float, text: str = "") -> None:
        """Nothing: only milestones are told."""

    def line(self, text: str) -> None:
        """One line."""
        self.output.note(text)


class _Drawn:
    """A Rich bar; milestones stand behind it, and as lines with -v."""

    def __init__(self, output: Output, progress: RichProgress, task: TaskID) -> None:
        self.output, self.progress, self.task = output, progress, task

    def advance(self, amount: float, text: str = "") -> None:
        """Move the bar."""
        if text:
            self.progress.update(self.task, text=text)
        self.progress.advance(self.task, amount)

    def line(self, text: str) -> None:
        """The milestone's figures, behind the bar."""
        self.progress.update(self.task, text=text.split("  ", 1)[-1])
        if self.output.verbose:
            self.output.note(text)


def stdout_console() -> Console:
    """Rich on stdout; as wide as the lines need when it is no terminal."""
    from rich.console import Console

    class Answer(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # Rich would end with status 1; `guarded` knows better

    console = Answer(highlight=False)
    return console if console.is_terminal or os.environ.get("COLUMNS") else Answer(highlight=False, width=400)


def guarded(command: Callable[P, None], *, keeps: bool = True) -> Callable[P, None]:
    """Print what the user can fix as two lines and an exit status; everything else is a bug and keeps its traceback.

    Args:
        command: what is to be run.
        keeps: whether what it has done by Ctrl-C is there when it is typed again.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            with company(command.__name__) as group:
                _run(functools.partial(command, *args, **kwargs), group, as_json, bool(kwargs.get("verbose")), keeps)
        except RobustKTError as error:  # of coming together itself
            if Alone().speaks(error.exit_code):
                _complain(error.what, error.fix, as_json=as_json)
            raise typer.Exit(error.exit_code) from None

    return run


def _run(command: Callable[[], None], group: Company, as_json: bool, verbose: bool, keeps: bool) -> None:
    """The command; one process of several says why it ended, and all end with that status."""

    def end(status: int, what: str, fix: str) -> typer.Exit:
        if group.speaks(status):
            _complain(where(group) + what, fix, as_json=as_json)
        return typer.Exit(group.ended() or status)

    try:
        with _blaming(group):
            command()
    except typer.Exit:
        raise
    except RobustKTError as error:
        if verbose:
            _show_where(error)
        code = end(error.exit_code, error.what, error.fix)
        if os.environ.get("ROBUSTKT_DEBUG") == "1":
            raise
        raise code from None
    except KeyboardInterrupt:
        from robustkt.cli.tables import program

        again = shlex.join(a for a in sys.argv[1:] if a != "--fresh")  # which would start over
        start = "start it with the same torchrun command" if group.world > 1 else f"type: {program()} {again}"
        told = "interrupted; what is done is kept" if keeps else "interrupted before it was done"
        raise end(INTERRUPTED, told, f"To {'continue' if keeps else 'start over'}, {start}") from None
    except BrokenPipeError:  # `robustkt list | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except OSError as error:  # the rest of what the operating system refuses, such as reading
        if (error.filename is None and error.errno != errno.ENOSPC) or os.environ.get("ROBUSTKT_DEBUG") == "1":
            group.speaks(1)
            raise
        what = f"cannot use {error.filename or 'the output'}: {error.strerror}"
        fix = "Check that it is there and yours to read; ROBUSTKT_DEBUG=1 shows where it happened."
        raise end(1, what, fix) from None
    except Exception as error:
        if (status := group.ended()) is not None:  # another has said why; what came of it here says nothing
            raise typer.Exit(status) from None
        if group.world > 1 and _lost(error):
            fix = "torchrun --max-restarts 3 starts all again from the last checkpoint; so does the same command."
            raise end(1, "another rank was lost", fix) from None
        group.speaks(1)  # a bug: its traceback is enough
        raise


@contextmanager
def _blaming(group: Company) -> Iterator[None]:
    """What a network of the user's own raises is the user's to mend, and no bug."""
    try:
        yield
    except (RobustKTError, typer.Exit):
        raise
    except Exception as error:
        if "torch" not in sys.modules or (group.world > 1 and _lost(error)):
            raise
        from robustkt.models import blamed

        told = blamed(error)
        if told is None:
            raise
        raise told from error


def _lost(error: Exception) -> bool:
    from robustkt.ranks import lost

    return lost(error)


def _show_where(error: RobustKTError) -> None:
    """The traceback, without the error itself: that comes in two lines of its own."""
    told = traceback.TracebackException.from_exception(error)
    lines = list(told.format())
    sys.stderr.write("".join(lines[: len(lines) - len(list(told.format_exception_only()))]))


def _without_passwords(record: logging.LogRecord) -> bool:
    """What the Hub's client warns of, its addresses without user and password."""
    record.msg, record.args = anonymous(record.getMessage()), ()
    return True


def _complain(what: str, fix: str, *, as_json: bool) -> None:
    what, fix = " ".join(what.split()), " ".join(fix.split())  # one line each, whatever they quote
    if as_json:
        sys.stdout.write(json.dumps({"error": what, "fix": fix}, ensure_ascii=False) + "\n")
    typer.secho(f"error: {what}", err=True, fg=typer.colors.RED)
    if fix:
        typer.echo(f"  → {fix}", err=True)
