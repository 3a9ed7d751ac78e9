"""The one training loop: every objective, bit-identical resume, EMA, best and last, a guard against NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustkt import adapters, checkpoint
from robustkt.attacked import Attacked, attacked
from robustkt.core import PRECISIONS, Batch, InPrecision, Objective, Terms, generator, seed_of
from robustkt.data import Split, crop_flip, to_float
from robustkt.errors import DivergedError, IntegrityError
from robustkt.feed import Feed
from robustkt.generation import Training
from robustkt.inference import Compiled
from robustkt.numbers import counted
from robustkt.parts import Parts, check_parts
from robustkt.progress import Progress
from robustkt.ranks import ALONE, Ranks
from robustkt.replay import Replay
from robustkt.schedules import learning_rate
from robustkt.syncnorm import synchronised
from robustkt.updates import all_parameters, momentum, sgd, warmed_up

GUARD_EVERY = 25  # steps between looks at the loss on devices where a look is a synchronisation


class Meter:
    """Counts the images that pass through a network, forwards and backwards."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = 0
        self.backward = 0
        self.watch(module)

    def watch(self, module: nn.Module) -> None:
        """Count the images through `module` too: another way through the same network."""
        module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forward += len(output)
        self.backward += len(output) if output.requires_grad else 0

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        taken = {"forward": self.forward, "backward": self.backward}
        self.forward = self.backward = 0
        return taken


@dataclass
class History:
    """What a run has done so far, beside its tensors; kept in the checkpoint."""

    epoch: int = 0  # epochs done
    seconds: float = 0.0  # in the loop, interruptions not counted
    best_epoch: int = -1
    best_score: float = -math.inf
    epochs: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, int] = field(default_factory=dict)  # images through each network, those of scoring left out
    threads: int = field(default_factory=torch.get_num_threads)  # another number rounds sums in another order
    folded: bool = False  # whether attacks ran on the folded network, which rounds in another order too
    compiled: bool = False  # whether torch.compile had a part


@dataclass(frozen=True)
class Fit:
    """A finished run: the state dicts of the selected and the last epoch, and how it went."""

    best: dict[str, Tensor]
    last: dict[str, Tensor]
    history: History


@dataclass(kw_only=True)
class Trainer:
    """One run. `score` is the held-out figure that selects an epoch; higher is better, the later of equals wins."""

    student: nn.Module
    objective: Objective[Any]
    images: Split
    training: Training
    score: Callable[[nn.Module], float]
    folder: Path  # of the checkpoint
    progress: Progress
    device: torch.device
    seed: int = 0
    precision: str = "fp32"
    meters: Mapping[str, Meter] = field(default_factory=dict)
    replay: Replay | None = None  # of the teacher's logits, where views are kept
    world_size: int = 1  # parts of a step, each with its own BatchNorm statistics and random numbers
    group: Ranks = ALONE  # who share the parts
    folded: bool = True  # attack the student with its BatchNorm folded, where that is exact
    compiled: bool = False  # run the student's passes through torch.compile; a continued run does as it began
    lap: Callable[[str], None] = lambda phase: None  # told at the end of each phase of a step, by a benchmark

    def run(self) -> Fit:
        """Train to the end, from the checkpoint in the folder if there is one.

        Raises:
            DivergedError: the loss stopped being a number; the checkpoint holds the last good epoch.
            UsageError: the ranks cannot share the parts of a step, or a step not be split into them.
        """
        threads = torch.get_num_threads()
        try:
            return self._run()
        finally:
            torch.set_num_threads(threads)  # a continued run takes the number that it began with

    def begin(self, *, fresh: bool = False) -> None:
        """Make ready for the first step: optimiser, data, ways through the network; unless `fresh` go on as it was.

        Raises:
            UsageError: the ranks cannot share the parts of a step, or a step not be split into them.
        """
        rows, sync_bn = min(self.training.batch_size, len(self.images)), bool(self.training.sync_bn)
        check_parts(self.world_size, rows, self.group.world, sync_bn=sync_bn)
        self.parts = Parts(self.group, self.world_size, self.device, self.seed)
        self.optimizer = sgd(self.student, self.training)
        ema = self.training.ema
        self.average = AveragedModel(self.student, multi_avg_fn=warmed_up(ema), use_buffers=True) if ema else None
        self.history = History(folded=self.folded, compiled=self.compiled)
        self.best = self._state()
        if not fresh:
            self._restore()
        if sync_bn:
            synchronised(self.student, self.device)
        self.feed = Feed(self.images, self.device)
        self._ways()
        self.outer = self.parts.prepared(self.objective, self.net)
        self.parts.begin(self.history.epoch)
        size = self.training.batch_size
        self.steps = max(1, len(self.images) // size)  # an epoch; the remainder differs each time

    def _ways(self) -> None:
        """The student as the loss sees it, and as attacks do; both are counted as passes through it."""
        dtype, meter = PRECISIONS[self.precision], self.meters.get("student")
        way = Compiled(self.student, self._uncompiled) if self.history.compiled else self.student
        self.net = InPrecision(way, dtype)
        self.victim: nn.Module = self.net
        if meter is not None and way is not self.student:
            meter.watch(way)
        if self.history.folded:
            shape, compiled = tuple(self.images.x.shape[1:]), self.history.compiled
            folded = attacked(self.student, shape, dtype, compiled=compiled, note=self._uncompiled)
            self.victim, self.history.folded = folded or self.net, folded is not None
            if meter is not None and folded is not None:
                meter.watch(folded)

    def _uncompiled(self, reason: str) -> None:
        if self.history.compiled:
            self.history.compiled = False
            self.progress.note(reason)

    def _run(self) -> Fit:
        self.begin()
        title = f"training {counted(self.training.epochs, 'epoch')}"
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            self.progress.bar(title, self.training.epochs * self.steps, self.history.epoch * self.steps) as bar,
        ):
            for epoch in range(self.history.epoch, self.training.epochs):
                started = time.perf_counter()
                entry = self._epoch(epoch, bar.advance)
                self._select(epoch, entry)
                self.history.seconds += time.perf_counter() - started
                self._save()
                bar.line(describe(entry, self.training.epochs))
        return Fit(self.best, self._state(), self.history)

    def _epoch(self, epoch: int, advance: Callable[[float, str], None]) -> dict[str, Any]:
        torch.manual_seed(seed_of(self.seed, "layers", epoch))  # for networks with dropout
        self.parts.begin(epoch)
        order = torch.randperm(len(self.images), generator=generator("cpu", self.seed, "order", epoch))
        started, rate = time.perf_counter(), 0.0
        for meter in self.meters.values():
            meter.take()  # what scoring or an interrupted epoch has added
        reused = {} if self.replay is None else {"reused": self.group.all(self.replay.open(epoch))}
        totals: dict[str, Tensor] = {}
        size = self.training.batch_size
        own = [self.parts.own(order[step * size : (step + 1) * size]) for step in range(self.steps)]
        for step, (x, y) in enumerate(self.feed.batches(own)):
            done = epoch * self.steps + step
            rate = learning_rate(self.training, done, self.training.epochs * self.steps)
            with shortened(self.device, self.precision):
                terms = self.step(own[step], x, y, (epoch, step), rate)
            for name, value in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value
            if self.device.type == "cpu" or step % GUARD_EVERY == 0 or step == self.steps - 1:
                self._guard(totals, epoch, step)
            advance(1, "")
        weights = sum(
            (value * 0).sum() for value in self.student.state_dict().values()
        )  # 0, or NaN where one is broken
        self._guard({"a weight": torch.as_tensor(weights)}, epoch, self.steps - 1)
        self._add_cost()
        seconds = time.perf_counter() - started
        means = {name: float(total) / self.steps for name, total in totals.items()}
        count = self.steps * min(self.training.batch_size, len(self.images))
        return {
            "epoch": epoch,
            "lr": rate,
            "loss": sum(means.values()),
            "terms": means,
            "images_per_second": count / seconds,
            **reused,
        }

    def step(self, picked: Tensor, x: Tensor, y: Tensor, key: tuple[int, int], rate: float) -> dict[str, Tensor]:
        """One update at the learning rate `rate`: the terms of the loss.

        Args:
            picked: (B,), the places of this rank's images in the training set.
            x: (B, C, H, W), uint8, these images.
            y: (B,), their labels.
            key: epoch and step.
            rate: the learning rate.
        """

        def terms_of(rows: slice, rng: torch.Generator) -> Terms:
            batch = self._batch(picked[rows], x[rows], y[rows], key[0], rng)
            self.lap("data")
            view = self.objective.perturb(self.victim, batch)
            self.lap("attack")
            found: Terms = self.outer(batch, view)
            self.lap("forward")
            return found

        self.student.train()
        adapters.hold(self.student)
        if isinstance(self.victim, Attacked):
            self.victim.stale = True
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.parts.step(self.outer, len(picked), key, terms_of)
        self.lap("backward")
        if self.training.clip is not None:
            nn.utils.clip_grad_norm_(self.student.parameters(), self.training.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        self.lap("optimiser")
        return terms

    def _batch(self, picked: Tensor, x: Tensor, y: Tensor, epoch: int, rng: torch.Generator) -> Batch:
        if self.replay is not None:
            return self.replay.batch(picked, x, y, epoch, rng)
        return Batch(to_float(crop_flip(x, pad=self.training.pad, flip=self.training.flip, rng=rng)), y, epoch, rng)

    def _guard(self, totals: dict[str, Tensor], epoch: int, step: int) -> None:
        bad = [name for name, total in totals.items() if not math.isfinite(float(total))]
        if bad:
            kept = f"the state after epoch {epoch} is kept in {self.folder}" if epoch else "no epoch was finished"
            raise DivergedError(
                f"training diverged in epoch {epoch + 1}, step {step + 1}: "
                f"{', '.join(bad)} is not a finite number; {kept}",
                "Try a lower --lr, or --set clip=1 (a changed recipe starts afresh).",
            )

    def _select(self, epoch: int, entry: dict[str, Any]) -> None:
        score = self.score(InPrecision(self._selected(), torch.float32))  # attacks that score run in fp32
        entry["held_out"] = score
        collapse = getattr(self.objective, "collapse", None)  # only objectives that can collapse have it
        if collapse is not None and self.history.best_score - score > collapse:
            self._go_back(epoch, score, entry)
        if score >= self.history.best_score:
            self.history.best_epoch, self.history.best_score = epoch, score
            self.best = self._state()
        self.history.epochs.append(entry)
        self.history.epoch = epoch + 1

    def _go_back(self, epoch: int, score: float, entry: dict[str, Any]) -> None:
        """Catastrophic overfitting of single-step training: take the state before this epoch, and go on."""
        found = checkpoint.load(self.folder, self.group)
        if found is not None:
            self._load(found[0])
            entry["restored"] = True
            self.progress.note(
                f"epoch {epoch + 1} collapsed: held-out {score:.4f} after {self.history.best_score:.4f}; its weights "
                "are dropped"
            )

    def _selected(self) -> nn.Module:
        """The network that is scored and kept: the average where there is one."""
        return self.student if self.average is None else self.average.module

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._selected().state_dict().items()}

    def _add_cost(self) -> None:
        taken = {f"{name}_{way}": n for name, meter in self.meters.items() for way, n in meter.take().items()}
        for name, images in self.parts.total(taken).items():
            self.history.cost[name] = self.history.cost.get(name, 0) + images

    def _save(self) -> None:
        self.parts.check(self.student)
        if self.group.rank:
            return
        tensors = {"student": self.student.state_dict(), "best": self.best, "optimizer": momentum(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        checkpoint.save(self.folder, tensors, asdict(self.history))

    def _restore(self) -> None:
        found = checkpoint.load(self.folder, self.group)
        if found is not None:
            tensors, history = found
            try:
                self.history = History(**history)
                self._load(tensors)
            except (TypeError, RuntimeError, KeyError) as error:
                raise IntegrityError(
                    f"the checkpoint in {self.folder} was written by another version: {error}",
                    "Start over with --fresh.",
                ) from error
            torch.set_num_threads(self.history.threads)
            self.best = tensors["best"]
            self.progress.note(f"continuing after epoch {self.history.epoch} of {self.training.epochs}")

    def _load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Weights, momentum and average of a checkpoint."""
        self.student.load_state_dict(tensors["student"])
        for index, parameter in enumerate(all_parameters(self.optimizer)):
            if str(index) in tensors["optimizer"]:
                self.optimizer.state[parameter]["momentum_buffer"].copy_(tensors["optimizer"][str(index)])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])


@contextmanager
def shortened(device: torch.device, precision: str) -> Iterator[None]:
    """Let CUDA multiply the fp32 that is left in a bf16 step as TF32, the finer of the two."""
    if device.type != "cuda" or precision == "fp32":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def describe(entry: Mapping[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    terms = "  ".join(f"{name} {value:.4f}" for name, value in entry["terms"].items())
    return (
        f"epoch {entry['epoch'] + 1}/{epochs}  {terms}  held-out {entry['held_out']:.4f}  "
        f"{entry['images_per_second']:,.0f} images/s"
    )
