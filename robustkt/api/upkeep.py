"""What there is and whether it is whole; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkt import registry as store
from robustkt.errors import NotFoundError, RobustKTError
from robustkt.generation import Generation, to_json
from robustkt.registry import Registry
from robustkt.registry.measurements import own


def list_generations(registry: Registry | None = None) -> dict[str, Any]:
    """Every generation, the oldest first: {"registry", "generations": [name, id, method, arch, …]}."""
    registry = registry or Registry.locate()
    everything = registry.all()
    names = {g.id: g.name for g in reversed(everything)}
    readable = {g.name for g in everything}
    return {
        "registry": str(registry.root),
        "generations": [_row(registry, generation, names) for generation in everything],
        "unreadable": [name for name in registry.refs()["names"] if name not in readable],
    }


def show(generation: str = "@latest", registry: Registry | None = None) -> dict[str, Any]:
    """One generation whole: its manifest, its run record without the epochs, its results."""
    registry = registry or Registry.locate()
    found = registry.get(generation)
    record = registry.record(found.id)
    return {
        "generation": found.name,
        "id": found.id,
        "names": registry.names_of(found.id),
        "manifest": to_json(found),
        "parents": {role: {"name": registry.names_of(i)[0], "id": i} for role, i in found.parents.items()},
        "record": {key: value for key, value in record.items() if key != "epochs"},
        "epochs": record.get("epochs", []),
        "certificates": [{"key": r.key, **_content(r.content)} for r in registry.results(found.id, "certificate")],
        "evaluations": [{"key": r.key, **_content(r.content)} for r in registry.results(found.id, "evaluation")],
    }


def lineage(generation: str | None = None, registry: Registry | None = None) -> dict[str, Any]:
    """Ancestors and descendants of a generation, or all: {"focus", "generations": [{…, "depth"}]}, parents first."""
    registry = registry or Registry.locate()
    everything = {g.id: g for g in reversed(registry.all())}
    if not everything:
        raise NotFoundError(f"there is no generation in {registry.root}", "Make one with `robustkt quickstart`.")
    names = {identity: g.name for identity, g in everything.items()}
    children: dict[str, list[Generation]] = {}
    for g in reversed(everything.values()):
        for parent in sorted(set(g.parents.values())):
            children.setdefault(parent, []).append(g)
    focus = registry.get(generation) if generation else None
    kept = set(everything) if focus is None else _family(registry, focus, children)

    roots = [g for g in reversed(everything.values()) if g.id in kept and not kept & set(g.parents.values())]
    rows: list[dict[str, Any]] = []
    stack = [(g, 0) for g in reversed(roots)]
    while stack:  # not recursive: a lineage may be thousands of generations long
        g, depth = stack.pop()
        rows.append({**_row(registry, g, names), "parents": dict(g.parents), "depth": depth})
        stack += [(child, depth + 1) for child in reversed(children.get(g.id, [])) if child.id in kept]
    return {"focus": focus.name if focus else None, "generations": rows}


def verify(registry: Registry | None = None) -> dict[str, Any]:
    """Every hash re-derived and every pointer followed: {"ok", "registry", "generations", "problems", "notes"}."""
    registry = registry or Registry.locate()
    findings = store.verify(registry)
    told = [{"what": f.what, "path": str(f.path.relative_to(registry.root))} for f in findings]
    pairs = list(zip(findings, told, strict=True))
    return {
        "ok": not any(f.damage for f in findings),
        "registry": str(registry.root),
        "generations": len(list((registry.root / "generations").glob("*.json"))),
        "problems": [text for f, text in pairs if f.damage],
        "notes": [text for f, text in pairs if not f.damage],
    }


def _row(registry: Registry, generation: Generation, names: Mapping[str, str]) -> dict[str, Any]:
    recipe = generation.recipe
    try:
        record = registry.record(generation.id)
    except RobustKTError:
        record = {}  # `verify` names it
    threat = recipe.threat
    teacher = generation.parents.get("teacher")
    return {
        "generation": generation.name,
        "id": generation.id,
        "method": recipe.method,
        "arch": recipe.arch,
        "data": _data(recipe.data.name, record),
        "guarantee": f"σ {recipe.settings['sigma']}"
        if recipe.sigma
        else " ".join(_threat(recipe.settings))
        if threat
        else None,
        "teacher": names.get(teacher, teacher[7:19]) if teacher else None,
        "created": record.get("started"),
        "seconds": record.get("seconds"),
        **headline(registry, generation),
    }


def _data(name: str, record: Mapping[str, Any]) -> str:
    """A data set's name; of a folder or file the last part of where it lay, as `folder` says little."""
    paths = record.get("paths")
    place = paths.get("data") if isinstance(paths, dict) else None
    return Path(str(place)).name if place else name


def _threat(settings: Mapping[str, Any]) -> tuple[str, str]:
    return str(settings["norm"]), str(settings["eps"])


def headline(registry: Registry, generation: Generation) -> dict[str, Any]:
    """The two figures people ask for first, with their settings: certified accuracy and accuracy under attack.

    Of measurements of the selected weights on the generation's own data, under its own noise or threat where it has
    one, the one with the most images, then the most samples or attacks.
    """
    try:
        results = [r for r in registry.results(generation.id) if own(r, generation)]
    except RobustKTError:
        results = []  # `verify` names it
    threat = generation.recipe.threat
    level = generation.recipe.settings.get("sigma")
    certificates = [
        r.content for r in results if r.kind == "certificate" and level in (None, r.content["settings"]["sigma"])
    ]
    attacked = [
        r.content
        for r in results
        if r.kind == "evaluation"
        and len(r.content["figures"]["attacks"]) > 1  # more than the clean images
        and (threat is None or _threat(r.content["settings"]) == _threat(generation.recipe.settings))
    ]
    best = max(certificates, key=lambda c: (c["settings"]["images"], c["settings"]["n"]), default=None)
    hardest = max(attacked, key=lambda c: (c["settings"]["images"], len(c["settings"]["attacks"])), default=None)
    return {"certified": _certified(best) if best else None, "robust": _robust(hardest) if hardest else None}


def _certified(content: Mapping[str, Any]) -> dict[str, Any]:
    settings, figures = content["settings"], content["figures"]
    told = {name: settings[name] for name in ("sigma", "n", "alpha", "seed")}
    return told | {name: figures[name] for name in ("certified_accuracy", "acr", "abstain_rate", "images")}


def _robust(content: Mapping[str, Any]) -> dict[str, Any]:
    settings, attacks = content["settings"], content["figures"]["attacks"]
    worst = min((name for name in attacks if name != "clean"), key=lambda name: attacks[name]["accuracy"])
    return {
        **{name: settings[name] for name in ("norm", "eps", "images")},
        "clean_accuracy": attacks["clean"]["accuracy"] if "clean" in attacks else None,
        "attack": worst,
        "robust_accuracy": attacks[worst]["accuracy"],
    }


def _family(registry: Registry, focus: Generation, children: Mapping[str, list[Generation]]) -> set[str]:
    family = {focus.id, *(g.id for g in registry.ancestors(focus))}
    queue = [focus.id]
    while queue:
        below = [g.id for g in children.get(queue.pop(), []) if g.id not in family]
        family.update(below)
        queue.extend(below)
    return family


def _content(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("format", "kind", "generation")}
