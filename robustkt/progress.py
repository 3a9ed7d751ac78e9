"""How long work tells what it is doing; the command line draws it, the default keeps silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """One job's progress."""

    def advance(self, amount: float, text: str = "") -> None:
        """`amount` further units are done; `text` is the latest figures."""
        ...

    def line(self, text: str) -> None:
        """A milestone worth a line where no bar is drawn, such as the end of an epoch."""
        ...


class Progress(Protocol):
    """Where jobs report to."""

    def bar(self, title: str, total: float, done: float = 0) -> AbstractContextManager[Bar]:
        """A bar over `total` units, `done` of them behind us already."""
        ...

    def note(self, text: str) -> None:
        """One line for a person."""
        ...


class Silent:
    """Reports nothing; for Python callers."""

    @contextmanager
    def bar(self, title: str, total: float, done: float = 0) -> Iterator[Silent]:
        """A bar that is not drawn."""
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        """Nothing."""

    def line(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
