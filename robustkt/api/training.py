"""Making generations: train one without a teacher, distil the next from one."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustkt import adapters, engine, models, objectives
from robustkt import data as datasets
from robustkt.api.judging import judge, slice_of
from robustkt.api.loading import load_data, load_network, machine, pick_device, pick_precision, ready, trust
from robustkt.api.modes import adapter_bytes, count_of, state_of, weight_bytes
from robustkt.api.recipes import assemble, inherited, overlong
from robustkt.catalog import plain
from robustkt.core import seed_of
from robustkt.errors import IntegrityError, UsageError
from robustkt.generation import Generation, Recipe, Training, check_name
from robustkt.mixture import CLEAN
from robustkt.modes import modes_of
from robustkt.numbers import canonical, digest
from robustkt.progress import Progress, Silent
from robustkt.provenance import circumstances
from robustkt.registry import Registry
from robustkt.registry.refs import name_taken
from robustkt.shapes import to_json

SELECTION_IMAGES = 1_000  # held-out images that an epoch is judged by


def train(
    *,
    method: str,
    arch: str,
    data: str,
    registry: Registry | None = None,
    name: str | None = None,
    given: Mapping[str, Any] | None = None,
    preset: str | None = None,
    init: str | None = None,
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
        init: generation of the same architecture whose weights the training starts from.
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
        UsageError: a method that needs a teacher.
        RobustKTError: anything else the user can fix, before anything is registered.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if "teacher" in objectives.needs(method):
        raise UsageError(f"{method} learns from a teacher", f"Use `robustkt distill --from GEN --method {method}`.")
    target, source = pick_device(device), named_source(arch)
    if name is not None:
        check_name(name)
    start = registry.get(init) if init is not None else None
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
    return Job(registry, recipe, _from(start, recipe), name, dataset, source, target, fresh, progress, start).run(None)


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
    init: str | None = None,
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
    start = registry.get(init) if init is not None else None
    parents = {"teacher": origin.id, **_from(start, recipe)}
    return Job(registry, recipe, parents, name, dataset, source, target, fresh, progress, start).run(origin)


def _from(start: Generation | None, recipe: Recipe) -> dict[str, str]:
    """The parent that the first weights come from.

    Raises:
        UsageError: only adapters are to be trained, but on nothing.
    """
    if start is None and recipe.settings.get("frozen"):
        raise UsageError("with frozen only adapters are trained, on a network that is there", "Add --init GEN.")
    return {} if start is None else {"init": start.id}


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
        init: Generation | None = None,
    ) -> None:
        self.init = init  # whose weights the training starts from
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
            for stored in found.objects:
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
        split = slice_of(self.dataset.held_out, SELECTION_IMAGES)
        modes = modes_of(student)
        threat = self.recipe.threat if modes is None or modes.default != CLEAN else None
        metric, score = judge(self.recipe.sigma, threat, split, self.device)
        self.progress.note(f"{self.recipe.method} of {self.recipe.arch} on {self.recipe.data.name}, {self.device}")
        if late := overlong(self.recipe):
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
        generation = self._stored(student, fit)
        history = fit.history
        selected = {"epoch": history.best_epoch, "metric": metric, "score": history.best_score}
        return generation, {
            "started": started.isoformat(timespec="seconds"),
            "seconds": history.seconds,
            "selected": selected,
            "cost": history.cost,
            "parameters": count_of(student.parameters()),
            **({"adapter_parameters": own} if (own := count_of(adapters.own_parameters(student))) else {}),
            "epochs": history.epochs,
            "paths": {"data": self.dataset.source} if self.dataset.spec.name not in datasets.NAMES else {},
            **self.circumstances,
            "threads": history.threads,  # a continued run takes the number that it began with
        }

    def student(self) -> nn.Module:
        """The network with its first weights, and with adapters where the method trains several modes.

        Raises:
            UsageError: it has not what the adapters adapt, or the weights to start from do not fit it.
        """
        objective = objectives.build(self.recipe.method, self.recipe.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "weights"))
            arch = self.source.spec if self.source else self.recipe.arch
            network = models.build(arch, self.recipe.data, source=self.source)
            if self.init is not None:
                self._start(network, self.init)
            if isinstance(objective, objectives.Modal):
                domains = objective.domains
                adapters.attach(network, objective.adapter, domains, default=domains[-1])
                if objective.frozen:
                    adapters.freeze(network)
        return network.to(self.device).to(memory_format=torch.channels_last)

    def _start(self, network: nn.Module, init: Generation) -> None:
        try:
            network.load_state_dict(state_of(self.registry, init), strict=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UsageError(
                f"the weights of {init.name}, {init.recipe.arch}, do not fit {self.recipe.arch}: {reason}",
                f"Start with the same architecture: {init.recipe.arch}.",
            ) from None

    def _stored(self, student: nn.Module, fit: engine.Fit) -> Generation:
        """The generation, its weights and adapters put into the registry."""

        kept = None  # of a frozen base the very object that it was, of one with modes the default mode put together
        if self.recipe.settings.get("frozen") and self.init is not None:
            kept = self.init.weights
            if self.init.adapters:
                kept = self.registry.put_object(weight_bytes(state_of(self.registry, self.init)))

        def stored(state: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
            shared, own = adapters.split(student, state)
            base = kept or self.registry.put_object(weight_bytes(shared))
            kind = str(self.recipe.settings.get("adapter"))
            files = {d: adapter_bytes(t, base=base, kind=kind, domain=d) for d, t in own.items() if t}
            return base, {domain: self.registry.put_object(data) for domain, data in files.items()}

        (weights, best), (last_weights, last) = stored(fit.best), stored(fit.last)
        modes = modes_of(student)
        return Generation(
            name=self.name or "",  # the registry numbers it
            recipe=self.recipe,
            weights=weights,
            last_weights=last_weights,
            parents=self.parents,
            adapters=best,
            last_adapters=last,
            mode=modes.default if modes and best else None,
            format=2 if best else 1,
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
