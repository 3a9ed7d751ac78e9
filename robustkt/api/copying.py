"""Copying generations between registries, and reading a remote one; nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.copying import Folder, Plan, Target, check, plan, send
from robustkt.registry.remote import Mirror, Remote, remote_at


def open_registry(place: str) -> Registry:
    """A registry to read: a local folder, or a remote one by way of a copy of its small files in the user's cache.

    Raises:
        NotFoundError: there is none at the address.
        RobustKTError: the store refuses or cannot be reached.
    """
    url = remote_at(place)
    return Registry.locate(Path(place)) if url is None else Mirror(url)


def verify_remote(url: str, progress: Progress | None = None) -> dict[str, Any]:
    """What `verify` says of the remote registry at `url`; every byte of it is fetched anew.

    Raises:
        NotFoundError: there is none at the address.
        RobustKTError: the store refuses or cannot be reached.
    """
    from robustkt.api.keeping import verify

    mirror = Mirror(url, anew=True)
    with mirror.using_objects():
        with (progress or Silent()).bar(f"fetching from {mirror.label}", mirror.total()) as bar:
            mirror.fetch_all(bar.advance)
        return verify(registry=mirror)


def copy(
    generations: Sequence[str] = (),
    *,
    to: str | None = None,
    source: str | None = None,
    rename: str | None = None,
    suffix: str = "",
    dry_run: bool = False,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Copy generations with all their ancestors, weights, records, measurements and names to or from a place.

    Args:
        generations: which; all when none is named.
        to: where they go: a folder or an fsspec address.
        source: where they come from instead.
        rename: the name that the one generation gets at its goal.
        suffix: what is put behind every name that belongs to another generation at the goal.
        dry_run: write nothing.
        registry: the registry at this end; the nearest one by default.
        progress: where the copying reports to.

    Returns:
        from, to, dry_run, generations [{generation, id, new}], files, bytes, names {name: id}, tags, kept.

    Raises:
        UsageError: neither or both of `to` and `source`.
        NotFoundError: a registry or a generation that is not there.
        IntegrityError: something is not what its hash says; nothing is written.
        RobustKTError: a name is taken, or a place refuses; what is done is kept and not sent again.
    """
    if (to is None) == (source is None):
        raise UsageError("copy takes either --to PLACE or --from PLACE", "Such as --to s3://bucket/registry.")
    if not (to or source):
        raise UsageError("the place to copy to or from is an empty text", "Such as --to s3://bucket/registry.")
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,60}", suffix):
        raise UsageError(f"--suffix '{suffix}' cannot be part of a name", "Use letters, digits, '.', '_' and '-'.")
    progress = progress or Silent()
    here = registry or Registry.locate()
    begin = here if to is not None else _source(str(source))
    goal = _target(to) if to is not None else _target(str(here.root))
    if not begin.exists:
        raise _no_registry(begin)
    if isinstance(goal, Folder) and goal.registry.root.resolve() == begin.root.resolve():
        raise UsageError(f"{begin.label} is both ends of the copy", "Name another place.")
    sizes = begin.object_size if isinstance(begin, Mirror) else lambda i: _stored(begin, i)
    planned = plan(begin, goal, generations, sizes=sizes, rename=rename, suffix=suffix)
    if not dry_run and (planned.files or planned.refs["names"] or planned.refs["tags"]):
        _carry(begin, goal, planned, progress)
    return _answer(begin, goal, planned, dry_run=dry_run)


def _carry(begin: Registry, goal: Target, planned: Plan, progress: Progress) -> None:
    """Fetch what is remote, check everything, write."""
    stored = [*(file for file in planned.files if file.stage == "objects"), *planned.bound]
    objects = list({file.path: file for file in stored}.values())
    with begin.using_objects() if isinstance(begin, Mirror) else nullcontext():
        if isinstance(begin, Mirror) and objects:
            with progress.bar(f"fetching from {begin.label}", sum(file.size for file in objects)) as bar:
                begin.fetch([f"sha256:{Path(file.path).name}" for file in objects], bar.advance)
        check(planned)
        with progress.bar(f"copying to {goal.label}", planned.size) as bar:
            send(planned, goal, bar.advance)


def _answer(begin: Registry, goal: Target, planned: Plan, *, dry_run: bool) -> dict[str, Any]:
    there = planned.refs["names"] if dry_run else {}
    names = {identity: name for name, identity in reversed([*goal.refs()["names"].items(), *there.items()])}
    return {
        "from": begin.label,
        "to": goal.label,
        "dry_run": dry_run,
        "generations": [
            {"generation": names.get(g.id, g.id[7:19]), "id": g.id, "new": g.id in planned.new}
            for g in planned.generations
        ],
        "files": len(planned.files),
        "bytes": planned.size,
        "names": dict(planned.refs["names"]),
        "tags": dict(planned.refs["tags"]),
        "kept": list(planned.kept),
    }


def _source(place: str) -> Registry:
    found = open_registry(place)
    if found.problems:
        what, path = found.problems[0]
        raise RobustKTError(
            f"{found.label}: {path.relative_to(found.root)}: {what}",
            f"Nothing was copied. `robustkt verify --registry {found.label}` names all that is wrong there.",
        )
    return found


def _target(place: str) -> Target:
    url = remote_at(place)
    if url is not None:
        remote = Remote(url)
        remote.exists()  # or something else lies there
        return remote
    registry = Registry(Path(place).expanduser())
    if registry.exists:
        registry.check_format()
    elif registry.root.is_file() or (registry.root.is_dir() and any(registry.root.iterdir())):
        raise RobustKTError(f"{place} holds something that is not a registry", _meant(registry, "Name a new folder."))
    return Folder(registry)


def _no_registry(registry: Registry) -> NotFoundError:
    return NotFoundError(
        f"there is no registry in {registry.label}", _meant(registry, "Name another with --registry or --from.")
    )


def _meant(registry: Registry, otherwise: str) -> str:
    inner = Registry(Path(registry.label) / "registry")
    return f"Did you mean {inner.label}?" if inner.exists else otherwise


def _stored(registry: Registry, identity: str) -> int:
    path = registry.object_path(identity)
    return path.stat().st_size if path.is_file() else 0  # that it is missing shows when it is read
