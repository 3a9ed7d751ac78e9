"""The ranks of `torchrun`, which share one job among them; alone without it.

What is agreed on is small and goes over gloo, whatever the device; gradients go over NCCL where each rank has a GPU of
its own (`parts`). A rank that fails says so in the store of the group, so that one of them speaks for all.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from robustkt.errors import RobustKTError, UsageError, clip

PATIENCE = 1800.0  # seconds that ranks wait for one another
FIRST = 5.0  # seconds that the others leave to the first rank to say what all of them have met
ENDED = "failed"  # the store's key of the exit status
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out|socket", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """One of `world` processes; exchanges bytes, never pickles."""

    rank: int = 0
    world: int = 1
    store: Any = None  # torch.distributed.Store

    def gather(self, data: bytes) -> list[bytes]:
        """Everybody's bytes, in order of rank, at everybody."""
        if self.world == 1:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        distributed.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(1, *(int(size) for size in sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        distributed.all_gather(parts, _padded(data, longest))
        return [bytes(part[: int(size)].numpy()) for part, size in zip(parts, sizes, strict=True)]

    def first(self, data: bytes = b"") -> bytes:
        """The first rank's bytes at everybody; what the others give is not looked at."""
        if self.world == 1:
            return data
        size = torch.tensor([len(data)])
        distributed.broadcast(size, 0)
        length = int(size)
        sent = _padded(data if self.rank == 0 else b"", max(1, length))
        distributed.broadcast(sent, 0)
        return bytes(sent[:length].numpy())

    def first_says(self, answer: bool) -> bool:
        """What the first rank answers."""
        return self.first(b"\1" if answer else b"\0") == b"\1"

    def all(self, answer: bool) -> bool:
        """Whether every rank says yes."""
        return all(told == b"\1" for told in self.gather(b"\1" if answer else b"\0"))

    def wait(self) -> None:
        """Until everybody is here."""
        self.gather(b"")

    def agree(self, told: Mapping[str, Any]) -> None:
        """Raise a RobustKTError unless all ranks tell the same; the keys are what a person can look at."""
        everybody = [json.loads(data) for data in self.gather(json.dumps([node(), told]).encode())]
        (first_host, first) = everybody[0]
        for rank, (host, other) in enumerate(everybody):
            differ = [key for key in first if other.get(key) != first[key]]
            if differ:
                raise RobustKTError(
                    f"the ranks are at different jobs: rank {rank} on {clip(host, 60)} has another {differ[0]} than "
                    f"rank 0 on {clip(first_host, 60)}",
                    "Give every machine the same command, registry, data and version of robustkt.",
                )

    def hosts(self) -> int:
        """How many machines the ranks are on, by their names."""
        return len(set(self.gather(node().encode())))

    # -- failing ---------------------------------------------------------------------------------------------------

    def speaks(self, status: int) -> bool:
        """Whether this rank is the one to say why the job ends; the first, where it has met the same."""
        if self.store is None:
            return True
        with contextlib.suppress(RuntimeError):  # the store has gone with its owner
            deadline = time.monotonic() + (FIRST if self.rank else 0)
            while time.monotonic() < deadline and self.ended() is None:
                time.sleep(0.02)
            return str(self.store.compare_set(ENDED, "", told := f"{status} {self.rank}"), "ascii") == told
        return self.rank == 0

    def ended(self) -> int | None:
        """The exit status that another rank has ended the job with."""
        if self.store is None:
            return None
        with contextlib.suppress(RuntimeError):
            if self.store.check([ENDED]):
                status, _, rank = self.store.get(ENDED).decode().partition(" ")
                return None if int(rank) == self.rank else int(status)
        return None


ALONE = Ranks()


def lost(error: BaseException) -> bool:
    """Whether an error is that of a rank whose neighbour has gone."""
    torchs = type(error) is RuntimeError or isinstance(error, distributed.DistError)  # what its backends raise
    return torchs and bool(LOST.search(str(error)))


def node() -> str:
    """What this machine is called among those of the group."""
    return platform.node()


def world() -> int:
    """How many processes torchrun, or whoever else sets its variables, has started.

    Raises:
        UsageError: its variables are not all there, or are none.
    """
    if "WORLD_SIZE" not in os.environ:
        return 1
    try:
        size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ.get("RANK", "0"))
    except ValueError:
        size, rank = 0, 0
    if not 0 <= rank < size:
        told = " ".join(f"{name}={clip(os.environ.get(name, ''), 20)}" for name in ("RANK", "WORLD_SIZE"))
        raise UsageError(f"{told} name no rank of a group", "Start with torchrun, which sets them, or unset both.")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if size > 1 and not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            "Start with torchrun, which sets them; or unset WORLD_SIZE to run alone.",
        )
    return size


def patience() -> datetime.timedelta:
    """How long ranks wait for one another: $ROBUSTKT_RANK_TIMEOUT in seconds, or half an hour."""
    given = os.environ.get("ROBUSTKT_RANK_TIMEOUT", "")
    try:
        seconds = float(given or PATIENCE)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e7:
        raise UsageError(f"ROBUSTKT_RANK_TIMEOUT is '{clip(given, 40)}'", "Give seconds, such as 600.")
    return datetime.timedelta(seconds=seconds)


_here: list[Ranks] = []  # the group that this process is in, while it is


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process's place among those that torchrun started; within another such block, the same place.

    Raises:
        UsageError: the variables of torchrun are incomplete.
        RobustKTError: the others cannot be reached.
    """
    if _here or world() == 1:
        yield _here[-1] if _here else Ranks()
        return
    wait = patience()
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=wait)))
        store.set_timeout(wait)
        store = _met(store, rank, size, wait)
        if not distributed.is_initialized():
            distributed.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=wait)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RobustKTError(
            f"the other ranks cannot be reached through {clip(place, 80)}: {clip(str(error), 100)}",
            "Check that every machine runs the same torchrun command, and can reach that address and port.",
        ) from None
    _here.append(Ranks(rank, size, store))
    try:
        yield _here[-1]
    finally:
        _here.clear()
        distributed.destroy_process_group()


def _met(store: Any, rank: int, size: int, wait: datetime.timedelta) -> Any:
    """The store under a name that the ranks of this start alone know.

    torchrun gives ranks that it starts again the store of those that died, where their addresses still stand. Each
    rank but the first says who it is now; the first answers that very process, until all have answered in turn.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", own)
        store.wait([f"name/{own}"], wait)
        name: str = store.get(f"name/{own}").decode()
        store.set(f"{name}/met/{rank}", "")
        return _named(name, store)
    waited, deadline = set(range(1, size)), time.monotonic() + wait.total_seconds()
    while waited:
        for other in sorted(waited):
            if store.check([f"here/{other}"]):
                store.set(f"name/{store.get(f'here/{other}').decode()}", own)
        waited = {other for other in waited if not store.check([f"{own}/met/{other}"])}
        if waited and time.monotonic() > deadline:
            raise RuntimeError(f"timed out waiting for rank {min(waited)}")
        time.sleep(0.01 if waited else 0)
    return _named(own, store)


def _named(name: str, store: Any) -> Any:
    return distributed.PrefixStore(name, store)  # type: ignore[attr-defined]  # public, but not in its __all__


def _backend() -> str:
    """Gloo; for tensors on GPUs NCCL, which takes one rank a GPU only."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if torch.cuda.is_available() and distributed.is_nccl_available() and local <= torch.cuda.device_count():
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def _padded(data: bytes, length: int) -> torch.Tensor:
    """(length,) uint8 that begins with `data`."""
    padded = torch.zeros(length, dtype=torch.uint8)
    if data:
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return padded
