"""Getting a published generation from the Hugging Face Hub into a folder: named files only, at one pinned commit."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt.errors import IntegrityError, NotFoundError, UsageError
from robustkt.generation import HASH, is_name, read_manifest
from robustkt.hub import signing
from robustkt.hub.form import FORMAT, INDEX, MANIFEST, PUBLISHED, SIGNATURE, WEIGHTS, adapter_path
from robustkt.hub.session import Passing, Session
from robustkt.numbers import MAX_JSON, counted
from robustkt.progress import Progress
from robustkt.registry.files import digest_file
from robustkt.registry.seal import unsealed

MAX_LOG = 2**28  # bytes
FILES = 10_000  # no honest publication has more
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REFUSED = "Do not trust it; tell its publisher."


@dataclass(frozen=True)
class Listed:
    """A file that the index names."""

    hash: str
    size: int


@dataclass(frozen=True)
class Index:
    """What a publication says it holds; true only once every hash has been derived again."""

    generation: str
    names: tuple[str, ...]
    license: str | None
    files: Mapping[str, Listed]
    ancestors: Mapping[str, Mapping[str, Any]]  # id: "names", "repo"


@dataclass(frozen=True)
class Source:
    """A repository at one commit."""

    repo: str
    revision: str | None  # as it was asked for
    commit: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}"


def parse_source(text: str) -> tuple[str, str | None]:
    """`ORG/NAME` or `ORG/NAME@REV`.

    Raises:
        UsageError: it is neither.
    """
    repo, at, revision = text.removeprefix("hf:").partition("@")
    if not REPO.fullmatch(repo) or (at and not re.fullmatch(r"[\w./-]{1,200}", revision)):
        raise UsageError(f"'{text[:80]}' names no repository", "Write it as ORG/NAME or ORG/NAME@REVISION.")
    return repo, revision or None


def resolve(session: Session, repo: str, revision: str | None) -> Source:
    """The commit that a revision is at now.

    Raises:
        NotFoundError: there is no such repository or revision.
        IntegrityError: the Hub answers a pinned commit with another one.
    """
    about = f"{repo}@{revision}" if revision else repo
    commit = session.ask(lambda: session.api.model_info(repo, revision=revision).sha, about) or ""
    pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    if not COMMIT.fullmatch(commit) or (pinned and commit != revision):
        raise IntegrityError(f"the Hub answers {about} with commit {commit[:40]}: it has moved", REFUSED)
    return Source(repo, revision, commit)


def read_index(path: Path) -> Index:
    """The index in a file, checked by itself.

    Raises:
        IntegrityError: it is damaged, or names what no publication holds.
    """
    if path.stat().st_size > MAX_JSON:
        raise IntegrityError(f"{path.name} is larger than any index", REFUSED)
    content = unsealed(path, REFUSED)
    if type(content.get("format")) is not int or not 1 <= content["format"] <= FORMAT:
        raise IntegrityError(f"{path.name} has format {content.get('format')}", "Upgrade robustkt.")
    files, ancestors, names = content.get("files"), content.get("ancestors"), content.get("names")
    license, identity = content.get("license", content.get("licence")), content.get("generation")
    whole = (
        isinstance(identity, str)
        and HASH.fullmatch(identity)
        and isinstance(files, dict)
        and isinstance(ancestors, dict)
        and _are_names(names)
        and (license is None or isinstance(license, str))
        and all(_is_listed(path, told) for path, told in files.items())
        and all(_is_ancestor(i, told) for i, told in ancestors.items())
    )
    if not (whole and isinstance(identity, str) and files and isinstance(names, list) and isinstance(ancestors, dict)):
        raise IntegrityError(f"{path.name} is not the index of a publication", REFUSED)
    listed = {path: Listed(told["hash"], told["size"]) for path, told in files.items()}
    return Index(identity, tuple(names), license, listed, ancestors)


def _are_names(names: Any) -> bool:
    return isinstance(names, list) and len(names) <= 100 and all(isinstance(n, str) and is_name(n) for n in names)


def _is_listed(path: str, told: Any) -> bool:
    return (
        PUBLISHED.fullmatch(path) is not None
        and path != SIGNATURE
        and isinstance(told, dict)
        and isinstance(told.get("hash"), str)
        and HASH.fullmatch(told["hash"]) is not None
        and type(told.get("size")) is int
        and told["size"] >= 0
        and (path.endswith(".safetensors") or told["size"] <= (MAX_LOG if path.endswith(".tsv") else MAX_JSON))
    )


def _is_ancestor(identity: str, told: Any) -> bool:
    return (
        HASH.fullmatch(identity) is not None
        and isinstance(told, dict)
        and _are_names(told.get("names"))
        and (told.get("repo") is None or (isinstance(told["repo"], str) and REPO.fullmatch(told["repo"]) is not None))
    )


def fetch_index(session: Session, source: Source, folder: Path) -> Index:
    """The index of a repository; nothing else is downloaded.

    Raises:
        NotFoundError: the repository holds no published generation.
        IntegrityError: the index is damaged.
    """
    try:
        path = _download(session, source, INDEX, folder, fresh=True)
    except NotFoundError:
        what = f"{source.repo} holds no generation that robustkt has published: there is no {INDEX}"
        raise NotFoundError(what, "Is the name right? For other weights use `robustkt import`.") from None
    return read_index(path)


def fetch_signature(session: Session, repo: str, revision: str | None) -> bytes | None:
    """The signature of the publication that a repository holds, or None."""
    with tempfile.TemporaryDirectory(prefix="robustkt-") as place, contextlib.suppress(NotFoundError):
        source = resolve(session, repo, revision)
        path = _download(session, source, SIGNATURE, Path(place), fresh=True)
        return path.read_bytes() if path.stat().st_size <= MAX_JSON else None
    return None


def fetch(
    session: Session,
    source: Source,
    folder: Path,
    progress: Progress,
    only: Collection[str] | None = None,
    have: Collection[str] = (),
    required: signing.Means | None = None,
) -> Index:
    """Download what the index names (`only` some of it) into `folder`, each file checked against its hash.

    What is in the folder already, or whose hash is in `have`, is not downloaded again. Where a signature is `required`
    it is checked before any of the files is fetched.

    Raises:
        IntegrityError: a file is missing, has another size or another hash than the index says; or the signature is not
            there or not the required one.
        RobustKTError: the Hub refuses, or the connection is gone for good.
    """
    from huggingface_hub import RepoFile

    api = session.api
    listed = session.ask(
        lambda: list(api.list_repo_tree(source.repo, recursive=True, revision=source.commit)), source.repo
    )
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    if INDEX in there and there[INDEX].size > MAX_JSON:
        raise IntegrityError(f"{INDEX} of {source} is larger than any index", REFUSED)
    index = fetch_index(session, source, folder)
    if len(index.files) > FILES:
        raise IntegrityError(f"{source} holds {len(index.files):,} files: more than any publication", REFUSED)
    own = (INDEX, SIGNATURE, ".gitattributes", ".gitignore")
    ignored = sorted(path for path in there if path not in index.files and path not in own)
    if required is not None:
        signature = None
        if SIGNATURE in there and there[SIGNATURE].size <= MAX_JSON:
            signature = _download(session, source, SIGNATURE, folder, fresh=True).read_bytes()
        signing.check(signature, signed_files(folder, index), ignored, required, str(source))
    elif ignored:
        progress.note(
            f"{source.repo}: {counted(len(ignored), 'file')} that no publication has, left out, as {ignored[0]!r}"
        )
    wanted = {p: t for p, t in index.files.items() if (only is None or p in only) and t.hash not in have}
    for path, told in wanted.items():
        found = there.get(path)
        if found is None:
            raise IntegrityError(f"{path} is missing in {source}", REFUSED)
        if found.size != told.size or (found.lfs and f"sha256:{found.lfs.sha256}" != told.hash):
            raise IntegrityError(f"{path} in {source} is not what its index names", REFUSED)
    size = sum(told.size for told in wanted.values())
    title = f"fetching {counted(len(wanted), 'file')}, {size / 1e6:,.1f} MB, from {source}"
    with progress.bar(title, max(size, 1)) as bar:
        for path, told in wanted.items():
            place = folder / path
            if not (place.is_file() and digest_file(place) == told.hash):
                place = _download(session, source, path, folder)
            if digest_file(place) != told.hash:  # perhaps it was damaged on this disk, where the client keeps copies
                place = _download(session, source, path, folder, fresh=True)
            if digest_file(place) != told.hash:
                place.unlink()
                raise IntegrityError(f"{path} in {source} is damaged: its SHA-256 is not the index's", REFUSED)
            bar.advance(told.size)
    return index


def signed_files(folder: Path, index: Index) -> dict[str, str]:
    """The hashes of all files that a signature must be over: those of the index in `folder`, and the index itself."""
    return {INDEX: digest_file(folder / INDEX)} | {path: told.hash for path, told in index.files.items()}


def _download(session: Session, source: Source, path: str, folder: Path, *, fresh: bool = False) -> Path:
    """A file of a repository, in `folder`.

    Unless it is to be `fresh` the client may copy it from its cache, unchecked: that is for files whose hash is known.
    """

    def get() -> Path:
        try:
            got = session.api.hf_hub_download(
                source.repo, path, revision=source.commit, local_dir=folder, force_download=fresh
            )
        except OSError as error:  # the client's own, such as a file that is shorter than it was told to be
            from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

            if isinstance(error, HfHubHTTPError) or error.errno is not None:
                raise
            if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            if isinstance(error, EntryNotFoundError):
                raise
            raise Passing(f"{path} of {source} did not arrive whole", "Type the same command again.") from None
        return Path(got)

    return session.ask(get, f"{path} of {source}")


def check_local(folder: Path) -> Index:
    """The index of a folder in the published form, every file of it checked.

    Raises:
        NotFoundError: it is no published folder.
        IntegrityError: a file is missing or is not what the index says.
    """
    if not (folder / INDEX).is_file():
        raise NotFoundError(f"{folder} holds no {INDEX}", "Name the folder of a published generation.")
    _no_link(folder, INDEX)
    index = read_index(folder / INDEX)
    for path, told in index.files.items():
        place = folder / path
        _no_link(folder, path)
        if not place.is_file():
            raise IntegrityError(f"{path} is missing in {folder}", REFUSED)
        if place.stat().st_size != told.size or digest_file(place) != told.hash:
            raise IntegrityError(f"{path} in {folder} is damaged: its SHA-256 is not the index's", REFUSED)
    return index


def _no_link(folder: Path, path: str) -> None:
    """Raise unless a file lies in `folder` itself, under no link to elsewhere, which could change after it was read."""
    for part in (Path(path), *Path(path).parents):
        if part != Path() and (folder / part).is_symlink():
            raise IntegrityError(f"{part.as_posix()} in {folder} is a link", "Copy the files themselves: cp -RL.")


def snapshot(
    repo: str,
    revision: str | None,
    token: str | bool | None,
    options: Mapping[str, Any],
    domain: str | None = None,
) -> Path:
    """The manifest, the weights and the mode's adapters of a repository in the Hub's own cache.

    `options` go to `hf_hub_download`, `domain` is the mode, the default one where none is named.

    Raises:
        NotFoundError: no such repository or revision, no generation in it, or no such mode.
        RobustKTError: the Hub refuses.
    """
    session = Session.open(token=token)
    offline = bool(options.get("local_files_only"))
    commit = revision if offline else resolve(session, repo, revision).commit

    def get(path: str) -> Path:
        def download() -> str:
            return str(session.api.hf_hub_download(repo, path, revision=commit, **options))

        try:
            return Path(session.ask(download, f"{path} of {repo}"))
        except FileNotFoundError:
            raise NotFoundError(f"{path} of {repo} is not in the cache", "Leave local_files_only out.") from None

    manifest = get(MANIFEST)
    generation = read_manifest(manifest.read_bytes(), repo, MANIFEST)
    meant = (generation.in_mode(domain) if domain is not None else generation).meant
    for path in (WEIGHTS, *map(adapter_path, meant)):
        get(path)
    return manifest.parent
