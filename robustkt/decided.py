"""What an evaluation has decided, attack by attack: which images fell, told on by whoever keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from robustkt.attacks import Journal
from robustkt.ranks import Ranks


class Part(Journal):
    """One attack's pages of what has been decided: rows of the images attacked, told on as rows of the split."""

    def __init__(
        self,
        owner: Decided,
        attack: str,
        rows: Sequence[int],
        advance: Callable[[float], None],
        milestone: Callable[[str, int], None],
    ) -> None:
        super().__init__()
        self.owner, self.attack, self.rows, self.advance, self.milestone = owner, attack, rows, advance, milestone
        self.names: Sequence[str] = []

    def plan(self, stages: Sequence[str], standing: int) -> None:
        """Progress counts an image once for all stages."""
        self.names = stages
        self.advance(sum(self._done(row) for row in self.rows))

    def image(self, row: int) -> int:
        """The row of the split: images attacked beside it make no difference."""
        return self.rows[row]

    def known(self, stage: str) -> Mapping[int, bool]:
        """By place among the images attacked."""
        kept = self.owner.known(f"{self.attack}/{stage}")
        return {place: kept[row] for place, row in enumerate(self.rows) if row in kept}

    def tell(self, stage: str, rows: Sequence[int], broken: Sequence[bool]) -> None:
        """By place among the images attacked."""
        before = sum(self._done(self.rows[place]) for place in rows)
        self.owner.tell(f"{self.attack}/{stage}", [self.rows[place] for place in rows], broken)
        self.advance(sum(self._done(self.rows[place]) for place in rows) - before)

    def ended(self, stage: str) -> None:
        """A stage of several is a milestone."""
        left = self.survivors().get(stage)
        if left is not None:
            self.milestone(f"{self.attack}, {stage}", left)

    def _done(self, row: int) -> float:
        """The share of the stages that are behind a row of the split; all of them, once it is broken."""
        for number, stage in enumerate(self.names):
            broken = self.owner.known(f"{self.attack}/{stage}").get(row)
            if broken is not False:
                return 1.0 if broken else number / len(self.names)
        return 1.0

    def fallen(self, images: int) -> dict[str, Tensor]:
        """(images,) bool for each stage: the rows of the split that it broke."""
        out = {stage: torch.zeros(images, dtype=torch.bool) for stage in self.names}
        for stage, mask in out.items():
            mask[[row for row, broken in self.owner.known(f"{self.attack}/{stage}").items() if broken]] = True
        return out

    def survivors(self) -> dict[str, int]:
        """Images left after each stage, where there are several."""
        left, out = len(self.rows), {}
        for stage in self.names:
            left -= sum(self.owner.known(f"{self.attack}/{stage}").values())
            out[stage] = left
        return out if len(self.names) > 1 else {}


class Decided(Journal):
    """What a whole evaluation has decided, attack by attack."""

    def part(
        self,
        attack: str,
        rows: Sequence[int],
        advance: Callable[[float], None],
        milestone: Callable[[str, int], None] = lambda attack, right: None,
    ) -> Part:
        """The pages of one attack on these rows of the split."""
        return Part(self, attack, rows, advance, milestone)

    def share(self, group: Ranks) -> None:
        """Know what every rank has decided."""
        for rank, told in enumerate(group.gather(json.dumps(self.stages).encode())):
            for stage, verdicts in json.loads(told).items() if rank != group.rank else ():
                Journal.tell(self, stage, [int(row) for row in verdicts], list(verdicts.values()))


class Answers:
    """What a smoothed classifier answered, row by row, in pages of what has been decided: one a class."""

    def __init__(self, owner: Decided, attack: str) -> None:
        self.owner, self.page = owner, f"{attack}/answer "
        pages = {name: rows for name, rows in owner.stages.items() if name.startswith(self.page)}
        self.known = {row: int(name.removeprefix(self.page)) for name, rows in pages.items() for row in rows}

    def tell(self, row: int, label: int) -> None:
        """A row has been answered; −1 is an abstention."""
        self.known[row] = label
        self.owner.tell(f"{self.page}{label}", [row], [True])
