"""Re-deriving everything that a published folder claims, before a registry sees any of it. Nothing from it is run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from robustkt.errors import IntegrityError
from robustkt.generation import Generation, read_manifest
from robustkt.hub.fetching import REFUSED, Index, Source
from robustkt.hub.form import (
    ADAPTER,
    ADAPTER_CONFIG,
    LAST,
    MANIFEST,
    PROVENANCE,
    RUN,
    SOURCE,
    WEIGHTS,
    adapter_config,
    adapter_path,
)
from robustkt.hub.rederiving import check_result
from robustkt.hub.statement import check_statement
from robustkt.numbers import MAX_JSON, digest, parse_json
from robustkt.registry import Result
from robustkt.registry.adopting import Bundle
from robustkt.registry.binding import read_binding
from robustkt.registry.claims import Claims
from robustkt.registry.measurements import FOLDERS, checked, key_of, meant
from robustkt.registry.records import check_record
from robustkt.registry.seal import unsealed

TENSORS = ".safetensors"


def manifests(folder: Path, index: Index) -> tuple[Generation, dict[str, Generation]]:
    """The published generation and its ancestors by id, each the one that its hash says, all of them connected.

    Raises:
        IntegrityError: a manifest is another's, is missing, or is nobody's ancestor.
    """
    own = _manifest(folder / MANIFEST, index.generation, index.names)
    above = {
        identity: _manifest(folder / f"ancestors/{identity[7:]}.json", identity, told["names"])
        for identity, told in index.ancestors.items()
    }
    reached: set[str] = set()
    queue = list(own.parents.values())
    while queue:
        identity = queue.pop()
        if identity not in above:
            raise IntegrityError(f"the ancestor {identity[:19]}… of {own.name} is missing", REFUSED)
        if identity not in reached:
            reached.add(identity)
            queue += above[identity].parents.values()
    if reached != set(above):
        raise IntegrityError(f"there are manifests that are no ancestors of {own.name}", REFUSED)
    return own, above


def oldest_first(generations: Mapping[str, Generation]) -> list[str]:
    """Their ids, every parent before its children."""
    order: dict[str, None] = {}
    while len(order) < len(generations):
        ready = [
            i for i, g in generations.items()
            if i not in order and all(p in order or p not in generations for p in g.parents.values())
        ]  # fmt: skip
        if not ready:
            raise IntegrityError("generations that descend from each other", REFUSED)
        order |= dict.fromkeys(ready)
    return list(order)


def bundle(
    folder: Path, index: Index, generation: Generation, family: Mapping[str, Generation], place: str, source: Source
) -> Bundle:
    """A generation of a fetched folder whose files lie under `place` ("" or "ancestors/HEX/"), all of it checked.

    `family` are its ancestors by their ids.

    Raises:
        IntegrityError: something is not what a hash, a name, a seal or a log says.
    """
    expected = _expected(generation)
    own = {path.removeprefix(place) for path in index.files if path.startswith(f"{place}adapters/")}
    for name in sorted({*expected, *(path for path in own if path.endswith(TENSORS))}):
        told, identity = index.files.get(place + name), expected.get(name)
        if told is not None and told.hash != identity:
            raise IntegrityError(f"{place}{name} is not what the manifest of {generation.name} names", REFUSED)
        if told is None and identity is not None and identity != expected.get(_selected(name)):
            raise IntegrityError(f"{place}{name} is missing in {source}", REFUSED)
    objects = {i: folder / (place + name) for name, i in expected.items() if i and (folder / (place + name)).is_file()}
    for path in objects.values():
        if path.suffix == TENSORS:
            check_tensors(path)
    _check_adapters(folder, generation, place, own)
    record = unsealed(folder / (place + RUN), REFUSED)
    check_record(record, place + RUN, REFUSED)
    if place + PROVENANCE in index.files:
        hashes = {path.removeprefix(place): told.hash for path, told in index.files.items() if path.startswith(place)}
        hashes[MANIFEST] = generation.id
        homes = {identity: told["repo"] for identity, told in index.ancestors.items()}
        statement = (folder / (place + PROVENANCE)).read_bytes()
        check_statement(statement, generation, family, record, hashes, homes, place + PROVENANCE)
    found = dict(_results(folder, index, generation, place))
    names = index.names if not place else index.ancestors[generation.id]["names"]
    marks = {name.removesuffix(".json"): digest(data) for name, data in found.items() if name.endswith(".json")}
    return Bundle(
        generation=generation,
        record=(folder / (place + RUN)).read_bytes(),
        objects=objects,
        results=found,
        names=tuple(names),
        claims=Claims(
            repo=source.repo, revision=source.revision, commit=source.commit, license=index.license, results=marks
        ),
    )


def _expected(generation: Generation) -> dict[str, str | None]:
    """The hashes of the objects by their places in a folder."""
    found = {WEIGHTS: generation.weights, LAST: generation.last_weights, SOURCE: generation.recipe.arch_source}
    found |= {adapter_path(one.domain): one.hash for one in generation.bound()}
    return found | {adapter_path(one.domain, LAST): one.hash for one in generation.bound(last=True)}


def _selected(name: str) -> str:
    """The file of the selected epoch beside one of the last, which is left out where it would be the same."""
    place, slash, file = name.rpartition("/")
    return f"{place}{slash}{ADAPTER if slash else WEIGHTS}" if file == LAST else ""


def _check_adapters(folder: Path, generation: Generation, place: str, own: Collection[str]) -> None:
    """Raise unless every adapter is bound to these weights, and what is told beside it is so; no tensor is read.

    `own` are the files about adapters that lie under `place`.
    """
    configs: dict[str, dict[str, Any]] = {}
    for one, name in [(one, ADAPTER) for one in generation.bound()] + [(o, LAST) for o in generation.bound(last=True)]:
        where = folder / (place + adapter_path(one.domain, name))
        where = where if where.is_file() else where.with_name(ADAPTER)  # the last epoch's is the selected one
        with where.open("rb") as file:
            binding = read_binding(file, one, generation.name, REFUSED)
        configs.setdefault(adapter_path(one.domain, ADAPTER_CONFIG), adapter_config(binding))
    for path in sorted(p for p in {*own, *configs} if p.endswith(ADAPTER_CONFIG)):
        if path not in configs:
            raise IntegrityError(f"{place}{path} is of an adapter that {generation.name} does not have", REFUSED)
        if path not in own:
            raise IntegrityError(f"{place}{path} is missing", REFUSED)
        told = parse_json((folder / (place + path)).read_bytes(), place + path)
        if not isinstance(told, dict) or any(told.get(key) != value for key, value in configs[path].items()):
            raise IntegrityError(f"{place}{path} does not tell what its adapter is bound to", REFUSED)


def check_tensors(path: Path) -> None:
    """Whether the header of a safetensors file describes the file: its length, offsets, shapes; no tensor is read.

    Raises:
        IntegrityError: it lies.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path.name} is no safetensors file: {str(error)[:100]}", REFUSED) from None
    if not names:
        raise IntegrityError(f"{path.name} holds no tensors", REFUSED)


def _is_meant(result: Result, generation: Generation) -> bool:
    """Whether it measures the network, or the mode of it, that it says."""
    try:
        meant(result, generation)
    except IntegrityError:
        return False
    return True


def _manifest(path: Path, identity: str, names: Any) -> Generation:
    name = next(iter(names), identity[7:19])
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        raise IntegrityError(f"the manifest of {name} is missing", REFUSED)
    data = path.read_bytes()
    if digest(data) != identity:
        raise IntegrityError(f"the manifest {path.name} of {name} is not the one that its id names", REFUSED)
    return read_manifest(data, name, path.name)


def _results(folder: Path, index: Index, generation: Generation, place: str) -> Iterator[tuple[str, bytes]]:
    listed = [
        path for path in index.files
        if path.startswith(place) and path.removeprefix(place).split("/")[0] in FOLDERS and path.count("/") > 0
    ]  # fmt: skip
    logs = {path for path in listed if path.endswith(".tsv")}
    for path in sorted(set(listed) - logs):
        where = folder / path
        kind, _, key = where.stem.partition("-")
        content = unsealed(where, REFUSED)
        if content.get("kind") != kind or where.parent.name != f"{kind}s" or content.get("generation") != generation.id:
            raise IntegrityError(f"{path} belongs to another generation, or under another name", REFUSED)
        result = checked(Result(kind, key, content, where))
        log = f"{place}{kind}s/{content['log']}"
        if log not in logs or index.files[log].hash != content["log_hash"]:
            raise IntegrityError(f"the log of {path} is missing, or another one", REFUSED)
        logs.discard(log)
        settings = content["settings"]
        if settings["data"] != generation.recipe.data.fingerprint or not _is_meant(result, generation):
            raise IntegrityError(f"{path} measures something else than {generation.name}", REFUSED)
        if key != key_of(settings):
            raise IntegrityError(f"{path} is not under the key of its settings, {key_of(settings)}", REFUSED)
        data = (folder / log).read_bytes()
        check_result(result, generation, data)
        yield Path(log).name, data
        yield where.name, where.read_bytes()
    if logs:
        raise IntegrityError(f"{min(logs)} is the log of no result", REFUSED)
