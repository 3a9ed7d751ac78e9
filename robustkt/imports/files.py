"""Foreign weight files, read without running anything that is in them; each way to be wrong has its own message."""

from __future__ import annotations

import hashlib
import json
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, clip

MAX_BYTES = 8 * 2**30  # of a file, and of what is packed in it; the largest public robust checkpoint has 1.5 GB
PICKLE, ZIP = b"\x80", b"PK\x03\x04"
AGAIN = "Fetch it again, and compare its size with what its page says."
DOCS = "docs/import-export.md#old-pickles"
# What a checkpoint has no use for: a pickle that names one of these was made to do harm.
HARMFUL = (
    *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "code"),
    *("webbrowser", "urllib", "requests", "http", "asyncio", "multiprocessing", "pickle", "marshal", "commands"),
)
HARMLESS_BUILTINS = ("set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "str", "bytes", "slice")


def read(path: Path, shown: str) -> Any:
    """What a safetensors or PyTorch file holds, tensors on the CPU; `shown` is what messages call it.

    Raises:
        NotFoundError: no such file.
        IntegrityError: a web page, a truncated or damaged file, another kind of file, or one that unpacks to too much.
        RobustKTError: a pickle that names code, with what to do; none of it has run.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {shown}", "Check the path; sources are in `robustkt import --help`.")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise IntegrityError(f"{shown} has {size:,} bytes, more than any checkpoint", "Name the weight file itself.")
    with path.open("rb") as file:
        head = file.read(512)
        check_head(head, shown)
        if head.startswith(ZIP):
            _check_zip(file, size, shown)
            return _load(path, file, shown)
        if head.startswith(PICKLE):
            return _load(path, file, shown)
        if head[4:9] == b"\0\0\0\0{":
            return _safetensors(path, head, size, shown)
    raise IntegrityError(
        f"{shown} is neither a safetensors file nor a PyTorch checkpoint",
        "Give a .safetensors, .pt, .pth or .ckpt file; an archive or one of another library is to be unpacked first.",
    )


def sha256(path: Path) -> str:
    """`sha256:…` of a file, read in pieces."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def check_head(head: bytes, shown: str) -> None:
    """Raise an IntegrityError when a file's first bytes are those of a page, a pointer or an answer."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise IntegrityError(f"{shown} is empty", AGAIN)
    if head[4:9] == b"\0\0\0\0{":  # safetensors, whatever letters the length of its header spells
        return
    if text.startswith(b"<"):
        raise IntegrityError(
            f"{shown} is a web page, not a checkpoint",
            "The link leads to a page that asks for a login or a confirmation: save the file itself in a browser.",
        )
    if text.startswith(b"version https://git-lfs"):
        raise IntegrityError(f"{shown} is a Git LFS pointer, not the file", "Run `git lfs pull` where it comes from.")
    if text.startswith((b'{"', b"{'")):
        raise IntegrityError(f"{shown} is text, not a checkpoint: {clip(text.decode(errors='replace'), 60)}", AGAIN)


def _safetensors(path: Path, head: bytes, size: int, shown: str) -> dict[str, torch.Tensor]:
    """A state dict, its header held against the file's size first."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    length = int.from_bytes(head[:8], "little")
    if length + 8 > size:
        raise _truncated(shown, f"its header should have {length:,} bytes")
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + length)[8:])
        needed = 8 + length + max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"), default=0)
        if needed > size:
            raise _truncated(shown, f"it should have {needed:,} bytes and has {size:,}")
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{shown} is a damaged safetensors file: {clip(str(error))}", AGAIN) from None


def _check_zip(file: IO[bytes], size: int, shown: str) -> None:
    """Raise an error for an archive that is cut off, damaged, packed, or no state dict."""
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        raise _truncated(shown, "the table at its end is missing or damaged") from None
    if sum(entry.file_size for entry in entries) > min(MAX_BYTES, 2 * size + 2**20):
        raise IntegrityError(
            f"{shown} would unpack to far more than its {size:,} bytes", "PyTorch packs nothing: do not trust it."
        )
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise RobustKTError(
            f"{shown} is a TorchScript program, not weights: loading it would run it",
            "Ask for its state dict, or make one where nothing can be lost: torch.jit.load(FILE).state_dict().",
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise IntegrityError(
            f"{shown} is a zip archive without a checkpoint in it: {clip(', '.join(names[:3]), 60)}",
            "Unpack it and import the weight file inside.",
        )
    try:
        bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError):
        bad = "an entry"
    if bad is not None:
        raise IntegrityError(f"{shown} is damaged: {bad} is not what its checksum says", AGAIN)


def _load(path: Path, file: IO[bytes], shown: str) -> Any:
    """torch.load with `weights_only`, its refusals told apart."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old the file is
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes are hostile: whatever the reader raises, they are refused
        named = [name for name in _named(path, file) if not _known(name)]
        harmful = [name for name in named if _harmful(name)]
        if harmful:
            raise RobustKTError(
                f"{shown} is malicious: as a pickle it would call {clip(harmful[0], 60)}; nothing of it has run",
                "Delete it, and tell whoever hosts it.",
            ) from None
        if named:
            raise RobustKTError(
                f"{shown} is a pickle that needs code of its authors to load: {clip(', '.join(named[:3]), 100)}",
                f"Convert it to safetensors in a container without network, as {DOCS} shows, and import that.",
            ) from None
        if isinstance(error, EOFError) or "unexpected EOF" in str(error) or "EOF" in str(error):
            raise _truncated(shown, "its end is missing") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IntegrityError(f"{shown} is a damaged checkpoint: {clip(reason, 80)}", AGAIN) from None


def _truncated(shown: str, why: str) -> IntegrityError:
    return IntegrityError(f"{shown} is truncated: {why}", AGAIN)


def _named(path: Path, file: IO[bytes]) -> list[str]:
    """What the pickles in a file would import, `module.name`, read from their opcodes without running any."""
    found: dict[str, None] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        with archive.open(name) as stream:
                            found |= dict.fromkeys(_globals(stream))
        else:
            file.seek(0)
            while True:  # the older format is several pickles, then raw numbers
                found |= dict.fromkeys(_globals(file))
    except Exception:  # what comes before the damage is what counts
        return list(found)
    return list(found)


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Of one pickle; raises where it is damaged or the stream has ended, after what was found before."""
    if not stream.peek(1):  # type: ignore[attr-defined]
        raise EOFError
    strings: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        number = argument if isinstance(argument, int) else -1
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT") and strings:
            memo[number] = strings[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else ""
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(number, ""))
        elif isinstance(argument, str):
            strings.append(argument)


def _known(name: str) -> bool:
    """Whether torch loads it under `weights_only`."""
    module, _, leaf = name.rpartition(".")
    plain = name in ("collections.OrderedDict", "collections.Counter", "_codecs.encode")
    return plain or module in ("torch", "torch._utils", "torch.storage", "torch._tensor", "torch.nn.parameter") or (
        module in ("builtins", "__builtin__") and leaf in HARMLESS_BUILTINS
    )  # fmt: skip


def _harmful(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return leaf not in HARMLESS_BUILTINS
    return module.partition(".")[0] in HARMFUL
