"""Steps of training timed: against plain training, against the arithmetic minimum, against scripts' loops."""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import bench as timing
from robustkt import models, objectives, plain
from robustkt.api.loading import ready
from robustkt.attacked import attacked
from robustkt.catalog import METHODS, unknown
from robustkt.core import PRECISIONS, InPrecision, generator
from robustkt.data import Split, to_float
from robustkt.engine import Trainer, shortened
from robustkt.errors import UsageError
from robustkt.generation import DataSpec, Training
from robustkt.inference import Compiled, Shape
from robustkt.losses import ce
from robustkt.passes import Passes, passes
from robustkt.progress import Progress

AUTOATTACK = "autoattack"
USUAL = ("natural", "gaussian", "consistency", "smoothmix", "crt", "sat", "trades", "ard", "rslad")
EPS, SIGMA = "8/255", "0.25"
EPOCH = 10  # that steps are timed in: warm-ups are over
COLOUR = DataSpec(
    name="noise", fingerprint="", classes=tuple("0123456789"), shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3,
    held_out=0,
)  # fmt: skip
PLAIN = ("natural", "gaussian", "crt", "sat", "trades", "rslad", "smoothmix")  # methods with a loop in `plain`


def timeable(names: Sequence[str]) -> list[str]:
    """The methods in their one spelling, each once, plain training always among them.

    Raises:
        UsageError: an unknown one, or one that trains several modes.
    """
    found = []
    for name in names:
        if name == AUTOATTACK:
            found.append(name)
            continue
        if not METHODS.has(name):
            raise unknown("objective", name, [*METHODS.names(), AUTOATTACK])
        if issubclass(METHODS.get(name), objectives.Modal):
            raise UsageError(f"{name} trains several modes; its steps are not timed", f"Take {', '.join(USUAL)}.")
        found.append(METHODS.spelled(name))
    if any(name != AUTOATTACK for name in found):
        found.insert(0, "natural")
    return list(dict.fromkeys(found))


class Steps:
    """Every method's step as the engine takes it, on the same random images, beside what it is compared with."""

    def __init__(
        self,
        methods: Sequence[str],
        arch: str,
        shape: Shape,
        batch_size: int,
        device: torch.device,
        precision: str,
        compiled: bool,
        progress: Progress,
    ) -> None:
        self.methods, self.shape, self.batch_size, self.device = methods, shape, batch_size, device
        self.precision, self.compiled, self.progress = precision, compiled, progress
        spec = DataSpec(**{**vars(COLOUR), "shape": shape})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network, self.teacher = (models.build(arch, spec) for _ in range(2))
        rng = generator("cpu", 0, "bench")
        x = torch.randint(256, (batch_size, *shape), generator=rng, dtype=torch.uint8)
        self.images = Split(x, torch.randint(len(spec.classes), (batch_size,), generator=rng))
        self.trainers = {method: self._trainer(method) for method in methods}

    def measure(self, repeats: int) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Seconds of the bare passes of a batch, and the figures of each method."""
        tasks: dict[str, Callable[[], object]] = {f"step {m}": self._step(t) for m, t in self.trainers.items()}
        tasks |= {f"plain {m}": self._plain(m) for m in self.methods if m in PLAIN}
        tasks |= {f"pass {name}": run for name, run in self._bare().items()}
        self.progress.note(f"{len(tasks)} steps, loops and bare passes in turn, {repeats} rounds")
        times = timing.rounds(tasks, repeats, self.device)
        bare = {name: times[f"pass {name}"] for name in self._kinds()}
        for name, way in self._fastest(times).items():
            bare[name] = times[f"pass {way}"]
        rates = {name: statistics.median(seconds) for name, seconds in bare.items()}
        self.progress.note("where the time of a step goes, and what memory it takes")
        return rates, {method: self._figure(method, times, bare) for method in self.methods}

    def _figure(self, method: str, times: dict[str, list[float]], bare: dict[str, list[float]]) -> dict[str, Any]:
        step, natural = times[f"step {method}"], times["step natural"]
        objective = self.trainers[method].objective
        count = passes(method, objective, EPOCH)
        least = [minimum(count, {k: v[i] for k, v in bare.items()}) for i in range(len(step))] if count else None
        loop = times.get(f"plain {method}")
        seconds = statistics.median(step)
        return {
            "seconds": seconds,
            "spread_seconds": [min(step), max(step)],
            "images_per_second": self.batch_size / seconds,
            "cost": _ratio(step, natural),
            "passes": vars(count) if count else None,
            "minimum_seconds": statistics.median(least) if least else None,
            "of_minimum": _ratio(least, step) if least else None,
            "plain_seconds": statistics.median(loop) if loop else None,
            "times_plain_loop": _ratio(loop, step) if loop else None,
            "peak_bytes": self._peak(method),
            "profile": self._profile(method),
        }

    # -- our steps ----------------------------------------------------------------------------------------------------

    def _trainer(self, method: str) -> Trainer:
        needs = objectives.needs(method)
        given = {"sigma": SIGMA} if "sigma" in needs else {}
        given |= {"norm": "linf", "eps": EPS} if "threat" in needs else {}
        guide = None
        if "teacher" in needs:
            guide = ready(copy.deepcopy(self.teacher).requires_grad_(False), self.device, self.precision)
        trainer = Trainer(
            student=copy.deepcopy(self.network).to(self.device).to(memory_format=torch.channels_last),
            objective=objectives.build(method, given, guide),
            images=self.images,
            training=Training(batch_size=self.batch_size, lr=1e-3, schedule="constant", pad=4, flip=True),
            score=lambda model: 0.0,
            folder=Path(),
            progress=self.progress,
            device=self.device,
            precision=self.precision,
            compiled=self.compiled,
        )
        trainer.begin(fresh=True)
        return trainer

    def _step(self, trainer: Trainer) -> Callable[[], object]:
        order = [torch.randperm(self.batch_size, generator=generator("cpu", 0, "bench", "order"))]

        def step() -> None:
            with shortened(self.device, self.precision):
                for picked, (x, y) in zip(order, trainer.feed.batches(order), strict=True):
                    trainer.step(picked, x, y, (EPOCH, 0), 1e-3)

        return step

    def _peak(self, method: str) -> int:
        """Bytes of a step's tensors at its peak, gradients among them, beyond what stays from step to step."""
        self.trainers[method].optimizer.zero_grad(set_to_none=True)
        return timing.peak_bytes(self._step(self.trainers[method]), self.device)

    def _profile(self, method: str) -> dict[str, float]:
        """Seconds of each phase of a step, by the trainer's own marks."""
        trainer = self.trainers[method]
        laps = timing.Laps(self.device, getattr(trainer.objective, "teacher", None))
        trainer.lap = laps
        laps.start()
        self._step(trainer)()
        laps.close()
        trainer.lap = lambda phase: None
        return laps.seconds

    # -- what they are compared with ----------------------------------------------------------------------------------

    def _plain(self, method: str) -> Callable[[], object]:
        student = copy.deepcopy(self.network).to(self.device)
        teacher = copy.deepcopy(self.teacher).to(self.device).eval()
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        x, y = to_float(self.images.x).to(self.device), self.images.y.to(self.device)
        how: Any = self.trainers[method].objective
        eps, sigma = {"eps": 8 / 255}, {"sigma": 0.25}
        loops: dict[str, Callable[[], functools.partial[None]]] = {
            "natural": lambda: functools.partial(plain.gaussian, student, x, y, optimizer, sigma=0.0),
            "gaussian": lambda: functools.partial(plain.gaussian, student, x, y, optimizer, **sigma),
            "crt": lambda: functools.partial(plain.crt, student, teacher, x, optimizer, **sigma),
            "sat": lambda: functools.partial(plain.sat, student, x, y, optimizer, steps=how.steps, **eps),
            "trades": lambda: functools.partial(plain.trades, student, x, y, optimizer, steps=how.steps, **eps),
            "rslad": lambda: functools.partial(plain.rslad, student, teacher, x, optimizer, steps=how.steps, **eps),
            "smoothmix": lambda: functools.partial(
                plain.smoothmix, student, x, y, optimizer, steps=how.steps, draws=how.draws, **sigma
            ),
        }
        return loops[method]()

    def _kinds(self) -> tuple[str, ...]:
        return ("forward", "attack", "train")

    def _fastest(self, times: dict[str, list[float]]) -> dict[str, str]:
        """For each kind of pass the way of running it that took least, by its median."""
        ways = {kind: [n[5:] for n in times if n.startswith(f"pass {kind}")] for kind in self._kinds()}
        return {kind: min(names, key=lambda n: statistics.median(times[f"pass {n}"])) for kind, names in ways.items()}

    def _bare(self) -> dict[str, Callable[[], object]]:
        """Passes of one batch through the student's own network, without method, update or data."""
        dtype = PRECISIONS[self.precision]
        student = copy.deepcopy(self.network).to(self.device).to(memory_format=torch.channels_last)
        x, y = to_float(self.images.x).to(self.device), self.images.y.to(self.device)
        twin = attacked(student, self.shape, dtype, note=self.progress.note)
        still: nn.Module = twin or InPrecision(copy.deepcopy(student).eval().requires_grad_(False), dtype)
        ways: dict[str, Callable[[], object]] = {
            "forward": lambda: _forward(still, x),
            "attack": lambda: _slope(still, x, y),
            "train": lambda: _trained(InPrecision(student.train(), dtype), x, y),
        }
        if self.compiled:
            fast = Compiled(student, self.progress.note)
            ways["train compiled"] = lambda: _trained(InPrecision(fast.train(), dtype), x, y)
            quick = attacked(student, self.shape, dtype, compiled=True, note=self.progress.note)
            if quick is not None:
                ways["attack compiled"] = lambda: _slope(quick, x, y)
        return ways


def minimum(count: Passes, rates: dict[str, float]) -> float:
    """Seconds that the passes come to at the machine's rates for the network; the teacher is as large."""
    forward = count.judged + count.taught
    slope = count.attacked + count.taught_attacked
    return forward * rates["forward"] + slope * rates["attack"] + count.trained * rates["train"]


def _forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def _slope(model: nn.Module, x: Tensor, y: Tensor) -> None:
    at = x.detach().requires_grad_(True)
    torch.autograd.grad(ce(model(at), y).sum(), at)


def _trained(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    ce(model(x), y).mean().backward()


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
