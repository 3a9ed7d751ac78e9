"""What a stored measurement must look like before anything is drawn or published from it; it may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustkt import corruptions
from robustkt.errors import IntegrityError, RobustKTError, UsageError, clip
from robustkt.generation import PRECISIONS, Generation
from robustkt.numbers import canonical, check_ball, check_exact, digest, noise_level
from robustkt.shapes import from_json
from robustkt.texts import check_printable

MEND = "Measure again with --fresh."
MOST_RADII = 10_000
MOST_POINTS = 201  # mixtures of a sweep
SPLITS = ("held-out", "test")  # that a sweep may be of
WORD = re.compile(r"[a-z0-9][a-z0-9_:=,./-]{0,99}")  # names of the catalogs with their settings, later ones too
LOG = re.compile(r"[a-z0-9-]{1,120}\.tsv")


Table = Mapping[str, Sequence[int]]  # the columns of a log by their names


@dataclass(frozen=True)
class Result:
    """A measurement of a generation: its kind (certificate, evaluation, transfer, sweep), settings and figures."""

    kind: str
    key: str  # from the settings: the same measurement has the same key
    content: Mapping[str, Any]
    path: Path
    claimed: str | None = None  # "org/name@commit" that it came from, until it has been measured here


@dataclass(frozen=True)
class CertificateSettings:
    """What a certification was told."""

    sigma: str  # standard deviation of the noise, in [0, 1] pixel units; empty for noise without one
    mode: str  # statistical procedure
    n: int  # noisy copies that bound the probability, at most
    n0: int  # further ones that select the class
    alpha: float  # largest probability that a certificate is wrong
    noise: str  # with its settings, as `ablation:keep=45`
    norm: str  # of the radii
    seed: int  # of the noise
    images: int  # how many were certified
    skip: int  # every so many of the test set
    weights: str  # hash of the network, adapters and shares included
    data: str  # fingerprint of the images
    precision: str  # of the forward pass
    domain: str | None = None  # which mode of a generation with adapters
    corruption: str | None = None  # of the images, as `gaussian-noise:3`
    radii: tuple[str, ...] = ()  # where they decide when an image is done
    alpha_image: float | None = None  # an image's share of α, where it has one


@dataclass(frozen=True)
class CertificateFigures:
    """What it found; radii are the keys, as text."""

    images: int  # how many
    abstain_rate: float  # share without an answer
    acr: float  # average certified radius, wrong answers counted as 0
    certified_accuracy: Mapping[str, float]  # radius to the share that is right with at least that radius
    intervals: Mapping[str, tuple[float, ...]]  # radius to the 95 % Wilson interval of that share


@dataclass(frozen=True)
class AttackedSettings:
    """Which images were attacked, and how far."""

    norm: str  # of the perturbation
    eps: str  # its size, in [0, 1] pixel units
    images: int  # how many were attacked
    skip: int  # every so many of the test set
    seed: int  # of the attacks
    weights: str  # hash of the network, adapters and shares included
    data: str  # fingerprint of the images
    domain: str | None = None  # which mode of a generation with adapters


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(AttackedSettings):
    """What an evaluation was told."""

    attacks: tuple[str, ...]  # with their settings, as they were typed
    corruption: str | None = None  # of the images before any attack


@dataclass(frozen=True)
class AttackFigures:
    """What one attack left."""

    accuracy: float  # share of the images that it left right
    interval: tuple[float, ...]  # 95 %, Wilson
    norm: str | None  # null without an attack
    eps: str | None  # null without an attack
    stages: Mapping[str, float] = field(default_factory=dict)  # accuracy left after each attack of an ensemble
    smoothed: bool = False  # the smoothed classifier was attacked, not the network
    wrong: float | None = None  # of a smoothed classifier: another class than the label
    abstained: float | None = None  # of a smoothed classifier: no class at all


@dataclass(frozen=True)
class Worst:
    """What all attacks together left of the network, or of the classifier that its noise makes of it."""

    accuracy: float  # share of the images that no attack broke
    interval: tuple[float, ...]  # 95 %, Wilson
    smoothed: bool = False  # of the smoothed classifier, not the network


@dataclass(frozen=True)
class EvaluationFigures:
    """What it found."""

    attacks: Mapping[str, AttackFigures]  # by name
    warnings: tuple[str, ...]  # signs of masked gradients
    worst: Worst | None = None  # earlier measurements have none


@dataclass(frozen=True)
class Certificates:
    """A certificate file."""

    settings: CertificateSettings  # what was asked
    figures: CertificateFigures  # what was found
    log: str  # file name of its rows
    log_hash: str  # `sha256:…` of them


@dataclass(frozen=True)
class Evaluation:
    """An evaluation file."""

    settings: EvaluationSettings  # what was asked
    figures: EvaluationFigures  # what was found
    log: str  # file name of its rows
    log_hash: str  # `sha256:…` of them


@dataclass(frozen=True, kw_only=True)
class TransferSettings(AttackedSettings):
    """What was asked about a student's adversarial examples."""

    teacher: str  # its id


@dataclass(frozen=True)
class TransferFigures:
    """How many of them fool the teacher too."""

    images: int  # that both classify rightly
    fooled_student: int  # how many examples change the student's class
    fooled_teacher: int  # how many of these change the teacher's too
    rate: float | None  # the second of the first; null of none
    interval: tuple[float, ...]  # 95 %, Wilson


@dataclass(frozen=True)
class Transfer:
    """A file about adversarial transfer."""

    settings: TransferSettings  # what was asked
    figures: TransferFigures  # what was found
    log: str  # file name of its rows
    log_hash: str  # `sha256:…` of them


@dataclass(frozen=True, kw_only=True)
class SweepSettings(AttackedSettings):
    """What a sweep over the mixtures of two adapters was told."""

    split: str  # held-out or test
    attacks: tuple[str, ...]
    betas: tuple[str, ...]  # exact, the smallest first
    ends: tuple[str, ...]  # hashes of the networks at β = 0 and β = 1


@dataclass(frozen=True)
class Point:
    """One mixture's figures; the robust ones are of images that withstand every attack, where there was one."""

    beta: float
    clean_accuracy: float
    clean_interval: tuple[float, ...]
    robust_accuracy: float | None = None
    robust_interval: tuple[float, ...] | None = None

    @property
    def intervals(self) -> list[tuple[float, ...]]:
        """Those that it has."""
        return [self.clean_interval, *([] if self.robust_interval is None else [self.robust_interval])]


@dataclass(frozen=True)
class SweepFigures:
    """What it found, a point a β."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sweep:
    """A file about the trade-off curve of a soup."""

    settings: SweepSettings
    figures: SweepFigures
    log: str
    log_hash: str


SHAPES: dict[str, type[Certificates] | type[Evaluation] | type[Transfer] | type[Sweep]] = {
    "certificate": Certificates,
    "evaluation": Evaluation,
    "transfer": Transfer,
    "sweep": Sweep,
}
FOLDERS = tuple(f"{kind}s" for kind in SHAPES)  # of the published form


def checked(result: Result) -> Result:
    """The result, if it has the shape of its kind.

    Raises:
        IntegrityError: a kind, field or log name that no measurement has.
    """
    if result.kind not in SHAPES:
        raise IntegrityError(f"{result.path} is of no kind that is known", "Run `robustkt verify`.")
    check_printable(dict(result.content), str(result.path), MEND)
    read = from_json(SHAPES[result.kind], result.content, str(result.path))
    if not LOG.fullmatch(read.log):
        raise IntegrityError(f"{result.path} names a log that cannot be one", "Run `robustkt verify`.")
    try:
        if isinstance(read, (Certificates, Evaluation)) and read.settings.corruption is not None:
            corruptions.one(read.settings.corruption)
        if isinstance(read, Certificates):
            _check_procedure(read)
        else:
            check_ball(read.settings.norm, check_exact(read.settings.eps, "eps"))
        if isinstance(read, Sweep):
            _check_mixtures(read)
    except UsageError as error:
        raise IntegrityError(f"{result.path}: {error.what}", MEND) from None
    if isinstance(read, Certificates):
        intervals = read.figures.intervals
        if set(intervals) != set(read.figures.certified_accuracy) or any(len(i) != 2 for i in intervals.values()):
            raise IntegrityError(f"{result.path}: radii and intervals do not agree", MEND)
    elif any(len(i) != 2 for i in _intervals(read)):
        raise IntegrityError(f"{result.path}: an interval has two ends", MEND)
    return result


def _check_procedure(read: Certificates) -> None:
    """Raise a UsageError for settings that no certification has, and for radii that are none."""
    settings = read.settings
    if settings.sigma:  # noise without a level has none
        noise_level(check_exact(settings.sigma, "sigma"))
    for what, word in (("mode", settings.mode), ("noise", settings.noise), ("norm", settings.norm)):
        if not WORD.fullmatch(word):
            raise UsageError(f"'{clip(word, 40)}' cannot be a {what}", MEND)
    if settings.precision not in PRECISIONS:
        raise UsageError(f"the precision '{clip(settings.precision, 40)}' is none that is known", MEND)
    if len(settings.radii) > MOST_RADII:
        raise UsageError(f"{len(settings.radii):,} radii are more than {MOST_RADII:,}", MEND)
    for radius in (*settings.radii, *read.figures.intervals):
        if check_exact(radius, "radius") < 0:
            raise UsageError(f"the radius {clip(radius, 40)} is below 0", MEND)


def _check_mixtures(read: Sweep) -> None:
    """Raise a UsageError for mixtures that no sweep has, or figures of others."""
    betas, points = [check_exact(beta, "beta") for beta in read.settings.betas], read.figures.points
    if not betas or betas != sorted(set(betas)) or not 0 <= betas[0] <= betas[-1] <= 1 or len(betas) > MOST_POINTS:
        raise UsageError("its mixtures are none that a sweep has", MEND)
    if [float(beta) for beta in betas] != [point.beta for point in points]:
        raise UsageError("its points are of other mixtures than its settings name", MEND)
    if read.settings.split not in SPLITS or len(read.settings.ends) != 2:
        raise UsageError(f"there is no split '{clip(read.settings.split, 40)}' between two ends", MEND)


def _intervals(read: Evaluation | Transfer | Sweep) -> list[tuple[float, ...]]:
    if isinstance(read, Sweep):
        return [interval for point in read.figures.points for interval in point.intervals]
    if isinstance(read, Transfer):
        return [read.figures.interval]
    return [attack.interval for attack in read.figures.attacks.values()]


def table(log: bytes) -> Table:
    """The columns of an evaluation's, a transfer's or a sweep's log, by their names; a value an image.

    Raises:
        ValueError: it is no such log.
    """
    header, *rows = (line.split("\t") for line in log.decode().splitlines())
    if len(set(header)) != len(header) or header[:2] != ["idx", "label"] or not rows:
        raise ValueError("not a table")
    columns = zip(*([int(cell) for cell in row] for row in rows), strict=True)
    return dict(zip(header, columns, strict=True))


def key_of(settings: Mapping[str, Any]) -> str:
    """What a measurement with these settings is stored under: sixteen digits of their hash."""
    return digest(canonical(settings))[7:23]


def settled(result: Result | None) -> Result | None:
    """The result, unless nobody has measured it here: a claim is not taken for an answer."""
    return None if result is None or result.claimed else result


def meant(result: Result, generation: Generation) -> Generation:
    """The generation in the mode that the result measured.

    Raises:
        IntegrityError: the generation has no such mode, or its weights in it are others.
    """
    settings = result.content["settings"]
    mode = settings.get("domain")
    try:
        found = generation if mode is None else generation.in_mode(mode)
    except RobustKTError as error:
        raise IntegrityError(f"{result.path}: {error.what}", MEND) from None
    if settings.get("corruption") is not None and settings["data"] == generation.recipe.data.fingerprint:
        raise IntegrityError(f"{result.path} measures corrupted images under the hash of the clean ones", MEND)
    networks = found.network(), found.network(last=True)
    if mode != found.domain.get("domain") or settings["weights"] not in networks:
        raise IntegrityError(f"{result.path} measures other weights than {found.name}'s", MEND)
    return found


def own(result: Result, generation: Generation) -> bool:
    """Whether it measures the selected weights, in the mode that is meant, on the generation's own data."""
    settings = result.content["settings"]
    return (settings["weights"], settings["data"]) == (generation.network(), generation.recipe.data.fingerprint)
