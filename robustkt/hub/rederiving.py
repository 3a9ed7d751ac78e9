"""Deriving published figures again: from the rows of their logs, and the bounds of certificates from their counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from robustkt import certlog
from robustkt.catalog import CERTIFIERS
from robustkt.certlog import Row
from robustkt.errors import IntegrityError, UsageError
from robustkt.generation import Generation
from robustkt.hub.fetching import REFUSED
from robustkt.mixture import CLEAN, ROBUST
from robustkt.numbers import check_counts, fraction, noise_level, wilson
from robustkt.registry import Result
from robustkt.registry.measurements import Table
from robustkt.registry.measurements import table as columns_of

CLOSE = 1e-9
STEP = 1.5e-6  # radii are printed on a grid of 1e-6
MOST = 10**9  # copies of an image


def check_result(result: Result, generation: Generation, log: bytes) -> None:
    """Whether the figures are those of the log, and the log is one that its settings can have given.

    Raises:
        IntegrityError: they are not; the message names the image or the figure.
    """
    name = result.path.name
    try:
        check, wrong = CHECKS[result.kind](result, generation, log)
        differs = next((key for key in check if not _same(check[key], result.content["figures"].get(key))), None)
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, UsageError):  # it may hold anything
        raise IntegrityError(f"the log of {name} cannot be read", REFUSED) from None
    if differs is not None:
        raise IntegrityError(f"the figures of {name} are not those of its log: {differs}", REFUSED)
    if wrong is not None:
        raise IntegrityError(f"{name} {wrong}", REFUSED)


# Each check gives the figures that follow from the log, and what is wrong with the log itself, or None.


def _certificate(result: Result, generation: Generation, log: bytes) -> tuple[dict[str, Any], str | None]:
    settings, figures = result.content["settings"], result.content["figures"]
    text = log.decode()
    rows = certlog.parse(text)
    if not rows or len(rows) != len(text.splitlines()) - 1:
        raise ValueError("lines that are none")
    again = certlog.summarise(rows, [fraction(r, "radius") for r in figures["certified_accuracy"]])
    if "samples_per_image" in figures:
        again["samples_per_image"] = sum(row.drawn for row in rows) / len(rows)
    if not _are_named([row.idx for row in rows], settings):
        return again, "is not of the images that its settings name"
    excessive = next(_excessive(settings, generation, rows), None)
    return again, None if excessive is None else f"certifies what its counts do not give: image {excessive.idx}"


def _excessive(settings: Mapping[str, Any], generation: Generation, rows: Sequence[Row]) -> Iterator[Row]:
    """The rows whose bound does not follow from their counts, or whose radius not from their bound."""
    from robustkt.certificates import Ball
    from robustkt.certificates.recounting import PRINTED, Counted, Procedure, follows
    from robustkt.noises import certifies, named

    noise = named(settings["noise"], noise_level(settings["sigma"]) if settings["sigma"] else None)
    if not certifies(noise, settings["norm"]):
        raise ValueError("a norm that this noise does not certify")
    check_counts({"--n": settings["n"], "--n0": settings["n0"]})
    share = _share(settings)
    if not (CERTIFIERS.has(settings["mode"]) and 0 < share < 0.5 and max(settings["n"], settings["n0"]) <= MOST):
        raise ValueError("no procedure")
    ball = Ball(noise, settings["norm"], generation.recipe.data.shape)
    thresholds = tuple(ball.needed(float(fraction(r))) for r in settings.get("radii", ()))
    procedure = Procedure(settings["mode"], settings["n"], settings["n0"], share, thresholds)
    number = _own_numbers(settings, generation)
    classes = len(generation.recipe.data.classes)
    for row in rows:
        counted = Counted(row.successes, row.trials, row.drawn, row.p_low, row.u)
        sound = row.correct == (row.label == row.predict) and 0 <= row.label < classes
        sound = sound and -1 <= row.predict < classes
        sound = sound and follows(counted, procedure, number(row.idx))
        if sound and row.predict >= 0:
            low, high = (ball.radius(min(p, 1 - 1e-16)) for p in (row.p_low, row.p_low + PRINTED))
            sound = row.p_low >= 0.5 - PRINTED and low - STEP <= row.radius <= high + STEP
        elif sound:
            sound = row.radius == 0 and row.p_low < 0.5
        if not sound:
            yield row


def _share(settings: Mapping[str, Any]) -> float:
    """The error probability of an image: all of α, or a share each."""
    alpha, share = float(settings["alpha"]), settings.get("alpha_image")
    if share is not None and not math.isclose(share, alpha / settings["images"], rel_tol=CLOSE):
        raise ValueError("a share that is none")
    return alpha if share is None else float(share)


def _own_numbers(settings: Mapping[str, Any], generation: Generation) -> Callable[[int], float | None]:
    """The uniform number that an image's randomised bound has to have: nobody may choose it."""
    if settings["mode"] != "randomised":
        return lambda idx: None
    from robustkt.streams import noise_seed, uniform_number

    seed = noise_seed(*(settings[name] for name in ("seed", "mode", "n", "n0")))
    return lambda idx: uniform_number(f"{generation.id} {seed}", idx)


def _evaluation(result: Result, generation: Generation, log: bytes) -> tuple[dict[str, Any], str | None]:
    settings, figures = result.content["settings"], result.content["figures"]
    table = columns_of(log)
    names = [column for column in table if "|" not in column][2:]
    if sorted(names) != sorted(settings["attacks"]) or sorted(names) != sorted(figures["attacks"]):
        raise ValueError("columns of other attacks")
    wrong = _wrong_rows(settings, generation, table, [c for c in table if c not in ("idx", "label")])
    attacks, clean = {}, table["clean"]
    for name in names:
        told = figures["attacks"][name]
        none, smoothed = name == "clean", bool(told.get("smoothed"))
        attacks[name] = {**told, **_shares(table[name]), **_stages(table, name, told)}
        ball = (None, None) if none else (settings["norm"], settings["eps"])
        attacks[name] |= dict(zip(("norm", "eps"), ball, strict=True))
        if smoothed:
            whole = told["accuracy"] + told["wrong"] + told["abstained"]
            wrong = wrong or (None if math.isclose(whole, 1, abs_tol=CLOSE) else f"has shares of {name} beyond 1")
        elif any(after > before for after, before in zip(table[name], clean, strict=True)):
            wrong = wrong or f"has images that only {name} puts right"
    again = {"attacks": attacks}
    if figures.get("worst") is not None:
        again["worst"] = _worst(table, figures["attacks"])
    return again, wrong


def _stages(table: Table, name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The share that each stage of an ensemble leaves, and with the last the attack itself."""
    stages = [column.partition("|")[2] for column in table if column.startswith(f"{name}|")]
    if not told.get("stages"):
        return {}
    left, shares = list(table["clean"]), {}
    for stage in stages:
        left = [a & b for a, b in zip(left, table[f"{name}|{stage}"], strict=True)]
        shares[stage] = sum(left) / len(left)
    if left != list(table[name]):
        raise ValueError("an attack that leaves other images than its stages")
    return {"stages": shares}


def _worst(table: Table, attacks: Mapping[str, Any]) -> dict[str, Any]:
    """What all of them leave: of the network, or where only the smoothed classifier was attacked of that."""
    smoothed = [name for name, told in attacks.items() if told.get("smoothed")]
    whole = [name for name in attacks if name not in smoothed]
    only = bool(smoothed) and whole == ["clean"]
    right = [int(all(row)) for row in zip(*(table[name] for name in (smoothed if only else whole)), strict=True)]
    return {**_shares(right), "smoothed": only}


def _transfer(result: Result, generation: Generation, log: bytes) -> tuple[dict[str, Any], str | None]:
    settings, table = result.content["settings"], columns_of(log)
    columns = ("student", "teacher", "student_adv", "teacher_adv")
    wrong = _wrong_rows(settings, generation, table, columns)
    if wrong is None and settings["teacher"] != generation.parents.get("teacher"):
        wrong = "is about another teacher"
    both = [row for row in zip(*(table[name] for name in columns), strict=True) if row[0] and row[1]]
    fooled = [row for row in both if not row[2]]
    too = sum(not row[3] for row in fooled)
    return {
        "images": len(both), "fooled_student": len(fooled), "fooled_teacher": too,
        "rate": too / len(fooled) if fooled else None, "interval": wilson(too, len(fooled)) if fooled else [0.0, 1.0],
    }, wrong  # fmt: skip


def _sweep(result: Result, generation: Generation, log: bytes) -> tuple[dict[str, Any], str | None]:
    settings, table = result.content["settings"], columns_of(log)
    attacks = [name for name in settings["attacks"] if name != "clean"]
    columns = [f"{beta}|{name}" for beta in settings["betas"] for name in ("clean", *attacks)]
    if sorted(table) != sorted(["idx", "label", *columns]):
        raise ValueError("columns of other mixtures or attacks")
    wrong = _wrong_rows(settings, generation, table, columns)
    if list(settings["ends"]) != [generation.in_mode(mode).network() for mode in (CLEAN, ROBUST)]:
        wrong = "is about other adapters"
    points = []
    for beta in settings["betas"]:
        clean = table[f"{beta}|clean"]
        under = [table[f"{beta}|{name}"] for name in attacks]
        if any(after > before for attacked in under for after, before in zip(attacked, clean, strict=True)):
            wrong = wrong or f"has images that only an attack puts right at β = {beta}"
        both = {"clean": clean, **({"robust": [min(row) for row in zip(clean, *under, strict=True)]} if under else {})}
        told = {f"{k}_{name}": value for k, kept in both.items() for name, value in _shares(kept).items()}
        points.append({"beta": float(fraction(beta)), **told})
    return {"points": points}, wrong


CHECKS: Mapping[str, Callable[[Result, Generation, bytes], tuple[dict[str, Any], str | None]]] = {
    "certificate": _certificate, "evaluation": _evaluation, "transfer": _transfer,
    "sweep": _sweep,
}  # fmt: skip


def _wrong_rows(
    settings: Mapping[str, Any], generation: Generation, table: Table, verdicts: Sequence[str]
) -> str | None:
    if not _are_named(table["idx"], settings):
        return "is not of the images that its settings name"
    if not all(0 <= label < len(generation.recipe.data.classes) for label in table["label"]):
        return "has labels of no class"
    return None if all(value in (0, 1) for name in verdicts for value in table[name]) else "has verdicts that are none"


def _are_named(images: Sequence[int], settings: Mapping[str, Any]) -> bool:
    """Whether these are every skip-th image, as many as the settings say."""
    count, skip = settings["images"], settings["skip"]
    return len(images) == count and all(image == place * skip for place, image in enumerate(images))


def _shares(right: Sequence[int]) -> dict[str, Any]:
    return {"accuracy": sum(right) / len(right), "interval": wilson(sum(right), len(right))}


def _same(ours: Any, theirs: Any) -> bool:
    """Equal values, of numbers to nine digits."""
    if isinstance(ours, Mapping):
        return isinstance(theirs, Mapping) and set(ours) == set(theirs) and all(_same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return isinstance(theirs, (list, tuple)) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        return isinstance(theirs, (int, float)) and math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE)
    return bool(ours == theirs)
