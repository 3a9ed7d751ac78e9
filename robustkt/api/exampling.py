"""Pictures of what a generation does with test images: radii, votes of noisy copies, an adversarial example."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from robustkt import data as datasets
from robustkt import streams
from robustkt.api.loading import load_network, load_own_data, pick_device, ready
from robustkt.attacks import named
from robustkt.certlog import Row
from robustkt.core import ThreatModel, attacking, generator
from robustkt.generation import Generation
from robustkt.noises import Noise
from robustkt.noises import named as noise_named
from robustkt.numbers import exact, floored, noise_level
from robustkt.registry import Registry
from robustkt.report.examples import Examples, Fooled, Picture, Votes
from robustkt.report.gathering import Attacked, Certified, Subject
from robustkt.report.words import headline

SPACE = "\N{NO-BREAK SPACE}"
SHOWN = 6  # images with their radius
COPIES = 11  # noisy copies that are shown
DRAWN = 1_000  # that vote
BATCH = 250
SIDE = 96  # pixels of a picture at most
CANDIDATES = 64  # images of which one shall be fooled
GRADIENT = ("pgd-sat", "pgd-trades", "cw", "fgsm")  # that give an example in a second


def exemplify(
    registry: Registry, subject: Subject, *, data: str | None, data_dir: Path | None, device: str
) -> Examples:
    """Examples of one generation; the same measurements give the same ones.

    Args:
        registry: where it is.
        subject: with its measurements.
        data: where its own data lie now.
        data_dir: where named data sets lie.
        device: auto, cpu, cuda or mps.

    Raises:
        RobustKTError: the data or the weights are not here, or the data are not those that were measured.
    """
    found, target = subject.generation, pick_device(device)
    test = load_own_data(registry, found, data, data_dir).test
    network = ready(load_network(registry, found), target, "fp32")
    certified, votes, notes = list[Picture](), None, list[str]()
    one = headline(subject)
    if one is not None:
        rows = _chosen(one.rows)
        certified = [_with_radius(found, test, row) for row in rows]
        votes = _votes(network, one, test, _contested(one.rows), target)
    attack = _attack(subject)
    fooled = _fooled(network, found, attack, test, target) if attack is not None else None
    if attack is not None and fooled is None:
        notes.append(f"None of the images that were tried is broken by {attack.attack} any more.")
    if found.sigma is not None and fooled is not None:
        notes.append("The adversarial example is one for the base network, without the noise that it is used with.")
    return Examples(found.name, certified, votes, fooled, notes)


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Images from the largest radius to the smallest, then one that is wrong and one that was left open."""
    right = sorted((row for row in rows if row.correct), key=lambda row: (-row.radius, row.idx))
    wrong = [row for row in rows if not row.correct and row.predict != -1][:1]
    other = wrong + [row for row in rows if row.predict == -1][:1]
    count = SHOWN - len(other)
    picked = [right[i * (len(right) - 1) // max(1, count - 1)] for i in range(min(count, len(right)))]
    return list(dict.fromkeys([*picked, *other]))


def _contested(rows: Sequence[Row]) -> Row:
    """An image that several classes get votes for: the certified one with the smallest radius above 0."""
    return min(rows, key=lambda row: (row.radius == 0, not row.correct, row.radius, row.idx))


def _with_radius(found: Generation, test: datasets.Split, row: Row) -> Picture:
    label = _class(found, row.label)
    if row.predict == -1:
        told = f"{label}: no answer"
    elif row.correct:
        told = f"{label}: radius {floored(row.radius, 3)}"
    else:
        told = f"{label}, taken for {_class(found, row.predict)}, radius {floored(row.radius, 3)}"
    return Picture(_png(_image(test, row.idx)), f"Test image {row.idx} of class {label}", told)


def _votes(network: nn.Module, one: Certified, test: datasets.Split, row: Row, device: torch.device) -> Votes:
    found, s = one.generation, one.settings
    noise: Noise = noise_named(str(s["noise"]), noise_level(s["sigma"]) if s["sigma"] else None)
    x = _image(test, row.idx).to(device)
    copies = torch.empty(DRAWN, *x.shape, device=device)
    stream = streams.stream(device, streams.noise_seed(s["seed"], "report", DRAWN, 0), row.idx, 0)
    noise.draw(copies, x, stream)
    answers: list[int] = []
    with torch.no_grad():
        for start in range(0, DRAWN, BATCH):
            answers += network(copies[start : start + BATCH]).argmax(dim=1).tolist()
    label, counts = _class(found, row.label), Counter(answers)
    shown = [
        Picture(_png(copies[k].cpu()), f"The same image with noise, taken for {answer}", answer)
        for k, answer in enumerate(_class(found, answer) for answer in answers[:COPIES])
    ]
    original = Picture(_png(x.cpu()), f"Test image {row.idx} of class {label}, without noise", f"{label}, as it is")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    told = [(_class(found, label), count) for label, count in ordered]
    return Votes(original, shown, told, str(s["sigma"]) or "–", DRAWN)


def _attack(subject: Subject) -> Attacked | None:
    """The attack whose example is shown: the hardest of the quick ones in the ball that it was trained for, or any."""
    own = subject.generation.recipe.threat
    quick = [one for one in subject.attacks if one.attack in GRADIENT and not one.ball[2] and 0 in one.right]
    mine = [one for one in quick if own is not None and one.ball[:2] == (own[0], exact(own[1]))]
    return min(mine or quick, key=lambda one: (sum(one.right), one.attack), default=None)


def _fooled(
    network: nn.Module, found: Generation, attack: Attacked, test: datasets.Split, device: torch.device
) -> Fooled | None:
    """An image that the attack broke when it was measured, broken again."""
    s = attack.settings
    threat = ThreatModel(s["norm"], Fraction(s["eps"]))
    broken = [place for place, kept in enumerate(attack.right) if not kept][:CANDIDATES]
    indices = torch.tensor([place * s["skip"] for place in broken])
    x, y = test.images(indices).to(device), test.y[indices].to(device)
    how = named(attack.attack)
    x_adv = how.run(network, x, y, threat, rng=generator(device, s["seed"], "report"), **how.options)
    with attacking(network), torch.no_grad():
        before, after = network(x).argmax(dim=1), network(x_adv).argmax(dim=1)
    fell = ((before == y) & (after != y)).nonzero().flatten().tolist()
    if not fell:
        return None
    k = fell[0]
    delta = (x_adv[k] - x[k]).cpu()
    factor = 0.5 / max(float(delta.abs().max()), 1e-6)
    label, wrong = _class(found, int(y[k])), _class(found, int(after[k]))
    index = int(indices[k])
    return Fooled(
        Picture(_png(x[k].cpu()), f"Test image {index} of class {label}", f"{label}, taken for {label}"),
        Picture(_png(0.5 + factor * delta), "What the attack adds, magnified", f"perturbation ×{SPACE}{factor:.3g}"),
        Picture(_png(x_adv[k].cpu()), f"The same image after the attack, taken for {wrong}", f"taken for {wrong}"),
        attack.attack, threat.norm, exact(threat.eps), f"{factor:.3g}",
    )  # fmt: skip


def _image(test: datasets.Split, index: int) -> Tensor:
    """A test image, (C, H, W) fp32 in [0, 1]."""
    return test.images(slice(index, index + 1))[0]


def _class(found: Generation, label: int) -> str:
    classes = found.recipe.data.classes
    return classes[label] if 0 <= label < len(classes) else str(label)


def _png(x: Tensor) -> bytes:
    """(C, H, W) in [0, 1], what is outside cut off; grey for one channel, the first three of more."""
    levels = (x.clamp(0, 1) * 255).round().byte()
    array = levels[0].numpy() if len(levels) < 3 else levels[:3].permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()
