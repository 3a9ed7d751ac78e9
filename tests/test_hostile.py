"""Files of a registry that anybody may have written: refused with a reason or read as data, never a traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.api.loading import load_network
from robustkt.errors import RobustKTError
from robustkt.generation import Generation
from robustkt.numbers import canonical, digest
from robustkt.registry import Registry
from robustkt.registry.seal import sealed
from tests.stores import commit, measure

DEEP: Any = {}
for _ in range(400):
    DEEP = {"a": DEEP}
VALUES: list[Any] = [
    None, True, -1, 0, 1e308, 2**70, "", "../../../x", "/etc/passwd", "..\\x", "\x00", "sha256:" + "0" * 64,
    "sha256:../../x", "x" * 5_000, [], {}, DEEP, [[]], "nan", "1/0", "8/255", {"torch": 1}, "os:system", "net.py:Net",
    "~/.ssh/id", "\ud7ff",
]  # fmt: skip
RAW = [b"NaN", b"Infinity", b'"\\ud800"', b"\xff\xfe", b"1e999", b'{"a":1,"a":2}', b"[" * 5_000, b"", b"-0", b"0x1"]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inside for place in places(item, (*at, key)))]


def changed(content: Any, rng: random.Random) -> bytes:
    """JSON with one value replaced, taken away, added, or spoilt below the level of JSON."""
    content = json.loads(canonical(content))
    place = rng.choice(places(content)[1:])
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    kind = rng.randrange(4)
    if kind == 0:
        holder[place[-1]] = rng.choice(VALUES)
    elif kind == 1:
        del holder[place[-1]]
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(["../x", "", "zz", "format", "a" * 300])] = rng.choice(VALUES)
    else:
        holder[place[-1]] = "@@"
        return canonical(content).replace(b'"@@"', rng.choice(RAW))
    return canonical(content)


def reseal(data: bytes) -> bytes:
    """With a digest that fits: whoever forges a record can compute one."""
    return data[:-1] + b',"digest":"' + digest(data).encode() + b'"}'


class Forger:
    """Replaces one file of a registry by another, consistently, and puts things back."""

    def __init__(self, registry: Registry, generation: Generation) -> None:
        self.registry, self.generation = registry, generation
        self.content = {
            "manifest": json.loads(generation.manifest()),
            "record": {"format": 1, **registry.record(generation.id)},
            "refs": registry.refs(),
            **{r.kind: dict(r.content) for r in registry.results(generation.id)},
        }
        self.paths = {r.kind: r.path for r in registry.results(generation.id)}
        self.kept = shutil.copytree(registry.root, registry.root.with_name("kept"))

    def forge(self, kind: str, data: bytes) -> None:
        """Another file of this kind in its place, with all that points at it."""
        registry, root = self.registry, self.registry.root
        if kind == "refs":
            (root / "refs.json").write_bytes(data)
        elif kind == "record":
            registry.record_path(self.generation.id).write_bytes(reseal(data))
        elif kind == "manifest":
            identity = digest(data)
            registry.manifest_path(identity).write_bytes(data)
            os.replace(registry.record_path(self.generation.id), registry.record_path(identity))
            os.replace(registry.results_path(self.generation.id), registry.results_path(identity))
            refs = {**self.content["refs"], "names": {**self.content["refs"]["names"], self.generation.name: identity}}
            (root / "refs.json").write_bytes(json.dumps(refs).encode())
        else:
            self.paths[kind].write_bytes(reseal(data))

    def mend(self) -> None:
        """As it was."""
        shutil.rmtree(self.registry.root)
        shutil.copytree(self.kept, self.registry.root)


def asked(registry: Registry, name: str) -> list[tuple[str, str]]:
    """What reading commands say; anything but an answer or a RobustKTError escapes."""
    said = []
    questions: list[Callable[[], object]] = [
        lambda: api.list_generations(registry), lambda: api.show(name, registry),
        lambda: api.lineage(registry=registry), lambda: api.verify(registry=registry),
        lambda: api.tags(registry=registry),
        lambda: api.gc(grace="0", dry_run=True, registry=registry),
    ]  # fmt: skip
    for question in questions:
        try:
            question()
        except RobustKTError as error:
            said.append((error.what, error.fix))
    assert all(what and fix for what, fix in said)
    return said


def fuzz(full: Registry, seed: int, times: int) -> int:
    first = full.get("gen1")
    measure(full, first)
    forger, rng = Forger(full, first), random.Random(seed)
    asked(full, "gen1")  # makes the cache
    around = sorted(p.name for p in full.root.parent.iterdir())
    refused = 0
    for _ in range(times):
        kind = rng.choice(list(forger.content))
        data = changed(forger.content[kind], rng)
        forger.forge(kind, data)
        refused += bool(asked(full, first.name))
        assert sorted(p.name for p in full.root.parent.iterdir()) == around, (kind, data[:400])
        forger.mend()
    return refused


@pytest.fixture
def store(registry: Registry) -> Registry:
    """gen0 and gen1, measured."""
    measure(registry, commit(registry, 1, teacher=commit(registry, 0)))
    return registry


def test_some_forgeries(store: Registry) -> None:
    assert fuzz(store, 0, 250) > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_hundred_thousand_forgeries(store: Registry, seed: int) -> None:
    assert fuzz(store, seed, 10_000) > 2_500


def lying(header: bytes, size: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + body


WEIGHTS = {
    "no header": b"",
    "a header of 2^63 bytes": lying(b"{}", 2**63),
    "a header larger than the file": lying(b"{}", 10**9),
    "no JSON": lying(b"pickle"),
    "offsets past the end": lying(b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', body=b"1234"),
    "offsets that overlap": lying(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        body=b"1234",
    ),
    "a shape of 10^18": lying(
        b'{"w":{"dtype":"F32","shape":[1000000000000000000],"data_offsets":[0,4]}}', body=b"1234"
    ),
    "a pickle": b"\x80\x04\x95cos\nsystem\n(S'touch pwned'\ntR.",
    "other names": lying(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', body=b"1234"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_lie(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    honest = commit(registry, 0)
    forged = Generation(
        name="forged", recipe=honest.recipe, weights=registry.put_object(WEIGHTS[kind]), last_weights=honest.weights
    )
    registry.add(forged, {})
    with pytest.raises(RobustKTError, match="do not fit smallcnn"):
        load_network(registry, forged)
    assert not (tmp_path / "pwned").exists()


def test_links_lead_nowhere_that_is_believed(store: Registry, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_bytes(sealed({"format": 1, "secret": 1}))
    first = store.get("gen0")
    store.record_path(first.id).unlink()
    store.record_path(first.id).symlink_to(outside)
    weights = store.object_path(first.weights)
    weights.unlink()
    weights.symlink_to("/etc/passwd")
    found = api.verify(repair=True, registry=store)
    assert outside.exists()
    assert not weights.is_symlink()
    assert any("objects" in source for source, _ in found["moved"])
