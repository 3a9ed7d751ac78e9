"""Taking over generations that were made elsewhere: checked before, committed together, their figures as claims."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from robustkt.errors import IntegrityError
from robustkt.generation import Generation
from robustkt.numbers import digest
from robustkt.registry import claims
from robustkt.registry.claims import Claims
from robustkt.registry.files import digest_file, sync_folder, whole_object, write_atomic, writing
from robustkt.registry.refs import name_taken
from robustkt.registry.store import Registry


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A generation from elsewhere, every hash of it derived again."""

    generation: Generation
    record: bytes  # sealed
    objects: Mapping[str, Path]  # those that came; the others must be in the registry
    results: Mapping[str, bytes]  # file name to bytes: sealed measurements and their logs
    names: Sequence[str]
    claims: Claims  # its results are those of this bundle


@dataclass(frozen=True)
class Adopted:
    """What a takeover changed."""

    new: list[str] = field(default_factory=list)  # ids
    claimed: list[str] = field(default_factory=list)  # results of the last bundle
    nameless: list[str] = field(default_factory=list)  # names that belong to other generations here


def adopt(registry: Registry, bundles: Sequence[Bundle], name: str | None = None) -> Adopted:
    """Commit generations, ancestors first and the one that was asked for last; its names are written at the very end.

    What is there already stays as it is: a measurement that was made here is not replaced by a claim.

    Args:
        registry: where to; made when there is none.
        bundles: with every parent among them or in the registry.
        name: of the last one, instead of the names that it came with.

    Raises:
        RobustKTError: the name belongs to another generation, or the disk refused.
        IntegrityError: an object or a parent is missing.
    """
    registry.create()
    for bundle in bundles:
        for identity, path in bundle.objects.items():
            _move(registry, identity, path)
        for identity in bundle.generation.objects:
            whole_object(registry.object_path(identity), identity)
    done = Adopted()
    with registry.changing() as refs:
        last = bundles[-1]
        asked = name or next(iter(last.names), "") or registry.next_name()
        if refs["names"].get(asked, last.generation.id) != last.generation.id:
            raise name_taken(asked)
        named = set(refs["names"].values())
        for bundle in bundles:
            fresh = _write(registry, bundle)
            done.claimed[:] = sorted(fresh)
            identity = bundle.generation.id
            if identity not in named:
                done.new.append(identity)
            wanted = [asked, *([] if name else last.names)] if bundle is last else bundle.names
            for one in dict.fromkeys(wanted):
                reserved = one == asked and bundle is not last  # an ancestor may come with that very name
                if reserved or refs["names"].setdefault(one, identity) != identity:
                    done.nameless.append(one)
    return done


def _move(registry: Registry, identity: str, path: Path) -> None:
    """An object into its place; `path` lies in the registry's own file system."""
    place = registry.object_path(identity)
    if place.is_file() and digest_file(place) == identity:
        os.utime(place)  # `gc` spares what is young
        return
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.utime(path)
        os.replace(path, place)
        sync_folder(place.parent)


def _write(registry: Registry, bundle: Bundle) -> list[str]:
    """Claims first, so that nothing is ever there unmarked; then results, record and manifest. Returns new results."""
    generation, root = bundle.generation, registry.root
    for parent in generation.parents.values():
        if not registry.manifest_path(parent).is_file():
            raise IntegrityError(f"a parent of {generation.name}, {parent[:19]}…, is missing", "Pull it first.")
    folder = registry.results_path(generation.id)
    headers = {n: data for n, data in bundle.results.items() if n.endswith(".json") and not (folder / n).is_file()}
    known, made_here = claims.read(root, generation.id), registry.manifest_path(generation.id).is_file()
    if headers or known is not None or not made_here:
        fresh = {name.removesuffix(".json"): digest(data) for name, data in headers.items()}
        claims.write(root, generation.id, replace(bundle.claims, results={**(known.results if known else {}), **fresh}))
    logs = {name: data for name, data in bundle.results.items() if name.endswith(".tsv")}
    for name, data in {**logs, **headers}.items():
        if not (folder / name).is_file():
            write_atomic(folder / name, data)
    for path, data in (
        (registry.record_path(generation.id), bundle.record),
        (registry.manifest_path(generation.id), generation.manifest()),
    ):
        if not path.is_file():
            write_atomic(path, data)
    return [name.removesuffix(".json") for name in headers]
