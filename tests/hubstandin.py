"""A stand-in for the Hugging Face Hub on loopback: what the client calls to create, commit, tag, list and download.

Standard library only.  It speaks the subset of the Hub's HTTP API that
``huggingface_hub`` 2.x uses to create a repository, commit files (regular and
LFS, single part and multipart), tag, list, and download - so that a real
``push`` / ``pull`` round trip can run on 127.0.0.1 without a network.

    with HubStandIn() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("alice/gen1")
        ...
        hub.requests     # every request, in order, for assertions
        hub.fail(...)    # inject 429 / 500 / 412 / dropped connections

The client uploads through Xet whenever ``hf_xet`` is importable, whatever the
server answers, so run it with ``HF_HUB_DISABLE_XET=1`` (or monkeypatch
``huggingface_hub.constants.HF_HUB_DISABLE_XET = True``) for the LFS path.  With
``HubStandIn(xet=True)`` the server instead hands out a ``local://`` CAS, which
the Rust client in ``hf_xet`` understands, so that the Xet path is real too.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".npz",
    ".npy",
    ".onnx",
    ".gz",
    ".zip",
    ".tar",
)
LFS_MIN_SIZE = 5_000_000  # files at least this large are LFS whatever their name
TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


def git_blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass
class Entry:
    oid: str  # git sha1 of the blob (or of the LFS pointer)
    size: int
    sha256: str | None = None  # set for LFS files: the blob's key in the store
    pointer_size: int = 0
    xet: str | None = None  # set for files that arrived through Xet: the file's Merkle hash


@dataclass
class Commit:
    id: str
    parent: str | None
    tree: dict[str, Entry]
    title: str
    message: str
    author: str
    date: str


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    created: str = ""


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    status: int  # 0: drop the connection; -1: truncate the body half way; -2: do it, then drop the connection
    times: int
    headers: dict[str, str]
    body: bytes


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{datetime.now().microsecond // 1000:03d}Z"


class HubStandIn:
    """The server.  ``url`` and ``token`` are what a client needs."""

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        port: int = 0,
        users: dict[str, str] | None = None,
        part_size: int | None = None,
        cdn: bool = False,
        xet: bool = False,
    ):
        self._own_root = root is None
        self.root = Path(root or tempfile.mkdtemp(prefix="hubstandin-"))
        (self.root / "lfs").mkdir(parents=True, exist_ok=True)
        (self.root / "git").mkdir(parents=True, exist_ok=True)
        (self.root / "cas").mkdir(parents=True, exist_ok=True)
        self.users = users or {"hf_test_alice": "alice"}
        self.token = next(iter(self.users))
        self.part_size = part_size  # set: LFS files larger than this go multipart
        self.cdn = cdn  # LFS downloads redirect to another origin ("localhost")
        self.xet = xet
        self.repos: dict[tuple[str, str], Repo] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.before: Callable[[int], None] = lambda number: None  # called with the number of each request
        self.after: Callable[[int], None] = lambda number: None  # the same, once it is done and not yet answered
        self.count = 0
        self.collections: dict[str, dict[str, Any]] = {}
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *about: None  # type: ignore[method-assign]  # clients are killed on purpose
        self.thread: threading.Thread | None = None

    # -- lifecycle -------------------------------------------------------
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def start(self) -> HubStandIn:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        if self._own_root:
            shutil.rmtree(self.root, ignore_errors=True)

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def env(self, home: str | Path) -> dict[str, str]:
        """What a client process needs in its environment."""
        env = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        if not self.xet:
            env["HF_HUB_DISABLE_XET"] = "1"
        return env

    # -- test hooks ------------------------------------------------------
    def fail(
        self,
        path: str,
        status: int,
        *,
        method: str = "*",
        times: int = 1,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Make the next ``times`` requests whose path matches ``path`` fail."""
        self.faults.append(Fault(method, re.compile(path), status, times, headers or {}, body))

    def calls(self) -> list[str]:
        return [f"{r['method']} {r['path']} -> {r['status']}" for r in self.requests]

    # -- store -----------------------------------------------------------
    def lfs_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256[:2] / sha256

    def put_lfs(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, "sha256 of the content does not match its oid")
        path = self.lfs_path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
        tmp.write_bytes(data)
        os.replace(tmp, path)

    def put_git(self, data: bytes) -> str:
        oid = git_blob_sha1(data)
        (self.root / "git" / oid).write_bytes(data)
        return oid

    def read(self, entry: Entry) -> bytes:
        return (self.lfs_path(entry.sha256) if entry.sha256 else self.root / "git" / entry.oid).read_bytes()

    def resolve(self, repo: Repo, revision: str) -> Commit:
        name = unquote(revision)
        name = re.sub(r"^refs/(heads|tags)/", "", name)
        oid = repo.branches.get(name) or repo.tags.get(name)
        if oid is None and re.fullmatch(r"[0-9a-f]{7,40}", name):
            oid = next((c for c in repo.commits if c.startswith(name)), None)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return repo.commits[oid]

    def add_commit(
        self, repo: Repo, branch: str, tree: dict[str, Entry], title: str, message: str, author: str
    ) -> Commit:
        parent = repo.branches.get(branch)
        body = json.dumps([parent, sorted((k, v.oid) for k, v in tree.items()), title, message, time.time_ns()])
        commit = Commit(hashlib.sha1(body.encode()).hexdigest(), parent, tree, title, message, author, now())
        repo.commits[commit.id] = commit
        repo.branches[branch] = commit.id
        return commit

    def create(self, type_: str, repo_id: str, private: bool, author: str) -> Repo:
        repo = Repo(type_, repo_id, private=private, created=now())
        attributes = "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES).encode()
        entry = Entry(self.put_git(attributes), len(attributes))
        self.repos[type_, repo_id] = repo
        self.add_commit(repo, "main", {".gitattributes": entry}, "initial commit", "", author)
        return repo

    def xet_files(self) -> dict[str, tuple[str, int]]:
        """sha256 -> (Xet file hash, size) of every file in the ``local://`` CAS.

        Reads the MDB shards the client uploaded: a 48-byte header, then per file a
        48-byte header, n segments, n verification entries if bit 31 is set, and a
        48-byte extension holding the file's sha256 if bit 30 is set.
        """

        def hexed(raw: bytes) -> str:
            return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))

        out: dict[str, tuple[str, int]] = {}
        for shard in (self.root / "cas").glob("xet/xorbs/shards/*.mdb"):
            data, at = shard.read_bytes(), 48
            while (file_hash := data[at : at + 32]) != b"\xff" * 32:
                flags, count = struct.unpack_from("<II", data, at + 32)
                at += 48
                size = sum(struct.unpack_from("<I", data, at + 48 * i + 36)[0] for i in range(count))
                at += 48 * count * (2 if flags >> 31 & 1 else 1)
                if flags >> 30 & 1:
                    out[hexed(data[at : at + 32])] = hexed(file_hash), size
                    at += 48
        return out


Route = tuple[str, re.Pattern[str], Callable[..., None]]
ROUTES: list[Route] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    regex = re.compile("^" + pattern + "$")

    def add(function: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((method, regex, function))
        return function

    return add


KIND = r"/api/(?P<kind>models|datasets|spaces)"
# "name" or "owner/name", but never eating the verb that follows it
VERBS = "discussions|revision|tree|paths-info|refs|commits?|tag|branch|preupload|auth-check|settings|xet-"
ID = rf"/(?P<id>[\w.-]+(?:/(?!(?:{VERBS})\b)[\w.-]+)?)"
PLAIN = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[\w.-]+(?:/[\w.-]+)?)"


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for its headers to be acknowledged
    server_version = "HubStandIn/1"

    # -- plumbing --------------------------------------------------------
    def log_message(self, format: str, *args: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(
        self,
        status: int,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
        truncate: bool = False,
    ) -> None:
        self.told["status"] = status
        self.hub.after(self.number)
        if self.lost:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.send_header("X-Request-Id", f"Root=1-{time.time_ns():x}")
        self.end_headers()
        if self.command != "HEAD":
            if truncate:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    @property
    def user(self) -> str | None:
        value = self.headers.get("Authorization", "")
        if not value.startswith("Bearer "):
            return None
        user = self.hub.users.get(value[7:])
        if user is None:
            raise HubError(
                401,
                "Invalid username or password.",
                headers={"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        return user

    def repo(self, kind: str | None, id: str, *, write: bool = False) -> Repo:
        repo = self.hub.repos.get((TYPES[kind or "models"], id))
        user = self.user
        if repo is None or (repo.private and user != id.split("/")[0]):
            # The Hub answers 401 for a missing repository when the caller is anonymous.
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if repo.gated and user is None:
            raise HubError(401, "Access to this repository is restricted.", "GatedRepo")
        if write and user is None:
            raise HubError(401, "Invalid username or password.")
        if write and user != id.split("/")[0]:
            raise HubError(403, "You don't have the rights to write to this repository", None)
        return repo

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query, keep_blank_values=True)
        self.truncate = self.lost = False
        self.data = self.body()
        with self.hub.lock:
            self.number = self.hub.count
            self.hub.count += 1
            self.told: dict[str, Any] = {
                "method": self.command,
                "path": self.path,
                "status": 0,
                "auth": "Authorization" in self.headers,
                "host": self.headers.get("Host"),
                "range": self.headers.get("Range"),
                "type": self.headers.get("Content-Type"),
                "agent": self.headers.get("User-Agent"),
                "size": len(self.data),
                "body": self.data if len(self.data) < 20_000 else None,
            }
            self.hub.requests.append(self.told)  # before the answer: whoever has it may look here at once
        try:
            self.hub.before(self.number)
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method in ("*", self.command) and fault.path.search(url.path):
                    fault.times -= 1
                    if fault.status == 0:
                        self.close_connection = True
                        self.connection.close()
                        return
                    if fault.status in (-1, -2):
                        self.truncate, self.lost = fault.status == -1, fault.status == -2
                        break
                    self.send(fault.status, fault.body, fault.headers)
                    return
            method = "GET" if self.command == "HEAD" else self.command
            for verb, regex, function in ROUTES:
                if verb == method and (match := regex.match(url.path)):
                    with self.hub.lock:
                        function(self, **{k: unquote(v) if v else v for k, v in match.groupdict().items()})
                    return
            raise HubError(404, f"no such endpoint: {self.command} {url.path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.json({"error": error.message}, error.status, headers)
        except (BrokenPipeError, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    # -- account ---------------------------------------------------------
    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        user = self.user
        if user is None:
            raise HubError(401, "Invalid username or password.")
        self.json(
            {
                "type": "user",
                "id": "0",
                "name": user,
                "fullname": user,
                "email": f"{user}@example.invalid",
                "canPay": False,
                "isPro": False,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
            }
        )

    @route("GET", "/api/agent-harnesses")
    def harnesses(self) -> None:
        self.json({"standardEnvVars": [], "harnesses": {}})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        content = json.loads(self.data)["content"]
        if not content.startswith("---"):
            self.json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
            return
        block = content.split("---", 2)[1]
        errors = []
        try:
            import yaml

            if not isinstance(yaml.safe_load(block), dict):
                errors = [{"message": "metadata must be a mapping"}]
        except ImportError:
            pass
        except Exception as error:
            errors = [{"message": f"invalid yaml: {error}"}]
        self.json({"errors": errors, "warnings": []}, 400 if errors else 200)

    # -- repositories ----------------------------------------------------
    @route("POST", "/api/repos/create")
    def create(self) -> None:
        user = self.user
        if user is None:
            raise HubError(401, "Invalid username or password.")
        args = json.loads(self.data)
        owner = args.get("organization") or user
        if owner != user:
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        type_, id_ = args.get("type") or "model", f"{owner}/{args['name']}"
        url = f"{self.hub.url}/{'' if type_ == 'model' else type_ + 's/'}{id_}"
        if (type_, id_) in self.hub.repos:
            self.json(
                {"error": f"You already created this {type_} repo", "url": url},
                409,
                {"X-Error-Message": "You already created this repo"},
            )
            return
        self.hub.create(type_, id_, args.get("visibility") == "private", user)
        self.json({"url": url, "name": id_, "id": hashlib.sha1(id_.encode()).hexdigest()[:24]})

    @route("DELETE", "/api/repos/delete")
    def delete(self) -> None:
        args = json.loads(self.data)
        id_ = f"{args.get('organization') or self.user}/{args['name']}"
        type_ = args.get("type") or "model"
        self.repo(type_ + "s", id_, write=True)
        del self.hub.repos[type_, id_]
        self.send(200)

    @route("PUT", KIND + ID + "/settings")
    def settings(self, kind: str, id: str) -> None:
        repo, args = self.repo(kind, id, write=True), json.loads(self.data)
        if "visibility" in args:
            repo.private = args["visibility"] == "private"
        if "gated" in args:
            repo.gated = bool(args["gated"])
        self.json(args)

    @route("GET", KIND + ID + "/auth-check(?P<write>/write)?")
    def auth_check(self, kind: str, id: str, write: str | None) -> None:
        self.repo(kind, id, write=bool(write))
        self.send(200)

    @route("GET", KIND)
    def list_repos(self, kind: str) -> None:
        wanted = self.query.get("author", [None])[0]
        search = self.query.get("search", [""])[0].lower()
        self.json(
            [
                self.info(r, r.commits[r.branches["main"]])
                for (t, id_), r in self.hub.repos.items()
                if t == TYPES[kind]
                and search in id_.lower()
                and (not wanted or id_.startswith(wanted + "/"))
                and (not r.private or self.user == id_.split("/")[0])
            ]
        )

    def info(self, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
        siblings = []
        for path, entry in sorted(commit.tree.items()):
            item: dict[str, Any] = {"rfilename": path}
            if blobs:
                item |= {"size": entry.size, "blobId": entry.oid}
                if entry.sha256:
                    item["lfs"] = {
                        "size": entry.size,
                        "sha256": entry.sha256,
                        "pointerSize": entry.pointer_size,
                    }
            siblings.append(item)
        card: dict[str, Any] = {}
        if "README.md" in commit.tree:
            text = self.hub.read(commit.tree["README.md"]).decode()
            if text.startswith("---"):
                try:
                    import yaml

                    card = yaml.safe_load(text.split("---", 2)[1]) or {}
                except Exception:
                    card = {}
        return {
            "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "createdAt": repo.created,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": card.get("tags") or [],
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "cardData": card,
            "model-index": card.get("model-index"),
            "siblings": siblings,
        }

    @route("GET", KIND + ID + "(?:/revision/(?P<rev>.+))?")
    def repo_info(self, kind: str, id: str, rev: str | None) -> None:
        repo = self.repo(kind, id)
        self.json(self.info(repo, self.hub.resolve(repo, rev or "main"), "blobs" in self.query))

    def describe(self, path: str, entry: Entry) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.sha256:
            out["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        if entry.xet:
            out["xetHash"] = entry.xet
        return out

    @route("GET", KIND + ID + "/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, kind: str, id: str, rev: str, path: str | None) -> None:
        commit = self.hub.resolve(self.repo(kind, id), rev)
        prefix = path + "/" if path else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        out, folders = [], set()
        for name, entry in sorted(commit.tree.items()):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if folder not in folders and (recursive or depth == 1):
                    folders.add(folder)
                    oid = hashlib.sha1(folder.encode()).hexdigest()
                    out.append({"type": "directory", "path": folder, "oid": oid, "size": 0})
            if recursive or len(parts) == 1:
                out.append(self.describe(name, entry))
        if path and not out:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        self.json(out)

    @route("POST", KIND + ID + "/paths-info/(?P<rev>.+)")
    def paths_info(self, kind: str, id: str, rev: str) -> None:
        commit = self.hub.resolve(self.repo(kind, id), rev)
        form = parse_qs(self.data.decode())
        self.json([self.describe(p, commit.tree[p]) for p in form.get("paths", []) if p in commit.tree])

    @route("GET", KIND + ID + "/discussions")
    def discussions(self, kind: str, id: str) -> None:
        repo = self.repo(kind, id)
        opened = {int(name[8:]): repo.commits[c] for name, c in repo.branches.items() if name.startswith("refs/pr/")}
        found = [
            {
                "title": commit.title,
                "num": number,
                "author": {"name": commit.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": id, "type": TYPES[kind]},
                "isPullRequest": True,
            }
            for number, commit in opened.items()
            if self.query.get("author", [commit.author]) == [commit.author]
        ]
        self.json({"count": len(found), "start": 0, "discussions": found})

    @route("GET", KIND + ID + "/refs")
    def refs(self, kind: str, id: str) -> None:
        repo = self.repo(kind, id)

        def refs(space: str, values: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{space}/{n}", "targetCommit": c} for n, c in values.items()]

        self.json(
            {
                "branches": refs("heads", repo.branches),
                "tags": refs("tags", repo.tags),
                "converts": [],
                "pullRequests": [],
            }
        )

    @route("GET", KIND + ID + "/commits/(?P<rev>.+)")
    def commits(self, kind: str, id: str, rev: str) -> None:
        repo = self.repo(kind, id)
        commit: Commit | None = self.hub.resolve(repo, rev)
        out = []
        while commit:
            out.append(
                {
                    "id": commit.id,
                    "title": commit.title,
                    "message": commit.message,
                    "date": commit.date,
                    "authors": [{"user": commit.author}],
                }
            )
            commit = repo.commits[commit.parent] if commit.parent else None
        self.json(out)

    def set_ref(self, refs: dict[str, str], name: str, commit: Commit) -> None:
        if name in refs:
            raise HubError(409, f"Reference {name} already exists")
        refs[name] = commit.id
        self.json({})

    @route("POST", KIND + ID + "/tag/(?P<rev>.+)")
    def tag(self, kind: str, id: str, rev: str) -> None:
        repo = self.repo(kind, id, write=True)
        self.set_ref(repo.tags, json.loads(self.data)["tag"], self.hub.resolve(repo, rev))

    @route("DELETE", KIND + ID + "/tag/(?P<tag>.+)")
    def untag(self, kind: str, id: str, tag: str) -> None:
        repo = self.repo(kind, id, write=True)
        if repo.tags.pop(tag, None) is None:
            raise HubError(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        self.send(200)

    @route("POST", KIND + ID + "/branch/(?P<branch>.+)")
    def branch(self, kind: str, id: str, branch: str) -> None:
        repo = self.repo(kind, id, write=True)
        start = json.loads(self.data or b"{}").get("startingPoint") or "main"
        self.set_ref(repo.branches, branch, self.hub.resolve(repo, start))

    @route("DELETE", KIND + ID + "/branch/(?P<branch>.+)")
    def unbranch(self, kind: str, id: str, branch: str) -> None:
        repo = self.repo(kind, id, write=True)
        if branch == "main" or repo.branches.pop(branch, None) is None:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        self.send(200)

    # -- collections -----------------------------------------------------
    def collection(self, slug: str) -> dict[str, Any]:
        found = self.hub.collections.get(slug)
        if found is None:
            raise HubError(404, "Collection not found")
        return {**found, "lastUpdated": now(), "position": 0, "theme": "green", "upvotes": 0}

    @route("POST", "/api/collections")
    def create_collection(self) -> None:
        args = json.loads(self.data)
        slug = f"{args['namespace']}/{re.sub('[^a-z0-9]+', '-', args['title'].lower())}-{'0' * 24}"
        if slug in self.hub.collections:
            self.json({"slug": slug, "error": "it is there"}, 409)
            return
        whole = {"slug": slug, "title": args["title"], "owner": {"name": args["namespace"]}, "items": []}
        self.hub.collections[slug] = {**whole, "private": args.get("private", False)}
        self.json(self.collection(slug))

    @route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
    def get_collection(self, slug: str) -> None:
        self.json(self.collection(slug))

    @route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items?")
    def add_item(self, slug: str) -> None:
        self.collection(slug)
        item, items = json.loads(self.data)["item"], self.hub.collections[slug]["items"]
        if any(one["id"] == item["id"] for one in items):
            self.json({"error": "it is there"}, 409)
            return
        items.append({"_id": str(len(items)), **item, "position": len(items)})
        self.json(self.collection(slug))

    # -- commits ---------------------------------------------------------
    @route("POST", KIND + ID + "/preupload/(?P<rev>.+)")
    def preupload(self, kind: str, id: str, rev: str) -> None:
        repo = self.repo(kind, id, write="create_pr" not in self.query)
        tree = self.hub.resolve(repo, rev).tree
        out = []
        for item in json.loads(self.data)["files"]:
            binary = b"\0" in base64.b64decode(item.get("sample") or "")
            large = item["size"] >= LFS_MIN_SIZE or (binary and item["size"] > 1_000_000)
            mode = "lfs" if large or item["path"].endswith(LFS_SUFFIXES) else "regular"
            entry = tree.get(item["path"])
            oid = (entry.sha256 or entry.oid) if entry else None
            out.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": out, "commitOid": self.hub.resolve(repo, rev).id})

    @route("POST", KIND + ID + "/commit/(?P<rev>.+)")
    def commit(self, kind: str, id: str, rev: str) -> None:
        repo = self.repo(kind, id, write="create_pr" not in self.query)
        proposed = "create_pr" in self.query
        if rev not in repo.branches:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.data.splitlines() if line.strip()]
        header = lines[0]["value"]
        head = repo.commits[repo.branches[rev]]
        if header.get("parentCommit") and not head.id.startswith(header["parentCommit"]):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            path = value["path"]
            if key == "file":
                data = base64.b64decode(value["content"])
                tree[path] = Entry(self.hub.put_git(data), len(data))
            elif key == "lfsFile":
                blob = self.hub.lfs_path(value["oid"])
                xet_hash, size = self.hub.xet_files().get(value["oid"], (None, -1)) if self.hub.xet else (None, -1)
                if xet_hash is None:
                    if not blob.exists():
                        raise HubError(400, f"LFS object {value['oid']} was not uploaded")
                    size = blob.stat().st_size
                pointer = lfs_pointer(value["oid"], size)
                tree[path] = Entry(git_blob_sha1(pointer), size, value["oid"], len(pointer), xet_hash)
            elif key == "deletedFile":
                if tree.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key == "deletedFolder":
                gone = [p for p in tree if p.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for p in gone:
                    del tree[p]
            else:
                raise HubError(400, f"unknown operation {key}")
        if proposed:
            number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
            rev = f"refs/pr/{number}"
            repo.branches[rev] = head.id
        commit = self.hub.add_commit(
            repo, rev, tree, header["summary"], header.get("description") or "", self.user or ""
        )
        prefix = "" if kind == "models" else kind + "/"
        self.json(
            {
                "success": True,
                "commitOid": commit.id,
                "commitUrl": f"{self.hub.url}/{prefix}{id}/commit/{commit.id}",
                "hookOutput": "",
                **({"pullRequestUrl": f"{self.hub.url}/{prefix}{id}/discussions/{rev[8:]}"} if proposed else {}),
            }
        )

    # -- LFS -------------------------------------------------------------
    @route("POST", PLAIN + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, kind: str | None, id: str) -> None:
        self.repo(kind, id)
        request = json.loads(self.data)
        objects = []
        for item in request["objects"]:
            out: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if not self.hub.lfs_path(item["oid"]).exists():
                base = f"{self.hub.url}/_lfs/{item['oid']}"
                part = self.hub.part_size
                if part and item["size"] > part and "multipart" in request["transfers"]:
                    count = -(-item["size"] // part)
                    header = {"chunk_size": str(part)}
                    header |= {str(n): f"{base}/part/{n}" for n in range(1, count + 1)}
                    upload: dict[str, Any] = {"href": f"{base}/complete", "header": header}
                else:
                    upload = {"href": base}
                out["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify"}}
            objects.append(out)
        transfer = "multipart" if any("chunk_size" in str(o) for o in objects) else "basic"
        self.json(
            {"transfer": transfer, "objects": objects},
            headers={"Content-Type": "application/vnd.git-lfs+json"},
        )

    @route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid: str) -> None:
        self.hub.put_lfs(oid, self.data)
        self.send(200)

    @route("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>[0-9]+)")
    def lfs_part(self, oid: str, number: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(number)] = self.data
        self.send(200, headers={"ETag": f'"{hashlib.md5(self.data).hexdigest()}"'})

    @route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/complete")
    def lfs_complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        for item in json.loads(self.data)["parts"]:
            if item["etag"].strip('"') != hashlib.md5(parts[item["partNumber"]]).hexdigest():
                raise HubError(400, "part etag mismatch")
        self.hub.put_lfs(oid, b"".join(data for _, data in sorted(parts.items())))
        self.json({})

    @route("POST", "/_lfs/(?P<oid>[0-9a-f]{64})/verify")
    def lfs_verify(self, oid: str) -> None:
        wanted = json.loads(self.data)
        path = self.hub.lfs_path(oid)
        if wanted["oid"] != oid or not path.exists() or path.stat().st_size != wanted["size"]:
            raise HubError(422, "object is missing or has another size")
        self.json({})

    # -- downloads -------------------------------------------------------
    def serve(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if (wanted := self.headers.get("Range")) and (m := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
            start, end = int(m[1]), int(m[2]) if m[2] else len(data) - 1
            if start >= len(data):
                self.send(416, headers={"Content-Range": f"bytes */{len(data)}"})
                return
            end = min(end, len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self.send(206, data[start : end + 1], headers)
            return
        self.send(200, data, headers, truncate=self.truncate)

    @route("GET", "/_cdn/(?P<sha>[0-9a-f]{64})")
    def cdn_get(self, sha: str) -> None:
        self.serve(self.hub.lfs_path(sha).read_bytes(), {"ETag": f'"{sha}"'})

    @route("GET", PLAIN + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
    def resolve_file(self, kind: str | None, id: str, rev: str, path: str) -> None:
        commit = self.hub.resolve(self.repo(kind, id), rev)
        headers = {"X-Repo-Commit": commit.id}
        entry = commit.tree.get(path)
        if entry is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
        if entry.sha256:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.sha256}"'}
            if entry.xet:
                # A Xet file has no bytes here: the client fetches them from the CAS.
                route = f"{self.hub.url}/api/{kind or 'models'}/{id}/xet-read-token/{commit.id}"
                headers |= {
                    "X-Xet-Hash": entry.xet,
                    "X-Xet-Refresh-Route": route,
                    "ETag": f'"{entry.sha256}"',
                }
                headers["Link"] = f'<{route}>; rel="xet-auth"'
                self.send(200 if self.command == "HEAD" else 501, headers=headers, length=None)
                return
            if self.hub.cdn:
                port = self.hub.server.server_address[1]
                headers["Location"] = f"http://localhost:{port}/_cdn/{entry.sha256}"
                self.send(302, headers=headers)
                return
        headers["ETag"] = f'"{entry.sha256 or entry.oid}"'
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}"
        self.serve(self.hub.read(entry), headers)

    # -- xet -------------------------------------------------------------
    @route("GET", KIND + ID + "/xet-(?P<mode>read|write)-token/(?P<rev>.+)")
    def xet_token(self, kind: str, id: str, mode: str, rev: str) -> None:
        self.repo(kind, id, write=mode == "write")
        if not self.hub.xet:
            raise HubError(404, "this stand-in has no Xet storage")
        expiry = int(time.time()) + 3600
        url = f"local://{self.hub.root / 'cas'}"
        self.json(
            {"accessToken": "xet", "exp": expiry, "casUrl": url},
            headers={
                "X-Xet-Cas-Url": url,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(expiry),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--root", default=None)
    parser.add_argument("--part-size", type=int, default=None)
    parser.add_argument("--cdn", action="store_true")
    parser.add_argument("--xet", action="store_true")
    args = parser.parse_args()
    hub = HubStandIn(args.root, port=args.port, part_size=args.part_size, cdn=args.cdn, xet=args.xet)
    print(f"HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET={0 if args.xet else 1}", flush=True)
    hub.start()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()


if __name__ == "__main__":
    main()
