"""Measures a stored certificate again with fresh noise and tests its claims at a stated error rate."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustkt import certlog, corruptions, inference, smooth
from robustkt import data as datasets
from robustkt.api.loading import load_network, load_own_data, pick_device
from robustkt.api.smoothing import takes
from robustkt.certificates import Ball, Certificate, Certifying
from robustkt.errors import NotFoundError, UsageError
from robustkt.generation import Generation
from robustkt.noises import Noise, named
from robustkt.numbers import check_counts, exact, noise_level
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry, Result, claims
from robustkt.registry.measurements import meant

IMAGES, COPIES, ERROR = 200, 2_000, 0.001


def audit_generation(
    generation: str = "@latest",
    *,
    sigma: str | Fraction | None = None,
    images: int = IMAGES,
    n: int = COPIES,
    error: float = ERROR,
    seed: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Whether the stored certificates of a generation survive fresh noise, on a random sample of certified images.

    Every certificate claims that the base network gives its class to a noisy copy with at least the probability that
    its radius needs. Two tests, each at half of `error`:

    The labels are compared with those of the test images.

    - Modes with a second sample of fixed size (fixed, randomised, adaptive): old and new votes of an image come from
      one probability; Fisher's exact test against fewer new votes, Bonferroni over the log's images.
    - All modes: an image is refuted when so few new votes have a probability of at most α under its claim. An honest
      image is certified and refuted with probability at most 2α, so the number of refuted ones is compared with a
      binomial law over all images of the log.

    Args:
        generation: whose certificates are tested.
        sigma: only those at this σ.
        images: sampled ones, of those that are certified.
        n: fresh copies of each.
        error: probability that sound certificates are reported; shared among the stored certifications.
        seed: of the sample and the noise; by default the system's entropy, as nobody can have prepared for that.
        data: where its images lie now, as of a generation that was pulled: a folder or an .npz.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, id, error, seed, audits [{sigma, mode, noise, norm, n, alpha, images, copies, refuted, p_value,
        problems}], problems.

    Raises:
        NotFoundError: there is no certificate to test.
        UsageError: a seed or an error rate that cannot be, or other images than those that were certified.
        RobustKTError: anything else the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    check_counts({"--images": images, "--copies": n})
    if seed is not None and seed < 0:
        raise UsageError(f"--seed must be 0 or more, not {seed}", "Leave it out for one that nobody can foresee.")
    if not 0 < error < 0.5:
        raise UsageError(f"--error must lie between 0 and ½, not {error}", f"Leave it out for {ERROR}.")
    found = registry.mode(generation)
    fingerprint = found.recipe.data.fingerprint
    level = noise_level(sigma) if sigma is not None else None
    stored = [
        result
        for result in registry.results(found.id, "certificate")
        if _own(result.content["settings"], fingerprint)
        and (not found.shares or result.content["settings"].get("domain") == found.domain["domain"])
        and (level is None or Fraction(result.content["settings"]["sigma"] or 0) == level)
    ]
    if not stored:
        where = f" at σ {exact(level)}" if level is not None else ""
        raise NotFoundError(
            f"{found.name} has no certificate{where} to audit on the data that it was made with",
            f"Run `robustkt certify {found.name}`.",
        )
    seed = secrets.randbits(62) if seed is None else seed
    dataset = load_own_data(registry, found, data, data_dir)
    target = pick_device(device)

    made: dict[tuple[str, str], nn.Module] = {}

    def network(result: Result) -> nn.Module:
        """Of the mode and epoch that the result measured."""
        settings = result.content["settings"]
        key = settings["weights"], settings["precision"]
        if key not in made:
            one = meant(result, found)
            last = settings["weights"] == one.network(last=True) != one.network()
            plain = load_network(registry, one, last=last)
            made[key] = inference.prepare(plain, found.recipe.data.shape, target, key[1], compiled=False)
        return made[key]

    share = error / len(stored)
    audits = [
        _audit(registry, found, result, network, dataset, images, n, share, seed, target, progress) for result in stored
    ]
    sound = [r for r, told in zip(stored, audits, strict=True) if r.claimed and told["copies"] and not told["problems"]]
    for result in sound:
        with registry.lock():
            claims.settle(registry.root, found.id, result.path.stem)
    return {
        "generation": found.name,
        "id": found.id,
        "error": error,
        "seed": seed,
        "audits": audits,
        "problems": [problem for one in audits for problem in one["problems"]],
    }


def _own(settings: Mapping[str, Any], fingerprint: str) -> bool:
    """Whether it is on the data with this fingerprint, as they are or corrupted."""
    shift = settings.get("corruption")
    own = fingerprint if shift is None else corruptions.fingerprint(fingerprint, corruptions.one(shift))
    return bool(settings["data"] == own)


@dataclass(frozen=True)
class _Votes:
    """A claim and its fresh votes."""

    row: certlog.Row
    needed: float  # probability that the claimed radius needs
    successes: int
    trials: int


def _audit(
    registry: Registry,
    found: Generation,
    result: Result,
    network: Callable[[Result], nn.Module],
    dataset: datasets.Dataset,
    images: int,
    n: int,
    error: float,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    settings, test = result.content["settings"], dataset.test
    every = certlog.parse(registry.log(result).decode())
    wrong = [r.idx for r in every if not (0 <= r.idx < len(test) and int(test.y[r.idx]) == r.label)]
    rows = [row for row in every if row.predict >= 0 and row.idx < len(test)]
    chosen = np.random.default_rng(seed).permutation(len(rows))[:images]
    sample = [rows[i] for i in sorted(chosen)]
    model = network(result)
    if settings.get("corruption"):
        seen = corruptions.one(settings["corruption"])
        test = datasets.corrupted(dataset, seen, [row.idx for row in sample]).test
    noise: Noise = named(settings["noise"], Fraction(settings["sigma"]) if settings["sigma"] else None)
    ball = Ball(noise, settings["norm"], found.recipe.data.shape)

    def votes(row: certlog.Row) -> Certifying:
        counts = yield n
        return Certificate(row.predict, 0.0, 1.0, n, int(counts[row.predict]), n, 0.0)

    claims = {row.idx: row for row in sample}
    title = f"auditing {len(sample)} images of {found.name}, {settings['mode']}, σ {settings['sigma'] or '–'}"
    with progress.bar(title, len(sample) * n) as bar:
        fresh = [
            _Votes(claims[idx], ball.needed(claims[idx].radius), certificate.successes, certificate.trials)
            for idx, certificate in smooth.certify(
                model, ((row.idx, datasets.to_float(test.x[row.idx])) for row in sample),
                lambda idx: votes(claims[idx]), classes=len(found.recipe.data.classes), noise=noise,
                seed=f"audit {seed}",  # no noise that a certificate was made with, whatever its seed was
                device=device, advance=bar.advance,
            )
        ]  # fmt: skip
    alpha = settings.get("alpha_image", settings["alpha"])
    taken = len(sample) / max(1, len(rows))
    figures = judge(fresh, alpha, error, len(every), taken, two_samples=not takes(settings["mode"], "radii"))
    if wrong:
        told_of = f"image {wrong[0]}" if len(wrong) == 1 else f"{len(wrong)} images, the first of them {wrong[0]}"
        figures["problems"].insert(0, f"the log gives another label than the data to {told_of}")
    told = {name: settings[name] for name in ("sigma", "mode", "noise", "norm", "n", "alpha")}
    told |= {"corruption": settings.get("corruption")}
    return {**told, "images": len(sample), "copies": n, **figures}


def judge(
    fresh: Sequence[_Votes], alpha: float, error: float, images: int, taken: float, *, two_samples: bool
) -> dict[str, Any]:
    """The two tests over fresh votes: refuted images, p-values and problems in words.

    `images` are all of the log, abstentions included, and `taken` is the share of its certified ones that was sampled:
    α bounds the probability that an image is certified *and* wrong, so that those which abstained count too.
    """
    import numpy as np
    from scipy import stats

    problems = []
    agreed, drawn = (np.array([getattr(v, name) for v in fresh], dtype=np.int64) for name in ("successes", "trials"))
    tails = stats.binom.cdf(agreed, drawn, [v.needed for v in fresh])
    refuted = [v.row.idx for v, tail in zip(fresh, tails.tolist(), strict=True) if tail <= alpha]
    p_value = float(stats.binom.sf(len(refuted) - 1, images, 2 * alpha * taken)) if fresh else 1.0
    if p_value <= error / 2:
        problems.append(
            f"{len(refuted)} of {len(fresh)} certificates are refuted by fresh noise (images "
            f"{', '.join(map(str, refuted[:5]))}{' …' if len(refuted) > 5 else ''}); sound ones have so many with "
            f"probability {p_value:.1e}"
        )
    if two_samples:
        logged, of = (
            np.array([getattr(v.row, name) for v in fresh], dtype=np.int64) for name in ("successes", "trials")
        )
        # of all votes together, so few among the new ones
        chances = stats.hypergeom.cdf(agreed, drawn + of, agreed + logged, drawn).tolist()
        for v, p in zip(fresh, chances, strict=True):
            if p * images * taken <= error / 2:
                problems.append(
                    f"image {v.row.idx}: {v.row.successes} of {v.row.trials} copies agreed, of fresh ones "
                    f"{v.successes} of {v.trials}; both come from one network with probability {p:.1e}"
                )
    return {"refuted": refuted, "p_value": p_value, "problems": problems}
