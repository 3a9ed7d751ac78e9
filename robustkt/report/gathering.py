"""What a page is made of: the measurements of some generations with their logs, and the files they were read from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustkt import certlog
from robustkt.certlog import Row
from robustkt.errors import IntegrityError
from robustkt.generation import Generation
from robustkt.numbers import digest, number
from robustkt.registry import Registry, Result
from robustkt.registry.measurements import MEND, Table, own, table

CLEAN = "clean"


@dataclass(frozen=True)
class Source:
    """A file that numbers were read from."""

    number: int  # from 1
    path: str  # within the registry
    hash: str  # "sha256:…" of its bytes
    generation: str
    claimed: str | None = None  # where it was pulled from, if nobody has measured it here


@dataclass(frozen=True)
class Certified:
    """A certificate with the row of every image."""

    generation: Generation
    series: str  # what curves call it
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    rows: Sequence[Row]
    source: Source


@dataclass(frozen=True)
class Attacked:
    """One attack on a generation, or `clean`, with what became of every image."""

    generation: Generation
    attack: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Any]
    labels: Sequence[int]
    right: Sequence[int]  # per image 1 where it was classified rightly
    source: Source

    @property
    def ball(self) -> tuple[str, str, bool]:
        """Norm, eps, and whether the smoothed classifier was attacked."""
        return str(self.settings["norm"]), str(self.settings["eps"]), bool(self.figures.get("smoothed"))


@dataclass(frozen=True)
class Swept:
    """The trade-off curve of a soup."""

    generation: Generation
    settings: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]]
    source: Source


@dataclass(frozen=True)
class Subject:
    """One generation of the page, in the mode that is meant."""

    generation: Generation
    row: Mapping[str, Any]  # of the lineage: depth, parents, retained …
    record: Mapping[str, Any]
    certificates: Sequence[Certified]  # one a noise, σ and norm: the one with the most images, then copies
    attacks: Sequence[Attacked]  # each attack once in each ball, of the evaluation with the most images
    sweeps: Sequence[Swept]
    warnings: Sequence[str]
    sources: Sequence[Source]

    @property
    def name(self) -> str:
        """With its mode."""
        return self.generation.name


@dataclass
class _Sources:
    """Files in the order in which they were read."""

    root: Path
    found: list[Source] = field(default_factory=list)

    def add(self, path: Path, generation: Generation, claimed: str | None = None) -> Source:
        """A file that is there, hashed."""
        relative = path.relative_to(self.root).as_posix()
        there = next((one for one in self.found if one.path == relative), None)
        if there is None:
            there = Source(len(self.found) + 1, relative, digest(path.read_bytes()), generation.name, claimed)
            self.found.append(there)
        return there


def gather(registry: Registry, generations: Sequence[Generation], rows: Iterable[Mapping[str, Any]]) -> list[Subject]:
    """All that is known of the generations, which are told in this order.

    Args:
        registry: where they are.
        generations: each in the mode that is meant.
        rows: of `api.lineage`, which may hold others too.

    Raises:
        IntegrityError: a file or a log is damaged.
    """
    by_id = {row["id"]: row for row in rows if not row.get("again")}
    sources = _Sources(registry.root)
    return [_subject(registry, one, by_id[one.id], sources) for one in generations]


def _subject(registry: Registry, generation: Generation, row: Mapping[str, Any], sources: _Sources) -> Subject:
    before = len(sources.found)
    files = [sources.add(registry.manifest_path(generation.id), generation)]
    if registry.record_path(generation.id).is_file():
        files.append(sources.add(registry.record_path(generation.id), generation))
    results = [r for r in registry.results(generation.id) if own(r, generation) and not _corrupted(r)]
    certificates = [_certified(registry, generation, r, sources) for r in _best_certificates(results)]
    if len(certificates) > 1:
        certificates = [_told_apart(one) for one in certificates]
    evaluations = [r for r in results if r.kind == "evaluation"]
    sweeps = [r for r in registry.results(generation.id, "sweep") if r.content["settings"]["data"] == _data(generation)]
    attacks = list(_attacks(registry, generation, evaluations, sources))
    curves = [_swept(generation, r, sources) for r in sweeps]
    warnings = dict.fromkeys(str(w) for r in evaluations for w in r.content["figures"]["warnings"])
    used = list(dict.fromkeys([*files, *sources.found[before:]]))
    record = registry.record(generation.id)
    return Subject(generation, row, record, certificates, attacks, curves, tuple(warnings), used)


def _swept(generation: Generation, result: Result, sources: _Sources) -> Swept:
    source = sources.add(result.path, generation, result.claimed)
    return Swept(generation, result.content["settings"], result.content["figures"]["points"], source)


def _data(generation: Generation) -> str:
    return generation.recipe.data.fingerprint


def _corrupted(result: Result) -> bool:
    return result.content["settings"].get("corruption") is not None


def _best_certificates(results: Iterable[Result]) -> list[Result]:
    best: dict[tuple[Any, ...], Result] = {}
    for result in results:
        if result.kind == "certificate":
            s = result.content["settings"]
            kind = (s["norm"], s["noise"], number(s["sigma"]) if s["sigma"] else 0.0)
            there = best.get(kind)
            if there is None or _size(result) > _size(there):
                best[kind] = result
    return [best[kind] for kind in sorted(best)]


def _size(result: Result) -> tuple[Any, ...]:
    """Measured here before claimed, then by images and copies."""
    s = result.content["settings"]
    return result.claimed is None, s["images"], s.get("n", 0), len(s.get("attacks", ())), result.key


def _certified(registry: Registry, generation: Generation, result: Result, sources: _Sources) -> Certified:
    rows = certlog.parse(registry.log(result).decode())
    if len(rows) != result.content["settings"]["images"]:
        raise IntegrityError(f"the log of {result.path} is not of the images that its settings name", MEND)
    source = sources.add(result.path, generation, result.claimed)
    content = result.content
    return Certified(generation, generation.name, content["settings"], content["figures"], rows, source)


def _told_apart(one: Certified) -> Certified:
    s = one.settings
    noise = "" if s["noise"] == "gaussian" else f" {s['noise']}"
    level = f", σ {s['sigma']}" if s["sigma"] else ""
    series = f"{one.generation.name}{level}{noise}, {s['norm']}"
    return Certified(one.generation, series, s, one.figures, one.rows, one.source)


def _attacks(
    registry: Registry, generation: Generation, evaluations: Iterable[Result], sources: _Sources
) -> Iterable[Attacked]:
    seen: set[tuple[Any, ...]] = set()
    for result in sorted(evaluations, key=_size, reverse=True):
        settings, columns, source = result.content["settings"], _columns(registry, result), None
        for name, figures in result.content["figures"]["attacks"].items():
            key = name, settings["norm"], settings["eps"], bool(figures.get("smoothed"))
            if key in seen or name not in columns:
                continue
            seen.add(key)
            source = source or sources.add(result.path, generation, result.claimed)
            yield Attacked(generation, name, settings, figures, columns["label"], columns[name], source)


def _columns(registry: Registry, result: Result) -> Table:
    try:
        return table(registry.log(result))
    except (ValueError, UnicodeDecodeError):
        raise IntegrityError(f"the log of {result.path} is not one of an evaluation", MEND) from None
