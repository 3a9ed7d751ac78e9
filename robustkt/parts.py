"""How the batch of a step is split into parts, which ranks share or one rank takes in turn.

A part is what a rank of the recipe sees: it has BatchNorm statistics, random numbers and an attack of its own, and the
step goes down the mean of the parts' gradients. A recipe says how many parts there are (`world_size`); how many
processes take them is a circumstance, and decides nothing but the order in which floating-point numbers are added.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from robustkt.core import Batch, Objective, Terms, generator, seed_of
from robustkt.errors import IntegrityError, UsageError
from robustkt.numbers import counted, digest
from robustkt.ranks import Ranks, node

MOST = 65_536  # parts of a step
# the argument by which buffers are left alone in every forward pass, as this version of torch calls it
BUFFERS = next(
    n for n in ("forward_sync_buffers", "broadcast_buffers") if n in signature(DistributedDataParallel).parameters
)


class Outer(nn.Module):
    """The outer minimisation as a module: DistributedDataParallel wraps what gradients of weights flow through."""

    def __init__(self, objective: Objective[Any], net: nn.Module) -> None:
        super().__init__()
        self.objective, self.net = objective, net

    def forward(self, batch: Batch, view: Any) -> Terms:
        """The terms of the loss."""
        return self.objective.loss(self.net, batch, view)


def check_parts(count: int, rows: int, world: int, *, sync_bn: bool = False) -> None:
    """Raise a UsageError unless `rows` images a step can be split into `count` parts for `world` ranks."""
    if not 1 <= count <= MOST:
        raise UsageError(f"world_size must lie between 1 and {MOST}, not {count}", "Leave it out: one part a rank.")
    if count % world:
        raise UsageError(
            f"{counted(world, 'rank')} cannot share the {counted(count, 'part')} of a step evenly",
            f"Start a number of processes that divides {count}, or --set world_size={world}: another recipe.",
        )
    if rows % count:
        raise UsageError(
            f"{rows} images a step cannot be split into {counted(count, 'equal part')}",
            f"Take a --batch-size that {count} divides; it counts the images of all parts together.",
        )
    if sync_bn and count == 1:
        raise UsageError("sync_bn needs several parts to synchronise", "Leave it out, or start several ranks.")
    if sync_bn and count != world:
        raise UsageError(
            f"with sync_bn every part of a step needs a rank of its own, {count} in all, here {world}",
            f"torchrun --nproc-per-node {count}; several ranks may share one device.",
        )


@dataclass
class Parts:
    """The parts of every step: which of them are this rank's, and what becomes of them all."""

    group: Ranks
    count: int
    device: torch.device
    seed: int
    generators: dict[int, torch.Generator] = field(default_factory=dict)  # of this rank's parts, in this epoch

    def __post_init__(self) -> None:
        self.mine = range(self.group.rank, self.count, self.group.world)
        if self.device.type == "cuda" and self.group.world > 1:
            torch.cuda.set_device(self.device)
            places = self.group.gather(f"{node()} {self.device}".encode())
            if len(set(places)) < len(places) and "nccl" in distributed.get_backend_config():
                raise UsageError(f"several ranks would share {self.device}", "Leave --device out: each takes its own.")

    def begin(self, epoch: int) -> None:
        """The random numbers of an epoch: those of one part are the epoch's, of several each part's own."""
        for place in self.mine:
            key = () if self.count == 1 else ("part", place)
            self.generators[place] = generator(self.device, self.seed, "step", epoch, *key)

    def own(self, picked: Tensor) -> Tensor:
        """Of the images of a step, (B,), those of this rank's parts, part after part."""
        size = len(picked) // self.count
        return torch.cat([picked[place * size : (place + 1) * size] for place in self.mine])

    def prepared(self, objective: Objective[Any], net: nn.Module) -> nn.Module:
        """The outer problem that a part is taken through."""
        outer = Outer(objective, net)
        if self.group.world == 1:
            return outer
        # Where it looks for unused parameters, a bucket keeps its place from the first step to the last; otherwise the
        # order of additions would change after the first step of every start, and a resumed run differ by rounding.
        quiet: dict[str, Any] = {BUFFERS: False}
        return DistributedDataParallel(outer, find_unused_parameters=True, **quiet)

    def step(
        self, outer: nn.Module, count: int, key: tuple[int, int], terms_of: Callable[[slice, torch.Generator], Terms]
    ) -> dict[str, Tensor]:
        """Gradients of the mean loss of all parts, in `.grad`; the means of the terms.

        BatchNorm's running statistics, and all other floating-point buffers, begin each part as they were before the
        step, and become the mean of what the parts make of them; counters become what one part makes of them.

        Args:
            outer: what `prepared` gave.
            count: how many images of the step are this rank's.
            key: epoch and step, for the random numbers of layers such as dropout.
            terms_of: the terms of the loss on some of these, as `own` lays them.
        """
        if self.count == 1:
            terms = terms_of(slice(count), self.generators[0])
            torch.stack(list(terms.values())).sum().backward()
            return {name: value.detach() for name, value in terms.items()}
        every = list(outer.buffers())
        start = [buffer.clone() for buffer in every]
        buffers = [buffer for buffer in every if buffer.is_floating_point()]
        before = [value for value in start if value.is_floating_point()]
        size, last = count // len(self.mine), self.mine[-1]
        names: list[str] = []
        sums = torch.zeros(0)
        for turn, place in enumerate(self.mine):
            _put(every, start)
            torch.manual_seed(seed_of(self.seed, "layers", *key, "part", place))
            early = isinstance(outer, DistributedDataParallel) and place != last  # gradients stay here until the last
            with outer.no_sync() if early else contextlib.nullcontext():  # type: ignore[operator]
                terms = terms_of(slice(turn * size, (turn + 1) * size), self.generators[place])
                (torch.stack(list(terms.values())).sum() / len(self.mine)).backward()
            names = list(terms)
            moved = [(after - old).flatten() for after, old in zip(buffers, before, strict=True)]
            found = torch.cat([*moved, torch.stack([value.detach() for value in terms.values()])])
            sums = found if place == self.mine[0] else sums + found
        if self.group.world > 1:
            distributed.all_reduce(sums)
        *moved, means = (sums / self.count).split([*(buffer.numel() for buffer in buffers), len(names)])
        _put(buffers, [old + step.view_as(old) for old, step in zip(before, moved, strict=True)])
        return dict(zip(names, means.unbind(), strict=True))

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts summed over the ranks, by their names; a rank need not have them all."""
        told: list[dict[str, int]] = [json.loads(data) for data in self.group.gather(json.dumps(dict(counts)).encode())]
        return {name: sum(one.get(name, 0) for one in told) for name in sorted({key for one in told for key in one})}

    def check(self, student: nn.Module) -> None:
        """Raise an IntegrityError unless all ranks have the same weights, bit by bit."""
        if self.group.world == 1:
            return
        state = [
            value.detach().cpu().contiguous().flatten().view(torch.uint8) for value in student.state_dict().values()
        ]
        if len(set(self.group.gather(digest(torch.cat(state).numpy().tobytes()).encode()))) > 1:
            raise IntegrityError(
                "the ranks have come to different weights",
                "Use machines of one kind with the same versions; the last checkpoint is whole.",
            )


def _put(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
