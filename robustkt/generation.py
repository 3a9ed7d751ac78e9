"""The manifest: what decides a generation, written so that equal decisions give equal ids."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from html import escape
from typing import Any

from robustkt import catalog, mixture
from robustkt.errors import IntegrityError, RobustKTError, UsageError, clip
from robustkt.numbers import canonical, check_ball, digest, exact, fraction, noise_level, parse_json
from robustkt.shapes import RESTORE, from_json, to_json
from robustkt.texts import LONGEST, LONGEST_SETTING, check_printable, is_printable

FORMAT = 2  # the newest that is read; 1 is written of what has no adapters, 2 of what has
HASH = re.compile(r"sha256:[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DOMAIN = re.compile(r"[a-z][a-z0-9.]{0,30}")
NOISY = "sigma"  # what domains of Gaussian noise begin with, before their σ
INGREDIENT = "soup."  # what the roles of a soup's parents begin with, before their place
MODAL = ("adapters", "last_adapters", "mode")  # written of generations with adapters only

MOST_VALUES = 2**24  # of an image: 16 million
PRECISIONS = ("fp32", "bf16")  # of forward passes
COMPILE = ("auto", "on", "off")  # whether torch.compile has a part: a circumstance, told in run records and logs

LATER = {"later": True}  # of a field that came after format 1: left out while it is None, so that old ids stay
LATEST = "latest"  # @latest is no tag, and nobody's name

Setting = str | int | float | bool | None


def is_name(name: str) -> bool:
    """Whether a generation, or a tag, can be called so."""
    return NAME.fullmatch(name) is not None and name != LATEST


def check_name(name: str, what: str = "a generation's name") -> None:
    """Raise a UsageError for a name that no generation, and no tag, can have."""
    if not is_name(name):
        raise UsageError(
            f"'{name[:80]}' cannot be {what}",
            "Use letters, digits, '.', '_' and '-', up to 100, beginning with a letter or digit; not `latest`.",
        )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images a generation learnt from, pinned by their fingerprint."""

    name: str  # "digits", "fashion-mnist", "folder", "npz" …
    fingerprint: str  # SHA-256 over the images and labels in order, train then test
    classes: tuple[str, ...]  # the K class names, in label order
    shape: tuple[int, ...]  # (C, H, W)
    mean: tuple[float, ...]  # per channel, of the training images in [0, 1]
    std: tuple[float, ...]  # per channel, of the same images
    held_out: int  # training images set aside for selection
    image_size: int | None = None  # side that the images were resized to, if they were

    def __post_init__(self) -> None:
        for text in (self.name, *self.classes):
            if not is_printable(text):  # it would be drawn on terminals and pages
                fix = f"Use a name without control characters, of at most {LONGEST}."
                raise UsageError(f"a class or data set is called {clip(repr(text), 60)}", fix)
        if len(self.shape) != 3 or min(self.shape) < 1 or math.prod(self.shape) > MOST_VALUES:
            shape = clip("x".join(map(str, self.shape)), 40)
            raise UsageError(f"images cannot have the shape '{shape}'", "They have channels, a height and a width.")
        if len(self.classes) < 2:
            raise UsageError(f"{len(self.classes)} classes are too few", "A classifier tells two classes apart.")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not (finite and len(self.mean) == len(self.std) == self.shape[0] and min(self.std) > 0):
            what = f"{self.name} needs a mean and a deviation above 0 for each of {self.shape[0]} channels"
            raise UsageError(what, "They are of the training images in [0, 1].")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the parameters moved: everything of the recipe that is neither data, network nor objective."""

    epochs: int = 30  # passes over the training images
    batch_size: int = 128  # images of a step, those of all parts together
    lr: float = 0.1  # learning rate at its peak
    momentum: float = 0.9  # of SGD
    nesterov: bool = False  # Nesterov's form of the momentum
    weight_decay: float = 5e-4  # L2 penalty, added to the gradient
    decay_norm: bool = False  # weight decay on normalisation parameters and biases too
    schedule: str = "onecycle"  # onecycle | cosine | multistep | constant
    warmup: float = 0.2  # share of the steps over which onecycle climbs
    milestones: tuple[float, ...] = ()  # shares of the epochs after which multistep multiplies lr by gamma
    gamma: float = 0.1  # factor of multistep at each milestone
    ema: float | None = None  # decay of the averaged weights, warmed up; None = no average
    clip: float | None = None  # largest gradient norm
    pad: int = 0  # random crops from images padded by this many pixels
    flip: bool = False  # random horizontal flips
    sync_bn: bool | None = field(default=None, metadata=LATER)  # BatchNorm over all parts of a step; False is None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sync_bn", self.sync_bn or None)
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise UsageError(f"{name} must be above 0, not {value}", f"Leave {name} out for the default.")
        for name, value in {"momentum": self.momentum, "ema": self.ema or 0.0}.items():
            if not 0 <= value < 1:
                raise UsageError(f"{name} must lie in [0, 1), not {value}", "The usual values are .9 and .995.")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise UsageError(f"clip must be above 0, not {self.clip}", "Leave clip out for no clipping.")
        if self.weight_decay < 0 or self.pad < 0:
            raise UsageError("weight_decay and pad cannot be negative", "Give 0 to switch either off.")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs a momentum", "Add --set momentum=0.9 or leave nesterov out.")
        if not 0 < self.warmup < 1:
            raise UsageError(
                f"warmup must lie in (0, 1), not {self.warmup}", "It is a share of all steps, such as 0.2."
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is told: two runs of one recipe on one kind of machine give the same weights."""

    method: str  # catalog name of the objective
    settings: Mapping[str, Setting]  # the objective's hyper-parameters; fractions as "8/255"
    arch: str  # "resnet20", "torchvision:resnet18", "net.py:Net"
    arch_source: str | None = None  # the hash of the user's own source file
    data: DataSpec  # which images
    training: Training | None  # None of imported weights: how they were trained is not known here
    precision: str = "fp32"  # of the passes in training: fp32 or bf16
    seed: int = 0  # decides every random number
    world_size: int = 1  # parts that the batch of a step is split into, as among so many ranks (`robustkt.parts`)
    arch_version: str | None = field(default=None, metadata=LATER)  # "timm 1.0.19", of the library `arch` is taken from

    @property
    def sigma(self) -> Fraction | None:
        """Standard deviation of the Gaussian noise the generation was trained for, in [0, 1] pixel units."""
        value = self.settings.get("sigma")
        return None if value is None else fraction(str(value))

    @property
    def threat(self) -> tuple[str, Fraction] | None:
        """Norm and eps the generation was trained against, or None."""
        eps = self.settings.get("eps")
        return None if eps is None else (str(self.settings["norm"]), fraction(str(eps)))


@dataclass(frozen=True)
class Adapter:
    """An adapter as a manifest names it."""

    domain: str
    hash: str  # "sha256:…" of its file
    base: str  # "sha256:…" of the weights that it belongs to


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A robust model and where it came from; everything but the name is hashed into its id."""

    name: str  # a pointer, like a git ref; renaming keeps the id
    recipe: Recipe  # everything that the run was told
    weights: str  # "sha256:…" of the safetensors bytes of the selected epoch
    last_weights: str  # the same of the last epoch
    parents: Mapping[str, str] = field(default_factory=dict)  # role -> id: "teacher" …
    adapters: Mapping[str, str] = field(default_factory=dict)  # domain -> hash of its adapter; `weights` are the rest
    last_adapters: Mapping[str, str] = field(default_factory=dict)  # the same of the last epoch
    mode: str | None = None  # the domain that is the default, where there are adapters
    shares: Mapping[str, Fraction] = field(default_factory=dict)  # a pointer like the name: which mode is meant
    format: int = 1  # of the manifest that it was read from
    unknown: Mapping[str, Any] = field(default_factory=dict)  # what a later version wrote beside these, kept in the id

    @property
    def objects(self) -> list[str]:
        """The hash of every object that it needs."""
        source = self.recipe.arch_source
        own = [*self.adapters.values(), *self.last_adapters.values()]
        return [self.weights, self.last_weights, *own, *([source] if source else [])]

    def bound(self, *, last: bool = False) -> list[Adapter]:
        """Its adapters of the selected or the last epoch, each with the weights that it works with."""
        weights, own = (self.last_weights, self.last_adapters) if last else (self.weights, self.adapters)
        return [Adapter(domain, own[domain], weights) for domain in sorted(own)]

    @property
    def bindings(self) -> list[Adapter]:
        """The adapters of both epochs, each once."""
        return list(dict.fromkeys([*self.bound(), *self.bound(last=True)]))

    @property
    def meant(self) -> Mapping[str, Fraction]:
        """The shares of the mode that is meant, the default one where none is named; empty without adapters."""
        return self.shares or ({self.mode: Fraction(1)} if self.mode is not None else {})

    def in_mode(self, text: str) -> Generation:
        """The same generation, one of its modes meant and told in its name: `clean`, `beta=0.4`.

        Raises:
            NotFoundError: it has no such mode.
            UsageError: shares that are none.
        """
        shares = mixture.parse(text, self.adapters, self.name)
        return dataclasses.replace(self, name=f"{self.name.partition('@')[0]}@{mixture.spelled(shares)}", shares=shares)

    @property
    def domain(self) -> dict[str, str]:
        """The mode that is meant as the settings of a measurement tell it; nothing without adapters."""
        return {"domain": mixture.spelled(self.meant)} if self.meant else {}

    @property
    def sigma(self) -> Fraction | None:
        """σ of the noise that the mode that is meant was trained for, in [0, 1]; None of a mixture of several."""
        noisy = [domain for domain in self.meant if domain.startswith(NOISY)]
        if len(noisy) > 1:
            return None
        return fraction(noisy[0].removeprefix(NOISY)) if noisy else self.recipe.sigma

    def network(self, *, last: bool = False) -> str:
        """`sha256:…` of what is measured: the weights, or of a mode the weights with its adapters and their shares."""
        weights, own = (self.last_weights, self.last_adapters) if last else (self.weights, self.adapters)
        if not own:
            return weights
        mixed = {domain: [own[domain], str(share)] for domain, share in self.meant.items()}
        return digest(canonical({"weights": weights, "adapters": mixed}))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        recipe = self.recipe
        guarantee = f"σ = {exact(self.sigma)}" if self.sigma is not None else ""
        if recipe.threat is not None:
            guarantee = f"{recipe.threat[0]} eps = {exact(recipe.threat[1])}"
        told = {"id": self.id, "method": recipe.method, "architecture": recipe.arch, "data": recipe.data.name}
        told |= {"trained for": guarantee or "clean accuracy", "parents": ", ".join(sorted(self.parents)) or "none"}
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in told.items())
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"

    @functools.cached_property
    def id(self) -> str:
        """`sha256:…` of the manifest's bytes."""
        return digest(self.manifest())

    def manifest(self) -> bytes:
        """The canonical JSON that is stored and hashed."""
        return canonical(self.content())

    def content(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        known = {key: value for key, value in to_json(self).items() if key not in ("name", "shares", "unknown")}
        known = {key: value for key, value in known.items() if value or key not in MODAL}
        return _merged(known, self.unknown)


def mixed_of(soup: Generation, parents: Mapping[str, Generation]) -> list[tuple[Generation, Fraction]]:
    """What a soup is mixed of: generations, in the mode that went in, with their shares; in the order of their roles.

    Args:
        soup: a generation of the method `soup`.
        parents: its parents by their ids.

    Raises:
        IntegrityError: its manifest does not say it.
    """
    settings = soup.recipe.settings
    roles = sorted((role for role in soup.parents if role.startswith(INGREDIENT)), key=lambda role: (len(role), role))
    try:
        given = [parents[soup.parents[role]] for role in roles]
        if "adapters" in settings:
            shares = mixture.parse(str(settings["adapters"]), given[0].adapters, given[0].name)
            return [(given[0].in_mode(domain), share) for domain, share in shares.items()]
        parts = [fraction(part) for part in str(settings["shares"]).split(",")]
        modes = [settings.get(f"mode.{place}") for place in range(len(given))]
        return [
            (one if mode is None else one.in_mode(str(mode)), share)
            for one, mode, share in zip(given, modes, parts, strict=True)
        ]
    except (RobustKTError, LookupError, ValueError) as error:
        reason = error.what if isinstance(error, RobustKTError) else "its shares and parents do not agree"
        raise IntegrityError(f"what the soup {soup.name} is mixed of cannot be told: {reason}", RESTORE) from None


def read_manifest(data: bytes, name: str, source: str) -> Generation:
    """The generation in the bytes of a manifest; keys of a later version that left the format are kept.

    Raises:
        IntegrityError: not a manifest, or one of a newer format than this version reads.
    """
    content = parse_json(data, source)
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] < 1:
        raise IntegrityError(f"{source} is not a manifest", "Run `robustkt verify` to see what else is damaged.")
    if content["format"] > FORMAT:
        raise IntegrityError(
            f"{source} has format {content['format']}; this version reads up to {FORMAT}", "Upgrade robustkt."
        )
    stored = {key: value for key, value in content.items() if key not in ("name", "shares", "unknown")}
    generation = from_json(Generation, {**stored, "name": name}, source)
    generation = dataclasses.replace(generation, unknown=_beside(to_json(generation), stored))
    settings = content["recipe"]["settings"]
    check_printable({**content, "recipe": {**content["recipe"], "settings": list(settings)}}, source, RESTORE)
    check_printable(list(settings.values()), f"{source}: recipe.settings", RESTORE, LONGEST_SETTING)
    _check_values(generation, source)
    if generation.id != digest(data):
        raise IntegrityError(f"{source} is not the canonical JSON of a manifest that this version knows", RESTORE)
    return generation


def _beside(known: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `stored` that `known` lacks, at any depth of its tables."""
    found = {}
    for key, value in stored.items():
        if key not in known:
            found[key] = value
        elif isinstance(value, dict) and isinstance(known[key], dict) and (deeper := _beside(known[key], value)):
            found[key] = deeper
    return found


def _merged(known: Mapping[str, Any], unknown: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table."""
    deeper = {key: _merged(known[key], value) for key, value in unknown.items() if key in known}
    return {**known, **unknown, **deeper}


def _check_values(generation: Generation, source: str) -> None:
    """Raise an IntegrityError for a hash that is none, and for a σ, a norm or an eps that cannot be read."""
    recipe = generation.recipe
    hashes: dict[str, str | None] = {"weights": generation.weights, "last_weights": generation.last_weights}
    for kind, adapters in (("adapters", generation.adapters), ("last_adapters", generation.last_adapters)):
        hashes |= {f"{kind}.{domain}": identity for domain, identity in adapters.items()}
    hashes |= {f"parents.{role}": identity for role, identity in generation.parents.items()}
    hashes |= {"recipe.arch_source": recipe.arch_source, "recipe.data.fingerprint": recipe.data.fingerprint}
    for path, value in hashes.items():
        if value is not None and not HASH.fullmatch(value):
            raise IntegrityError(f"{source}: generation.{path} '{clip(value, 80)}' is not a SHA-256 hash", RESTORE)
    if recipe.arch_source is None and catalog.is_user_arch(recipe.arch):  # else building it could run any code here
        raise IntegrityError(
            f"the architecture of {source} is code, {clip(recipe.arch, 80)}, and its manifest does not pin it",
            "Do not trust it: no robustkt writes such a manifest.",
        )
    modes = set(generation.adapters)
    if modes != set(generation.last_adapters) or (
        generation.mode not in modes if modes else generation.mode is not None
    ):
        raise IntegrityError(f"{source}: its adapters, those of the last epoch and its mode do not agree", RESTORE)
    if (generation.format == 1 and modes) or not all(DOMAIN.fullmatch(domain) for domain in modes):
        raise IntegrityError(f"{source}: it cannot have the adapters {clip(', '.join(sorted(modes)), 80)}", RESTORE)
    if recipe.precision not in PRECISIONS:
        what = f"{source}: generation.recipe.precision '{clip(recipe.precision, 40)}' is none that this version knows"
        raise IntegrityError(what, "Upgrade robustkt.")
    try:
        for level in [recipe.settings.get("sigma"), *(d.removeprefix(NOISY) for d in modes if d.startswith(NOISY))]:
            if level is not None:
                noise_level(level)
        if recipe.threat is not None:
            check_ball(*recipe.threat)
    except UsageError as error:
        raise IntegrityError(f"{source}: generation.recipe.settings: {error.what}", RESTORE) from None
    except KeyError as error:
        raise IntegrityError(f"{source}: generation.recipe.settings.{error.args[0]} is missing", RESTORE) from None
