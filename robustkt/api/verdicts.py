"""What attacks left of each image: the log of an evaluation, read again so that no attack is run twice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustkt.errors import RobustKTError
from robustkt.evaluate import ALGORITHM, Attacked
from robustkt.generation import Generation
from robustkt.registry import Registry
from robustkt.registry.measurements import table as columns_of


@dataclass(frozen=True)
class Earlier:
    """An attack that a stored evaluation had under the same settings."""

    key: str  # of that evaluation
    attacked: Attacked
    figures: Mapping[str, Any]


def written(indices: Tensor, labels: Tensor, results: Sequence[Attacked]) -> bytes:
    """A row an image, a column an attack: 1 where it survived, so that two generations can be compared pair by pair.

    Columns `attack|stage` follow: 1 but where this stage broke the image.
    """
    columns = {"idx": indices, "label": labels, **{result.name: result.right for result in results}}
    for result in results:
        columns |= {f"{result.name}|{stage}": ~broken for stage, broken in result.broken.items() if stage}
    rows = torch.stack([column.long() for column in columns.values()], dim=1).tolist()
    return ("\n".join("\t".join(map(str, row)) for row in [list(columns), *rows]) + "\n").encode()


def earlier(
    registry: Registry, found: Generation, settings: Mapping[str, Any], names: Collection[str]
) -> dict[str, Earlier]:
    """Those of the attacks `names` that an evaluation with the same settings and the same algorithm has run."""
    out: dict[str, Earlier] = {}
    try:
        for result in registry.results(found.id, "evaluation"):
            told = result.content["settings"]
            if (
                result.claimed
                or result.content.get("algorithm") != ALGORITHM
                or {**told, "attacks": settings["attacks"]} != settings
            ):
                continue
            known = result.content["figures"]["attacks"]
            wanted = [name for name in known if name in names and name not in out and name != "clean"]
            if wanted:
                rows = table(registry.log(result))
                out |= {name: Earlier(result.key, _attacked(name, known[name], rows), known[name]) for name in wanted}
    except RobustKTError:
        pass  # damaged: `verify` names it, and what was not read is measured again
    return out


def table(log: bytes) -> dict[str, Tensor]:
    """The columns of an evaluation's log, (N,) int64 each."""
    return {name: torch.tensor(column) for name, column in columns_of(log).items()}


def _attacked(name: str, figures: Mapping[str, Any], table: Mapping[str, Tensor]) -> Attacked:
    right = table[name].bool()
    stages = {stage: round(share * len(right)) for stage, share in figures.get("stages", {}).items()}
    columns = {column.partition("|"): kept.bool() for column, kept in table.items()}
    broken = {stage: ~kept for (of, bar, stage), kept in columns.items() if bar and of == name}
    if figures.get("smoothed"):  # which other class it was is not kept
        return Attacked(name, right, predicted=torch.where(right, table["label"], -1))
    return Attacked(name, right, stages, broken or {"": table["clean"].bool() & ~right})
