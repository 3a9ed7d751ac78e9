"""One recipe on its way into the registry: trained, continued, or found there."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import robustkt
from robustkt import adapters, engine, inference, models, objectives
from robustkt import data as datasets
from robustkt.api.judging import Score, judge, slice_of
from robustkt.api.loading import machine, pick_compile
from robustkt.api.modes import adapter_bytes, count_of, state_of, weight_bytes
from robustkt.api.recipes import overlong
from robustkt.api.replaying import Teacher, reused
from robustkt.core import seed_of
from robustkt.errors import IntegrityError, UsageError, clip
from robustkt.generation import Generation, Recipe, Training
from robustkt.mixture import CLEAN
from robustkt.modes import modes_of
from robustkt.numbers import canonical, digest
from robustkt.progress import Progress
from robustkt.provenance import circumstances
from robustkt.ranks import ALONE, Ranks, ranks, world
from robustkt.registry import Registry, replays
from robustkt.registry.heartbeats import Heartbeat
from robustkt.registry.records import data_called
from robustkt.registry.refs import name_taken
from robustkt.shapes import to_json

COMPILE_FROM = 500_000  # images in all epochs that are worth the minute that compiling takes
SELECTION_IMAGES = 1_000  # held-out images that an epoch is judged by


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
        compile: str = "auto",
    ) -> None:
        self.init = init  # whose weights the training starts from
        self.registry, self.recipe, self.parents, self.name = registry, recipe, dict(parents), name
        self.dataset, self.source, self.device = dataset, source, device
        self.fresh, self.progress = fresh, progress
        training = cast("Training", recipe.training)  # `assemble` has made it
        enough = training.epochs * len(dataset.train) >= COMPILE_FROM and inference.pays(device, recipe.precision)
        self.compiled = pick_compile(compile, device, enough)
        # asked before the work: a wrong $ROBUSTKT_IMAGE is refused, and the working copy is told as it was then
        self.circumstances = {
            **circumstances(Path.cwd()),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            **machine(device),
            **({"ranks": processes} if (processes := world()) > 1 else {}),
        }
        self.lost: str | None = None  # id of a generation of this recipe whose weights are damaged
        self.key = digest(canonical({"recipe": to_json(recipe), "parents": self.parents}))[7:23]
        # A student draws other streams than its teacher did at the same seed: else it would begin with the teacher's
        # first weights and see the very noise that the teacher has learnt from.
        self.seed = seed_of(recipe.seed, *sorted(parents.values())) if parents else recipe.seed

    def run(self, teacher: Generation | None) -> dict[str, Any]:
        """Train, or continue, or return the generation that this recipe has made already; all ranks get the answer."""
        with ranks() as group:
            group.agree(self._told())
            return json.loads(group.first(json.dumps(self._answer(teacher, group)).encode()))  # type: ignore[no-any-return]

    def _told(self) -> dict[str, Any]:
        """What all ranks must have alike."""
        alike = {"data set": self.recipe.data.fingerprint, "teacher or start": self.parents}
        return {"version": robustkt.__version__, **alike, "recipe": to_json(self.recipe)}

    def _answer(self, teacher: Generation | None, group: Ranks) -> dict[str, Any]:
        """What `run` answers, at the first rank."""
        done = self._done() if group.rank == 0 and not self.fresh else None
        if group.first_says(done is not None):
            return done or {}
        if group.rank == 0:
            self._check_free()
        student = self.student()  # a network that cannot be built is refused before anything is written
        folder = self.registry.job_path("train", self.key)
        if group.rank:
            if not group.first_says(False):
                self.make(student, teacher, folder, group)
            return {}
        if self.registry.create():
            self.progress.note(f"made a registry in {self.registry.root}")
        with self.registry.working(folder, "this very training", self.parents.values(), fresh=self.fresh):
            done = None if self.fresh else self._done()  # by the process that held the lock before
            if group.first_says(done is not None):
                return done or {}
            generation, record = self.make(student, teacher, folder, group)
            there = self.registry.has(generation.id)
            if there:
                generation = dataclasses.replace(generation, name=self.name or self.registry.names_of(generation.id)[0])
                self.progress.note(f"the same id as {generation.name}: the run is reproduced")
            generation = self.registry.add(generation, record)
        selected = record["selected"]
        if teacher is not None and (line := replays.told(record, teacher.name)):
            self.progress.note(line)
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

    def make(
        self, student: nn.Module, teacher: Generation | None, folder: Path, group: Ranks
    ) -> tuple[Generation, dict[str, Any]]:
        """Train to the end, from the checkpoint in `folder` if there is one: the generation and its run record.

        All ranks train; the first of them stores objects.
        """
        started = datetime.datetime.now(datetime.UTC)
        meters: dict[str, engine.Meter] = {}
        guide = Teacher(self.registry, teacher, self.recipe, self.device, meters) if teacher is not None else None
        meters["student"] = engine.Meter(student)
        metric, score = self.judge(student, group)
        called = data_called(self.recipe.data.name, {"paths": self.dataset.paths})
        self.progress.note(f"{self.recipe.method} of {self.recipe.arch} on {called}, {self.device}")
        if late := overlong(self.recipe):
            self.progress.note(late)
        recipe, training = self.recipe, cast("Training", self.recipe.training)  # `assemble` has made it
        heart = Heartbeat(
            self.progress, None if group.rank else folder, method=recipe.method, arch=recipe.arch,
            data=called, name=self.name, teacher=teacher.name if teacher else None, epochs=training.epochs,
            metric=metric,
        )  # fmt: skip
        trainer = self.trainer(student, guide, score, folder, heart, group)
        trainer.meters = meters
        if guide is not None:
            trainer.replay = guide.replay(trainer.objective, self.dataset.train, self.progress)
        fit = trainer.run()
        if self.source is not None:
            self._put(self.source.text, group)
        generation = self._stored(student, fit, group)
        hosts = group.hosts()
        history = fit.history
        selected = {"epoch": history.best_epoch, "metric": metric, "score": history.best_score}
        return generation, {
            "started": started.isoformat(timespec="seconds"),
            "seconds": history.seconds,
            "selected": selected,
            "cost": {**({"teacher_forward": 0, "teacher_backward": 0} if guide else {}), **history.cost},
            **({"replay": reused(self.recipe, history.epochs)} if self.recipe.settings.get("views") else {}),
            "parameters": count_of(student.parameters()),
            **({"adapter_parameters": own} if (own := count_of(adapters.own_parameters(student))) else {}),
            "epochs": history.epochs,
            "paths": self.dataset.paths,
            **self.circumstances,
            **({"hosts": hosts} if group.world > 1 else {}),
            "threads": history.threads,  # a continued run takes what it began with
            "folded": history.folded,
            "compiled": history.compiled,
        }

    def judge(self, student: nn.Module, group: Ranks = ALONE, images: int = SELECTION_IMAGES) -> tuple[str, Score]:
        """What an epoch is selected by: what it is called, and the score of a network on so many held-out images."""
        modes = modes_of(student)
        threat = self.recipe.threat if modes is None or modes.default != CLEAN else None
        return judge(self.recipe.sigma, threat, slice_of(self.dataset.held_out, images), self.device, group)

    def trainer(
        self,
        student: nn.Module,
        guide: Teacher | None,
        score: Score,
        folder: Path,
        progress: Progress,
        group: Ranks = ALONE,
    ) -> engine.Trainer:
        """The loop that trains `student`, its checkpoint in `folder`; the teacher is asked anew, nothing is counted."""
        return engine.Trainer(
            student=student,
            objective=objectives.build(self.recipe.method, self.recipe.settings, guide.guide() if guide else None),
            images=self.dataset.train,
            training=cast("Training", self.recipe.training),  # `assemble` has made it
            score=score,
            folder=folder,
            progress=progress,
            seed=self.seed,
            precision=self.recipe.precision,
            compiled=self.compiled,
            device=self.device,
            world_size=self.recipe.world_size,
            group=group,
        )

    def student(self) -> nn.Module:
        """The network with its first weights, and with adapters where the method trains several modes.

        Raises:
            UsageError: it has not what the adapters adapt, or the weights to start from do not fit it.
            RobustKTError: its code is not ours and fails, be it in training only.
        """
        objective = objectives.build(self.recipe.method, self.recipe.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "weights"))
            arch = self.source.spec if self.source else self.recipe.arch
            network = models.build(arch, self.recipe.data, source=self.source)
            models.check_training(network, self.recipe.data)
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
                f"the weights of {init.name}, {init.recipe.arch}, do not fit {self.recipe.arch}: {clip(reason)}",
                f"Start with the same architecture: {init.recipe.arch}.",
            ) from None

    def _put(self, data: bytes, group: Ranks) -> str:
        """The hash of bytes that the first rank stores."""
        return self.registry.put_object(data) if group.rank == 0 else digest(data)

    def _stored(self, student: nn.Module, fit: engine.Fit, group: Ranks) -> Generation:
        """The generation, its weights and adapters put into the registry."""

        kept = None  # of a frozen base the very object that it was, of one with modes the default mode put together
        if self.recipe.settings.get("frozen") and self.init is not None:
            kept = self.init.weights
            if self.init.adapters:
                kept = self._put(weight_bytes(state_of(self.registry, self.init)), group)

        def stored(state: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
            shared, own = adapters.split(student, state)
            base = kept or self._put(weight_bytes(shared), group)
            kind = str(self.recipe.settings.get("adapter"))
            files = {d: adapter_bytes(t, base=base, kind=kind, domain=d) for d, t in own.items() if t}
            return base, {domain: self._put(data, group) for domain, data in files.items()}

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
        "data": data_called(generation.recipe.data.name, record),
        "wall_seconds": record.get("seconds"),
        "selected": record.get("selected"),
        "cost": record.get("cost"),
        "replay": record.get("replay"),
        "parents": dict(generation.parents),
        "created": created,
    }
