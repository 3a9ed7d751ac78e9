"""What a smoothed classifier is told, for certify, predict and audit: noise, norm, statistical mode, their limits."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustkt.catalog import CERTIFIERS, unknown
from robustkt.certificates import Ball, Certifying, lower_bound
from robustkt.certlog import COLUMNS
from robustkt.errors import UsageError
from robustkt.generation import COMPILE, Generation
from robustkt.noises import Noise, certifies, named
from robustkt.numbers import check_counts, exact, noise_level
from robustkt.progress import Progress
from robustkt.registry import Registry

SAMPLES = 10_000  # the papers' 100,000 takes longer; --n 100000 gives their table
COMPILE_FROM = 5_000_000  # draws that are worth the half minute that compiling takes
MOST, LARGEST_BATCH = 10**9, 2**16  # copies of an image; of a forward pass
SPLIT = 5  # the most shares that a mode which looks several times makes of α
HEAD = "\t".join(COLUMNS[:6]).encode()  # how a certification log begins, anybody's
STEPS = 16  # most radii of a default table


def noise_for(
    found: Generation, noise: str, sigma: str | float | Fraction | None, norm: str | None
) -> tuple[Noise, str]:
    """The noise and the norm that its votes certify; σ is the generation's own unless told.

    Raises:
        UsageError: an unknown noise, no σ, or a norm that this noise does not certify.
    """
    level = noise_level(sigma) if sigma is not None else None
    if level is None and "sigma=" not in noise:
        level = noise_level(found.sigma) if found.sigma is not None else None
        if level is None and not noise.startswith("ablation"):
            raise UsageError(
                f"{found.name} was not trained under noise, so it has no σ of its own",
                "Add --sigma 0.25, or take another GEN.",
            )
    if noise.startswith("ablation"):
        if sigma is not None:
            raise UsageError("ablation has no σ: it keeps some pixels", "Write --noise ablation:keep=20 alone.")
        level = None
    kind = named(noise, level)
    pixels = math.prod(found.recipe.data.shape[1:])
    if getattr(kind, "keep", 0) >= pixels:
        raise UsageError(
            f"ablation must keep fewer than the {pixels} pixels", f"For instance ablation:keep={pixels // 4}."
        )
    wanted = norm or kind.norms[0]
    if not certifies(kind, wanted):
        shown = ["l4" if name == "lq" else name for name in kind.norms]
        error = unknown(f"norm for certificates under {noise.partition(':')[0]} noise", wanted, shown)
        more = " l4 stands for any order above 2; l1 goes with --noise laplace." if "l4" in shown else ""
        raise UsageError(error.what.partition(":")[0], error.fix + more)
    return kind, wanted


def takes(mode: str, argument: str) -> bool:
    """Whether a certifier has this argument: `radii` of those that stop when they are decided, `u` of randomised."""
    return argument in inspect.signature(CERTIFIERS.get(mode)).parameters


def certifier(
    mode: str, ball: Ball, alpha: float, n0: int, n: int, radii: Sequence[float], random: tuple[str, int | str]
) -> Certifying:
    """A mode at work on one image: `radii` for those that stop when they are decided, `random` keys the others' u."""
    more: dict[str, Any] = {"radii": list(radii)} if takes(mode, "radii") else {}
    if takes(mode, "u"):
        from robustkt.streams import uniform_number

        more["u"] = uniform_number(*random)
    started: Certifying = CERTIFIERS.get(mode)(ball=ball, alpha=alpha, n0=n0, n=n, **more)
    return started


def default_radii(ball: Ball, n: int, alpha: float) -> list[Fraction]:
    """From 0 up to the largest radius that n copies can certify.

    Of L2 under noise of deviation σ: steps of ¼ (σ where that is smaller, σ/4 where larger); of L0: steps of a pixel or
    more; else a sixth of the largest, in round numbers.
    """
    largest = Fraction(ball.radius(lower_bound(n, n, alpha)))
    if ball.norm == "l2":
        sigma = Fraction(getattr(ball.noise, "sigma"))  # noqa: B009 - a Geometry need not have one
        step = max(min(Fraction(1, 4), sigma), sigma / 4)
    elif ball.norm == "l0":
        step = Fraction(max(1, math.ceil(largest / STEPS)))
    else:
        step = Fraction(f"{float(largest) / 6:.1g}") if largest else Fraction(1)
    return [step * i for i in range(int(largest / step) + 1)]


def check_reach(mode: str, n: int, alpha: float) -> None:
    """Whether n copies can certify anything.

    Raises:
        UsageError: not even if all of them agree.
    """
    spent = alpha / SPLIT if takes(mode, "radii") else alpha
    if lower_bound(n, n, spent) < 0.5:
        least = math.ceil(math.log(spent) / math.log(0.5))
        raise UsageError(
            f"--n {n} can certify nothing at α = {alpha:g}", f"Give at least --n {least}; the field uses 100000."
        )


def check_options(
    mode: str,
    n: int,
    n0: int,
    alpha: float,
    skip: int | None = None,
    max_images: int = 1,
    batch_size: int | None = None,
    radii: Sequence[Fraction] | None = None,
    compile: str = "auto",
) -> None:
    """What can be told before anything is loaded, torch included.

    Raises:
        UsageError: an unknown mode, or a number out of its range.
    """
    if not CERTIFIERS.has(mode):
        raise unknown("mode", mode, CERTIFIERS.names())
    if compile not in COMPILE:
        raise unknown("value of --compile", compile, COMPILE)
    if not 0 < alpha < 0.5:
        raise UsageError(f"--alpha must lie between 0 and ½, not {alpha}", "The field uses 0.001.")
    check_counts({"--n": n, "--n0": n0, "--max-images": max_images, "--batch-size": batch_size, "--skip": skip})
    limits = {"--n": (n, MOST), "--n0": (n0, MOST), "--batch-size": (batch_size or 1, LARGEST_BATCH)}
    for option, (value, most) in limits.items():
        if value > most:
            raise UsageError(f"{option} must be at most {most:,}, not {value}", f"Leave {option} out for the default.")
    if radii is not None and (not radii or min(radii) < 0):
        raise UsageError("--radii must be numbers from 0 up", "For instance --radii 0,0.25,0.5.")


def header_of(out: Path) -> Path:
    """Where the header of a log lies."""
    return out.resolve().with_name(out.name + ".json")


def check_place(out: Path) -> None:
    """Whether a log may be written there with its header beside it: new files, or those of an earlier log.

    Raises:
        UsageError: something else stands there, which would be lost.
    """
    if out.is_dir():
        raise UsageError(f"cannot write {out}: Is a directory", "Name a file, such as --out log.tsv.")
    for path, beginning, what in ((out, HEAD, "certification log"), (header_of(out), b"{", "header of one")):
        if os.path.lexists(path) and not (path.is_file() and _begins(path, beginning)):
            raise UsageError(f"{path} is there and no {what}", "Name another file with --out.")
    if header_of(out).is_file() and not out.is_file():
        raise UsageError(f"{header_of(out)} is there and would be lost", "Name another file with --out.")


def _begins(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text


def tell_others(registry: Registry, found: Generation, settings: Mapping[str, Any], progress: Progress) -> None:
    """Says so when the same network is certified otherwise too: a best-of-several has no certificate at α."""
    same, told = ("noise", "norm", "weights", "data"), ("sigma", "mode", "n", "n0", "seed")
    others = [
        other
        for other in (r.content["settings"] for r in registry.results(found.id, "certificate"))
        if all(other.get(name) == settings[name] for name in same)
        and any(other[name] != settings[name] for name in told)
    ]
    if not others:
        return
    levels = sorted({str(other["sigma"]) for other in others} - {settings["sigma"]})
    also = f"at σ {', '.join(levels)} too" if levels else f"{len(others)} more times" if others[1:] else "once more"
    share = exact(Fraction(str(settings["alpha"])) / (len(others) + 1))
    progress.note(
        f"{found.name} is certified {also}; whoever takes an image's best radius of {len(others) + 1} certifications "
        f"must make each with --alpha {share}"
    )
