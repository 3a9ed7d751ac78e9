"""Whether a generation may replace another: paired tests of non-inferiority, one a figure, and of every class.

Passing means that every figure is shown to be worse by less than its margin (an intersection-union test: no adjustment
is needed for all of them to be right). A class fails when it is shown to have lost more than its margin, by Holm's
procedure over all classes of all figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustkt import paired
from robustkt.api.comparing import NEVER_BEST, base_networks, by_class, class_name, share
from robustkt.api.gateconfig import Gate
from robustkt.api.pairing import (
    ABSTAIN,
    CERTIFIED,
    CLEAN,
    Common,
    Shared,
    command,
    common,
    lone,
    missing,
    undecided,
    verdicts,
)
from robustkt.api.results import GateVerdict
from robustkt.catalog import unknown
from robustkt.errors import NotFoundError, RobustKTError, UsageError, clip
from robustkt.generation import Generation
from robustkt.numbers import counted, fraction
from robustkt.paired import Pairs
from robustkt.registry import Registry

ROBUST = "robust"  # margins: every attack but clean


@dataclass(frozen=True)
class _Figure:
    """One figure of both, image by image."""

    name: str  # `certified@0.25`, with `:sigma=0.5` behind it where several are checked
    names: tuple[str, ...]  # what a margin may call it, the most particular first
    shared: Shared
    counts: Pairs
    shares: tuple[float, float]  # of the old and the new; of `abstain` those without an answer
    classes: Mapping[int, Pairs]


def gate(generation: str = "@latest", *, config: Gate | None = None, registry: Registry | None = None) -> GateVerdict:
    """Test whether `generation` is worse than `config.against` by less than the margins.

    Each figure's p-value is the exact unconditional one of the paired score test (`robustkt.paired`).

    Args:
        generation: the one that wants to pass.
        config: against which, checks, margins and confidence; see docs/gate.md.
        registry: the nearest one by default.

    Returns:
        passed, generation, against, ids, confidence, alpha, fail_on, checks [{name, value, against, difference, bound,
        margin, p_value, p_loss, status, passed, images, won, lost, discordance, power, resolution, images_needed,
        what}], classes [{check, class, images, difference, margin, won, lost, p_value, p_adjusted, passed}],
        class_margin, class_images, class_resolution, notes, missing, config; with `.to_pandas()` and `.plot()`.
        `bound` is the largest loss that is not excluded, as a difference; `p_value` of the loss being the margin or
        more; `p_loss` of its being the margin or less, Holm-adjusted over the checks; `status` passed, not excluded, or
        worse. `power` is the probability that an equally good generation passes the check.

    Raises:
        UsageError: nothing to compare with is named.
        RobustKTError: anything else the user can fix, such as a named check that only one side was measured for.
    """
    registry, told = registry or Registry.locate(), config or Gate()
    if told.against is None:
        raise UsageError(
            "against which generation?", 'Add --against GEN, or against = "GEN" to [gate] in robustkt.toml.'
        )
    old, new = registry.mode(told.against), registry.mode(generation)
    both = common(registry, old, new)
    shared = _chosen(both, old, new, told)
    figures = _figures(registry, shared, told)
    _check_margins(told, figures, both, old, new)
    checks = [_check(figure, told) for figure in figures]
    losses = paired.holm({i: float(row["p_loss"]) for i, row in enumerate(checks)})
    for i, row in enumerate(checks):
        row["p_loss"] = losses[i]
        worse = row["p_loss"] <= told.alpha
        row["status"] = "passed" if row["p_value"] <= told.alpha else "worse" if worse else "not excluded"
        row["passed"] = not worse if told.fail_on == "shown" else row["status"] == "passed"
    classes = _classes(figures, new, told)
    answer = {
        "passed": all(row["passed"] for row in [*checks, *classes]),
        "generation": new.name,
        "against": old.name,
        "ids": [new.id, old.id],
        "confidence": told.confidence,
        "alpha": told.alpha,
        "fail_on": told.fail_on,
        "checks": checks,
        "classes": classes,
        "class_margin": told.class_margin,
        **_class_power(figures, told, len(classes)),
        "notes": [*_notes(both, shared, told, old, new), *_vacuous(figures)],
        "missing": missing(both, old, new),
        "config": told.file,
    }
    return GateVerdict(answer)


# -- which measurements ------------------------------------------------------------------------------------------


def _chosen(both: Common, old: Generation, new: Generation, told: Gate) -> list[Shared]:
    """For each attack, and each noise, norm and σ, the measurement that both have on the most images, uncorrupted."""
    own = [new.recipe.data.fingerprint, old.recipe.data.fingerprint]
    clean = [s for s in both.shared if not s.settings.get("corruption")]
    known = {s.settings["data"] for s in clean}
    data = next((d for d in [*own, *sorted(known)] if d in known), None)
    there = [s for s in clean if s.settings["data"] == data]
    if told.sigma is not None:
        there = [s for s in there if s.settings.get("sigma") in (None, told.sigma) or s.kind != "certificate"]
    if told.attacks is not None:
        there = [s for s in there if s.kind in ("certificate", CLEAN, *told.attacks)]
    if told.radii == ():
        there = [s for s in there if s.kind != "certificate"]
    best: dict[tuple[Any, ...], Shared] = {}
    for s in sorted(there, key=lambda s: _worth(s, told)):
        best[_family(s)] = s
    chosen = sorted(best.values(), key=_order)
    _there(chosen, both, old, new, told)
    for s in chosen:
        if s.new.images < told.min_images:
            raise RobustKTError(
                f"{s.new.told()}: too few to decide by, {told.min_images:,} are wanted",
                f"Measure both on more with --max-images, or add --min-images {s.new.images} to decide by them.",
            )
    return chosen


def _worth(shared: Shared, told: Gate) -> tuple[Any, ...]:
    """Larger for the one to decide by, of several measurements of one kind."""
    decided = not undecided(shared, [fraction(r, "a radius") for r in told.radii or ()])
    return decided, shared.new.images, shared.new.samples, shared.settings.get("mode") == "fixed"


def _family(shared: Shared) -> tuple[Any, ...]:
    s = shared.settings
    if shared.kind == "certificate":
        return shared.kind, s["noise"], s["norm"], s["sigma"]
    return shared.kind, s.get("norm"), s.get("eps"), s.get("smoothed")


def _order(shared: Shared) -> tuple[Any, ...]:
    s = shared.settings
    certificate = shared.kind == "certificate"
    sigma = float(fraction(s["sigma"] or 0, "sigma")) if certificate else 0.0
    return certificate, shared.kind != CLEAN, sigma, tuple(map(str, _family(shared)))


def _there(chosen: Sequence[Shared], both: Common, old: Generation, new: Generation, told: Gate) -> None:
    """Raise for a check that was asked for by name and was not measured on both under equal settings."""
    kinds = {s.kind for s in chosen}
    for attack in told.attacks or ():
        if attack not in kinds:
            raise _unmeasured(f"accuracy under {attack}", attack, both, old, new, f"--attack {attack}")
    if (told.radii or told.sigma) and "certificate" not in kinds:
        at = f" at σ = {told.sigma}" if told.sigma else ""
        sigma = f" --sigma {told.sigma}" if told.sigma else ""
        raise _unmeasured(f"certified accuracy{at}", "certificate", both, old, new, sigma.strip(), told.sigma)
    if not chosen:
        raise _unmeasured("anything", None, both, old, new, "")


def _unmeasured(
    what: str, kind: str | None, both: Common, old: Generation, new: Generation, options: str, sigma: str | None = None
) -> NotFoundError:
    """The error of a check that cannot be made, with the command that makes the missing half."""
    told = [
        one
        for one in lone(both, old, new)
        if (kind in (None, one.measured.kind) or (kind == ROBUST and one.measured.kind not in ("certificate", CLEAN)))
        and sigma in (None, one.measured.settings.get("sigma"))
    ]
    say = f"{old.name} and {new.name} have not both been measured for {what} under equal settings"
    if told:
        most = max(told, key=lambda one: one.measured.images)
        differs = "; ".join(f"{key}: {a} and {b}" for key, (a, b) in most.differs.items())
        again = set(most.differs) == {"algorithm"}
        return NotFoundError(
            say + (f" ({clip(differs)})" if differs else ""),
            f"Type `{command(most.measured, most.lacks, again=again)}`.",
        )
    verb = "certify" if kind == "certificate" else "evaluate"
    words = " ".join(part for part in (f"robustkt {verb} GEN", options) if part)
    return NotFoundError(say, f"Type `{words}` for {old.name} and for {new.name}.")


# -- figures -----------------------------------------------------------------------------------------------------


def _figures(registry: Registry, shared: Sequence[Shared], told: Gate) -> list[_Figure]:
    radii = None if told.radii is None else [fraction(r, "a radius") for r in told.radii]
    suffixes = _suffixes(shared)
    found = []
    for s, suffix in zip(shared, suffixes, strict=True):
        read = verdicts(registry, s, radii if s.kind == "certificate" else None)
        for name, (old, new) in read.figures.items():
            counts = paired.pairs(new, old)
            shares = (share(name, old), share(name, new))
            kind = CERTIFIED if name.startswith(f"{CERTIFIED}@") else name if name in (CLEAN, ABSTAIN) else ROBUST
            whole = name + suffix
            found.append(
                _Figure(
                    whole,
                    tuple(dict.fromkeys((whole, name, kind))),
                    s,
                    counts,
                    shares,
                    {} if name == ABSTAIN else by_class(read, name),
                )
            )
    return found


def _suffixes(shared: Sequence[Shared]) -> list[str]:
    """What tells measurements of one kind apart, as settings of an attack are written: `:sigma=0.5`."""
    told = []
    for s in shared:
        alike = [other for other in shared if other.kind == s.kind]
        keys = ("noise", "norm", "sigma") if s.kind == "certificate" else ("norm", "eps", "smoothed")
        differing = [key for key in keys if len({str(other.settings.get(key)) for other in alike}) > 1]
        told.append("".join(f":{key}={s.settings.get(key)}" for key in differing))
    return told


def _check_margins(told: Gate, figures: Sequence[_Figure], both: Common, old: Generation, new: Generation) -> None:
    """Raise for a margin of a check that is not made, unless its kind was left out on purpose."""
    known = dict.fromkeys(name for figure in figures for name in figure.names)
    for name in told.margins:
        certified = name.partition("@")[0] in (CERTIFIED, ABSTAIN)
        if name in known or (certified and told.radii == ()) or (name == ROBUST and told.attacks == ()):
            continue
        if name not in (CLEAN, CERTIFIED, ABSTAIN, ROBUST):
            raise unknown("check with a margin", name, known)
        kind = "certificate" if certified else name
        raise _unmeasured(f"{name}, which has a margin,", kind, both, old, new, "")


# -- tests -------------------------------------------------------------------------------------------------------


def _check(figure: _Figure, told: Gate) -> dict[str, Any]:
    """The row of a figure; `p_loss` is adjusted later, over all of them."""
    counts, margin = figure.counts, told.margin_of(*figure.names)
    sign = -1 if figure.name.startswith(ABSTAIN) else 1  # the share without an answer grows as images are lost
    return {
        "name": figure.name,
        "what": figure.shared.new.told(),
        "value": figure.shares[1],
        "against": figure.shares[0],
        "difference": sign * counts.difference + 0.0,
        "bound": sign * paired.lower_bound(counts, told.alpha, margin),
        "margin": margin,
        "p_value": paired.non_inferior(counts, margin),
        "p_loss": paired.shown_loss(counts, margin),
        "images": counts.images,
        "won": counts.won,
        "lost": counts.lost,
        "discordance": counts.discordance,
        "power": paired.power(counts.images, counts.discordance, margin, told.alpha),
        "resolution": paired.resolution(counts.images, counts.discordance, told.alpha),
        "images_needed": paired.images_needed(counts.discordance, margin, told.alpha),
    }


def _classes(figures: Iterable[_Figure], new: Generation, told: Gate) -> list[dict[str, Any]]:
    """Every class of every accuracy; nothing when a class may lose everything."""
    if told.class_margin >= 1:
        return []
    rows: list[dict[str, Any]] = [
        {
            "check": figure.name, "class": class_name(new, label), "images": counts.images,
            "difference": counts.difference, "margin": told.class_margin, "won": counts.won, "lost": counts.lost,
            "p_value": paired.shown_loss(counts, told.class_margin),
        }
        for figure in figures
        for label, counts in figure.classes.items()
    ]  # fmt: skip
    adjusted = paired.holm({i: float(row["p_value"]) for i, row in enumerate(rows)})
    for i, row in enumerate(rows):
        row |= {"p_adjusted": adjusted[i], "passed": adjusted[i] > told.alpha}
    return rows


def _class_power(figures: Sequence[_Figure], told: Gate, tests: int) -> dict[str, Any]:
    """What loss of a class of middling size would be seen, at the first step of Holm's procedure."""
    sizes = sorted(counts.images for figure in figures for counts in figure.classes.values())
    if not tests:
        return {"class_images": None, "class_resolution": None}
    discordance = max(figure.counts.discordance for figure in figures if figure.classes)
    middling = sizes[len(sizes) // 2]
    seen = paired.resolution(middling, discordance, told.alpha / tests, told.class_margin)
    return {"class_images": middling, "class_resolution": seen}


def _notes(both: Common, shared: Sequence[Shared], told: Gate, old: Generation, new: Generation) -> list[str]:
    notes = base_networks(shared, old, new)
    levels = {s.settings["sigma"] for s in shared if s.kind == "certificate"}
    if len(levels) > 1:
        notes.append(NEVER_BEST)
    if told.radii != () and not any(s.kind == "certificate" for s in shared):
        notes.append("no certificates are checked: the two have none under equal settings")
    if told.attacks != () and all(s.kind in ("certificate", CLEAN) for s in shared):
        notes.append("no attack is checked: the two have none under equal settings")
    others = [s for s in both.shared if s not in shared]
    left = [s.new.told() for s in others if not s.settings.get("corruption")]
    if len(left) < len(others):
        notes.append(f"{counted(len(others) - len(left), 'measurement')} of corrupted images not used: see `compare`")
    if left:
        notes.append(f"not used, as others are of more images, or not asked for: {'; '.join(left)}")
    if any(s.settings["data"] != new.recipe.data.fingerprint for s in shared):
        notes.append(f"measured on other data than {new.name}'s own")
    if old.id == new.id:
        notes.append("both names are of the same generation")
    return notes


def _vacuous(figures: Sequence[_Figure]) -> list[str]:
    """Checks that nobody could fail."""
    names = [f.name for f in figures if not any(f.shares) and not f.name.startswith(ABSTAIN)]
    return [f"neither is right on any image, so that nothing can be lost: {', '.join(names)}"] if names else []
