"""Publishing a generation: as a folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robustkt import hub
from robustkt.errors import RobustKTError, UsageError
from robustkt.generation import Generation
from robustkt.hub import signing
from robustkt.hub.fetching import fetch_index, fetch_signature, parse_source, resolve
from robustkt.hub.form import CARD, INDEX, SIGNATURE, WEIGHTS, File
from robustkt.hub.session import HubError, Session, Unreachable
from robustkt.hub.signing import Means, covers, parse_signer, same_signer
from robustkt.hub.uploading import Goal, Plan, collect, label, plan, upload
from robustkt.numbers import MAX_JSON
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry, claims


def push(
    generation: str = "@latest",
    *,
    to: Path | None = None,
    repo: str | None = None,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    collection: str | None = None,
    with_ancestors: bool = False,
    license: str | None = None,
    sign: str | None = None,
    dry_run: bool = False,
    registry: Registry | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Publish a generation in a Hub repository, or in the folder `to`; with `dry_run` only say what that would be.

    Args:
        generation: what is published.
        to: the folder; made, or replaced when it holds an earlier publication.
        repo: the Hub repository, `ORG/NAME`; by default the account's own of the generation's name.
        private: a new repository is seen by its owner only.
        revision: the branch; made when there is none.
        tag: set on the commit.
        message: the commit's.
        create_pr: propose it as a pull request.
        collection: title or slug of a collection that the repository is put into.
        with_ancestors: the ancestors' weights and measurements too, so that this repository alone is enough.
        license: its identifier on the Hub; by default what the ancestors came with.
        sign: with what all files are signed: `key:PRIVATE.pem`, `cert:CERT.pem,KEY.pem[,CA.pem…]` or `sigstore`.
        dry_run: write nothing, sign nothing.
        registry: the nearest one by default.
        progress: where to report.

    Returns:
        generation, id, repo, url, commit, to, dry_run, created, pr, tag, collection, signed_by,
        files [{path, size, sent}], removed, card; `sent` is null where nobody looked what is there.

    Raises:
        UsageError: a folder with options that only the Hub has, or inside another publication.
        RobustKTError: damaged data, a place that holds something else, or what the Hub refuses.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if to is not None:
        _check_folder(
            to, {"--private": private, "--revision": revision, "--tag": tag, "--message": message,
                 "--create-pr": create_pr, "--collection": collection},
        )  # fmt: skip
    means = parse_signer(sign) if sign is not None else None
    found = _whole(registry, generation)
    answer: dict[str, Any] = {
        "generation": found.name,
        "id": found.id,
        "repo": repo,
        "url": None,
        "commit": None,
        "to": None,
    }
    answer |= {"dry_run": dry_run, "created": False, "pr": None, "tag": tag, "collection": None}
    answer |= {"signed_by": str(means) if means else None}
    if to is not None:
        files = hub.folder_files(registry, found, with_ancestors=with_ancestors, repo=repo, license=license)
        if not dry_run:
            files = _signed(files, found, means, _signature_in(to), progress)
            hub.write_folder(files, to)
        if not with_ancestors and (ancestors := [g.name for g in registry.ancestors(found)]):
            progress.note(
                f"without the weights of {', '.join(ancestors)}: a registry that lacks them cannot pull {found.name} "
                "from this folder; --with-ancestors puts them in"
            )
        return {**answer, "to": str(to), **_told(files, None)}
    if repo is not None and parse_source(repo)[1] is not None:
        raise UsageError(f"--repo takes ORG/NAME, not '{repo[:80]}'", "Give the branch with --revision.")
    if dry_run:
        return {**answer, **_rehearse(registry, found, repo, revision, with_ancestors, license, progress)}
    session = Session.open(writing=True)
    goal = Goal(
        repo=repo or f"{session.user()}/{found.name}", revision=revision, private=private, message=message,
        create_pr=create_pr, tag=tag, collection=collection,
    )  # fmt: skip
    homes = homes_of(session, registry, found, goal.repo.split("/")[0])
    files = hub.folder_files(
        registry, found, with_ancestors=with_ancestors, homes=homes, repo=goal.repo, license=license
    )
    if not with_ancestors:
        _warn(registry, found, homes, progress)
    files = _signed(files, found, means, fetch_signature(session, goal.repo, goal.revision), progress)
    with client(progress):
        sent = upload(session, goal, files, progress)
    label(session, goal, sent.commit)
    answer |= {"repo": goal.repo, "url": f"{session.address}/{goal.repo}", "commit": sent.commit}
    answer |= {"created": sent.created, "pr": sent.pr, "collection": collect(session, goal)}
    return {**answer, **_told(files, sent.plan)}


def _check_folder(folder: Path, hubs: Mapping[str, Any]) -> None:
    """Raise where a folder is to be written with options of the Hub, or into another publication."""
    given = [option for option, value in hubs.items() if value]
    if given:
        raise UsageError(f"--to writes a folder, which has no {', no '.join(given)}", "Leave one or the other out.")
    above = next((parent for parent in folder.absolute().parents if (parent / INDEX).is_file()), None)
    if above is not None:
        raise UsageError(f"{folder} lies in another publication, {above}", "Name a folder beside it with --to.")


def _whole(registry: Registry, reference: str) -> Generation:
    """The generation to be published.

    Raises:
        UsageError: one mode of it, which is no generation: the default mode is part of the id.
    """
    base, _, mode = reference.rpartition("@")
    if not base:
        return registry.get(reference)
    found = registry.mode(reference)
    shares = mode if len(found.meant) > 1 else f"{mode}=1"
    raise UsageError(
        f"{found.name} is one mode; published is a generation with all of them, and its default is in its id",
        f"Push {base}, or make the mode a generation: robustkt soup make {base} --adapters {shares} --name NAME",
    )


def _signed(
    files: dict[str, File], found: Generation, means: Means | None, there: bytes | None, progress: Progress
) -> dict[str, File]:
    """The files with their signature; the one that is `there` is kept where it is over just these files."""
    hashes = {path: file.hash for path, file in files.items()}
    keep = there is not None and (same_signer(there, hashes, means) if means else covers(there, hashes))
    if there is not None and keep:
        return {**files, SIGNATURE: File.of(there)}
    if means is not None:
        return {**files, SIGNATURE: signing.sign(files, found.name, means)}
    if there is not None:
        progress.note(f"{SIGNATURE} is of the earlier publication and goes; --sign makes another")
    return files


def _signature_in(folder: Path) -> bytes | None:
    path = folder / SIGNATURE
    return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_JSON else None


def _rehearse(
    registry: Registry,
    found: Generation,
    repo: str | None,
    revision: str | None,
    with_ancestors: bool,
    license: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """A dry run: what is there already too, where the Hub can be asked."""
    homes: Mapping[str, str] = {}
    there: Plan | None = None
    try:
        session = Session.open(tries=1)
        repo = repo or (f"{session.user()}/{found.name}" if session.signed_in else None)
        if repo is not None:
            homes = homes_of(session, registry, found, repo.split("/")[0])
            files = hub.folder_files(
                registry, found, with_ancestors=with_ancestors, homes=homes, repo=repo, license=license
            )
            there = plan(session, Goal(repo=repo, revision=revision), files)
            return {"repo": repo, **_told(files, there)}
    except HubError as error:
        progress.note(f"what is on the Hub is not known: {error.what}")
    files = hub.folder_files(registry, found, with_ancestors=with_ancestors, homes=homes, repo=repo, license=license)
    return {"repo": repo, **_told(files, None)}


def homes_of(session: Session, registry: Registry, found: Generation, owner: str) -> dict[str, str]:
    """The repositories that hold its ancestors, by id: where each was pulled from, or the owner's own of its name."""
    homes = {}
    with tempfile.TemporaryDirectory(prefix="robustkt-") as place:
        for ancestor in registry.ancestors(found):
            known = claims.read(registry.root, ancestor.id)
            for repo in dict.fromkeys([*([known.repo] if known else []), f"{owner}/{ancestor.name}"]):
                try:
                    source = resolve(session, repo, None)
                    index = fetch_index(session, source, Path(place) / source.commit)
                    if index.generation == ancestor.id and WEIGHTS in index.files:
                        homes[ancestor.id] = repo
                        break
                except Unreachable:
                    raise
                except RobustKTError:
                    continue  # another's, or none of ours
    return homes


def _warn(registry: Registry, found: Generation, homes: Mapping[str, str], progress: Progress) -> None:
    lost = [g.name for g in registry.ancestors(found) if g.id not in homes]
    if lost:
        progress.note(
            f"the weights of {', '.join(lost)} are in no repository that is known: whoever pulls {found.name} needs "
            "them too; push them first, or add --with-ancestors"
        )


def _told(files: Mapping[str, File], there: Plan | None) -> dict[str, Any]:
    new = set(there.send) if there is not None else set()
    rows = [
        {"path": path, "size": file.size, "sent": path in new if there is not None else None}
        for path, file in files.items()
    ]
    removed = list(there.remove) if there is not None else []
    return {"files": rows, "removed": removed, "card": files[CARD].read().decode()}


@contextlib.contextmanager
def client(progress: Progress) -> Iterator[None]:
    """The Hub's client for an upload: its own bars, unless nobody wants any; large files by LFS, a part at a time.

    Its other way (Xet) holds several hundred megabytes in memory and gains nothing on weights, which share no bytes
    with earlier ones; HF_HUB_DISABLE_XET=0 chooses it nevertheless.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    silent = isinstance(progress, Silent) or getattr(progress, "quiet", False)
    silent = silent and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")
    before = constants.HF_HUB_DISABLE_XET
    try:
        constants.HF_HUB_DISABLE_XET = before or not os.environ.get("HF_HUB_DISABLE_XET")
        if silent:
            disable_progress_bars()
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before
        if silent:
            enable_progress_bars()
