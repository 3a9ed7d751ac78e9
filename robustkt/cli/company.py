"""A command among the processes of torchrun: which can be shared, and who speaks when it ends badly.

torch is imported only where there are several processes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from robustkt.errors import UsageError

SHARED = ("train", "distill", "certify", "evaluate", "reproduce")


class Company(Protocol):
    """Those that run the command together; `robustkt.ranks.Ranks` where there are several."""

    @property
    def rank(self) -> int:
        """This process's place, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def speaks(self, status: int) -> bool:
        """Whether this process is the one to say why the command ends with this status."""
        ...

    def ended(self) -> int | None:
        """The exit status that another has ended with."""
        ...


class Alone:
    """One process, or one of several before they have met: the first speaks."""

    rank, world = 0, 1

    def speaks(self, status: int) -> bool:
        """The first process does."""
        return os.environ.get("RANK", "0") == "0"

    def ended(self) -> int | None:
        """Nobody else has."""
        return None


@contextmanager
def company(command: str) -> Iterator[Company]:
    """The processes that run `command` together.

    Raises:
        UsageError: it is none that several can share, or the variables of torchrun are incomplete.
        RobustKTError: the others cannot be reached.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Alone()
        return
    if command not in SHARED:
        raise UsageError(
            f"this command runs in one process, and torchrun has started {os.environ['WORLD_SIZE']}",
            f"Type it without torchrun; processes can share {', '.join(SHARED)}.",
        )
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what goes wrong is told in our own words, once
    from robustkt.ranks import ranks

    with ranks() as group:
        yield group


def where(group: Company) -> str:
    """What goes before the message of a process that is not the first."""
    return f"rank {group.rank} on {platform.node()}: " if group.rank else ""
