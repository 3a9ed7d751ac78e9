"""Measurements that two generations have in common, image by image; without torch.

Two measurements make a pair when everything that decides them but the weights is equal: the images and their order,
the noise and its seed, n, α, σ and the procedure, or the attack with norm, eps and seed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from robustkt import certlog, corruptions
from robustkt.errors import IntegrityError, UsageError
from robustkt.generation import Generation
from robustkt.numbers import canonical, exact, fraction
from robustkt.registry import Registry, Result
from robustkt.registry.measurements import table

HOW = (
    "batch_size",
    "compiled",
    "weights",
    "domain",
)  # settings that change neither images nor noise, or differ by nature
STOPS = ("sequential", "looks")  # modes that decide the radii they were told, and stop
CERTIFIED, ABSTAIN, CLEAN = "certified", "abstain", "clean"


@dataclass(frozen=True)
class Measured:
    """A certificate, or one attack of an evaluation, with what decided it."""

    kind: str  # "certificate", or the attack's name
    settings: Mapping[str, Any]  # without the weights; equal ones make a pair
    result: Result

    @property
    def images(self) -> int:
        """Test images it was measured on."""
        return int(self.settings["images"])

    @property
    def samples(self) -> int:
        """Noisy copies an image; 0 of an attack."""
        return int(self.settings.get("n", 0))

    def place(self) -> tuple[Any, ...]:
        """Which images of which data."""
        return tuple(self.settings[key] for key in ("data", "images", "skip"))

    def told(self) -> str:
        """What it is, in few words: `certificate σ 0.25 l2 fixed, n 500, 360 images`."""
        s = self.settings
        if self.kind != "certificate":
            ball = f" {s['norm']} {s['eps']}" if "eps" in s else ""
            return f"{self.kind}{ball}{self._shift()}, {self.images:,} images"
        noise = "" if s["noise"] == "gaussian" else f" {s['noise']}"
        sigma = f" σ {s['sigma']}" if s["sigma"] else ""
        return f"certificate{noise}{sigma} {s['norm']} {s['mode']}, n {s['n']:,}{self._shift()}, {self.images:,} images"

    def _shift(self) -> str:
        """The corruption of the images, where they have one."""
        shift = self.settings.get("corruption")
        return f" under {shift}" if shift else ""


@dataclass(frozen=True)
class Shared:
    """One measurement of both generations under equal settings."""

    old: Measured
    new: Measured

    @property
    def kind(self) -> str:
        """`certificate`, or the attack's name."""
        return self.new.kind

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decided both."""
        return self.new.settings

    def radii(self) -> list[Fraction]:
        """Where both tell certified accuracy, the smallest first."""
        both = [m.result.content["figures"]["certified_accuracy"] for m in (self.old, self.new)]
        return sorted(fraction(r, "a radius") for r in both[0] if r in both[1])


@dataclass(frozen=True)
class Verdicts:
    """What became of each image: a figure's name -> per image whether it counts for the old, and for the new."""

    labels: tuple[int, ...]
    figures: Mapping[str, tuple[tuple[bool, ...], tuple[bool, ...]]]
    radii: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # certified and right, else 0; of certificates


@dataclass(frozen=True)
class Common:
    """What two generations have both, and what only one of them has."""

    shared: tuple[Shared, ...]
    alone: tuple[tuple[Measured, ...], tuple[Measured, ...]]  # of the old, of the new


@dataclass(frozen=True)
class Lone:
    """A measurement that only one side has."""

    has: Generation
    lacks: Generation
    measured: Measured
    differs: Mapping[str, list[Any]]  # in what the other side's most similar one differs: setting -> [here, there]


def common(registry: Registry, old: Generation, new: Generation) -> Common:
    """The measurements of the selected weights of both, matched by their settings."""
    sides = [{canonical([m.kind, m.settings]): m for m in _measured(registry, g)} for g in (old, new)]
    shared = tuple(Shared(m, sides[1][key]) for key, m in sides[0].items() if key in sides[1])
    alone = [tuple(m for key, m in side.items() if key not in other) for side, other in (sides, sides[::-1])]
    return Common(shared, (alone[0], alone[1]))


def verdicts(registry: Registry, shared: Shared, radii: Sequence[Fraction] | None = None) -> Verdicts:
    """The logs of both, image by image.

    Of certificates `certified@R` says whether an image is right with a radius of at least R, and `abstain` whether it
    has an answer. Of an attack its own name says whether the image is right under it.

    Args:
        registry: where the logs lie.
        shared: the two measurements.
        radii: of `certified@R`, in units of the certificate's norm; those of its table by default.

    Raises:
        IntegrityError: a log is damaged, or the two are not of the same images.
        UsageError: a radius that the certificate's procedure has not decided.
    """
    if shared.kind != "certificate":
        tables = [_table(registry, m) for m in (shared.old, shared.new)]
        labels = _same([(t["idx"], t["label"]) for t in tables], shared)
        old, new = (tuple(value == 1 for value in t[shared.kind]) for t in tables)
        return Verdicts(labels, {shared.kind: (old, new)})
    wanted = shared.radii() if radii is None else list(radii)
    if unknown := undecided(shared, wanted):
        raise UsageError(
            f"{shared.settings['mode']} has not decided the radius {exact(unknown[0])}",
            f"It has decided {', '.join(shared.settings.get('radii', ()))}; certify both with --radii.",
        )
    logs = [certlog.parse(registry.log(m.result).decode()) for m in (shared.old, shared.new)]
    labels = _same([([r.idx for r in rows], [r.label for r in rows]) for rows in logs], shared)
    figures: dict[str, tuple[tuple[bool, ...], tuple[bool, ...]]] = {}
    for radius in wanted:
        old, new = (tuple(row.correct and row.radius_reaches(radius) for row in rows) for rows in logs)
        figures[f"{CERTIFIED}@{exact(radius)}"] = old, new
    old, new = (tuple(row.predict != -1 for row in rows) for rows in logs)
    figures[ABSTAIN] = old, new
    reach, further = (tuple(row.radius * row.correct for row in rows) for rows in logs)
    return Verdicts(labels, figures, (reach, further))


def lone(common: Common, old: Generation, new: Generation) -> Iterator[Lone]:
    """Each measurement that only one side has."""
    sides = [(old, new, common.alone[0], common.alone[1], [s.new for s in common.shared])]
    sides += [(new, old, common.alone[1], common.alone[0], [s.old for s in common.shared])]
    for has, lacks, mine, theirs, both in sides:
        for measured in mine:
            yield Lone(has, lacks, measured, nearest(measured, [*theirs, *both]))


def missing(common: Common, old: Generation, new: Generation) -> list[dict[str, Any]]:
    """What only one side has, and the command that gives it to the other: [{what, has, lacks, differs, command}].

    Attacks under the same settings are one command, and clean accuracy comes with any of them.
    """
    groups: dict[tuple[str, bytes], list[Lone]] = {}
    for one in lone(common, old, new):
        kind = one.measured.kind if one.measured.kind == "certificate" else ""
        groups.setdefault((one.has.id, canonical([kind, one.measured.settings])), []).append(one)
    images = {(g[0].has.id, g[0].measured.place()) for g in groups.values() if "eps" in g[0].measured.settings}
    told = []
    for group in groups.values():
        first = group[0]
        if first.measured.kind == CLEAN and (first.has.id, first.measured.place()) in images:
            continue
        several = replace(first.measured, kind=",".join(one.measured.kind for one in group))
        differs = next((one.differs for one in group if one.differs), {})
        told.append(
            {
                "what": several.told(), "has": first.has.name, "lacks": first.lacks.name, "differs": differs,
                "command": command(several, first.lacks, again=set(differs) == {"algorithm"}),
            }
        )  # fmt: skip
    return told


def nearest(wanted: Measured, there: Iterable[Measured]) -> dict[str, list[Any]]:
    """In what the most similar measurement of its kind differs: {setting: [wanted, there]}; {} when there is none."""
    differences = [
        {
            key: [wanted.settings.get(key), m.settings.get(key)]
            for key in sorted({*wanted.settings, *m.settings})
            if wanted.settings.get(key) != m.settings.get(key)
        }
        for m in there
        if m.kind == wanted.kind
    ]
    return min(differences, key=lambda found: (len({"noise", "norm"} & set(found)), len(found)), default={})


def command(wanted: Measured, lacking: Generation, *, again: bool = False) -> str:
    """What to type to measure `lacking` under the settings of `wanted`."""
    s = wanted.settings
    own = lacking.recipe.data.fingerprint
    shift = corruptions.one(s["corruption"]) if s.get("corruption") else None
    same = s["data"] == (own if shift is None else corruptions.fingerprint(own, shift))
    images = ["--max-images", s["images"], *([] if same else ["--data", "THE-SAME-DATA"])]
    images += [] if shift is None else ["--corruption", str(shift)]
    if wanted.kind == "certificate":
        words = ["certify", lacking.name, *(["--sigma", s["sigma"]] if s["sigma"] else []), "--mode", s["mode"]]
        words += ["--n", s["n"], "--n0", s["n0"], "--alpha", str(s["alpha"])]
        words += ["--noise", s["noise"], "--norm", s["norm"]]
        words += ["--radii", ",".join(s["radii"])] if s.get("radii") else []
        words += ["--simultaneous"] if "alpha_image" in s else []
        words += ["--skip", s["skip"], *images, "--seed", s["seed"], "--precision", s["precision"]]
    else:
        ball = ["--norm", s["norm"], "--eps", s["eps"], "--seed", s["seed"]] if "eps" in s else []
        base = ["--base"] if lacking.sigma is not None and s.get("smoothed") is False else []
        words = ["evaluate", lacking.name, "--attack", wanted.kind, *ball, *images, *base]
    return shlex.join(["robustkt", *map(str, words), *(["--fresh"] if again else [])])


def _measured(registry: Registry, generation: Generation) -> list[Measured]:
    found: dict[bytes, Measured] = {}
    for result in registry.results(generation.id):
        told = result.content["settings"]
        if told["weights"] != generation.network() or result.kind not in ("certificate", "evaluation"):
            continue
        if result.claimed:  # a claim of others passes no gate
            continue
        radii = told.get("radii", [])
        if not isinstance(radii, list) or not all(isinstance(r, str) for r in radii):
            raise IntegrityError(f"{result.path}: its radii are no list of numbers", "Measure again with --fresh.")
        if result.kind == "certificate":
            kinds = [("certificate", {key: value for key, value in told.items() if key not in HOW})]
        else:
            kinds = [(name, _attack(result, name, generation)) for name in result.content["figures"]["attacks"]]
        for kind, settings in kinds:
            found.setdefault(canonical([kind, settings]), Measured(kind, settings, result))
    return list(found.values())


def _attack(result: Result, name: str, generation: Generation) -> dict[str, Any]:
    """What decided one attack; nothing but the images decides clean accuracy."""
    told = result.content["settings"]
    settings = {key: told[key] for key in ("data", "images", "skip", "corruption") if told.get(key) is not None}
    if name == CLEAN:
        return settings
    smoothed = bool(result.content["figures"]["attacks"][name].get("smoothed"))
    settings |= {key: told[key] for key in ("norm", "eps", "seed")}
    settings |= {"algorithm": result.content.get("algorithm"), "smoothed": smoothed}
    return settings | ({"sigma": _level(generation)} if smoothed else {})


def _level(generation: Generation) -> str:
    return exact(generation.sigma) if generation.sigma is not None else "None"


def _table(registry: Registry, measured: Measured) -> dict[str, list[int]]:
    """An evaluation's log by its columns."""
    try:
        columns = table(registry.log(measured.result))
        return {name: list(columns[name]) for name in ("idx", "label", measured.kind)}
    except (ValueError, KeyError):
        raise IntegrityError(
            f"the log of {measured.result.path} is not one of an evaluation", "Measure again with --fresh."
        ) from None


def _same(images: Sequence[tuple[Sequence[int], Sequence[int]]], shared: Shared) -> tuple[int, ...]:
    """The labels, when both logs are of the same images in the same order, and whole."""
    (old, labels), (new, others) = images
    if list(old) != list(new) or list(labels) != list(others) or len(new) != shared.new.images:
        raise IntegrityError(
            f"{shared.old.result.path} and {shared.new.result.path} are not of the same images",
            "Measure both again with --fresh.",
        )
    return tuple(labels)


def undecided(shared: Shared, wanted: Iterable[Fraction]) -> list[Fraction]:
    """The radii at which the certificate's procedure has decided nothing: it stops at those that it was told."""
    if shared.settings.get("mode") not in STOPS:
        return []
    known = {fraction(r, "a radius") for r in shared.settings.get("radii", ())}
    return [radius for radius in wanted if radius not in known]
