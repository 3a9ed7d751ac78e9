"""A registry's upkeep: names and tags, taking away, collecting, verifying, repairing. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robustkt import registry as store
from robustkt.errors import NotFoundError, UsageError
from robustkt.registry import Registry, upkeep
from robustkt.registry.repair import repair as mend
from robustkt.registry.verify import looks_like_one

GRACE = "14d"  # for what nothing reaches any more
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def tag(name: str, generation: str, registry: Registry | None = None) -> dict[str, Any]:
    """Let a tag point at a generation, moving it if there is one: {"tag", "generation", "id", "before"}.

    Raises:
        RobustKTError: no such generation, or a name that no tag can have.
    """
    registry = registry or Registry.locate()
    found = registry.get(generation)
    before = upkeep.tag(registry, name, found.id)
    return {
        "tag": name,
        "generation": found.name,
        "id": found.id,
        "before": registry.names_of(before)[0] if before else None,
    }


def untag(name: str, registry: Registry | None = None) -> dict[str, Any]:
    """Take a tag away, its history staying: {"tag", "generation", "id"} of what it pointed at.

    Raises:
        NotFoundError: there is no such tag.
    """
    registry = _existing(registry)
    identity = upkeep.untag(registry, name)
    return {"tag": name, "generation": registry.names_of(identity)[0], "id": identity}


def tags(name: str | None = None, registry: Registry | None = None) -> dict[str, Any]:
    """All tags, or one, with where they have been: {"tags": [{"tag", "generation", "id", "history"}]}.

    Raises:
        NotFoundError: there never was such a tag.
    """
    refs = (registry := _existing(registry)).refs()
    wanted = [name] if name is not None else sorted({*refs["tags"], *refs["history"]})
    if name is not None and name not in refs["history"] and name not in refs["tags"]:
        raise NotFoundError(f"there is no tag '{name[:80]}'", f"Set it with `robustkt tag {name[:80]} GEN`.")

    def told(identity: str | None) -> dict[str, Any]:
        return {"generation": registry.names_of(identity)[0] if identity else None, "id": identity or None}

    return {
        "tags": [
            {
                "tag": one,
                **told(refs["tags"].get(one)),
                "history": [{**told(move["id"]), "at": move["at"]} for move in refs["history"].get(one, [])],
            }
            for one in wanted
        ]
    }


def rename(generation: str, name: str, registry: Registry | None = None) -> dict[str, Any]:
    """Give a generation another name; its id, and what descends from it, stay: {"generation", "id", "before"}.

    Raises:
        RobustKTError: the name belongs to another generation, or cannot be one.
    """
    registry = _existing(registry)
    before = upkeep.rename(registry, generation, name)
    return {"generation": name, "id": registry.get(name).id, "before": before}


def rm(
    generations: Sequence[str], *, descendants: bool = False, name_only: bool = False, registry: Registry | None = None
) -> dict[str, Any]:
    """Take generations out of the registry; `gc` frees their space later: {"removed", "ancestors"}.

    Args:
        generations: names, ids, tags.
        descendants: what descends from them too.
        name_only: where others descend from one, take the name alone: it stays as their ancestor.
        registry: the nearest one by default.

    Returns:
        removed [name], ancestors [name]: those of them whose generation stays, as others descend from it.

    Raises:
        UsageError: both `descendants` and `name_only`.
        RobustKTError: others descend from one of them and neither is said, or a tag points at one.
    """
    if descendants and name_only:
        raise UsageError("--descendants and --name-only say opposite things", "Give one of them.")
    removed = upkeep.remove(_existing(registry), generations, descendants=descendants, name_only=name_only)
    return {"removed": removed.names, "ancestors": removed.ancestors}


def gc(*, grace: str = GRACE, dry_run: bool = False, registry: Registry | None = None) -> dict[str, Any]:
    """Free what nothing reaches: {"registry", "dry_run", "files", "bytes", "spared"}.

    Args:
        grace: how long it must have been so, as 14d, 12h, 30m or 0.
        dry_run: only say.
        registry: the nearest one by default.

    Raises:
        RobustKTError: the registry is damaged, so that nobody knows what is needed.
    """
    registry = registry or Registry.locate()
    found = upkeep.collect(registry, grace=duration(grace), dry_run=dry_run)
    told = {"files": found.paths, "bytes": found.size, "spared": found.spared}
    return {"registry": str(registry.root), "dry_run": dry_run, **told}


def verify(registry: Registry | None = None, *, repair: bool = False) -> dict[str, Any]:
    """Every hash re-derived and every pointer followed.

    Args:
        registry: the nearest one by default.
        repair: move damage aside, into the registry's `quarantine`, and mend what follows from the rest.

    Returns:
        ok, registry, generations, problems, notes; with `repair` also moved and mended.

    Raises:
        NotFoundError: there is no registry.
        RobustKTError: it cannot be written.
    """
    registry = registry or Registry.locate()
    if repair and not registry.exists and not looks_like_one(registry):
        raise NotFoundError(f"there is no registry in {registry.root}", "Name one with --registry DIR.")
    done = mend(registry) if repair else None
    findings = store.verify(registry)
    told = [{"what": f.what, "path": str(f.path.relative_to(registry.root))} for f in findings]
    pairs = list(zip(findings, told, strict=True))
    return {
        "ok": not any(f.damage for f in findings),
        "registry": registry.label,
        "generations": len(list((registry.root / "generations").glob("*.json"))),
        "problems": [text for f, text in pairs if f.damage],
        "notes": [text for f, text in pairs if not f.damage],
        **({"moved": [list(pair) for pair in done.moved], "mended": done.mended} if done else {}),
    }


def duration(text: str) -> float:
    """Seconds in a duration as 14d, 12h, 30m, 90s or 0.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smhdw]?)", text.strip())
    if match is None or (not match[2] and float(match[1])):
        raise UsageError(f"'{text[:40]}' is no duration", "Write it as 14d, 12h, 30m or 0.")
    return float(match[1]) * UNITS.get(match[2], 0)


def _existing(registry: Registry | None) -> Registry:
    registry = registry or Registry.locate()
    if not registry.exists:
        raise NotFoundError(f"there is no registry in {registry.root}", "Name one with --registry DIR.")
    return registry
