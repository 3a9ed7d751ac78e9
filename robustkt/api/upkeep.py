"""What there is and whether it is whole; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustkt import registry as store
from robustkt.errors import NotFoundError
from robustkt.generation import Generation, to_json
from robustkt.registry import Registry


def list_generations(registry: Registry | None = None) -> dict[str, Any]:
    """Every generation, the oldest first: {"registry", "generations": [name, id, method, arch, …]}."""
    registry = registry or Registry.locate()
    everything = registry.all()
    names = {g.id: g.name for g in reversed(everything)}
    return {
        "registry": str(registry.root),
        "generations": [_row(registry, generation, names) for generation in everything],
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
    """Ancestors and descendants of a generation, or the whole forest: {"focus", "roots": [{…, "children": […]}]}."""
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

    def tree(g: Generation) -> dict[str, Any]:
        below = [tree(child) for child in children.get(g.id, []) if child.id in kept]
        return {**_row(registry, g, names), "children": below}

    roots = [g for g in reversed(everything.values()) if g.id in kept and not kept & set(g.parents.values())]
    return {"focus": focus.name if focus else None, "roots": [tree(g) for g in roots]}


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
    recipe, record = generation.recipe, registry.record(generation.id)
    threat = recipe.threat
    teacher = generation.parents.get("teacher")
    return {
        "generation": generation.name,
        "id": generation.id,
        "method": recipe.method,
        "arch": recipe.arch,
        "data": recipe.data.name,
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


def _threat(settings: Mapping[str, Any]) -> tuple[str, str]:
    return str(settings["norm"]), str(settings["eps"])


def headline(registry: Registry, generation: Generation) -> dict[str, Any]:
    """The two figures people ask for first, with their settings: certified accuracy and accuracy under attack."""
    certified, robust = None, None
    for result in registry.results(generation.id):
        settings, figures = result.content.get("settings", {}), result.content.get("figures", {})
        if result.kind == "certificate" and settings.get("weights") == generation.weights:
            own = str(generation.recipe.settings.get("sigma")) == settings.get("sigma")
            entry = {name: settings.get(name) for name in ("sigma", "n", "alpha")} | {
                name: figures.get(name) for name in ("certified_accuracy", "acr", "abstain_rate", "images")
            }
            certified = entry if certified is None or own else certified
        if result.kind == "evaluation" and settings.get("weights") == generation.weights:
            attacks = figures.get("attacks", {})
            worst = min(attacks, key=lambda name: attacks[name]["accuracy"], default=None)
            robust = {
                "norm": settings.get("norm"),
                "eps": settings.get("eps"),
                "clean_accuracy": attacks.get("clean", {}).get("accuracy"),
                "attack": worst,
                "robust_accuracy": attacks[worst]["accuracy"] if worst else None,
            }
    return {"certified": certified, "robust": robust}


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
