"""Finished sweeps: kept beside their generation with a log, and found again, so that no mixture is measured twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robustkt.api.loading import machine
from robustkt.api.verdicts import table
from robustkt.errors import RobustKTError
from robustkt.evaluate import ALGORITHM, Attacked
from robustkt.generation import Generation
from robustkt.mixture import CLEAN, ROBUST
from robustkt.numbers import exact, wilson
from robustkt.registry import Registry
from robustkt.registry.measurements import key_of

KIND = "sweep"
Kept = dict[str, list[int]]  # "clean", or an attack -> per image 1 where the mixture is right


def settings_of(found: Generation, betas: Iterable[Fraction], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a sweep: what was asked for, of which mixtures, between which two networks."""
    ends = [found.in_mode(mode).network() for mode in (CLEAN, ROBUST)]
    return {
        **asked,
        "betas": [exact(beta) for beta in sorted(set(betas))],
        "ends": ends,
        "weights": found.network(),
        **found.domain,
    }


def kept(told: Sequence[Attacked]) -> Kept:
    """What the attacks left of one mixture."""
    return {one.name: one.right.long().tolist() for one in told}


def point(beta: str, columns: Kept) -> dict[str, Any]:
    """Its figures with 95 % Wilson intervals; an image counts as robust if it withstands every attack."""
    attacked = [column for name, column in columns.items() if name != "clean"]
    worst = {"robust": [min(row) for row in zip(columns["clean"], *attacked, strict=True)]} if attacked else {}
    told: dict[str, Any] = {"beta": float(Fraction(beta))}
    for kind, column in {"clean": columns["clean"], **worst}.items():
        told |= {f"{kind}_accuracy": sum(column) / len(column), f"{kind}_interval": wilson(sum(column), len(column))}
    return told


def known(registry: Registry, found: Generation, settings: Mapping[str, Any]) -> dict[str, Kept]:
    """By β, the mixtures of stored sweeps that were made alike; none of a claim, or of a log that is damaged."""
    out: dict[str, Kept] = {}
    try:
        for result in registry.results(found.id, KIND):
            told = result.content["settings"]
            alike = {**told, "betas": settings["betas"]} == settings
            if alike and not result.claimed and result.content.get("algorithm") == ALGORITHM:
                rows = table(registry.log(result))
                for beta in told["betas"]:
                    names = ("clean", *(name for name in told["attacks"] if name != "clean"))
                    out[beta] = {name: rows[f"{beta}|{name}"].tolist() for name in names}
    except RobustKTError:
        pass  # `verify` names it, and what was not read is measured again
    return out


def keep(
    registry: Registry,
    found: Generation,
    settings: Mapping[str, Any],
    labels: Tensor,
    measured: Mapping[str, Kept],
    device: torch.device,
) -> None:
    """Store a finished sweep; its log has a row an image and a column a mixture and attack.

    Args:
        registry: where the generation is.
        found: what was swept.
        settings: as of `settings_of`.
        labels: (N,), of the images.
        measured: by β, what each mixture keeps.
        device: it was measured on.
    """
    betas = settings["betas"]
    columns = {f"{beta}|{name}": column for beta in betas for name, column in measured[beta].items()}
    images = range(0, len(labels) * settings["skip"], settings["skip"])
    rows = zip(images, labels.tolist(), *columns.values(), strict=True)
    lines = ["\t".join(map(str, row)) for row in (("idx", "label", *columns), *rows)]
    figures = {"points": [point(beta, measured[beta]) for beta in betas]}
    content = {"settings": dict(settings), "figures": figures, "algorithm": ALGORITHM, **machine(device)}
    registry.put_result(found.id, KIND, key_of(settings), content, ("\n".join(lines) + "\n").encode())
