"""The published form of a generation: one folder, the same on disk as on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkt import certlog
from robustkt.card import model_card
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError
from robustkt.generation import Generation, read_manifest
from robustkt.numbers import canonical, digest
from robustkt.registry import Registry
from robustkt.registry.files import sync_folder, write_atomic, writing
from robustkt.registry.measurements import own

if TYPE_CHECKING:
    from torch import nn

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
PICTURE = "certified_accuracy.png"
PUBLISHED = re.compile(  # what `folder_files` names
    r"(manifest|config|record)\.json|model\.safetensors|README\.md|architecture\.py\.txt|certified_accuracy\.png"
    r"|ancestors/[0-9a-f]{64}\.json|(certificate|evaluation)s/[a-z]+-[0-9a-f-]+\.(json|tsv)"
)


def folder_files(registry: Registry, generation: Generation) -> dict[str, bytes]:
    """Every file of the published form, by its path in the folder.

    Raises:
        IntegrityError: the weights, a manifest of the ancestry or a result is damaged.
    """
    from robustkt.report import certified_curves

    weights, record = registry.object(generation.weights), registry.record(generation.id)
    ancestors = list(registry.ancestors(generation))
    results = [r for r in registry.results(generation.id) if own(r, generation)]
    files: dict[str, bytes] = {
        MANIFEST: generation.manifest(),
        "config.json": canonical(_config(generation)),
        WEIGHTS: weights,
        "record.json": canonical({k: v for k, v in record.items() if k != "paths"}),
    }
    if generation.recipe.arch_source is not None:
        files["architecture.py.txt"] = registry.object(generation.recipe.arch_source)
    files |= {f"ancestors/{g.id[7:]}.json": g.manifest() for g in ancestors}
    curves: dict[str, list[certlog.Row]] = {}
    for result in results:
        files[f"{result.kind}s/{result.path.name}"] = result.path.read_bytes()
        log = registry.log(result)
        files[f"{result.kind}s/{registry.log_path(result).name}"] = log
        if result.kind == "certificate":
            settings = result.content["settings"]
            label = f"σ = {settings['sigma']}, n = {settings['n']:,}"
            curves[label if label not in curves else f"{label}, {result.key}"] = certlog.parse(log.decode())
    if curves:
        files[PICTURE] = certified_curves(
            curves, title=f"{generation.name}: {generation.recipe.arch}", note="robustkt; all certified test images"
        )
    card = model_card(generation, ancestors, record, results, picture=PICTURE if curves else None)
    files["README.md"] = card.encode()
    return dict(sorted(files.items()))


def _config(generation: Generation) -> dict[str, Any]:
    """What a reader needs to build the network, without the history."""
    data = generation.recipe.data
    return {
        "library_name": "robustkt",
        "architecture": generation.recipe.arch,
        "classes": list(data.classes),
        "input_shape": list(data.shape),
        "input_range": [0, 1],
        "sigma": generation.recipe.settings.get("sigma"),
        "norm": generation.recipe.settings.get("norm"),
        "eps": generation.recipe.settings.get("eps"),
    }


def write_folder(files: dict[str, bytes], folder: Path) -> None:
    """Make `folder` hold exactly `files`, seen whole or not at all; an earlier publication there is replaced.

    Raises:
        RobustKTError: the folder holds something else, or cannot be written.
    """
    foreign = _foreign(folder)
    if foreign is not None:
        raise RobustKTError(
            f"{folder} holds something that is not a published generation: {foreign}",
            "Name a new or empty folder with --to.",
        )
    folder = folder.absolute()
    fresh = folder.with_name(f".{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")
    old = fresh.with_name(fresh.name + "-old")
    try:
        for path, data in files.items():
            write_atomic(fresh / path, data)
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


def read_folder(folder: Path, network: nn.Module | None = None) -> nn.Module:
    """The network of a published folder, in eval mode: images (B, C, H, W) in [0, 1] to logits (B, K).

    Runs no code from the folder: where the architecture is its author's own file, build `network` yourself (without
    the normalisation, which is put in front of it).

    Raises:
        NotFoundError: it is no published folder.
        IntegrityError: the weights are not those of the manifest.
        RobustKTError: the architecture is code of the author's own and no `network` was given.
    """
    from safetensors.torch import load as load_tensors

    from robustkt.models import Classifier, Normalize, build, is_user_arch

    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFoundError(f"{folder} holds no {name}", "Name the folder of a published generation.")
    generation = read_manifest((folder / MANIFEST).read_bytes(), folder.name, str(folder / MANIFEST))
    data = (folder / WEIGHTS).read_bytes()
    if digest(data) != generation.weights:
        raise IntegrityError(f"{folder / WEIGHTS} is not what the manifest names", "Fetch it again.")
    recipe = generation.recipe
    if network is None and (recipe.arch_source is not None or is_user_arch(recipe.arch)):
        raise RobustKTError(
            f"the architecture in {folder} is code of its author's own, {recipe.arch}",
            "Read architecture.py.txt, build the network and pass it: read_folder(folder, network).",
        )
    if network is None:
        whole = build(recipe.arch, recipe.data)
    else:
        whole = Classifier(Normalize(recipe.data.mean, recipe.data.std), network)
    whole.load_state_dict(load_tensors(data), strict=True)
    return whole.eval()
