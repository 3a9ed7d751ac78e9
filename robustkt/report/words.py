"""What the measurements say, in sentences: verdicts, guarantees, and the commands for what has not been measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from robustkt.mixture import CLEAN, ROBUST
from robustkt.numbers import counted, exact, number
from robustkt.report.attacks import hardest, shared_radius
from robustkt.report.figure import between, percent
from robustkt.report.gathering import Attacked, Certified, Subject

NORMS = {
    "l2": "of L2 length",
    "linf": "of every pixel by",
    "l1": "whose absolute values add up to",
    "l0": "of pixels, at most",
}
DEFAULT_SIGMA = "0.25"


@dataclass(frozen=True)
class Missing:
    """Something that has not been measured, and what to type."""

    text: str
    command: str


def verdict(subject: Subject, subjects: Sequence[Subject]) -> list[str]:
    """One to three sentences about a generation."""
    told = []
    best = headline(subject)
    if best is not None:
        told.append(_certified(best, shared_radius(subjects, str(best.settings["norm"]))))
    balls = dict.fromkeys(one.ball for one in subject.attacks if one.attack != CLEAN)
    worst = [found for ball in balls if (found := hardest(subject, ball)) is not None]
    told += [_attacked(subject, one) for one in worst[:2]]
    kept = dict(subject.row.get("retained") or {})
    teacher = subject.row.get("teacher")
    if kept and teacher:
        certified = [(r, v) for r, v in kept.items() if r.startswith("certified@") and number(r[10:]) > 0]
        parts = [f"{percent(v)} of its certified accuracy at radius {r[10:]}" for r, v in certified[:1]]
        if "robust" in kept:
            parts.append(f"{percent(kept['robust'])} of its accuracy under attack")
        if parts:
            told.append(f"Of its teacher {teacher} it kept {' and '.join(parts)}, both measured alike.")
    return told or ["Nothing about its robustness has been measured yet."]


def headline(subject: Subject) -> Certified | None:
    """The certificate for the noise that it was trained for, else of the most images."""
    own = exact(subject.generation.sigma) if subject.generation.sigma is not None else None
    there = sorted(subject.certificates, key=lambda one: (one.settings["sigma"] == own, one.settings["images"]))
    return there[-1] if there else None


def _certified(one: Certified, radius: str | None) -> str:
    table = one.figures["certified_accuracy"]
    radius = radius if radius in table else next(iter(sorted(table, key=number)), None)
    if radius is None:
        return "It has a certificate without a table of radii."
    what = NORMS.get(str(one.settings["norm"]), f"of {one.settings['norm']} length")
    noise = f" under noise of σ = {one.settings['sigma']}" if one.settings["sigma"] else ""
    return (
        f"On {percent(table[radius])} of {one.figures['images']:,} test images "
        f"({between(one.figures['intervals'][radius])}) its smoothed classifier{noise} is right, and certified to stay "
        f"so whatever change {what} {radius} is made to the image."
    ) + _claim(one.source.claimed)


def _attacked(subject: Subject, one: Attacked) -> str:
    right, of = sum(one.right), len(one.right)
    base = " of its base network, without noise," if subject.generation.sigma is not None and not one.ball[2] else ""
    clean = next((c for c in subject.attacks if c.attack == CLEAN), None)
    before = f", and {percent(sum(clean.right) / len(clean.right))} without an attack" if clean else ""
    text = (
        f"Under {one.attack} ({one.ball[0]} eps = {one.ball[1]}) accuracy{base} is {percent(right / of)} on {of:,} "
        f"test images{before}: measured, not proven."
    )
    return text + _claim(one.source.claimed)


def _claim(claimed: str | None) -> str:
    return f" This is a claim of {claimed}; nobody has measured it here." if claimed else ""


def guarantees(subjects: Sequence[Subject]) -> list[str]:
    """What the certificates promise, and what they do not; empty without any."""
    there = [one for subject in subjects for one in subject.certificates]
    if not there:
        return []
    levels = sorted({str(one.settings["sigma"]) for one in there if one.settings["sigma"]}, key=number)
    noise = f" (here σ = {', '.join(levels)})" if levels else ""
    told = [
        f"A certificate is about the smoothed classifier at the noise that it was made with{noise}: the class that the "
        "network names most often for noisy copies of an image. The network alone, without noise, has none."
    ]
    each = sorted({f"{one.settings['alpha']:g}" for one in there if "alpha_image" not in one.settings}, key=number)
    together = sorted({f"{one.settings['alpha']:g}" for one in there if "alpha_image" in one.settings}, key=number)
    if each:
        told.append(
            f"It is statistical: each image's certificate is wrong with probability at most α = {', '.join(each)}. "
            "That is per image, not for all images at once."
        )
    if together:
        told.append(
            "Certificates made with --simultaneous are all right at once with probability at least "
            f"1 − {', '.join(together)}."
        )
    told.append(
        "It says that no change within the radius alters the answer; it does not say that the answer is right. "
        "Certified accuracy counts the images on which it is both. The intervals (95 %, Wilson) are about other images "
        "of the same kind."
    )
    return told


def lacking(subjects: Sequence[Subject], what: str) -> list[Missing]:
    """The generations that have none of a kind ("certificate", "attack", "sweep", "training"), with the command."""
    return [missing for subject in subjects for missing in LACKING[what](subject)]


def _no_certificate(subject: Subject) -> Iterator[Missing]:
    if not subject.certificates:
        sigma = exact(subject.generation.sigma) if subject.generation.sigma is not None else DEFAULT_SIGMA
        yield Missing(f"{subject.name} has no certificate.", f"robustkt certify {subject.name} --sigma {sigma}")


def _no_attack(subject: Subject) -> Iterator[Missing]:
    if all(one.attack == CLEAN for one in subject.attacks):
        yield Missing(f"{subject.name} has not been attacked.", f"robustkt evaluate {subject.name}")


def _no_sweep(subject: Subject) -> Iterator[Missing]:
    if set(subject.generation.adapters) == {CLEAN, ROBUST} and not subject.sweeps:
        name = subject.name.partition("@")[0]
        yield Missing(f"The mixtures of {name}'s adapters have not been measured.", f"robustkt soup sweep {name}")


def _no_training(subject: Subject) -> Iterator[Missing]:
    if not subject.record.get("epochs") and subject.generation.recipe.training is not None:
        yield Missing(f"{subject.name} has no log of its epochs here.", f"robustkt reproduce {subject.name}")


LACKING = {"certificate": _no_certificate, "attack": _no_attack, "sweep": _no_sweep, "training": _no_training}


def settings(subject: Subject) -> Mapping[str, str]:
    """Everything that decided the generation, and how it came about."""
    generation, record = subject.generation, subject.record
    recipe = generation.recipe
    parents = ", ".join(f"{role} {identity[7:19]}" for role, identity in sorted(generation.parents.items()))
    told = {
        "id": generation.id,
        "method": recipe.method,
        "settings": ", ".join(f"{key} {value}" for key, value in sorted(recipe.settings.items())),
        "architecture": recipe.arch + (f" of {recipe.arch_version}" if recipe.arch_version else ""),
        "data": f"{recipe.data.name}, {len(recipe.data.classes)} classes, {'×'.join(map(str, recipe.data.shape))}, "
        f"{recipe.data.fingerprint}",
        "parents": parents,
        "mode": generation.domain.get("domain", ""),
        "seed": str(recipe.seed),
        "precision": recipe.precision,
        "weights": generation.network(),
        "made": str(record.get("started", "")),
        "time": f"{record['seconds']:,.1f} s" if _is_seconds(record) else "",
        "device": str(record.get("device", "")),
        "versions": ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items()),
        "commit": str((record.get("git") or {}).get("commit", "")),
    }
    if recipe.training is not None:
        t = recipe.training
        told["training"] = f"{counted(t.epochs, 'epoch')} of batches of {t.batch_size}, lr {t.lr:g} {t.schedule}"
        told["weight decay"] = f"{t.weight_decay:g}"
    return {key: value for key, value in told.items() if value}


def _is_seconds(record: Mapping[str, object]) -> bool:
    return isinstance(record.get("seconds"), (int, float, Fraction))
