"""The published form on this disk: written whole or not at all, read without running anything from it."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from robustkt.errors import IntegrityError, NotFoundError, RobustKTError
from robustkt.generation import read_manifest
from robustkt.hub.form import MANIFEST, PUBLISHED, WEIGHTS, File, adapter_path
from robustkt.numbers import digest
from robustkt.registry.files import copy_atomic, sync_folder, write_atomic, writing

if TYPE_CHECKING:
    from torch import nn


def write_folder(files: Mapping[str, File], folder: Path) -> None:
    """Make `folder` hold exactly `files`, seen whole or not at all; an earlier publication there is replaced.

    Raises:
        RobustKTError: the folder holds something else, or cannot be written.
    """
    _tidy(folder.absolute())
    foreign = _foreign(folder)
    if foreign is not None:
        raise RobustKTError(
            f"{folder} holds something that is not a published generation: {foreign}",
            "Name a new or empty folder with --to.",
        )
    folder = folder.absolute()
    fresh = folder.with_name(f".{folder.name}-{_here()}-{os.getpid()}-{secrets.token_hex(4)}")
    old = fresh.with_name(fresh.name + "-old")
    try:
        for path, file in files.items():
            if isinstance(file.content, bytes):
                write_atomic(fresh / path, file.content)
            else:
                copy_atomic(file.content, fresh / path)
        with writing(folder):
            if folder.exists():
                os.replace(folder, old)
            os.replace(fresh, folder)
            sync_folder(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)  # the swap failed half way
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove what pushes to `folder` left beside it that were killed on this machine."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-{_here()}-([0-9]+)-[0-9a-f]{{8}}(-old)?")
    for path in folder.parent.iterdir() if folder.parent.is_dir() else ():
        found = ours.fullmatch(path.name)
        if found is None or _lives(int(found[1])):
            continue
        if found[2] and not folder.exists():  # killed in the middle of the swap: the earlier publication
            os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _here() -> str:
    """This machine, without its name: other machines that share the disk have other processes."""
    return digest(f"{platform.node()} {os.getuid()}".encode())[7:15]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _foreign(folder: Path) -> str | None:
    """Something in `folder` that no earlier publication put there, or None."""
    if not folder.is_dir():
        return folder.name if folder.exists() or folder.is_symlink() else None
    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]
    if not files:
        return None
    try:
        read_manifest((folder / MANIFEST).read_bytes(), "", MANIFEST)
    except (OSError, RobustKTError):
        return files[0]
    return next((file for file in files if not PUBLISHED.fullmatch(file)), None)


def check_published(folder: Path) -> None:
    """Raise NotFoundError where a folder has no manifest or no weights."""
    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFoundError(f"{folder} holds no {name}", "Name the folder of a published generation.")


def read_folder(folder: Path, network: nn.Module | None = None, *, domain: str | None = None) -> nn.Module:
    """The network of a published folder, in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    Runs no code from the folder: where the architecture is its author's own file, build `network` yourself (without
    the normalisation, which is put in front of it).

    Args:
        folder: in the published form.
        network: for an architecture that is its author's own code.
        domain: the mode, as `clean` or `beta=0.4`; the default one where none is named.

    Raises:
        NotFoundError: it is no published folder, or has no such mode.
        IntegrityError: the weights or adapters are not those of the manifest.
        RobustKTError: the architecture is code of the author's own and no `network` was given.
    """
    from robustkt.adapters.stored import assembled
    from robustkt.models import Classifier, Normalize, build, is_user_arch

    check_published(folder)
    generation = read_manifest((folder / MANIFEST).read_bytes(), folder.name, str(folder / MANIFEST))
    generation = generation.in_mode(domain) if domain is not None else generation
    places = {generation.weights: WEIGHTS} | {one.hash: adapter_path(one.domain) for one in generation.bound()}

    def read(identity: str) -> bytes:
        place = folder / places[identity]
        if not place.is_file():
            raise NotFoundError(f"{folder} holds no {places[identity]}", "Fetch it again.")
        data = place.read_bytes()
        if digest(data) != identity:
            raise IntegrityError(f"{place} is not what the manifest names", "Fetch it again.")
        return data

    state = assembled(generation, read)
    recipe = generation.recipe
    if network is None and (recipe.arch_source is not None or is_user_arch(recipe.arch)):
        raise RobustKTError(
            f"the architecture in {folder} is code of its author's own, {recipe.arch}",
            "Read architecture.py.txt, save it as a file of yours and pass arch='FILE.py:NAME', or the network.",
        )
    if network is None:
        whole = build(recipe.arch, recipe.data)
    else:
        whole = Classifier(Normalize(recipe.data.mean, recipe.data.std), network)
    whole.load_state_dict(state, strict=True)
    return whole.eval()
