"""Accuracy: clean, under noise, under attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt.attacks import Journal, Named, ascend, named
from robustkt.attacks.gradient import pgd_sat
from robustkt.certificates import Certificate, Certifying
from robustkt.core import ThreatModel, attacking, gaussian, generator
from robustkt.data import Split, to_float
from robustkt.errors import IntegrityError, UsageError
from robustkt.losses import ce
from robustkt.noises.gaussian import Gaussian
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


class Part(Journal):
    """One attack's pages of what has been decided: rows of the images attacked, told on as rows of the split."""

    def __init__(
        self,
        owner: Decided,
        attack: str,
        rows: Sequence[int],
        advance: Callable[[float], None],
        milestone: Callable[[str, int], None],
    ) -> None:
        super().__init__()
        self.owner, self.attack, self.rows, self.advance, self.milestone = owner, attack, rows, advance, milestone
        self.names: Sequence[str] = []

    def plan(self, stages: Sequence[str], standing: int) -> None:
        """Progress counts an image once for all stages."""
        self.names = stages
        self.advance(sum(self._done(row) for row in self.rows))

    def image(self, row: int) -> int:
        """The row of the split: images attacked beside it make no difference."""
        return self.rows[row]

    def known(self, stage: str) -> Mapping[int, bool]:
        """By place among the images attacked."""
        kept = self.owner.known(f"{self.attack}/{stage}")
        return {place: kept[row] for place, row in enumerate(self.rows) if row in kept}

    def tell(self, stage: str, rows: Sequence[int], broken: Sequence[bool]) -> None:
        """By place among the images attacked."""
        before = sum(self._done(self.rows[place]) for place in rows)
        self.owner.tell(f"{self.attack}/{stage}", [self.rows[place] for place in rows], broken)
        self.advance(sum(self._done(self.rows[place]) for place in rows) - before)

    def ended(self, stage: str) -> None:
        """A stage of several is a milestone."""
        left = self.survivors().get(stage)
        if left is not None:
            self.milestone(f"{self.attack}, {stage}", left)

    def _done(self, row: int) -> float:
        """The share of the stages that are behind a row of the split; all of them, once it is broken."""
        for number, stage in enumerate(self.names):
            broken = self.owner.known(f"{self.attack}/{stage}").get(row)
            if broken is not False:
                return 1.0 if broken else number / len(self.names)
        return 1.0

    def fallen(self, images: int) -> dict[str, Tensor]:
        """(images,) bool for each stage: the rows of the split that it broke."""
        out = {stage: torch.zeros(images, dtype=torch.bool) for stage in self.names}
        for stage, mask in out.items():
            mask[[row for row, broken in self.owner.known(f"{self.attack}/{stage}").items() if broken]] = True
        return out

    def survivors(self) -> dict[str, int]:
        """Images left after each stage, where there are several."""
        left, out = len(self.rows), {}
        for stage in self.names:
            left -= sum(self.owner.known(f"{self.attack}/{stage}").values())
            out[stage] = left
        return out if len(self.names) > 1 else {}


class Decided(Journal):
    """What a whole evaluation has decided, attack by attack."""

    def part(
        self,
        attack: str,
        rows: Sequence[int],
        advance: Callable[[float], None],
        milestone: Callable[[str, int], None] = lambda attack, right: None,
    ) -> Part:
        """The pages of one attack on these rows of the split."""
        return Part(self, attack, rows, advance, milestone)


class Answers:
    """What a smoothed classifier answered, row by row, in pages of what has been decided: one a class."""

    def __init__(self, owner: Decided, attack: str) -> None:
        self.owner, self.page = owner, f"{attack}/answer "
        pages = {name: rows for name, rows in owner.stages.items() if name.startswith(self.page)}
        self.known = {row: int(name.removeprefix(self.page)) for name, rows in pages.items() for row in rows}

    def tell(self, row: int, label: int) -> None:
        """A row has been answered; −1 is an abstention."""
        self.known[row] = label
        self.owner.tell(f"{self.page}{label}", [row], [True])


def noisy_accuracy(model: nn.Module, split: Split, sigma: Fraction, *, draws: int, device: torch.device) -> float:
    """Mean accuracy of the base classifier over `draws` noisy copies of each image, the same noise at every call."""
    return _accuracy(
        model, split, device, lambda x, y, rng: x + gaussian(x, sigma, rng), key="held-out noise", repeats=draws
    )


def robust_accuracy(model: nn.Module, split: Split, threat: ThreatModel, *, steps: int, device: torch.device) -> float:
    """Accuracy under a short PGD of steps of eps/4 from a uniform start, the same at every call."""

    def view(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        start = threat.random_start(x, rng)
        return ascend(model, x, threat, lambda z: ce(z, y), steps=steps, step_size=threat.eps / 4, start=start)

    return _accuracy(model, split, device, view, key="held-out attack")


def clean_accuracy(model: nn.Module, split: Split, *, device: torch.device) -> float:
    """Accuracy on the images as they are."""
    return _accuracy(model, split, device, lambda x, y, rng: x, key="clean")


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
) -> float:
    right = [_right(model, split, device, view, seed=repeat, key=key) for repeat in range(repeats)]
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
) -> Tensor:
    """(N,) bool: which images of `split` are classified rightly in the given view of them.

    Raises:
        IntegrityError: the network gives logits that are not finite numbers.
    """
    right = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(split), BATCH):
        x = to_float(split.x[start : start + BATCH].to(device))
        y = split.y[start : start + BATCH].to(device)
        x = view(x, y, generator(device, seed, key, start))
        with attacking(model), torch.no_grad():
            logits = model(x)
        if not bool(logits.isfinite().all()):
            raise IntegrityError("the network gives logits that are not finite numbers", "It cannot be scored.")
        right.append((logits.argmax(dim=1) == y).cpu())
        advance(len(x))
    return torch.cat(right)


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
    """
    wanted = [named(text) for text in attacks]
    decided = decided or Decided()
    right = _right(model, split, device, lambda x, y, rng: x, seed=seed, key="clean")
    rows = right.nonzero().squeeze(1)
    standing = Split(split.x[rows], split.y[rows])
    results = []
    for attack in wanted:
        if attack.name == "clean":
            advance(len(split))
            results.append(Attacked("clean", right))
        elif attack.takes("sigma"):
            answers = Answers(decided, attack.name)
            results.append(_smoothed(model, split, threat, attack, seed, device, sigma, answers, advance))
        else:
            advance(len(split) - len(rows))
            journal = decided.part(attack.name, rows.tolist(), advance, milestone)
            run = _pooled if attack.takes("journal") else _batched
            run(model, standing, threat, attack, seed, device, journal)
            broken = journal.fallen(len(split))
            left = right.clone()
            for mask in broken.values():
                left &= ~mask
            results.append(Attacked(attack.name, left, journal.survivors(), broken))
        milestone(attack.name, int(results[-1].right.sum()))
    return results


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
    model: nn.Module, split: Split, threat: ThreatModel, attack: Named, seed: int, device: torch.device, journal: Part
) -> None:
    """An attack that takes a batch at a time; its verdicts go to the journal."""
    known = journal.known("")
    journal.plan([""], len(split))

    def view(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        return _allowed(attack.run(model, x, y, threat, rng=rng, **attack.options), x, threat)

    for start in range(0, len(split), BATCH):
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
) -> Attacked:
    """An attack on the smoothed classifier: right where it predicts the label at the attacked image."""
    options = {"sigma": sigma, **attack.options}
    if options["sigma"] is None:
        raise UsageError(
            f"{attack.name} attacks a smoothed classifier and needs its σ", f"Write {attack.name}:sigma=S."
        )
    for start in range(0, len(split), SMOOTHED_BATCH):
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
    predicted = torch.tensor([answers.known[row] for row in range(len(split))], dtype=torch.int64)
    return Attacked(attack.name, predicted == split.y, predicted=predicted)
