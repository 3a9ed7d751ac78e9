"""Whose terms a generation is under: a student is published under no freer ones than its teachers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robustkt.errors import RobustKTError, UsageError
from robustkt.generation import Generation
from robustkt.registry import Registry, claims

LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
RESTRICTED = re.compile(r"(^|-)(nc|noncommercial|non-commercial|research)(-|$)")


def inherited(
    registry: Registry, generation: Generation, ancestors: Sequence[Generation], asked: str | None
) -> str | None:
    """The licence to publish under: `asked`, or what the generation came with, or its ancestors', the strictest first.

    Raises:
        UsageError: `asked` is no identifier.
        RobustKTError: `asked` would give away what an ancestor's licence reserves.
    """
    if asked is not None and not LICENSE.fullmatch(asked):
        raise UsageError(f"'{asked[:60]}' is no licence's identifier", "Write it as the Hub does: apache-2.0, mit.")
    terms = [(g, found) for g in (generation, *ancestors) for found in came_with(registry, g)]
    bound = [(g, found) for g, found in terms if non_commercial(found)]
    if asked is None:
        return (bound or terms)[0][1] if terms else None
    if bound and not non_commercial(asked):
        strict, theirs = bound[0]
        raise RobustKTError(
            f"{strict.name} is under {theirs}, which does not allow {generation.name} to be published under {asked}",
            f"Leave --license out: it is {theirs} then.",
        )
    return asked.lower()


def non_commercial(license: str) -> bool:
    """Whether a licence reserves commercial use."""
    return RESTRICTED.search(license.lower()) is not None


def came_with(registry: Registry, generation: Generation) -> list[str]:
    """The licences that a generation was imported, made or pulled with: of its manifest, run record and claims.

    The manifest is hashed into the id, so nobody who passes the generation on can take that one away.
    """
    record, claimed = registry.record(generation.id), claims.read(registry.root, generation.id)
    said = (
        generation.recipe.settings.get("license"),
        record.get("license"),
        record.get("licence"),  # as earlier versions spelled it
        claimed.license if claimed else None,
    )
    plain = [re.sub(r"[\s_()]+", "-", text.strip()).strip("-").lower() for text in said if isinstance(text, str)]
    return list(dict.fromkeys(text for text in plain if LICENSE.fullmatch(text)))
