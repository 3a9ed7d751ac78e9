"""Sending the published form to a repository of the Hugging Face Hub: what is new there, in one commit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from robustkt.errors import NotFoundError, RobustKTError, UsageError, anonymous
from robustkt.hub.form import INDEX, PUBLISHED, File
from robustkt.hub.session import AGAIN, TRIES, Moved, Passing, Session, scrubbed
from robustkt.numbers import counted
from robustkt.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

GIT = {".gitattributes", ".gitignore"}  # what the Hub itself puts into a repository
LARGE = 10 * 2**20  # bytes that are worth a line of their own


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Where a publication goes, and how."""

    repo: str
    revision: str | None = None  # a branch; made when there is none
    private: bool = False
    message: str | None = None
    create_pr: bool = False
    tag: str | None = None
    collection: str | None = None

    @property
    def branch(self) -> str:
        """The branch that is written to."""
        return self.revision or "main"


@dataclass(frozen=True)
class Plan:
    """How a branch differs from what is to be there."""

    head: str | None  # its commit; None while there is no repository
    send: tuple[str, ...]
    same: tuple[str, ...]
    remove: tuple[str, ...]  # of an earlier publication

    @property
    def nothing(self) -> bool:
        """Whether everything is there."""
        return not self.send and not self.remove


@dataclass(frozen=True)
class Sent:
    """What a push did."""

    plan: Plan
    commit: str
    created: bool  # a commit was made
    pr: str | None = None


def plan(session: Session, goal: Goal, files: Mapping[str, File]) -> Plan:
    """What a push would send; nothing is changed on the Hub.

    Raises:
        RobustKTError: the repository holds something else, or the Hub refuses.
    """
    from huggingface_hub import RepoFile

    api, where = session.api, goal.repo
    try:
        head = session.ask(lambda: api.model_info(goal.repo, revision=goal.revision).sha, where)
    except NotFoundError:
        return Plan(None, tuple(files), (), ())
    assert head is not None
    listed = session.ask(lambda: list(api.list_repo_tree(goal.repo, recursive=True, revision=head)), where)
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    strangers = sorted(set(there) - GIT)
    if strangers and INDEX not in there:
        raise RobustKTError(
            f"the name {goal.repo} is taken: it holds something that is not a published generation: {strangers[0]}",
            "Name another repository with --repo ORG/NAME.",
        )
    same = {path for path, file in files.items() if path in there and _is_there(there[path], file)}
    remove = [path for path in there if path not in files and PUBLISHED.fullmatch(path)]
    return Plan(head, tuple(p for p in files if p not in same), tuple(sorted(same)), tuple(sorted(remove)))


def _is_there(entry: RepoFile, file: File) -> bool:
    if entry.size != file.size:
        return False
    return f"sha256:{entry.lfs.sha256}" == file.hash if entry.lfs else entry.blob_id == file.git_oid()


def upload(session: Session, goal: Goal, files: Mapping[str, File], progress: Progress) -> Sent:
    """Make a branch hold exactly `files`, in one commit; what is there already is not sent.

    A lost answer is not believed to be a failure: the branch is read again, and a commit that landed is found there.

    Raises:
        RobustKTError: the Hub refuses, a second writer was there, or the connection is gone for good.
    """
    _prepare(session, goal)
    first = now = plan(session, goal, files)
    if goal.create_pr and not now.nothing and now.head is not None:
        return _propose(session, goal, files, now, progress)
    for attempt in range(TRIES):
        if now.nothing or first.head is None:
            break
        if now.head != first.head:
            raise Moved(f"somebody else has changed {goal.repo} in the meantime", "Look at it, then push again.")
        try:
            return _commit(session, goal, files, now, progress)
        except Passing as error:
            _wait(error, attempt, progress)
        now = plan(session, goal, files)
    if now.head is None:
        raise NotFoundError(f"there is no repository {goal.repo} on the Hub", "Look at its page, then push again.")
    return Sent(first, now.head, created=now.head != first.head)


def _propose(session: Session, goal: Goal, files: Mapping[str, File], now: Plan, progress: Progress) -> Sent:
    """One pull request with `files`: the one that is open already, be it of an earlier try whose answer got lost."""
    for attempt in range(TRIES):
        opened = _opened(session, goal, files)
        if opened is not None:
            return opened
        try:
            return _commit(session, goal, files, now, progress)
        except Passing as error:
            _wait(error, attempt, progress)
    raise AssertionError


def _wait(error: Passing, attempt: int, progress: Progress) -> None:
    """Before the next try; after the last one the error itself is raised."""
    if attempt + 1 == TRIES:
        raise RobustKTError(error.what, error.fix) from None
    progress.note(f"{error.what}; trying again")
    time.sleep(error.wait if error.wait is not None else 2.0**attempt)


def _opened(session: Session, goal: Goal, files: Mapping[str, File]) -> Sent | None:
    """An open pull request of this account that brings just these files."""
    api, author = session.api, session.user()

    def ask() -> list[int]:
        found = api.get_repo_discussions(
            goal.repo, author=author, discussion_type="pull_request", discussion_status="open"
        )
        return [one.num for one in found]

    for number in session.ask(ask, goal.repo):
        there = plan(session, replace(goal, revision=f"refs/pr/{number}"), files)
        if there.nothing and there.head is not None:
            url = f"{session.address}/{goal.repo}/discussions/{number}"
            return Sent(there, there.head, created=False, pr=url)
    return None


def _prepare(session: Session, goal: Goal) -> None:
    """The repository and the branch, made where there are none."""
    api = session.api
    if goal.create_pr:
        if goal.revision is not None:
            raise UsageError("--create-pr goes to the main branch", "Leave --revision out.")
        return
    with contextlib.suppress(NotFoundError):
        found = session.ask(lambda: api.model_info(goal.repo), goal.repo)
        if goal.private and not found.private:
            raise RobustKTError(
                f"{goal.repo} is there already, for everybody to see",
                "Make it private in its settings on the Hub first.",
            )
    session.ask(lambda: api.create_repo(goal.repo, private=goal.private, exist_ok=True), goal.repo)
    if goal.revision is not None:
        branch = goal.revision
        session.ask(lambda: api.create_branch(goal.repo, branch=branch, exist_ok=True), f"{goal.repo}@{branch}")


def _commit(session: Session, goal: Goal, files: Mapping[str, File], now: Plan, progress: Progress) -> Sent:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    sizes = sum(files[path].size for path in now.send)
    for path in now.send:
        if files[path].size >= LARGE:
            progress.note(f"{path}: {files[path].size / 1e6:,.0f} MB")
    operations: list[Any] = [CommitOperationAdd(path, files[path].content) for path in now.send]
    operations += [CommitOperationDelete(path) for path in now.remove]
    with progress.bar(f"sending {counted(len(now.send), 'file')}, {sizes / 1e6:,.1f} MB, to {goal.repo}", 1) as bar:
        try:
            with session.speaking(goal.repo):
                made = session.api.create_commit(
                    goal.repo,
                    operations,
                    commit_message=goal.message or "Publish with robustkt",
                    revision=goal.revision,
                    parent_commit=now.head,
                    create_pr=goal.create_pr,
                )
        except (RuntimeError, ValueError, OSError) as error:  # of the client's own, such as a checksum that differs
            raise Passing(f"the upload to {goal.repo} failed: {scrubbed(error.__cause__ or error)}", AGAIN) from None
        bar.advance(1)
    return Sent(now, str(made.oid), created=True, pr=anonymous(made.pr_url) if made.pr_url else None)


def label(session: Session, goal: Goal, commit: str) -> None:
    """The tag, at the commit.

    Raises:
        RobustKTError: the tag is at another commit already.
    """
    if goal.tag is None:
        return
    api, tag = session.api, goal.tag
    refs = session.ask(lambda: api.list_repo_refs(goal.repo), goal.repo)
    at = {ref.name: ref.target_commit for ref in refs.tags}
    if at.get(tag, commit) != commit:
        raise RobustKTError(
            f"the tag {tag} of {goal.repo} is at another commit, {at[tag][:12]}",
            "Choose another --tag: who pinned that one must find what it was.",
        )
    if tag not in at:
        session.ask(lambda: api.create_tag(goal.repo, tag=tag, revision=commit, exist_ok=True), f"{goal.repo}@{tag}")


def collect(session: Session, goal: Goal) -> str | None:
    """Put the repository into the collection of that title or slug; returns its slug."""
    if goal.collection is None:
        return None
    api, wanted = session.api, goal.collection
    owner = goal.repo.split("/")[0]
    slug = wanted
    if "/" not in wanted:
        made = session.ask(lambda: api.create_collection(wanted, namespace=owner, exists_ok=True), f"{owner}/{wanted}")
        slug = made.slug
    session.ask(lambda: api.add_collection_item(slug, goal.repo, "model", exists_ok=True), slug)
    return slug
