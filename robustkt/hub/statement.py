"""Where a generation comes from, as an in-toto statement v1 with SLSA provenance v1 that other tools read.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from robustkt.errors import IntegrityError
from robustkt.generation import Generation
from robustkt.numbers import canonical, parse_json
from robustkt.registry.measurements import FOLDERS

TYPE = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
HOME = "https://github.com/robustkt/robustkt"
BUILD_TYPE = f"{HOME}/blob/main/docs/hub.md#provenance"
MADE = ("model.safetensors", "last.safetensors", "manifest.json")  # by the run, and adapters; the rest tells of it
CIRCUMSTANCES = ("environment", "device", "machine", "system", "processors", "threads", "deterministic")
FIX = "Do not trust it; tell its publisher."


def statement(
    generation: Generation,
    parents: Mapping[str, Generation],
    record: Mapping[str, Any],
    hashes: Mapping[str, str],
    homes: Mapping[str, str | None],
) -> bytes:
    """The provenance of a generation as canonical JSON; the same inputs give the same bytes.

    Args:
        generation: what was made.
        parents: its parents by their ids.
        record: its run record as it is published.
        hashes: of the files that are published beside it, by their paths: `sha256:…`.
        homes: repositories on the Hub by the ids of the generations that they hold.
    """
    return canonical(_statement(generation, parents, record, hashes, homes))


def check_statement(
    data: bytes,
    generation: Generation,
    parents: Mapping[str, Generation],
    record: Mapping[str, Any],
    hashes: Mapping[str, str],
    homes: Mapping[str, str | None],
    source: str,
) -> None:
    """Raise unless `data` tells of these files, this manifest and this run record; what it tells beyond is left alone.

    Raises:
        IntegrityError: it does not; the message names the part.
    """
    found = parse_json(data, source)
    if not isinstance(found, dict) or found.get("_type") != TYPE or found.get("predicateType") != PREDICATE:
        raise IntegrityError(f"{source} is no provenance statement", FIX)
    wanted = _statement(generation, parents, record, hashes, homes)
    if found.get("subject") != wanted["subject"]:
        raise IntegrityError(f"{source} is about other files than these", FIX)
    told = found.get("predicate")
    for part, parts in wanted["predicate"].items():
        if not isinstance(told, dict) or not _holds(told.get(part), parts):
            raise IntegrityError(f"{source} does not agree with the manifest and the run record: {part}", FIX)


def _holds(found: Any, wanted: Any) -> bool:
    """Whether all of `wanted` is in `found`."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(k in found and _holds(found[k], v) for k, v in wanted.items())
    return bool(found == wanted)


def _statement(
    generation: Generation,
    parents: Mapping[str, Generation],
    record: Mapping[str, Any],
    hashes: Mapping[str, str],
    homes: Mapping[str, str | None],
) -> dict[str, Any]:
    circumstances = {name: record[name] for name in CIRCUMSTANCES if record.get(name) is not None}
    return {
        "_type": TYPE,
        "subject": [_described(path, hashes[path]) for path in (*MADE, *_adapters(hashes)) if path in hashes],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": generation.content()["recipe"]},
                "internalParameters": circumstances,
                "resolvedDependencies": list(_dependencies(generation, parents, record, homes)),
            },
            "runDetails": {
                "builder": {"id": HOME, "version": _table(record, "versions")},
                "metadata": dict(_times(record)),
                "byproducts": [_described(path, hashes[path]) for path in sorted(hashes) if _tells(path)],
            },
        },
    }


def _described(name: str, identity: Any, **more: Any) -> dict[str, Any]:
    """An in-toto resource descriptor."""
    return {"name": name, "digest": {"sha256": str(identity).removeprefix("sha256:")}, **more}


def _dependencies(
    generation: Generation,
    parents: Mapping[str, Generation],
    record: Mapping[str, Any],
    homes: Mapping[str, str | None],
) -> Iterator[dict[str, Any]]:
    """What went into it: parents, data, code of its own, the foreign file, the lock file, the working copy."""
    recipe = generation.recipe
    for role, identity in sorted(generation.parents.items()):
        at = {"uri": f"https://huggingface.co/{homes[identity]}"} if homes.get(identity) else {}
        yield _described(f"{role}/manifest.json", identity, **at)
        yield _described(f"{role}/model.safetensors", parents[identity].weights)
        for one in parents[identity].bound():
            yield _described(f"{role}/adapters/{one.domain}/adapter_model.safetensors", one.hash)
    yield _described(f"data/{recipe.data.name}", recipe.data.fingerprint)
    if recipe.arch_source is not None:
        yield _described("architecture.py", recipe.arch_source)
    if "source_hash" in recipe.settings:
        source = str(recipe.settings.get("source"))
        yield _described("checkpoint", recipe.settings["source_hash"], **({"uri": source} if ":" in source else {}))
    lock, git = _table(record, "lock"), _table(record, "git")
    if "hash" in lock:
        yield _described(str(lock.get("file")), lock["hash"])
    if "commit" in git:
        digest = {"gitCommit": git["commit"]}
        yield {"name": "working copy", "digest": digest, "annotations": {"dirty": git.get("dirty")}}


def _times(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """When the run was started, in UTC as SLSA writes it, and how long it took."""
    started = record.get("started")
    if isinstance(started, str) and started.endswith("+00:00"):
        yield "startedOn", started.removesuffix("+00:00") + "Z"
    if record.get("seconds") is not None:
        yield "robustkt_seconds", record["seconds"]


def _adapters(paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if path.startswith("adapters/") and path.endswith(".safetensors"))


def _tells(path: str) -> bool:
    return path == "record.json" or path.partition("/")[0] in FOLDERS


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return dict(found) if isinstance(found, Mapping) else {}
