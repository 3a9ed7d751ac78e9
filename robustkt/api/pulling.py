"""Taking a published generation over, with its ancestry: everything re-derived first, its figures as claims."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustkt.errors import NotFoundError, RobustKTError
from robustkt.generation import Generation, check_name
from robustkt.hub import checking
from robustkt.hub.fetching import (
    COMMIT,
    Index,
    Source,
    check_local,
    fetch,
    fetch_index,
    parse_source,
    resolve,
    signed_files,
)
from robustkt.hub.form import INDEX, SIGNATURE, WEIGHTS
from robustkt.hub.session import Session
from robustkt.hub.signing import IGNORED, Means, check, parse_requirement
from robustkt.numbers import MAX_JSON, digest
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry, claims
from robustkt.registry.adopting import Bundle, adopt
from robustkt.registry.files import copy_atomic, digest_file
from robustkt.registry.heartbeats import Heartbeat


def pull(
    repo: str,
    *,
    name: str | None = None,
    require_signature: str | None = None,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take over a published generation and its ancestors; nothing of it is run or believed.

    Args:
        repo: `ORG/NAME`, `ORG/NAME@REVISION`, or a folder in the published form, written as ./DIR or /DIR.
        name: what it is called here, instead of the names that it has there.
        require_signature: refuse what is not signed by `key:PUBLIC.pem`, by a certificate of `cert:CA.pem[,…]`, or by
            `sigstore:IDENTITY,ISSUER`; what is fetched of ancestors too.
        registry: the nearest one by default.
        progress: where to report.

    Returns:
        generation, id, names, repo, revision, commit, signed_by, new, ancestors, claimed (measurements that came with
        it just now), still_claimed (earlier ones that nobody has made here yet), nameless.

    Raises:
        NotFoundError: no such repository or revision, or an ancestor's weights are nowhere.
        IntegrityError: something is not what its hash, seal, name or log says, or is not signed as required.
        UsageError: a name that no generation can have.
        RobustKTError: the name belongs to another generation, a tag has moved, or the Hub refuses.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if name is not None:
        check_name(name)
    required = parse_requirement(require_signature) if require_signature is not None else None
    if repo.startswith((".", "/", "~")):
        found = _pull_folder(registry, Path(repo).expanduser(), name, required)
        return {**found, "signed_by": str(required) if required else None}
    try:
        where, revision = parse_source(repo)
        session = Session.open()
        source = resolve(session, where, revision)
    except RobustKTError as error:
        if (Path(repo) / INDEX).is_file():  # they meant the folder, most likely
            error.fix = f"For the folder that is here: robustkt pull ./{repo}"
        raise
    _check_tag(registry, source)
    registry.create()
    key = digest(f"{source.repo} {source.commit}".encode())[7:23]
    with registry.working(registry.job_path("pull", key), f"a pull of {source}", []):
        folder = registry.job_path("pull", key)
        heart = Heartbeat(progress, folder, source=str(source))
        found = _take(registry, session, source, folder, name, required, heart)
    return {**found, "signed_by": str(required) if required else None}


def _take(
    registry: Registry,
    session: Session,
    source: Source,
    folder: Path,
    name: str | None,
    required: Means | None,
    progress: Progress,
) -> dict[str, Any]:
    have = _there(registry, fetch_index(session, source, folder / "0"))
    index = fetch(session, source, folder / "0", progress, have=have, required=required)
    own, above = checking.manifests(folder / "0", index)
    found = {own.id: checking.bundle(folder / "0", index, own, above, "", source)}
    for number, (identity, ancestor) in enumerate(above.items(), start=1):
        if f"ancestors/{identity[7:]}/{WEIGHTS}" in index.files:
            place = f"ancestors/{identity[7:]}/"
            found[identity] = checking.bundle(folder / "0", index, ancestor, above, place, source)
        elif not _whole(registry, ancestor):
            home = index.ancestors[identity]["repo"]
            below = folder / str(number)
            found[identity] = _ancestor(registry, session, home, ancestor, below, source, required, progress)
    return _keep(registry, found, own, source, name)


def _ancestor(
    registry: Registry,
    session: Session,
    home: str | None,
    ancestor: Generation,
    folder: Path,
    child: Source,
    required: Means | None,
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
    fetch(session, source, folder, progress, only=only, have=_there(registry, index), required=required)
    own, above = checking.manifests(folder, index)
    return checking.bundle(folder, index, own, above, "", source)


def _pull_folder(registry: Registry, place: Path, name: str | None, required: Means | None) -> dict[str, Any]:
    """The same from a folder: copied first, checked then."""
    if not (place / INDEX).is_file():
        raise NotFoundError(f"{place} holds no {INDEX}", "Name a folder that `robustkt push --to` wrote.")
    registry.create()
    commit = digest_file(place / INDEX)[7:47]
    source = Source(f"folder/{place.resolve().name}", None, commit)
    folder = registry.job_path("pull", commit[:16])
    with registry.working(folder, f"a pull of {place}", []):
        try:
            return _take_folder(registry, place, folder, source, name, required)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # a second try would copy it all again


def _take_folder(
    registry: Registry, place: Path, folder: Path, source: Source, name: str | None, required: Means | None
) -> dict[str, Any]:
    listed = check_local(place)
    for path in (INDEX, *listed.files):
        copy_atomic(place / path, folder / path)
    index = check_local(folder)
    if required is not None:
        check(_signature(place), signed_files(folder, index), _others(place, index), required, str(place))
    own, above = checking.manifests(folder, index)
    found = {own.id: checking.bundle(folder, index, own, above, "", source)}
    for identity, ancestor in above.items():
        if f"ancestors/{identity[7:]}/{WEIGHTS}" in index.files:
            inside = f"ancestors/{identity[7:]}/"
            found[identity] = checking.bundle(folder, index, ancestor, above, inside, source)
        elif not _whole(registry, ancestor):
            fix = "Pull it first, or publish with `robustkt push --with-ancestors`."
            raise NotFoundError(f"the weights of {ancestor.name}, an ancestor, are not in {place}", fix)
    return _keep(registry, found, own, source, name)


def _signature(place: Path) -> bytes | None:
    """The signature in a folder, if it is one by its size."""
    path = place / SIGNATURE
    small = path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_JSON
    return path.read_bytes() if small else None


def _others(place: Path, index: Index) -> list[str]:
    """What is in a folder and not in its index."""
    own = {INDEX, SIGNATURE, *index.files}
    found = (path for path in place.rglob("*") if path.is_symlink() or not path.is_dir())  # a link may be to a folder
    files = (path.relative_to(place).as_posix() for path in found)
    return sorted(path for path in files if path not in own and path.split("/")[0] not in (*IGNORED, ".cache"))


def _keep(
    registry: Registry, found: dict[str, Bundle], own: Generation, source: Source, name: str | None
) -> dict[str, Any]:
    order = checking.oldest_first({identity: bundle.generation for identity, bundle in found.items()})
    done = adopt(registry, [found[identity] for identity in order], name)
    names, known = registry.names_of(own.id), claims.read(registry.root, own.id)
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
        "still_claimed": sorted(set(known.results if known else ()) - set(done.claimed)),
        "nameless": done.nameless,
    }


def _there(registry: Registry, index: Index) -> set[str]:
    """The hashes of large files that the registry has already, whole; adapters are small, and come to be checked."""
    weights = {path: told for path, told in index.files.items() if "adapters/" not in path}
    large = {told.hash for path, told in weights.items() if path.endswith(".safetensors")}
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
