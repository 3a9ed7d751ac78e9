"""Making generations: train one without a teacher, distil the next from one."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import robustkt
from robustkt import data as datasets
from robustkt import engine, models, objectives
from robustkt.api.loading import load_data, load_network, pick_device, pick_precision, ready, spread, trust
from robustkt.api.recipes import assemble, inherited, overlong
from robustkt.catalog import plain
from robustkt.core import ThreatModel, seed_of
from robustkt.errors import IntegrityError, UsageError
from robustkt.evaluate import clean_accuracy, noisy_accuracy, robust_accuracy
from robustkt.generation import Generation, Recipe, Training, check_name, to_json
from robustkt.numbers import canonical, digest
from robustkt.progress import Progress, Silent
from robustkt.provenance import circumstances
from robustkt.registry import Registry
from robustkt.registry.store import name_taken, objects_of

SELECTION_IMAGES = 1_000  # held-out images that an epoch is judged by
SELECTION_DRAWS = 4  # noisy copies of each
SELECTION_STEPS = 10  # of PGD


def train(
    *,
    method: str,
    arch: str,
    data: str,
    registry: Registry | None = None,
    name: str | None = None,
    given: Mapping[str, Any] | None = None,
    preset: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A generation without a teacher; the same recipe again returns what is there, or continues it.

    Args:
        method: name of the objective (`smoothmix`, `trades` …).
        arch: architecture, as `resnet20`, `torchvision:resnet18`, `net.py:Net`.
        data: data set, as `digits`, a folder, an `.npz`.
        registry: where it goes; the nearest one by default.
        name: what it is called; `genN` by default.
        given: sigma, norm, eps and any field of the objective or of `Training`.
        preset: a published recipe that `given` overrides.
        seed: decides the first weights, the order and every random number.
        image_size: side that images are resized to.
        data_dir: where named data sets lie.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        fresh: start over instead of continuing an interrupted run.
        progress: where to report.

    Returns:
        generation, id, method, arch, wall_seconds, selected, cost, parents, created.

    Raises:
        RobustKTError: anything the user can fix, before anything is registered.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if "teacher" in objectives.needs(method):
        raise UsageError(f"{method} learns from a teacher", f"Use `robustkt distill --from GEN --method {method}`.")
    target, source = pick_device(device), named_source(arch)
    if name is not None:
        check_name(name)
    dataset = datasets.load(data, data_dir=data_dir, image_size=image_size)
    recipe = assemble(
        method=method,
        arch=spelling(source, arch),
        arch_source=source.hash if source else None,
        data=dataset,
        given=given or {},
        preset=preset,
        precision=pick_precision(precision),
        seed=seed,
    )
    job = Job(registry, recipe, {}, name, dataset, source, target, fresh, progress)
    return job.run(None)


def distill(
    *,
    teacher: str,
    arch: str,
    method: str = "auto",
    data: str | None = None,
    registry: Registry | None = None,
    name: str | None = None,
    given: Mapping[str, Any] | None = None,
    preset: str | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The next generation: `teacher`'s robustness carried to a new network.

    What is not given comes from the teacher: the data, σ or the threat model, the image size, and with `method` auto
    the method: `crt` from one trained under Gaussian noise, `rslad` from one trained against an attack. The other
    arguments, the result and the errors are those of `train`.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    origin = registry.get(teacher)
    method, merged = inherited(origin, method, given or {})
    for need, has in (("sigma", origin.recipe.sigma), ("threat", origin.recipe.threat)):
        if need in objectives.needs(method) and has is None:
            progress.note(
                f"{origin.name} was trained by {origin.recipe.method}: it has no such robustness to teach {method}"
            )
    target, source = pick_device(device), named_source(arch)
    if name is not None:
        check_name(name)
    dataset = load_data(registry, origin, data, data_dir, who=f"the teacher {origin.name}")
    recipe = assemble(
        method=method,
        arch=spelling(source, arch),
        arch_source=source.hash if source else None,
        data=dataset,
        given=merged,
        preset=preset,
        precision=pick_precision(precision),
        seed=seed,
    )
    job = Job(registry, recipe, {"teacher": origin.id}, name, dataset, source, target, fresh, progress)
    return job.run(origin)


def named_source(arch: str) -> models.UserSource | None:
    """The user's own file behind `arch`, trusted because it was named; None for a known architecture, checked."""
    if not models.is_user_arch(arch):
        models.known(arch)
        return None
    source = models.read_source(arch)
    trust(source)
    return source


def spelling(source: models.UserSource | None, arch: str) -> str:
    """The one spelling of an architecture: a user's file without its folder, a catalog name in its own case."""
    if source is None:
        return arch if ":" in arch else plain(arch)
    place, _, name = source.spec.rpartition(":")
    return f"{Path(place).name}:{name}" if place.endswith(".py") else source.spec


class Job:
    """One recipe on its way into the registry."""

    def __init__(
        self,
        registry: Registry,
        recipe: Recipe,
        parents: Mapping[str, str],
        name: str | None,
        dataset: datasets.Dataset,
        source: models.UserSource | None,
        device: torch.device,
        fresh: bool,
        progress: Progress,
    ) -> None:
        self.registry, self.recipe, self.parents, self.name = registry, recipe, dict(parents), name
        self.dataset, self.source, self.device = dataset, source, device
        self.fresh, self.progress = fresh, progress
        # asked before the work: a wrong $ROBUSTKT_IMAGE is refused, and the working copy is told as it was then
        self.circumstances = {
            **circumstances(Path.cwd()),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            **machine(device),
        }
        self.lost: str | None = None  # id of a generation of this recipe whose weights are damaged
        self.key = digest(canonical({"recipe": to_json(recipe), "parents": self.parents}))[7:23]
        # A student draws other streams than its teacher did at the same seed: else it would begin with the teacher's
        # first weights and see the very noise that the teacher has learnt from.
        self.seed = seed_of(recipe.seed, *sorted(parents.values())) if parents else recipe.seed

    def run(self, teacher: Generation | None) -> dict[str, Any]:
        """Train, or continue, or return the generation that this recipe has made already."""
        done = None if self.fresh else self._done()
        if done is not None:
            return done
        self._check_free()
        student = self.student()  # a network that cannot be built is refused before anything is written
        if self.registry.create():
            self.progress.note(f"made a registry in {self.registry.root}")
        folder = self.registry.job_path("train", self.key)
        with self.registry.working(folder, "this very training", self.parents.values(), fresh=self.fresh):
            done = None if self.fresh else self._done()  # by the process that held the lock before
            if done is not None:
                return done
            generation, record = self.make(student, teacher, folder)
            there = self.registry.has(generation.id)
            if there:
                generation = dataclasses.replace(generation, name=self.name or self.registry.names_of(generation.id)[0])
                self.progress.note(f"the same id as {generation.name}: the run is reproduced")
            generation = self.registry.add(generation, record)
        selected = record["selected"]
        self.progress.note(
            f"{generation.name}: epoch {selected['epoch'] + 1} selected, {selected['metric']} "
            f"{selected['score']:.1%} on held-out images, {record['seconds']:.0f} s"
        )
        return outcome(generation, record, created=not there)

    def _done(self) -> dict[str, Any] | None:
        """The existing generation of this recipe, if its weights are whole; it gets the name that was asked for."""
        if not self.registry.exists:
            return None
        same = [
            g
            for g in self.registry.all()
            if (g.recipe, dict(g.parents), dict(g.unknown)) == (self.recipe, self.parents, {})
        ]
        if not same:
            return None
        found = next((g for g in same if g.name == self.name), same[0])
        try:
            for stored in objects_of(found):
                self.registry.object(stored)
        except IntegrityError as error:
            self.progress.note(f"{error.what}; making {found.name} again")
            self.lost, self.name = found.id, self.name or found.name
            return None
        record = self.registry.record(found.id)
        if self.name not in (None, found.name):
            self._check_free()
            found = self.registry.add(dataclasses.replace(found, name=self.name), record)
        self.progress.note(f"{found.name} is this very recipe, trained already; nothing to do")
        return outcome(found, record, created=False)

    def _check_free(self) -> None:
        if self.name is None or not self.registry.exists:
            return
        if self.registry.refs()["names"].get(self.name) not in (None, self.lost):
            raise name_taken(self.name)

    def make(self, student: nn.Module, teacher: Generation | None, folder: Path) -> tuple[Generation, dict[str, Any]]:
        """Train to the end, from the checkpoint in `folder` if there is one: the generation and its run record."""
        started = datetime.datetime.now(datetime.UTC)
        meters: dict[str, engine.Meter] = {}
        guide: nn.Module | None = None
        if teacher is not None:
            network = load_network(self.registry, teacher).requires_grad_(False)
            meters["teacher"] = engine.Meter(network)
            guide = ready(network, self.device, self.recipe.precision)
        meters["student"] = engine.Meter(student)
        metric, score = self._score()
        self.progress.note(f"{self.recipe.method} of {self.recipe.arch} on {self.recipe.data.name}, {self.device}")
        late = overlong(self.recipe)
        if late:
            self.progress.note(late)
        fit = engine.Trainer(
            student=student,
            objective=objectives.build(self.recipe.method, self.recipe.settings, guide),
            images=self.dataset.train,
            training=cast("Training", self.recipe.training),  # `assemble` has made it
            score=score,
            folder=folder,
            progress=self.progress,
            seed=self.seed,
            precision=self.recipe.precision,
            device=self.device,
            meters=meters,
        ).run()
        if self.source is not None:
            self.registry.put_object(self.source.text)
        generation = Generation(
            name=self.name or "",  # the registry numbers it
            recipe=self.recipe,
            weights=self.registry.put_object(weight_bytes(fit.best)),
            last_weights=self.registry.put_object(weight_bytes(fit.last)),
            parents=self.parents,
        )
        history = fit.history
        selected = {"epoch": history.best_epoch, "metric": metric, "score": history.best_score}
        return generation, {
            "started": started.isoformat(timespec="seconds"),
            "seconds": history.seconds,
            "selected": selected,
            "cost": history.cost,
            "parameters": sum(p.numel() for p in student.parameters()),
            "epochs": history.epochs,
            "paths": {"data": self.dataset.source} if self.dataset.spec.name not in datasets.NAMES else {},
            **self.circumstances,
            "threads": history.threads,  # a continued run takes the number that it began with
        }

    def student(self) -> nn.Module:
        """The network with its first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "weights"))
            arch = self.source.spec if self.source else self.recipe.arch
            network = models.build(arch, self.recipe.data, source=self.source)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _score(self) -> tuple[str, Callable[[nn.Module], float]]:
        """The held-out figure that selects an epoch: the recipe's own kind of robustness."""
        held_out = self.dataset.held_out
        chosen = slice(None, None, spread(len(held_out), SELECTION_IMAGES))
        split = datasets.Split(held_out.x[chosen], held_out.y[chosen])
        sigma, threat = self.recipe.sigma, self.recipe.threat
        if sigma is not None:
            level: Fraction = sigma
            return f"accuracy under noise {self.recipe.settings['sigma']}", lambda model: noisy_accuracy(
                model, split, level, draws=SELECTION_DRAWS, device=self.device
            )
        if threat is None:
            return "clean accuracy", lambda model: clean_accuracy(model, split, device=self.device)
        ball = ThreatModel(threat[0], threat[1])  # type: ignore[arg-type]  # checked by ThreatModel itself
        return f"accuracy under {SELECTION_STEPS} steps of PGD", lambda model: robust_accuracy(
            model, split, ball, steps=SELECTION_STEPS, device=self.device
        )


def outcome(generation: Generation, record: Mapping[str, Any], *, created: bool) -> dict[str, Any]:
    """What `train` and `distill` answer."""
    return {
        "generation": generation.name,
        "id": generation.id,
        "method": generation.recipe.method,
        "arch": generation.recipe.arch,
        "data": generation.recipe.data.name,
        "wall_seconds": record.get("seconds"),
        "selected": record.get("selected"),
        "cost": record.get("cost"),
        "parents": dict(generation.parents),
        "created": created,
    }


def weight_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors, in name order and without metadata: equal weights give equal bytes."""
    return save_tensors({name: state[name].contiguous().clone() for name in sorted(state)})


def machine(device: torch.device) -> dict[str, Any]:
    """The circumstances of a run, for its record: versions and hardware, no names of hosts or users."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "robustkt": robustkt.__version__},
    }
