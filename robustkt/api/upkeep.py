"""What there is and whether it is whole; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustkt import catalog
from robustkt import registry as store
from robustkt.errors import RobustKTError
from robustkt.generation import Generation
from robustkt.numbers import exact
from robustkt.registry import Registry, Result, claims
from robustkt.registry.measurements import SHAPES, own
from robustkt.registry.records import data_called

WEAK_TO_STRONG = (
    "fgsm", "pgd-trades", "pgd-sat", "pgd", "cw", "fab-t", "square", "apgd-ce", "apgd-dlr", "apgd-t", "autoattack",
)  # fmt: skip


def list_generations(registry: Registry | None = None) -> dict[str, Any]:
    """Every generation, the oldest first: {"registry", "generations": [name, id, method, arch, …]}.

    Raises:
        IntegrityError: the registry's names cannot be read.
    """
    registry = registry or Registry.locate()
    names = registry.refs()["names"]
    rows = rows_of(registry)
    return {
        "registry": registry.label,
        "generations": [{**rows[identity], "generation": name} for name, identity in names.items() if identity in rows],
        "unreadable": [name for name, identity in names.items() if identity not in rows],
    }


def show(generation: str = "@latest", registry: Registry | None = None) -> dict[str, Any]:
    """One generation whole: its manifest, its run record without the epochs, its results.

    Raises:
        NotFoundError: no such generation.
        IntegrityError: its record or a result is damaged.
    """
    registry = registry or Registry.locate()
    found = registry.get(generation)
    record = registry.record(found.id)
    return {
        "generation": found.name,
        "id": found.id,
        "names": registry.names_of(found.id),
        "manifest": {"name": found.name, **found.content()},
        "modes": {
            domain: {"default": domain == found.mode, "bytes": _size(registry, identity)}
            for domain, identity in found.adapters.items()
        },
        "unused": catalog.unused(found.recipe.settings),
        "parents": {role: {"name": registry.names_of(i)[0], "id": i} for role, i in found.parents.items()},
        "record": {key: value for key, value in record.items() if key != "epochs"},
        "epochs": record.get("epochs", []),
        "pulled": _origin(registry, found),
        **{f"{kind}s": _results(registry, found, kind) for kind in SHAPES},
    }


def _size(registry: Registry, identity: str) -> int | None:
    path = registry.object_path(identity)
    return path.stat().st_size if path.is_file() else None


def _results(registry: Registry, found: Generation, kind: str) -> list[dict[str, Any]]:
    return [{"key": r.key, "claimed": r.claimed, **_content(r.content)} for r in registry.results(found.id, kind)]


def _origin(registry: Registry, found: Generation) -> dict[str, Any] | None:
    known = claims.read(registry.root, found.id)
    return {"repo": known.repo, "revision": known.revision, "commit": known.commit} if known else None


def rows_of(registry: Registry) -> dict[str, dict[str, Any]]:
    """What is told of each generation that can be read, by id, under its first name; those without one come last."""
    names = registry.refs()["names"]
    first = {identity: name for name, identity in reversed(list(names.items()))}
    nameless = [identity for identity in registry.stored() if identity not in first]

    def draw(identity: str) -> dict[str, Any]:
        return _facts(registry, registry.by_id(identity, first.get(identity, identity)))

    facts = store.derived(registry, [*names.values(), *nameless], draw)
    rows = {}
    for identity, told in facts.items():
        teacher = told["parents"].get("teacher")
        named = {"generation": first.get(identity, identity[7:19]), "id": identity, "named": identity in first}
        rows[identity] = {**named, **told, "teacher": first.get(teacher, teacher[7:19]) if teacher else None}
    return rows


def _facts(registry: Registry, generation: Generation) -> dict[str, Any]:
    recipe = generation.recipe
    try:
        record = registry.record(generation.id)
    except RobustKTError:
        record = {}  # `verify` names it
    threat = " ".join(_threat(recipe.settings)) if recipe.threat else None
    return {
        "method": recipe.method,
        "arch": recipe.arch,
        "data": data_called(recipe.data.name, record),
        "guarantee": f"σ {recipe.settings['sigma']}" if recipe.sigma else threat,
        "parents": dict(generation.parents),
        "modes": sorted(generation.adapters),
        "mode": generation.mode,
        "created": record.get("started"),
        "seconds": record.get("seconds"),
        "cost": record.get("cost"),
        **headline(registry, generation),
    }


def _threat(settings: Mapping[str, Any]) -> tuple[str, str]:
    return str(settings["norm"]), str(settings["eps"])


def headline(registry: Registry, generation: Generation) -> dict[str, Any]:
    """The two figures people ask for first, with their settings: certified accuracy and accuracy under attack.

    Of measurements of the selected weights, in the default mode, on the generation's own data, under its own noise or
    threat where it has one: the certificate with the most images, then the most samples; the evaluation with the
    strongest attack, then the most attacks, then the most images, before all one of the smoothed classifier where the
    generation is used so.
    """
    try:
        results = [r for r in registry.results(generation.id) if own(r, generation)]
    except RobustKTError:
        results = []  # `verify` names it
    threat = generation.recipe.threat
    level = exact(generation.sigma) if generation.sigma is not None else None
    certificates = [
        r
        for r in results
        if r.kind == "certificate"
        and level in (None, r.content["settings"]["sigma"])
        and r.content["settings"]["norm"] == "l2"
    ]
    scores = [
        score
        for r in results
        if r.kind == "evaluation"
        and (threat is None or _threat(r.content["settings"]) == _threat(generation.recipe.settings))
        for score in _scores(r, noisy=level is not None)
    ]
    best = max(
        certificates, key=lambda r: (r.content["settings"]["images"], r.content["settings"]["n"], r.key), default=None
    )
    transfers = [
        (r.content["settings"]["images"], r.key, r.content["figures"]) for r in results if r.kind == "transfer"
    ]
    return {
        "certified": _certified(best) if best else None,
        "robust": max(scores, key=_strength, default=None),
        "transfer": max(transfers, key=lambda told: told[:2])[2]["rate"] if transfers else None,
    }


def _certified(result: Result) -> dict[str, Any]:
    settings, figures = result.content["settings"], result.content["figures"]
    told = {name: settings[name] for name in ("sigma", "n", "alpha", "mode", "seed")}
    told |= {"claimed": result.claimed} if result.claimed else {}
    return told | {name: figures[name] for name in ("certified_accuracy", "acr", "abstain_rate", "images")}


def _scores(result: Result, *, noisy: bool) -> Iterator[dict[str, Any]]:
    """What an evaluation says of the network, and of the classifier that its noise makes of it: the worst case each."""
    settings, figures = result.content["settings"], result.content["figures"]
    for smoothed in (False, True):
        attacks = {
            name: attack["accuracy"]
            for name, attack in figures["attacks"].items()
            if name != "clean" and bool(attack.get("smoothed")) == smoothed
        }
        if not attacks:
            continue
        hardest = min(attacks, key=lambda name: (attacks[name], [-part for part in _rank(name)], name))
        worst = figures.get("worst")
        if worst and bool(worst.get("smoothed")) != smoothed:
            worst = None
        clean = figures["attacks"].get("clean")
        yield {
            **{name: settings[name] for name in ("norm", "eps", "images")},
            **({"claimed": result.claimed} if result.claimed else {}),
            "clean_accuracy": clean["accuracy"] if clean else None,
            "attack": hardest,
            "attacks": sorted(attacks),
            "network": "smoothed" if smoothed else "base" if noisy else "whole",
            "robust_accuracy": worst["accuracy"] if worst else attacks[hardest],
        }


def _strength(score: Mapping[str, Any]) -> tuple[Any, ...]:
    """Larger for the score that says more of how a generation withstands attack; a total order, so one is the first."""
    attacks = score["attacks"]
    ranks = sorted((_rank(name) for name in attacks), reverse=True)
    told = (score["norm"], score["eps"], attacks, -score["robust_accuracy"])
    return score["network"] == "smoothed", ranks[0], len(attacks), score["images"], told


def _rank(attack: str) -> tuple[int, int]:
    """The place of an attack among those known, and how many settings of its own it was given."""
    name, *settings = attack.split(":")
    return WEAK_TO_STRONG.index(name) if name in WEAK_TO_STRONG else 0, len(settings)


def _content(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("format", "kind", "generation")}
