"""Taking a published generation over, with its ancestry: everything re-derived first, its figures as claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.generation import NAME, Generation
from robustkt.hub import checking
from robustkt.hub.fetching import COMMIT, Index, Source, check_local, fetch, fetch_index, parse_source, resolve
from robustkt.hub.form import INDEX, WEIGHTS
from robustkt.hub.session import Session
from robustkt.numbers import digest
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry, claims
from robustkt.registry.adopting import Bundle, adopt
from robustkt.registry.files import copy_atomic, digest_file


def pull(
    repo: str, *, name: str | None = None, registry: Registry | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Take over a published generation and its ancestors; nothing of it is run or believed.

    Args:
        repo: `ORG/NAME`, `ORG/NAME@REVISION`, or a folder in the published form, written as ./DIR or /DIR.
        name: what it is called here, instead of the names that it has there.
        registry: the nearest one by default.
        progress: where to report.

    Returns:
        generation, id, names, repo, revision, commit, new, ancestors, claimed.

    Raises:
        NotFoundError: no such repository or revision, or an ancestor's weights are nowhere.
        IntegrityError: something is not what its hash, seal, name or log says.
        RobustKTError: the name belongs to another generation, a tag has moved, or the Hub refuses.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"'{name[:80]}' cannot be a generation's name", "Use letters, digits, '.', '_' and '-'.")
    if repo.startswith((".", "/", "~")):
        return _pull_folder(registry, Path(repo).expanduser(), name, progress)
    where, revision = parse_source(repo)
    session = Session.open()
    source = resolve(session, where, revision)
    _check_tag(registry, source)
    registry.create()
    key = digest(f"{source.repo} {source.commit}".encode())[7:23]
    with registry.working(registry.job_path("pull", key), f"a pull of {source}", []):
        folder = registry.job_path("pull", key)
        return _take(registry, session, source, folder, name, progress)


def _take(
    registry: Registry, session: Session, source: Source, folder: Path, name: str | None, progress: Progress
) -> dict[str, Any]:
    have = _there(registry, fetch_index(session, source, folder / "0"))
    index = fetch(session, source, folder / "0", progress, have=have)
    own, above = checking.manifests(folder / "0", index)
    found = {own.id: checking.bundle(folder / "0", index, own, "", source)}
    for number, (identity, ancestor) in enumerate(above.items(), start=1):
        if f"ancestors/{identity[7:]}/{WEIGHTS}" in index.files:
            found[identity] = checking.bundle(folder / "0", index, ancestor, f"ancestors/{identity[7:]}/", source)
        elif not _whole(registry, ancestor):
            home = index.ancestors[identity]["repo"]
            found[identity] = _ancestor(registry, session, home, ancestor, folder / str(number), source, progress)
    return _keep(registry, found, own, source, name)


def _ancestor(
    registry: Registry,
    session: Session,
    home: str | None,
    ancestor: Generation,
    folder: Path,
    child: Source,
    progress: Progress,
) -> Bundle:
    """From the repository that the child names; only its hash decides whether it is the one."""
    push_all = "Pull it first, or ask the publisher for `robustkt push --with-ancestors`."
    if home is None:
        raise NotFoundError(f"the weights of {ancestor.name}, an ancestor, are not in {child}", push_all)
    source = resolve(session, home, None)
    index = fetch_index(session, source, folder)
    if index.generation != ancestor.id:
        raise NotFoundError(f"{home} holds another generation than {ancestor.name}, an ancestor of {child}", push_all)
    only = [path for path in index.files if not path.endswith((".md", ".png"))]
    fetch(session, source, folder, progress, only=only, have=_there(registry, index))
    own, _ = checking.manifests(folder, index)
    return checking.bundle(folder, index, own, "", source)


def _pull_folder(registry: Registry, place: Path, name: str | None, progress: Progress) -> dict[str, Any]:
    """The same from a folder: copied first, checked then."""
    if not (place / INDEX).is_file():
        raise NotFoundError(f"{place} holds no {INDEX}", "Name a folder that `robustkt push --to` wrote.")
    registry.create()
    commit = digest_file(place / INDEX)[7:47]
    source = Source(f"folder/{place.resolve().name}", None, commit)
    folder = registry.job_path("pull", commit[:16])
    with registry.working(folder, f"a pull of {place}", []):
        listed = check_local(place)
        for path in (INDEX, *listed.files):
            copy_atomic(place / path, folder / path)
        index = check_local(folder)
        own, above = checking.manifests(folder, index)
        found = {own.id: checking.bundle(folder, index, own, "", source)}
        for identity, ancestor in above.items():
            if f"ancestors/{identity[7:]}/{WEIGHTS}" in index.files:
                found[identity] = checking.bundle(folder, index, ancestor, f"ancestors/{identity[7:]}/", source)
            elif not _whole(registry, ancestor):
                fix = "Pull it first, or publish with `robustkt push --with-ancestors`."
                raise NotFoundError(f"the weights of {ancestor.name}, an ancestor, are not in {place}", fix)
        return _keep(registry, found, own, source, name)


def _keep(
    registry: Registry, found: dict[str, Bundle], own: Generation, source: Source, name: str | None
) -> dict[str, Any]:
    order = checking.oldest_first({identity: bundle.generation for identity, bundle in found.items()})
    done = adopt(registry, [found[identity] for identity in order], name)
    names = registry.names_of(own.id)
    return {
        "generation": name or names[0],
        "id": own.id,
        "names": names,
        "repo": source.repo,
        "revision": source.revision,
        "commit": source.commit,
        "new": own.id in done.new,
        "ancestors": [registry.names_of(identity)[0] for identity in order if identity != own.id],
        "claimed": done.claimed,
        "nameless": done.nameless,
    }


def _there(registry: Registry, index: Index) -> set[str]:
    """The hashes of large files that the registry has already, whole."""
    large = {told.hash for path, told in index.files.items() if path.endswith(".safetensors")}
    return {i for i in large if registry.object_path(i).is_file() and digest_file(registry.object_path(i)) == i}


def _whole(registry: Registry, generation: Generation) -> bool:
    """Whether the registry has a generation with all its objects."""
    stored = all(registry.object_path(identity).is_file() for identity in generation.objects)
    return stored and registry.manifest_path(generation.id).is_file()


def _check_tag(registry: Registry, source: Source) -> None:
    """A tag is to stay where it is: one that has moved since it was pulled here is told."""
    if source.revision in (None, "main") or COMMIT.fullmatch(source.revision or ""):
        return
    for known in _pulled(registry):
        if (known.repo, known.revision) == (source.repo, source.revision) and known.commit != source.commit:
            raise RobustKTError(
                f"{source.repo}@{source.revision} has moved since it was pulled here from {known.commit[:12]}",
                f"If that is meant, name the commit: robustkt pull {source.repo}@{source.commit}",
            )


def _pulled(registry: Registry) -> Iterator[claims.Claims]:
    for path in sorted((registry.root / claims.FOLDER).glob("*.json")):
        found = claims.read(registry.root, f"sha256:{path.stem}")
        if found is not None:
            yield found
