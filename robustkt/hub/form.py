"""The published form of a generation: one folder, the same on disk as on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt import certlog
from robustkt.card import model_card
from robustkt.generation import Generation
from robustkt.hub.licenses import inherited
from robustkt.hub.statement import statement
from robustkt.numbers import canonical, digest, parse_json
from robustkt.registry import Registry, Result
from robustkt.registry.binding import Binding, read_binding
from robustkt.registry.files import whole_object
from robustkt.registry.measurements import FOLDERS, meant, own
from robustkt.registry.seal import sealed
from robustkt.registry.store import RECORD
from robustkt.shapes import to_json

FORMAT = 2  # of the published form, the newest that is read; 1 is written where nothing has adapters
INDEX = "robustkt.json"
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
LAST = "last.safetensors"  # of the last epoch, where the selected one is another
ADAPTER = "adapter_model.safetensors"  # in adapters/DOMAIN, as PEFT calls it
ADAPTER_CONFIG = "adapter_config.json"
SOURCE = "architecture.py.txt"
RUN = "record.json"
CARD = "README.md"
PROVENANCE = "provenance.json"
SIGNATURE = "model.sig"  # over all the others; so the index does not name it
PICTURE = "certified_accuracy.png"
RESULT = rf"({'|'.join(FOLDERS)})/[a-z]+-[0-9a-z-]{{1,120}}\.(json|tsv)"
ADAPTERS = r"adapters/[a-z][a-z0-9.]{0,30}/(adapter_config\.json|(adapter_model|last)\.safetensors)"
PUBLISHED = re.compile(  # what `folder_files` names
    r"(manifest|config|record|provenance|robustkt)\.json|(model|last)\.safetensors|README\.md|architecture\.py\.txt"
    rf"|model\.sig|certified_accuracy\.png|{RESULT}|{ADAPTERS}|ancestors/[0-9a-f]{{64}}\.json"
    rf"|ancestors/[0-9a-f]{{64}}/((record|provenance)\.json|(model|last)\.safetensors|architecture\.py\.txt|{RESULT}|{ADAPTERS})"
)


@dataclass(frozen=True)
class File:
    """One file of the published form: its bytes, or for weights the place where they lie."""

    content: bytes | Path
    size: int
    hash: str  # "sha256:…"

    @classmethod
    def of(cls, data: bytes) -> File:
        """A small file."""
        return cls(data, len(data), digest(data))

    def read(self) -> bytes:
        """All of it, in memory."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def git_oid(self) -> str:
        """What git calls these bytes."""
        found = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        for block in blocks(self.content) if isinstance(self.content, Path) else (self.content,):
            found.update(block)
        return found.hexdigest()


def blocks(path: Path) -> Iterator[bytes]:
    """A file a mebibyte at a time."""
    with path.open("rb") as file:
        while block := file.read(2**20):
            yield block


def folder_files(
    registry: Registry,
    generation: Generation,
    *,
    with_ancestors: bool = False,
    homes: Mapping[str, str] | None = None,
    repo: str | None = None,
    license: str | None = None,
) -> dict[str, File]:
    """Every file of the published form, by its path in the folder.

    Args:
        registry: where the generation is.
        generation: what is published.
        with_ancestors: the weights and measurements of its ancestors too, not only their manifests and run records.
        homes: repositories on the Hub by the ids of the ancestors that they hold.
        repo: the repository that the folder is meant for; the card's examples name it.
        license: an SPDX or Hub identifier; by default what the generation or its ancestors came with.

    Raises:
        IntegrityError: the weights, a manifest of the ancestry or a result is damaged.
        RobustKTError: the licence allows what an ancestor's does not.
    """
    ancestors = list(registry.ancestors(generation))
    license = inherited(registry, generation, ancestors, license)
    homes = {g.id: homes[g.id] for g in ancestors if homes and g.id in homes}
    results = travelling(registry, generation)
    family = {g.id: g for g in ancestors}
    files = {MANIFEST: File.of(generation.manifest()), "config.json": File.of(canonical(_config(generation)))}
    files |= _body(registry, generation, results)
    files[PROVENANCE] = _provenance(generation, files, family, homes)
    for ancestor in ancestors:
        place = f"ancestors/{ancestor.id[7:]}"
        files[f"{place}.json"] = File.of(ancestor.manifest())
        if with_ancestors:
            inside = _body(registry, ancestor, travelling(registry, ancestor))
            inside[PROVENANCE] = _provenance(ancestor, inside, family, homes)
        else:
            inside = {RUN: _record(registry, ancestor)}
        files |= {f"{place}/{path}": file for path, file in inside.items()}
    shown = [r for r in results if own(r, meant(r, generation))]
    picture = _picture(registry, generation, shown)
    if picture is not None:
        files[PICTURE] = File.of(picture)
    card = model_card(
        generation,
        ancestors,
        registry.record(generation.id),
        shown,
        picture=PICTURE if picture else None,
        repo=repo,
        homes=homes,
        license=license,
    )
    files[CARD] = File.of(card.encode())
    files[INDEX] = File.of(_index(registry, generation, ancestors, files, homes, license))
    return dict(sorted(files.items()))


def travelling(registry: Registry, generation: Generation) -> list[Result]:
    """The measurements that are published: those on the generation's own data; what other data said stays at home."""
    found = registry.results(generation.id)
    return [r for r in found if r.content["settings"]["data"] == generation.recipe.data.fingerprint]


def _body(registry: Registry, generation: Generation, results: Sequence[Result]) -> dict[str, File]:
    """What a registry keeps of a generation beside its manifest, as it lies there."""
    files = {RUN: _record(registry, generation), WEIGHTS: _object(registry, generation.weights)}
    if generation.last_weights != generation.weights:
        files[LAST] = _object(registry, generation.last_weights)
    for one in generation.bound():
        files[adapter_path(one.domain)] = file = _object(registry, one.hash)
        binding = read_binding(file.read(), one, generation.name)
        files[adapter_path(one.domain, ADAPTER_CONFIG)] = File.of(canonical(adapter_config(binding)))
    for one in generation.bound(last=True):
        if one.hash != generation.adapters[one.domain]:
            files[adapter_path(one.domain, LAST)] = _object(registry, one.hash)
    if generation.recipe.arch_source is not None:
        files[SOURCE] = File.of(registry.object(generation.recipe.arch_source))
    for result in results:
        files[f"{result.kind}s/{result.path.name}"] = File.of(result.path.read_bytes())
        files[f"{result.kind}s/{registry.log_path(result).name}"] = File.of(registry.log(result))
    return files


def adapter_path(domain: str, name: str = ADAPTER) -> str:
    """Where a file of an adapter lies in the published form."""
    return f"adapters/{domain}/{name}"


def adapter_config(binding: Binding) -> dict[str, Any]:
    """What is written beside an adapter, for readers who look there: all of it is in the adapter's own header too."""
    return {"library_name": "robustkt", **to_json(binding)}


def _object(registry: Registry, identity: str) -> File:
    path = registry.object_path(identity)
    return File(path, whole_object(path, identity), identity)


def _record(registry: Registry, generation: Generation) -> File:
    """The run record; without the places of this machine, if it names some."""
    record = registry.record(generation.id)
    path = registry.record_path(generation.id)
    if not record.get("paths"):
        return File.of(path.read_bytes() if path.is_file() else sealed({"format": RECORD, "name": generation.name}))
    content = parse_json(path.read_bytes(), str(path))
    return File.of(sealed({k: v for k, v in content.items() if k not in ("paths", "digest")}))


def _provenance(
    generation: Generation, files: Mapping[str, File], family: Mapping[str, Generation], homes: Mapping[str, str]
) -> File:
    """The statement of where the generation in `files` comes from."""
    record = parse_json(files[RUN].read(), RUN)
    hashes = {MANIFEST: generation.id} | {path: file.hash for path, file in files.items()}
    return File.of(statement(generation, family, record, hashes, homes))


def _picture(registry: Registry, generation: Generation, results: Sequence[Result]) -> bytes | None:
    curves: dict[str, list[certlog.Row]] = {}
    for result in results:
        if result.kind == "certificate" and result.content["settings"]["norm"] == "l2":
            settings = result.content["settings"]
            mode = f", mode {settings['domain']}" if "domain" in settings else ""
            label = f"σ = {settings['sigma']}, n = {settings['n']:,}{mode}"
            label = label if label not in curves else f"{label}, {result.key}"
            curves[label] = certlog.parse(registry.log(result).decode())
    if not curves:
        return None
    from robustkt.report import certified_figure

    title = f"{generation.name}: {generation.recipe.arch}, all certified test images"
    return certified_figure(curves, title=title).render("png", titled=True)


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
        **({"modes": sorted(generation.adapters), "default_mode": generation.mode} if generation.adapters else {}),
    }


def _index(
    registry: Registry,
    generation: Generation,
    ancestors: Sequence[Generation],
    files: Mapping[str, File],
    homes: Mapping[str, str],
    license: str | None,
) -> bytes:
    """What binds names to hashes, so that no file can be changed, renamed or left out alone."""
    return sealed(
        {
            "format": FORMAT if any(path.endswith(ADAPTER) for path in files) else 1,
            "generation": generation.id,
            "names": _names(registry, generation),
            "license": license,
            "files": {path: {"hash": file.hash, "size": file.size} for path, file in files.items()},
            "ancestors": {g.id: {"names": _names(registry, g), "repo": homes.get(g.id)} for g in ancestors},
        }
    )


def _names(registry: Registry, generation: Generation) -> list[str]:
    """The names that point at it, the one that it was asked for by first."""
    names = [name for name, identity in registry.refs()["names"].items() if identity == generation.id]
    return [generation.name, *(n for n in names if n != generation.name)] if generation.name in names else names
