"""Today's robust checkpoints as generation 0: fetched, unwrapped, fitted strictly, checked, and recorded as claimed."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import data as datasets
from robustkt import models
from robustkt.api.jobs import outcome
from robustkt.api.loading import machine, pick_device, ready, spread
from robustkt.api.modes import weight_bytes
from robustkt.api.recipes import named_source, spelling
from robustkt.catalog import ARCHITECTURES, unknown
from robustkt.core import ThreatModel
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.evaluate import clean_accuracy, noisy_accuracy
from robustkt.generation import DataSpec, Generation, Recipe, Setting, check_name
from robustkt.imports import fitting, sources
from robustkt.models import Classifier, Normalize
from robustkt.numbers import digest, exact, fraction, noise_level
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.refs import name_taken

MEASURED = 500  # held-out images that the accuracy is told of: a WRN-34-10 takes minutes for them on two CPU cores
COMPARED = 200  # of them, those that choose between normalisations
DRAWS = 4  # noisy copies of each image
# What published codes subtract and divide by, in their own spelling.
STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # locuslab's, most certified classifiers'
    "cifar10-exact": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # its classes among ImageNet's 1,000


@dataclass(frozen=True)
class _Claims:
    """What the source says that nobody has measured here."""

    settings: Mapping[str, Setting]  # sigma, or norm and eps, and accuracies
    sigma: Fraction | None


def import_generation(
    source: str,
    *,
    arch: str | None = None,
    data: str | None = None,
    sigma: str | float | Fraction | None = None,
    norm: str | None = None,
    eps: str | float | Fraction | None = None,
    name: str | None = None,
    license: str | None = None,
    file: Path | None = None,
    key: str | None = None,
    normalization: str = "auto",
    classes: Sequence[int] | None = None,
    image_size: int | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A foreign checkpoint as a generation without parents; importing it again returns what is there.

    Args:
        source: a file, an https address, `hf:OWNER/NAME/FILE@REV`, `robustbench:ID`, `torchvision:NAME[:WEIGHTS]` or
            `timm:NAME`.
        arch: architecture; known of `robustbench:`, `torchvision:` and `timm:`.
        data: data set that it was trained on; cifar10 for `robustbench:`.
        sigma: of the Gaussian noise that it was trained for, as its source claims.
        norm: linf or l2; with `eps` the threat that it was trained against, as its source claims.
        eps: in [0, 1] pixel units; `robustbench:` brings both.
        name: what it is called; `genN` by default.
        license: of the weights; that of the source by default.
        file: the checkpoint of `source`, downloaded already.
        key: where in the file the weights lie, as `ema.state_dict`; the averaged ones by default, else `state_dict` …
        normalization: auto (in the file, else the source's, else what scores best), none, data, a name of
            `STATISTICS`, or MEAN,…/STD,….
        classes: rows of the last layer that are the data's classes, in order; for imagenette those of ImageNet.
        image_size: side that images are resized to.
        data_dir: where named data sets lie.
        registry: where it goes; the nearest one by default.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, id, method, arch, data, parents, created, source, source_hash, license, claimed, normalization
        {mean, std, from}, measured {metric, score, images}, notes.

    Raises:
        UsageError: architecture, data or the rows of the classes are not told.
        RobustKTError: anything else the user can fix; nothing is registered then.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    target = pick_device(device)
    if name is not None:
        check_name(name)
    notes: list[str] = []
    with sources.fetch(source, progress, file) as found:
        arch, data = arch or found.arch, data or ("cifar10" if found.entry else None)
        if arch is None or data is None:
            raise UsageError(
                f"{found.shown} does not say {'its architecture' if arch is None else 'what data it was trained on'}",
                "Add --arch and --data, for instance --arch resnet18 --data cifar10.",
            )
        claims = _claims(found, sigma, norm, eps)
        user = named_source(arch)
        dataset = datasets.load(data, data_dir=data_dir, image_size=image_size)
        with torch.random.fork_rng(devices=[]):
            network = models.build(user.spec if user else arch, dataset.spec, source=user)
        if classes is None and dataset.spec.name == "imagenette":
            classes = IMAGENETTE
        if classes is not None and len(classes) != len(dataset.spec.classes):
            what = f"--classes names {len(classes)} rows; {dataset.spec.name} has {len(dataset.spec.classes)} classes"
            raise UsageError(what, "Name a row for each class of the data, in their order.")
        try:
            fitted = fitting.fit(found.content, network.network, shown=found.shown, arch=arch, key=key, rows=classes)
        except fitting.MisfitError as error:
            raise _fitting(error, found.content, dataset.spec) from None
        _load(network, fitted, found.shown)
    if fitted.unused:
        notes.append(f"left out, as its code never uses them: {len(fitted.unused)} tensors, {fitted.unused[0]} …")
    if fitted.others:
        notes.append(f"took {fitted.key or 'the weights at the top'}; also there: {', '.join(fitted.others)} (--key)")
    network.eval().to(target)
    progress.note(f"it fits; measuring its accuracy on held-out images, {target}")
    judge = _Judge(network, dataset, claims.sigma, target)
    origin = _normalise(judge, fitted, found, normalization, notes)
    check_outputs(network, dataset.spec, target, found.shown)
    metric, score, images = judge.final()
    notes += _doubts(score, dataset.spec, found.entry.clean if found.entry and claims.sigma is None else None)
    license = license or found.license
    if license is None:
        notes.append("no licence is recorded: --license says under which these weights may be passed on")
    mean, std = (t.flatten().tolist() for t in (network.normalize.mean.cpu(), network.normalize.std.cpu()))
    settings: dict[str, Setting] = {
        "source": found.source, "source_hash": found.hash, **claims.settings,
        **({"license": license} if license else {}),
        **({"key": fitted.key} if key is not None else {}),
        **({"classes": ",".join(map(str, classes))} if classes and fitted.cut else {}),
    }  # fmt: skip
    recipe = Recipe(
        method="imported", settings=settings, arch=spelling(user, arch), arch_source=user.hash if user else None,
        data=dataset.spec, training=None, arch_version=models.library_version(arch),
    )  # fmt: skip
    data_bytes = weight_bytes({k: v.cpu() for k, v in network.state_dict().items()})
    identity = digest(data_bytes)
    generation = Generation(name=name or "", recipe=recipe, weights=identity, last_weights=identity)
    record = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "measured": {"metric": metric, "score": score, "images": images},
        "normalization": {"mean": mean, "std": std, "from": origin},
        "notes": notes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "paths": dataset.paths,
        **machine(target),
    }
    if registry.exists and name and registry.refs()["names"].get(name) not in (None, generation.id):
        raise name_taken(name)
    there = registry.exists and registry.has(generation.id)
    if registry.create():
        progress.note(f"made a registry in {registry.root}")
    if user is not None:
        registry.put_object(user.text)
    registry.put_object(data_bytes)
    generation = registry.add(generation, record)
    claimed = {k: v for k, v in claims.settings.items() if v is not None}
    return {
        **outcome(generation, record, created=not there),
        "source": found.source, "source_hash": found.hash, "license": license, "claimed": claimed,
        "normalization": record["normalization"], "measured": record["measured"], "notes": notes,
    }  # fmt: skip


def check_outputs(network: nn.Module, spec: DataSpec, device: torch.device, shown: str) -> None:
    """Checks a network in eval mode: finite logits, no probabilities, the same for one image as in a batch of 32.

    Raises:
        IntegrityError: logits that are not finite, or that depend on the other images.
        RobustKTError: it gives probabilities.
    """
    images = torch.rand(32, *spec.shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        together = network(images).float()
        alone = torch.cat([network(images[i : i + 1]).float() for i in range(4)])
    if not together.isfinite().all():
        raise IntegrityError(f"{shown} gives logits that are not finite numbers", "Its training has diverged.")
    sums = together.sum(dim=1)
    if bool(((together >= 0) & (together <= 1)).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise RobustKTError(
            f"{shown} gives probabilities, not logits",
            "Take the softmax at the end of its network away, and import it again.",
        )
    scale = float(together.abs().max()) + 1e-6
    if float((together[:4] - alone).abs().max()) > 1e-3 * scale:
        raise IntegrityError(
            f"{shown} gives an image other logits alone than among others, in eval mode",
            "A layer of its architecture computes over the batch: it can neither be attacked nor certified.",
        )


def _claims(found: sources.Fetched, sigma: Any, norm: str | None, eps: Any) -> _Claims:
    """What is claimed, spelled exactly; what was given goes before the table."""
    if sigma is not None and (norm is not None or eps is not None):
        raise UsageError("a guarantee is one for noise or one for a ball", "Give --sigma, or --norm and --eps.")
    if norm is not None and eps is None:
        raise UsageError(f"which ball in {norm}?", "Add --eps 8/255, say.")
    if sigma is not None:
        level = noise_level(sigma)
        return _Claims({"sigma": exact(level)}, level)
    table: dict[str, Setting] = {}
    if found.entry is not None:
        own = {"claimed_clean_accuracy": found.entry.clean, "claimed_autoattack_accuracy": found.entry.robust}
        table = {name: value for name, value in own.items() if value is not None}
        eps = found.entry.eps if eps is None else eps
    if eps is None:
        return _Claims({}, None)
    threat = ThreatModel(norm or "linf", fraction(eps, "eps"))  # type: ignore[arg-type]
    return _Claims({"norm": threat.norm, "eps": exact(threat.eps), **table}, None)


def _fitting(error: fitting.MisfitError, content: Any, spec: DataSpec) -> RobustKTError:
    """The error, with the catalog's architectures that the checkpoint does fit."""
    fit = []
    for arch in ARCHITECTURES.names():
        try:
            with torch.device("meta"):
                network = models.build(arch, spec).network
        except UsageError:  # it takes no images of this size
            continue
        if any(not fitting.match(state, network).wrong for _, state in fitting.states(content)):
            fit.append(arch)
    return RobustKTError(error.what, f"It fits --arch {' or '.join(fit)}.") if fit else error


def _load(network: Classifier, fitted: fitting.Fitted, shown: str) -> None:
    """The weights into the network, once they are numbers."""
    for name, value in fitted.state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise IntegrityError(f"{shown} holds weights that are not finite numbers: {name}", "Its training diverged.")
    network.network.load_state_dict(fitted.state, strict=True)


class _Judge:
    """Accuracy on held-out images: clean, or under the noise that is claimed."""

    def __init__(
        self, network: Classifier, dataset: datasets.Dataset, sigma: Fraction | None, device: torch.device
    ) -> None:
        self.network, self.dataset, self.sigma, self.device = network, dataset, sigma, device

    def score(self, most: int) -> tuple[float, int]:
        """The accuracy, and of how many images."""
        held_out = self.dataset.held_out
        step = spread(len(held_out), most)
        split = datasets.Split(held_out.x[::step], held_out.y[::step])
        model = ready(self.network, self.device, "fp32")
        if self.sigma is None:
            return clean_accuracy(model, split, device=self.device), len(split)
        return noisy_accuracy(model, split, self.sigma, draws=DRAWS, device=self.device), len(split)

    def final(self) -> tuple[str, float, int]:
        """What is recorded as measured."""
        what = "clean accuracy" if self.sigma is None else f"accuracy under noise {exact(self.sigma)}"
        return (f"{what} on held-out images, which its training may have seen", *self.score(MEASURED))


def _normalise(judge: _Judge, fitted: fitting.Fitted, found: sources.Fetched, wanted: str, notes: list[str]) -> str:
    """Set the network's first layer to what the checkpoint was trained behind; returns where that is known from."""
    spec = judge.dataset.spec
    own = {**STATISTICS, "data": (spec.mean, spec.std)}
    if wanted != "auto":
        _put(judge.network, _chosen(wanted, own), spec)
        return "given"
    if fitted.mean is not None and fitted.std is not None:
        _put(judge.network, (fitted.mean, fitted.std), spec)
        return "the file"
    if found.statistics is not None:
        _put(judge.network, found.statistics, spec)
        return "the source"
    scores = {}
    for name, statistics in own.items():
        if len(statistics[0]) in (1, spec.shape[0]):
            _put(judge.network, statistics, spec)
            scores[name], _ = judge.score(COMPARED)
    best = max(scores, key=lambda name: scores[name])  # none, the first, among equals
    _put(judge.network, own[best], spec)
    told = ", ".join(f"{name} {score:.1%}" for name, score in scores.items())
    notes.append(f"nothing says how images were normalised; took {best}, which scores best: {told} (--normalization)")
    return f"accuracy: {best}"


def _chosen(wanted: str, own: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]) -> tuple[Any, Any]:
    if wanted in own:
        return own[wanted]
    means, slash, deviations = wanted.partition("/")
    if not slash:
        raise unknown("normalisation", wanted, ["auto", *own, "MEAN,MEAN,MEAN/STD,STD,STD"])
    mean, std = (tuple(float(fraction(v, "normalization")) for v in part.split(",")) for part in (means, deviations))
    if len(mean) != len(std):
        raise UsageError(f"--normalization {wanted} has {len(mean)} means and {len(std)} deviations", "Give as many.")
    return mean, std


def _put(network: Classifier, statistics: tuple[Sequence[float], Sequence[float]], spec: DataSpec) -> None:
    channels = spec.shape[0]
    both: list[tuple[float, ...]] = []
    for values in statistics:
        if len(values) not in (1, channels):
            what = f"the normalisation has {len(values)} channels, the images of {spec.name} have {channels}"
            raise UsageError(what, "Give --normalization, or data with as many channels.")
        both.append(tuple(values) * (channels if len(values) == 1 else 1))
    if min(both[1]) <= 0:
        raise UsageError(f"a standard deviation must be above 0, not {min(both[1])}", "Look at --normalization.")
    device: Tensor = network.normalize.mean
    network.normalize = Normalize(both[0], both[1]).to(device.device)


def _doubts(score: float, spec: DataSpec, claimed: float | None) -> list[str]:
    """Warnings about an accuracy that no sound import has."""
    guessing = 1 / len(spec.classes)
    if score < guessing + 3 * math.sqrt(guessing / MEASURED):
        return ["as good as guessing: another data set, order of classes, normalisation or architecture?"]
    if claimed is not None and score < claimed - 0.05:
        return [f"{score:.1%} is far below the {claimed:.1%} that its source claims: another normalisation?"]
    return []
