"""Keeps one batch full while images fall: searches as steps over rows that come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from robustkt.core import Model, ThreatModel, attacking, seed_of

State = dict[str, Tensor]  # every entry (B, …): what a search knows of the rows in its batch

ROOM = 8  # a batch is compacted and refilled when one in so many of its rows is free


class Search(Protocol):
    """An attack as a start and steps. No row may depend on another; random numbers come from the rows' seeds."""

    @property
    def name(self) -> str:
        """What it is called in journals and tables."""
        ...

    @property
    def steps(self) -> int:
        """Steps after which a row that still stands is given up."""
        ...

    def begin(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, seeds: Tensor) -> State:
        """The state of fresh rows: at least `x_adv` (B, C, H, W) and `broken` (B,) bool."""
        ...

    def step(self, model: Model, s: State, threat: ThreatModel) -> None:
        """One step of every row, in place; `s` also holds x, y, seed and age (B,), the steps that a row has had."""
        ...


class Journal:
    """What has been decided: stage by stage, whether a row was broken. A longer-lived one makes runs resumable."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[int, bool]] = {}

    def plan(self, stages: Sequence[str], standing: int) -> None:
        """What is to come: the stages in order, and how many rows stand at the beginning."""

    def image(self, row: int) -> int:
        """Which image a row is, whatever others are attacked with it: its random numbers follow from that."""
        return row

    def known(self, stage: str) -> Mapping[int, bool]:
        """The rows that this stage has decided, and whether it broke them."""
        return self.stages.setdefault(stage, {})

    def tell(self, stage: str, rows: Sequence[int], broken: Sequence[bool]) -> None:
        """Rows have been decided."""
        self.stages.setdefault(stage, {}).update(zip(rows, broken, strict=True))

    def ended(self, stage: str) -> None:
        """The stage has decided every row that stood."""


def hunt(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    searches: Sequence[Search],
    *,
    rng: torch.Generator,
    batch_size: int,
    journal: Journal | None = None,
) -> Tensor:
    """Each search in turn on the rows that still stand (N, C, H, W); a row's result depends on no other row.

    Up to floating-point rounding, that is: a network's logits in a larger batch may differ in their last digits.

    Returns:
        (N, C, H, W): images that the network gets wrong, as the searches met them, else the last search's best. A
        row that the journal knows as broken keeps its clean image.
    """
    journal = journal or Journal()
    base = int(torch.randint(2**31, (), generator=rng, device=rng.device))
    seeds = torch.tensor([seed_of(base, journal.image(row)) % 2**31 for row in range(len(x))], device=x.device)
    result = x.clone()
    with attacking(model), torch.no_grad():
        standing = _right(model, x, y, batch_size)
        journal.plan([search.name for search in searches], int(standing.sum()))
        if searches and not bool(standing.all()):  # wrong as it is
            fallen = (~standing).nonzero().squeeze(1).tolist()
            fresh = [row for row in fallen if row not in journal.known(searches[0].name)]
            if fresh:
                journal.tell(searches[0].name, fresh, [True] * len(fresh))
        for search in searches:
            known = journal.known(search.name)
            fallen = [row for row, broken in known.items() if broken]
            standing[torch.tensor(fallen, dtype=torch.int64, device=x.device)] = False
            open_rows = [row for row in standing.nonzero().squeeze(1).tolist() if row not in known]

            def done(rows: Tensor, broken: Tensor, x_adv: Tensor, search: Search = search) -> None:
                result[rows] = x_adv
                standing[rows[broken]] = False
                journal.tell(search.name, rows.tolist(), broken.tolist())

            todo = torch.tensor(open_rows, dtype=torch.int64, device=x.device)
            _roll(model, search, x, y, threat, seeds, todo, batch_size, done)
            journal.ended(search.name)
    return result


def _roll(
    model: Model,
    search: Search,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    seeds: Tensor,
    todo: Tensor,
    batch_size: int,
    done: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    state: State = {}
    while len(todo) or state:
        held = len(state["row"]) if state else 0
        if held < batch_size and len(todo):
            rows, todo = todo[: batch_size - held], todo[batch_size - held :]
            fresh = search.begin(model, x[rows], y[rows], threat, seeds[rows])
            fresh |= {"row": rows, "x": x[rows], "y": y[rows], "seed": seeds[rows], "age": torch.zeros_like(rows)}
            state = {k: torch.cat([state[k], v]) for k, v in fresh.items()} if state else fresh
        else:
            search.step(model, state, threat)
            state["age"] = state["age"] + 1
        spent = state["broken"] | (state["age"] >= search.steps)
        free = int(spent.sum())
        if free and (free * ROOM >= len(spent) or bool((state["age"] >= search.steps).any())):
            rows, x_adv = state["row"][spent], state["x_adv"][spent]
            allowed = threat.holds(x_adv, x[rows])  # an image outside the threat is no attack, whatever a search says
            done(rows, state["broken"][spent] & allowed, keep(allowed, x_adv, x[rows]))
            state = {k: v[~spent] for k, v in state.items()} if free < len(spent) else {}


def keep(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the `rows` (B,) that are True, else `old`; both (B, …)."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


def _right(model: Model, x: Tensor, y: Tensor, batch_size: int) -> Tensor:
    starts = range(0, len(x), batch_size)
    parts = [model(x[i : i + batch_size]).argmax(dim=1) == y[i : i + batch_size] for i in starts]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=x.device)


def uniform(seeds: Tensor, shape: Sequence[int], *key: int | str, normal: bool = False) -> Tensor:
    """(B, *shape): a row's numbers in [0, 1), or normal ones, from its own seed and `key`, whatever its neighbours."""
    rows = []
    for seed in seeds.tolist():
        rng = torch.Generator().manual_seed(seed_of(seed, *key) % 2**32)
        rows.append((torch.randn if normal else torch.rand)(tuple(shape), generator=rng))
    return torch.stack(rows).to(seeds.device)
