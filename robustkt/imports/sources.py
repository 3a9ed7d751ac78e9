"""Where a checkpoint is fetched from: a file, an address, the Hub, RobustBench's drive, torchvision, timm."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt import places
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError, anonymous, clip
from robustkt.imports import files, fitting, zoo
from robustkt.numbers import digest
from robustkt.progress import Progress

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PIECE = 2**20
TIMEOUT = 60  # seconds without a byte
RETRY = "Try again later, or fetch the file in a browser and import it: robustkt import FILE."


@dataclass(frozen=True)
class Fetched:
    """A checkpoint and what its source says of it."""

    content: Any  # what the file holds
    hash: str  # "sha256:…" of the file, or of the tensors that a library handed over
    source: str  # as the manifest has it: no path of this machine, no token
    shown: str  # as messages call it
    arch: str | None = None
    license: str | None = None
    statistics: zoo.Statistics | None = None
    entry: zoo.Entry | None = None


@contextmanager
def fetch(source: str, progress: Progress, file: Path | None = None) -> Iterator[Fetched]:
    """The checkpoint behind `source`; what was downloaded goes when the block ends.

    `file` stands in for the download where it has been made already.

    Raises:
        UsageError: a source of another form, or an unknown name.
        NotFoundError, IntegrityError, RobustKTError: what `files.read` and the network refuse.
    """
    kind, colon, rest = source.partition(":")
    if colon and kind in ("torchvision", "timm"):
        yield {"torchvision": _torchvision, "timm": _timm}[kind](rest, file)
        return
    entry = zoo.entry(rest) if colon and kind == "robustbench" else None
    with contextlib.ExitStack() as stack:
        license, recorded, shown = entry.license if entry else None, source, source
        if file is not None:
            path, shown = file, file.name
            recorded = source if entry or kind in ("hf", "http", "https") else "file"
        elif entry is not None:
            path = stack.enter_context(downloaded(entry.url, source, progress))
        elif colon and kind == "hf":
            path, recorded, license = _hub(rest)
        elif colon and kind in ("http", "https"):
            recorded = shown = bare(source)
            path = stack.enter_context(downloaded(source, shown, progress))
        else:
            path, recorded, shown = Path(source).expanduser(), "file", Path(source).name
        if recorded.startswith("http"):
            recorded = bare(recorded)
        content = files.read(path, shown)
        yield Fetched(
            content, files.sha256(path), recorded, shown,
            arch=entry.arch if entry else None, license=license,
            statistics=entry.statistics if entry else None, entry=entry,
        )  # fmt: skip


def bare(url: str) -> str:
    """An address without user, query and fragment, any of which may hold a token."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def downloaded(url: str, shown: str, progress: Progress, limit: int | None = None) -> Iterator[Path]:
    """The file behind an https address (http only on this machine), whole and within `limit` bytes.

    Raises:
        UsageError: another kind of address.
        NotFoundError: nothing is there.
        IntegrityError: a web page, or fewer bytes than were announced.
        RobustKTError: no network, no rights, a server that fails, or too many bytes.
    """
    limit = limit or files.MAX_BYTES
    _check_address(url)
    folder = places.cache() / "imports"
    folder.mkdir(parents=True, exist_ok=True)
    opener = urllib.request.build_opener(_SameSafety())
    request = urllib.request.Request(url, headers={"User-Agent": "robustkt", "Accept-Encoding": "identity"})
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "checkpoint"
        try:
            with opener.open(request, timeout=TIMEOUT) as answer, path.open("wb") as out:
                _copy(answer, out, shown, limit, progress)
        except urllib.error.HTTPError as error:
            raise _answered(error.code, shown) from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = clip(str(getattr(error, "reason", error)) or type(error).__name__, 80)
            raise RobustKTError(f"{shown} could not be fetched: {reason}", RETRY) from None
        yield path


def _copy(answer: Any, out: Any, shown: str, limit: int, progress: Progress) -> None:
    announced = int(length) if (length := answer.headers.get("Content-Length") or "").isdigit() else None
    if announced is not None and announced > limit:
        raise RobustKTError(f"{shown} has {announced:,} bytes, more than the {limit:,} that are allowed", RETRY)
    done = 0
    with progress.bar(f"fetching {shown}", announced or limit) as bar:
        while piece := answer.read(PIECE):
            if not done:
                files.check_head(piece[:512], shown)
            done += len(piece)
            if done > limit:
                raise RobustKTError(f"{shown} goes on after {limit:,} bytes, which is the most allowed", RETRY)
            out.write(piece)
            bar.advance(len(piece))
    if announced is not None and done != announced:
        raise IntegrityError(f"{shown} is truncated: {done:,} of {announced:,} bytes came", files.AGAIN)


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise UsageError(f"{bare(url)} is not an https address", "Weights are fetched over https only.")


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to an address that would be taken by itself."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl)
        if urllib.parse.urlsplit(newurl).hostname in LOOPBACK and urllib.parse.urlsplit(req.full_url).hostname not in (
            LOOPBACK
        ):
            raise UsageError(f"{bare(req.full_url)} leads to this machine", "Do not trust it.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answered(code: int, shown: str) -> RobustKTError:
    if code in (401, 403):
        return RobustKTError(
            f"{shown} may not be fetched: the server answers {code}", "Log in there in a browser; " + RETRY
        )
    if code in (404, 410):
        return NotFoundError(f"there is nothing at {shown}: the server answers {code}", "Check the address.")
    return RobustKTError(f"{shown} could not be fetched: the server answers {code}", RETRY)


# -- libraries -------------------------------------------------------------------------------------------------------


def _hub(place: str) -> tuple[Path, str, str | None]:
    """A file of a Hub repository: where it lies now, what to record (with the commit), its repository's licence."""
    import os

    from huggingface_hub import HfApi, errors

    name, _, revision = place.partition("@")
    owner, _, rest = name.partition("/")
    repo, _, filename = rest.partition("/")
    if not filename:
        raise UsageError(f"'hf:{place}' names no file of a repository", "Write hf:OWNER/NAME/FILE, or with @REVISION.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="robustkt")
    repository, shown = f"{owner}/{repo}", f"hf:{owner}/{repo}"
    try:
        path = api.hf_hub_download(repository, filename, revision=revision or None)
    except errors.GatedRepoError:
        raise RobustKTError(f"{shown} is gated", "Ask for access on its page, then `hf auth login`.") from None
    except errors.RepositoryNotFoundError:
        fix = "Check the name; of a private one, log in first: `hf auth login`."
        raise NotFoundError(f"there is no repository {shown}", fix) from None
    except errors.RevisionNotFoundError:
        raise NotFoundError(f"{shown} has no revision {revision}", "Name a branch, tag or commit of it.") from None
    except errors.LocalEntryNotFoundError:
        raise RobustKTError(f"{shown} could not be reached, and {filename} is not in the cache", RETRY) from None
    except errors.EntryNotFoundError:
        raise NotFoundError(f"{shown} has no file {filename}", "See its list of files.") from None
    except UnicodeEncodeError:  # no HTTP header could carry it
        fix = "Copy it again into HF_TOKEN, or log in with `hf auth login`."
        raise UsageError("the token for the Hub has characters that no token has", fix) from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise RobustKTError(f"{shown} could not be fetched: {clip(anonymous(str(error)), 80)}", RETRY) from None
    parts = Path(path).parts
    commit = parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision or "main"
    license = None
    with contextlib.suppress(Exception):  # a repository without a card has none
        card = api.model_info(repository, revision=commit).card_data
        license = card.get("license") if card is not None else None
    return Path(path), f"hf:{repository}/{filename}@{commit}", license if isinstance(license, str) else None


def _torchvision(name: str, file: Path | None) -> Fetched:
    """Pretrained weights of torchvision, the default ones or those named, with its own check of their hash.

    `file` is what it would download; its hash is checked in the same way.
    """
    models: Any = importlib.import_module("torchvision.models")
    network, _, wanted = name.partition(":")
    source = f"torchvision:{name}"
    try:
        known = models.get_model_weights(network)
        weights = known[wanted] if wanted else known.DEFAULT
    except (ValueError, KeyError):
        what = f"torchvision has no weights '{name}'"
        raise UsageError(what, "Write torchvision:resnet50 or torchvision:resnet50:IMAGENET1K_V1.") from None
    if file is not None:
        state = files.read(file, file.name)
        start = weights.url.rpartition("-")[2].partition(".")[0]  # of its SHA-256, which the name of the file ends in
        if not files.sha256(file).startswith(f"sha256:{start}"):
            fix = f"Fetch {weights.url}, or import other weights by themselves: robustkt import FILE --arch ARCH."
            raise IntegrityError(f"{file.name} is not the file of torchvision:{network}:{weights.name}", fix)
    else:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            fix = f"Try again later, or fetch {weights.url} and name it: --file FILE."
            raise RobustKTError(f"{source} could not be fetched: {clip(str(error), 80)}", fix) from None
    shape = weights.transforms()
    statistics = (tuple(shape.mean), tuple(shape.std)) if hasattr(shape, "mean") else None
    return Fetched(
        state, state_hash(state), f"torchvision:{network}:{weights.name}", source,
        arch=f"torchvision:{network}", license="BSD-3-Clause", statistics=statistics,
    )  # fmt: skip


def _timm(name: str, file: Path | None) -> Fetched:
    """Pretrained weights of timm, by name or name.tag; `file` is what it would download."""
    try:
        library: Any = importlib.import_module("timm")
    except ImportError:
        raise UsageError(f"timm:{name} needs timm", "Run pip install 'robustkt[timm]'.") from None
    if name.partition(".")[0] not in library.list_models() or not library.is_model_pretrained(name):
        raise UsageError(f"timm has no pretrained weights '{name}'", "See timm.list_pretrained().")
    given: dict[str, Any] = {}
    if file is not None:
        _, state = next(fitting.states(files.read(file, file.name)), ("", {}))
        if not state:
            raise RobustKTError(f"{file.name} holds no weights", "Give a file with a state dict in it.")
        given = {"pretrained_cfg_overlay": {"state_dict": dict(state)}}
    try:
        network = library.create_model(name, pretrained=True, **given)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if file is not None:
            fix = "Give the file that its page on the Hub has; other weights by themselves: robustkt import FILE."
            raise RobustKTError(f"{file.name} does not hold timm:{name}: {clip(str(error), 80)}", fix) from None
        fix = "Try again later, or fetch the file from its page on the Hub and name it: --file FILE."
        raise RobustKTError(f"timm:{name} could not be fetched: {clip(str(error), 80)}", fix) from None
    config: Mapping[str, Any] = network.pretrained_cfg
    state = network.state_dict()
    tag = config.get("tag")
    return Fetched(
        state, state_hash(state), f"timm:{name.partition('.')[0]}" + (f".{tag}" if tag else ""), f"timm:{name}",
        arch=f"timm:{name.partition('.')[0]}", license=config.get("license"),
        statistics=(tuple(config["mean"]), tuple(config["std"])),
    )  # fmt: skip


def state_hash(state: Mapping[str, Any]) -> str:
    """`sha256:…` of tensors as safetensors, in name order: where a library hides its file."""
    from safetensors.torch import save

    return digest(save({name: state[name].contiguous().clone() for name in sorted(state)}))
