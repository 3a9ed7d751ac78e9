"""Accuracy: clean, under noise, under attack."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt.attacks import Named, ascend, named
from robustkt.attacks.gradient import pgd_sat
from robustkt.certificates import Certificate, Certifying
from robustkt.core import ThreatModel, attacking, gaussian, generator
from robustkt.data import Split, to_float
from robustkt.decided import Answers, Decided, Part
from robustkt.errors import IntegrityError, UsageError
from robustkt.losses import ce
from robustkt.noises.gaussian import Gaussian
from robustkt.ranks import ALONE, Ranks
from robustkt.smooth import certify

BATCH = 250  # images at a time; the noise of a batch is keyed by its first image, so this is part of the result
SMOOTHED_BATCH = 25  # images at a time of an attack through 32 noisy copies each
ALGORITHM = 2  # counted up when the same seed comes to mean other attacks: what is half done is not continued then
VOTES, VOTE_ALPHA = 1_000, 0.001  # of a smoothed classifier's prediction at an attacked image


@dataclass(frozen=True)
class Attacked:
    """What an attack left of a network's accuracy."""

    name: str
    right: Tensor  # (N,), bool
    stages: Mapping[str, int] = field(default_factory=dict)  # images left after each attack of an ensemble
    broken: Mapping[str, Tensor] = field(default_factory=dict)  # stage -> (N,) bool, the rows that it broke
    predicted: Tensor | None = None  # (N,), a smoothed classifier's answers, −1 where it abstained

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.right.double().mean())


def noisy_accuracy(
    model: nn.Module, split: Split, sigma: Fraction, *, draws: int, device: torch.device, group: Ranks = ALONE
) -> float:
    """Mean accuracy of the base classifier over `draws` noisy copies of each image, the same noise at every call."""
    return _accuracy(
        model, split, device, lambda x, y, rng: x + gaussian(x, sigma, rng), key="held-out noise", repeats=draws,
        group=group,
    )  # fmt: skip


def robust_accuracy(
    model: nn.Module, split: Split, threat: ThreatModel, *, steps: int, device: torch.device, group: Ranks = ALONE
) -> float:
    """Accuracy under a short PGD of steps of eps/4 from a uniform start, the same at every call."""

    def view(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        start = threat.random_start(x, rng)
        return ascend(model, x, threat, lambda z: ce(z, y), steps=steps, step_size=threat.eps / 4, start=start)

    return _accuracy(model, split, device, view, key="held-out attack", group=group)


def clean_accuracy(model: nn.Module, split: Split, *, device: torch.device, group: Ranks = ALONE) -> float:
    """Accuracy on the images as they are."""
    return _accuracy(model, split, device, lambda x, y, rng: x, key="clean", group=group)


def vote(*, n: int, alpha: float) -> Certifying:
    """PREDICT (1902.02918): the top class of n copies, or none where the binomial test of the top two allows both."""
    from scipy.stats import binomtest

    counts = yield n
    first, second, *_ = sorted(range(len(counts)), key=lambda k: -counts[k])
    both = counts[first] + counts[second]
    sure = binomtest(counts[first], both, 0.5).pvalue <= alpha
    label = first if sure else None
    return Certificate(label=label, radius=0.0, alpha=alpha, n=n, successes=counts[first], trials=both, p_low=0.0)


def _accuracy(
    model: nn.Module,
    split: Split,
    device: torch.device,
    view: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    *,
    key: str,
    repeats: int = 1,
    group: Ranks = ALONE,
) -> float:
    right = [_right(model, split, device, view, seed=repeat, key=key, group=group) for repeat in range(repeats)]
    return float(torch.cat(right).double().mean())


def _right(
    model: nn.Module,
    split: Split,
    device: torch.device,
    view: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    *,
    seed: int,
    key: str,
    advance: Callable[[float], None] = lambda images: None,
    group: Ranks = ALONE,
) -> Tensor:
    """(N,) bool: which images of `split` are classified rightly in the given view of them; batches are shared by rank.

    Raises:
        IntegrityError: the network gives logits that are not finite numbers.
    """
    right = torch.zeros(len(split), dtype=torch.bool)
    for start in _mine(len(split), BATCH, group):
        x = to_float(split.x[start : start + BATCH].to(device))
        y = split.y[start : start + BATCH].to(device)
        x = view(x, y, generator(device, seed, key, start))
        with attacking(model), torch.no_grad():
            logits = model(x)
        if not bool(logits.isfinite().all()):
            raise IntegrityError("the network gives logits that are not finite numbers", "It cannot be scored.")
        right[start : start + BATCH] = (logits.argmax(dim=1) == y).cpu()
        advance(len(x))
    parts = [torch.tensor(list(part), dtype=torch.bool) for part in group.gather(bytes(right.tolist()))]
    return torch.stack(parts).any(dim=0)


def _mine(images: int, size: int, group: Ranks) -> Sequence[int]:
    """Where the batches begin that this rank takes."""
    return range(0, images, size)[group.rank :: group.world]


def attacked(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attacks: Sequence[str],
    *,
    seed: int,
    device: torch.device,
    sigma: Fraction | None = None,
    advance: Callable[[float], None] = lambda images: None,
    milestone: Callable[[str, int], None] = lambda attack, right: None,
    decided: Decided | None = None,
    group: Ranks = ALONE,
) -> list[Attacked]:
    """Every named attack on the images of `split` (N images); the same seed gives the same attacks.

    The clean images come first: one that is wrong without an attack is wrong under each and is not attacked. An attack
    that takes `sigma` is one on the smoothed classifier, and it is the smoothed classifier that is scored then.

    Args:
        model: the network; left as it was.
        split: the images.
        threat: the ball.
        attacks: names of the attacks catalog, with settings as in `pgd:steps=100`.
        seed: of every random number.
        device: where the network is.
        sigma: of the smoothed classifier.
        advance: called with the images that are done, N in all for each attack; parts of one where attacks are stages.
        milestone: called with the name and the images still right when an attack, or a stage of one, has ended.
        decided: what an interrupted run has decided; images it knows are not attacked again.
        group: the ranks that share the images; each gets every verdict, the ones that a single process would give.
    """
    wanted = [named(text) for text in attacks]
    decided = decided or Decided()
    right = _right(model, split, device, lambda x, y, rng: x, seed=seed, key="clean", group=group)
    rows = right.nonzero().squeeze(1)
    standing = Split(split.x[rows], split.y[rows])
    results = []
    for attack in wanted:
        if attack.name == "clean":
            advance(len(split))
            results.append(Attacked("clean", right))
        elif attack.takes("sigma"):
            answers = Answers(decided, attack.name)
            _smoothed(model, split, threat, attack, seed, device, sigma, answers, advance, group)
            decided.share(group)
            known = Answers(decided, attack.name).known
            predicted = torch.tensor([known[row] for row in range(len(split))], dtype=torch.int64)
            results.append(Attacked(attack.name, predicted == split.y, predicted=predicted))
        else:
            advance(len(split) - len(rows))
            journal = _standing(model, standing, threat, attack, seed, device, decided, rows, advance, milestone, group)
            broken = journal.fallen(len(split))
            left = right.clone()
            for mask in broken.values():
                left &= ~mask
            results.append(Attacked(attack.name, left, journal.survivors(), broken))
        milestone(attack.name, int(results[-1].right.sum()))
    return results


def _standing(
    model: nn.Module,
    standing: Split,
    threat: ThreatModel,
    attack: Named,
    seed: int,
    device: torch.device,
    decided: Decided,
    rows: Tensor,
    advance: Callable[[float], None],
    milestone: Callable[[str, int], None],
    group: Ranks,
) -> Part:
    """An attack on the images that stand: each rank on its own, then everybody's verdicts."""
    whole = decided.part(attack.name, rows.tolist(), advance, milestone)
    if not attack.takes("journal"):
        _batched(model, standing, threat, attack, seed, device, whole, group)
        decided.share(group)
        return whole
    own = slice(group.rank, None, group.world)
    some = Split(standing.x[own], standing.y[own])
    part = decided.part(attack.name, rows[own].tolist(), advance, milestone if group.world == 1 else _unsaid)
    _pooled(model, some, threat, attack, seed, device, part)
    decided.share(group)
    planned = [json.loads(names) for names in group.gather(json.dumps(list(part.names)).encode())]
    whole.names = max(planned, key=len)  # a rank without images has planned nothing
    return whole


def _unsaid(attack: str, right: int) -> None:
    """A milestone of one rank's images is none of the evaluation's."""


def transferred(
    student: nn.Module,
    teacher: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    seed: int,
    device: torch.device,
    advance: Callable[[float], None] = lambda images: None,
) -> Tensor:
    """Who is right where: (N, 4) bool, student and teacher on the images, then on PGD_SAT's against the student."""
    tables = [torch.zeros(0, 4, dtype=torch.bool)]
    for start in range(0, len(split), BATCH):
        x = to_float(split.x[start : start + BATCH].to(device))
        y = split.y[start : start + BATCH].to(device)
        x_adv = pgd_sat(student, x, y, threat, rng=generator(device, seed, "transfer", start))
        x_adv = _allowed(x_adv, x, threat)
        right = []
        for images in (x, x_adv):
            for network in (student, teacher):
                with attacking(network), torch.no_grad():
                    right.append(network(images).argmax(dim=1) == y)
        tables.append(torch.stack(right, dim=1).cpu())
        advance(len(x))
    return torch.cat(tables)


def _allowed(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """`x_adv` with the clean image where it is none of the threat: nobody is broken by a NaN or from outside."""
    return torch.where(threat.holds(x_adv, x).view(-1, 1, 1, 1), x_adv, x)


def _batched(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attack: Named,
    seed: int,
    device: torch.device,
    journal: Part,
    group: Ranks,
) -> None:
    """An attack that takes a batch at a time; its verdicts go to the journal."""
    known = journal.known("")
    journal.plan([""], len(split))

    def view(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return _allowed(attack.run(model, x, y, threat, rng=rng, **attack.options), x, threat)

    for start in _mine(len(split), BATCH, group):
        places = range(start, min(start + BATCH, len(split)))
        if all(place in known for place in places):
            continue
        some = Split(split.x[start : start + BATCH], split.y[start : start + BATCH])
        right = _right(model, some, device, view, seed=seed, key=f"{attack.name}/{start}")
        journal.tell("", list(places), (~right).tolist())


def _pooled(
    model: nn.Module, split: Split, threat: ThreatModel, attack: Named, seed: int, device: torch.device, journal: Part
) -> None:
    """An attack that takes all images and tells the journal what it decides."""
    if len(split):
        x, y = to_float(split.x.to(device)), split.y.to(device)
        attack.run(model, x, y, threat, rng=generator("cpu", seed, attack.name), journal=journal, **attack.options)


def _smoothed(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attack: Named,
    seed: int,
    device: torch.device,
    sigma: Fraction | None,
    answers: Answers,
    advance: Callable[[float], None],
    group: Ranks,
) -> None:
    """An attack on the smoothed classifier, which answers for every attacked image."""
    options = {"sigma": sigma, **attack.options}
    if options["sigma"] is None:
        raise UsageError(
            f"{attack.name} attacks a smoothed classifier and needs its σ", f"Write {attack.name}:sigma=S."
        )
    for start in _mine(len(split), SMOOTHED_BATCH, group):
        rows = range(start, min(start + SMOOTHED_BATCH, len(split)))
        advance(len(rows))
        if all(row in answers.known for row in rows):
            continue
        x = to_float(split.x[start : start + SMOOTHED_BATCH].to(device))
        y = split.y[start : start + SMOOTHED_BATCH].to(device)
        x_adv = attack.run(model, x, y, threat, rng=generator(device, seed, attack.name, start), **options)
        x_adv = _allowed(x_adv, x, threat)
        with attacking(model), torch.no_grad():
            classes = model(x[:1]).shape[1]
        votes = certify(
            model, enumerate(x_adv, start), lambda row: vote(n=VOTES, alpha=VOTE_ALPHA), classes=classes,
            noise=Gaussian(options["sigma"]), seed=seed, device=device,
        )  # fmt: skip
        for row, made in votes:
            answers.tell(row, -1 if made.label is None else made.label)
