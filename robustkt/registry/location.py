"""Files at an fsspec address, read within limits and written whole; what a store refuses becomes one line and a fix."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError, anonymous, clip
from robustkt.registry.files import finish, sync_folder, temporary, write_atomic, writing
from robustkt.registry.hubfiles import Commits

PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]*):/+")
PAUSES = (0.5, 2.0)  # seconds before a call is repeated that failed as busy stores and bad lines fail
BLOCK = 16 * 2**20  # bytes read at once of a large file
PATIENT = {"s3", "s3a"}  # whose package repeats such calls itself
TOGETHER = 128  # small files read or written at once, side by side where the store can
EXTRAS = {"s3": "robustkt[s3]", "s3a": "robustkt[s3]"}
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko", "ssh": "paramiko"}
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of file systems without hard links
PASSING = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, 121}  # 121: remote I/O error

T = TypeVar("T")


@dataclass(frozen=True)
class Stat:
    """What a listing says of a file."""

    size: int
    stamp: str  # another one when the content is another; empty where the store tells none


class Location:
    """A folder in a store; paths are relative to it."""

    def __init__(self, url: str) -> None:
        self.label = url.rstrip("/")
        self.protocol = protocol_of(url) or "file"
        self.fs, base = _opened(url)
        self.base = str(base).rstrip("/")
        self.local = self.protocol in ("file", "local")

    # -- reading -------------------------------------------------------------------------------------------------

    def files(self, folder: str) -> dict[str, Stat]:
        """Every file below `folder`, links left out; none when there is no such folder."""

        def find() -> Mapping[str, Mapping[str, Any]]:
            self.fs.invalidate_cache()
            return dict(self.fs.find(self._at(folder), detail=True))

        try:
            found = self._call(find)
        except FileNotFoundError as error:
            self._no_container(error)
            return {}
        prefix = self.base.lstrip("/") + "/"
        return {
            path.lstrip("/").removeprefix(prefix): Stat(int(told.get("size") or 0), _stamp(told))
            for path, told in found.items()
            if path.lstrip("/").startswith(prefix) and not told.get("islink")
        }

    def anything(self) -> str | None:
        """The name of something that lies here, hidden files and a README aside, or None."""

        def listed() -> list[str]:
            self.fs.invalidate_cache()
            return [str(path).rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.base, detail=False)]

        try:
            names = self._call(listed)
        except FileNotFoundError as error:
            self._no_container(error)
            return None
        return next((n for n in sorted(names) if n and not n.startswith(".") and n != "README.md"), None)

    def small(self, path: str, most: int) -> bytes | None:
        """A small file whole, or None when there is none.

        Raises:
            IntegrityError: it is larger than `most` bytes.
        """
        try:
            size = int(self._call(lambda: self.fs.info(self._at(path)))["size"] or 0)
            self._check_size(path, size, most)
            return b"".join(self.blocks(path, size))
        except FileNotFoundError as error:
            self._no_container(error)
            return None

    def blocks(self, path: str, size: int) -> Iterator[bytes]:
        """The first `size` bytes of a file, never more, block by block."""
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            yield self._call(lambda start=start, end=end: bytes(self.fs.cat_file(self._at(path), start=start, end=end)))  # type: ignore[misc]

    def many(self, sizes: Mapping[str, int], most: Callable[[str], int]) -> Iterator[tuple[str, bytes]]:
        """Small files by their path, in batches; those that vanished meanwhile are left out.

        Raises:
            IntegrityError: one is larger than `most` of its path.
        """
        for path, size in sizes.items():
            self._check_size(path, size, most(path))
        yield from ((path, b"") for path, size in sizes.items() if not size)
        for batch in batches([(path, size) for path, size in sizes.items() if size]):
            found = self._call(lambda batch=batch: self._ranges(batch, sizes))  # type: ignore[misc]
            yield from ((path, data) for path, data in zip(batch, found, strict=True) if data is not None)

    def _ranges(self, batch: list[str], sizes: Mapping[str, int]) -> list[bytes | None]:
        ends = [sizes[path] for path in batch]
        answers = self.fs.cat_ranges([self._at(p) for p in batch], [0] * len(batch), ends, on_error="return")
        found: list[bytes | None] = []
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                raise answer
            found.append(None if isinstance(answer, FileNotFoundError) else bytes(answer))
        return found

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, files: Mapping[str, bytes]) -> None:
        """Put files in their places, each whole or not at all."""
        if self.local:
            for path, data in files.items():
                write_atomic(Path(self._at(path)), data)
            return
        try:
            if self.protocol == "hf":
                self._call(lambda: Commits(self.fs, self.base).write(files))
            else:
                self._call(lambda: self.fs.pipe({self._at(path): data for path, data in files.items()}))
        except FileNotFoundError as error:
            self._no_container(error)
            raise NotFoundError(
                f"cannot write to {self.label}", "Check that its bucket or repository exists."
            ) from None

    def create(self, path: str, data: bytes) -> bytes:
        """Put a file where there is none, and give what is there now: `data`, or what somebody else put there first."""
        if self.local:
            with writing(Path(self._at(path))):
                _linked(Path(self._at(path)), data)
        else:
            try:
                with contextlib.suppress(FileExistsError):
                    self._call(lambda: self._create(path, data))
            except FileNotFoundError as error:
                self._no_container(error)
                raise
        found = self.small(path, 2**20)
        return data if found is None else found

    def _create(self, path: str, data: bytes) -> None:
        if self.protocol == "hf":
            Commits(self.fs, self.base).create(path, data)
            self.fs.invalidate_cache()
            return
        try:
            self.fs.pipe_file(self._at(path), data, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a store that knows no exclusive write
                raise
            if not self.fs.exists(self._at(path)):
                self.fs.pipe_file(self._at(path), data)

    # -- inner ---------------------------------------------------------------------------------------------------

    def _at(self, path: str) -> str:
        return f"{self.base}/{path}" if path else self.base

    def _check_size(self, path: str, size: int, most: int) -> None:
        if size > most:
            raise IntegrityError(
                f"{path} in {self.label} has {size:,} bytes, and no such file has more than {most:,}",
                "Do not trust this registry; ask who keeps it.",
            )

    def _call(self, act: Callable[[], T]) -> T:
        for pause in (None,) if self.protocol in PATIENT else (*PAUSES, None):
            try:
                return act()
            except (FileNotFoundError, FileExistsError, RobustKTError):
                raise
            except Exception as error:
                told, passing = explained(error, self.label, self.protocol)
                if told is None:
                    raise  # no store's refusal: a bug, with its traceback
                if pause is None or not passing:
                    raise told from None  # what a store says may quote a signed address
            time.sleep(pause)
        raise AssertionError  # the last attempt returns or raises

    def _no_container(self, error: FileNotFoundError) -> None:
        """Raise a NotFoundError when it is the bucket or the repository that is missing, not a file."""
        kinds = _kinds(error)
        if _code(error) == "NoSuchBucket" or kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
            what = "repository" if self.protocol == "hf" else "bucket"
            raise NotFoundError(
                f"there is no {what} for {self.label}, or you may not see it",
                "Make it with `hf repo create ORG/NAME --repo-type dataset`, or correct the address."
                if self.protocol == "hf"
                else "Make it with the store's own tools, or correct the address.",
            ) from None


def batches(sizes: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Things with their bytes in handfuls that fit into memory; what is large comes alone."""
    batch: list[T] = []
    held = 0
    for thing, size in sizes:
        if batch and (len(batch) == TOGETHER or held + size > 2 * BLOCK):
            yield batch
            batch, held = [], 0
        batch.append(thing)
        held += size
    if batch:
        yield batch


def protocol_of(place: str) -> str | None:
    """`s3` of `s3://bucket/prefix`; None of a folder.

    Raises:
        UsageError: an address with one slash, with a password, or one in another.
    """
    if "::" in place and "://" in place:
        raise UsageError("an address inside another is none of a registry", "Write one such as s3://bucket/registry.")
    match = PROTOCOL.match(place)
    if match is None:
        return None
    if not place.startswith(f"{match[1]}://"):
        raise UsageError(f"'{clip(place, 80)}' is no address", f"Write {match[1]}://… with two slashes.")
    if not place.strip("/").partition("://")[2]:
        raise UsageError(f"{place} names no place", "Such as s3://bucket/registry.")
    if re.match(r"[^/]*@", place.partition("://")[2]):
        raise UsageError(
            "the address holds a user or a password, which end up in logs and histories",
            "Leave them out: the store's own settings or environment variables hold them.",
        )
    return match[1]


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        fs, base = url_to_fs(url)
    except ImportError:
        package = EXTRAS.get(protocol) or PACKAGES.get(protocol)
        fix = f'Type `pip install "{package}"`.' if package else "Install the package that fsspec names for it."
        raise RobustKTError(f"{protocol}:// needs a package that is not installed", fix) from None
    except ValueError as error:
        raise UsageError(
            f"{clip(url, 80)}: {_clean(error)}", "s3://, hf://datasets/, gs://, az://, file:// …"
        ) from None
    except Exception as error:
        told, _ = explained(error, url, protocol)
        if told is None:
            raise
        raise told from None
    return fs, base


def _linked(path: Path, data: bytes) -> None:
    """Make a file whole, in one step, unless it is there."""
    with temporary(path) as (name, file), contextlib.suppress(FileExistsError):
        file.write(data)
        finish(file)
        try:
            os.link(name, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            with path.open("xb") as plain:  # torn it would not be believed
                plain.write(data)
    sync_folder(path.parent)


# -- what stores refuse ------------------------------------------------------------------------------------------

LOGIN = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
    "hf": "Type `hf auth login`, or set HF_TOKEN.",
}
NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "LocalTokenNotFoundError",
}  # fmt: skip
UNREACHED = {
    "ConnectionError", "TimeoutError", "gaierror", "EndpointConnectionError", "HTTPClientError",
    "ClientConnectionError", "TransportError", "ConnectionClosedError",
}  # fmt: skip
PARTS = {"botocore", "aiobotocore", "aiohttp", "huggingface_hub", "httpx", "s3fs", "gcsfs", "adlfs", "requests"}


def explained(error: Exception, label: str, protocol: str) -> tuple[RobustKTError | None, bool]:
    """The error for a person, None when it is none of a store's; and whether trying again may help.

    Told apart by the names of the errors, so that no store's package need be imported.
    """
    kinds, status, code = _kinds(error), _status(error), _code(error)
    login = LOGIN.get(protocol, "See the documentation of fsspec for how this store is told who you are.")
    unusable = protocol == "hf" and "UnicodeEncodeError" in kinds  # a token that is no header
    if kinds & NO_CREDENTIALS or status == 401 or unusable:
        return RobustKTError(f"{label} asks who you are, and finds no credentials that it knows", login), False
    if "PermissionError" in kinds or status == 403:
        return RobustKTError(
            f"{label} refuses: no right to do this" + (f" ({code})" if code else ""),
            f"Ask its owner for the right to read, and to write for --to; or be somebody else: {login}",
        ), False
    again = "Type the same command again: it sends only what is missing."
    if kinds & UNREACHED:
        return RobustKTError(
            f"cannot reach {label}: {_clean(error)}", f"Check the network and the address. {again}"
        ), True
    if status == 429 or (status or 0) >= 500 or (isinstance(error, OSError) and error.errno in PASSING):
        return RobustKTError(f"{label} failed: {_clean(error)}", again), True
    if isinstance(error, OSError) or kinds & {"HTTPError"} or type(error).__module__.partition(".")[0] in PARTS:
        return RobustKTError(
            f"{label} refuses: {_clean(error)}", "Check the address, the bucket and your rights."
        ), False
    return None, False


def _kinds(error: BaseException) -> set[str]:
    """The names of the error's classes, and of those that it was made from."""
    found: set[str] = set()
    at: BaseException | None = error
    while at is not None and len(found) < 100:
        found |= {kind.__name__ for kind in type(at).__mro__}
        at = at.__cause__
    return found


def _code(error: BaseException) -> str:
    """The S3 code in an error, such as NoSuchBucket."""
    response = getattr(error.__cause__ or error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    code = details.get("Code") if isinstance(details, dict) else None
    return code if isinstance(code, str) and re.fullmatch(r"\w{1,60}", code) else ""


def _status(error: BaseException) -> int | None:
    at: BaseException | None = error
    while at is not None:
        status = getattr(getattr(at, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        at = at.__cause__
    return None


def _clean(error: BaseException) -> str:
    """What an error says, without the query of an address: that may be a signature."""
    text = re.sub(r"\?[^\s'\"]+", "?…", str(error) or type(error).__name__)
    return clip(anonymous(text), 200)


def _stamp(told: Mapping[str, Any]) -> str:
    """What a listing has that changes with the content."""
    marks = [told.get(key) for key in ("ETag", "etag", "blob_id", "md5", "mtime", "LastModified", "created", "ino")]
    given = [str(mark) for mark in marks if mark]
    return f"{told.get('size')} {' '.join(given)}" if given else ""
