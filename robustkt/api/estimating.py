"""How long certify and distill take here: a short slice of each, timed, and carried over to the whole."""

from __future__ import annotations

import inspect
import math
import time
from pathlib import Path
from typing import Any

import torch

from robustkt import data as datasets
from robustkt.api.certifying import certify
from robustkt.api.certifyplan import STOPS_AT, Plan, planned
from robustkt.api.jobs import SELECTION_IMAGES
from robustkt.api.judging import slice_of
from robustkt.api.loading import load_network, paths
from robustkt.api.replaying import Teacher
from robustkt.api.smoothing import takes
from robustkt.api.training import student_of
from robustkt.bench import wait
from robustkt.core import InPrecision, generator
from robustkt.engine import Trainer, shortened
from robustkt.errors import RobustKTError, UsageError
from robustkt.numbers import counted
from robustkt.passes import passes
from robustkt.progress import Silent
from robustkt.registry import Registry

USUAL = 4  # images that count as if they had taken the usual share of copies
STEPS = 3  # of training, at least; one more before them is not timed
SCORED = 64  # held-out images that the selection is timed on


def estimate_certify(
    generation: str,
    *,
    seconds: float,
    registry: Registry,
    device: str,
    data: str | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """What `certify` with its defaults takes here, after drawing copies for `seconds`.

    Returns:
        generation, seconds (estimated), images, n, mode, copies_per_second, copies_per_image, measured (images whose
        copies were counted to the end), precision, compiled, assumes [text].

    Raises:
        RobustKTError: `certify` would refuse too, or the data are not here.
    """
    _check_data(registry, generation, data, data_dir)
    defaults = {name: p.default for name, p in inspect.signature(certify).parameters.items()}
    given = {name: defaults[name] for name in inspect.signature(planned).parameters if name in defaults}
    asked = {"generation": generation, "registry": registry, "device": device, "data": data, "data_dir": data_dir}
    plan = planned(**{**given, **asked})
    model = plan.prepared(load_network(registry, plan.found), compiled=False)
    rate, drawn, done = _drawn(plan, model, seconds)
    images, n, mode, usual = len(plan.indices), plan.settings["n"], plan.settings["mode"], plan.most / STOPS_AT
    if takes(mode, "radii"):
        # the copies of all over the images done, which is what maximum likelihood says when some are cut off; few
        # images say little, so as many again are taken to be usual ones
        each = min(float(plan.most), (drawn + USUAL * usual) / (done + USUAL))
        how = f"by {counted(done, 'image')} of these and {USUAL} usual ones"
    else:
        each, how = float(plan.most), "all of them"
    assumes = [
        f"{counted(images, 'image')} of {plan.dataset.spec.name}, {mode}, n = {n:,}: --n 100000 takes longer",
        f"{each:,.0f} copies an image, {how}; {rate:,.0f} copies a second",
    ]
    if plan.settings["compiled"]:
        assumes.append("without torch.compile, which this run would use: half a minute first, then faster")
    return {
        "generation": plan.found.name,
        "seconds": images * each / rate,
        "images": images,
        "n": n,
        "mode": mode,
        "sigma": plan.settings["sigma"],
        "copies_per_second": rate,
        "copies_per_image": each,
        "measured": done,
        "precision": plan.settings["precision"],
        "compiled": plan.settings["compiled"],
        "assumes": assumes,
    }


def _drawn(plan: Plan, model: torch.nn.Module, seconds: float) -> tuple[float, int, int]:
    """Copies a second, and how many were drawn until how many images were done; the first forward pass is not timed."""
    told = {"draws": 0, "began": 0.0, "before": 0}
    deadline = math.inf

    class Enough(Exception):
        """The time is up."""

    def advance(draws: int) -> None:
        nonlocal deadline
        now = time.perf_counter()
        told["draws"] += draws
        if not told["began"]:
            told.update(began=now, before=told["draws"])
            deadline = now + seconds
        elif now > deadline:
            raise Enough

    done = 0
    order = [i for start in range(7) for i in plan.indices[start::7]]  # from all over a set that is sorted by class
    try:
        for _ in plan.certificates(model, order, None, advance):
            done += 1
    except Enough:
        pass
    took = max(time.perf_counter() - told["began"], 1e-9)
    return max(told["draws"] - told["before"], 1) / took, int(told["draws"]), done


def estimate_distill(
    generation: str,
    *,
    to: str | None,
    seconds: float,
    registry: Registry,
    device: str,
    data: str | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """What `distill --from GEN --to ARCH` with its defaults takes here, after training for `seconds`; nothing is kept.

    Returns:
        generation, to, method, seconds (estimated), epochs, steps (an epoch), batch_size, seconds_per_step,
        seconds_per_selection, passes (through the networks, of an image in a step) or None, precision, compiled,
        assumes [text].

    Raises:
        UsageError: the student's network is to be named, as the generation's own is code.
        RobustKTError: `distill` would refuse too, or the data are not here.
    """
    _check_data(registry, generation, data, data_dir)
    found = registry.get(generation)
    if to is None and found.recipe.arch_source is not None:
        raise UsageError(f"the network of {found.name} is code of your own", "Name the student's: --to FILE.py:NAME.")
    job, teacher = student_of(
        registry, generation, to or found.recipe.arch, given={}, data=data, data_dir=data_dir, device=device,
        progress=Silent(),
    )  # fmt: skip
    would, job.compiled = job.compiled, False
    guide = Teacher(registry, teacher, job.recipe, job.device, {})
    student = job.student()
    judged, few = (len(slice_of(job.dataset.held_out, images)) for images in (SELECTION_IMAGES, SCORED))
    _, score = job.judge(student, images=SCORED)
    trainer = job.trainer(student, guide, score, Path(), Silent())
    trainer.begin(fresh=True)
    per_step = _stepped(trainer, seconds)
    began = time.perf_counter()
    score(InPrecision(student.eval(), torch.float32))
    wait(job.device)
    training = trainer.training
    selection = (time.perf_counter() - began) * judged / few
    count = passes(job.recipe.method, trainer.objective, training.epochs // 2)
    epochs, steps, size = training.epochs, trainer.steps, min(training.batch_size, len(job.dataset.train))
    of = f" of {sum(vars(count).values()):g} passes an image" if count else ""
    assumes = [
        f"{job.recipe.method} to {job.recipe.arch}, {counted(epochs, 'epoch')} of {counted(steps, 'step')} of {size} "
        f"images",
        f"{per_step:.3g} s a step{of}, {selection:.3g} s to judge an epoch on {judged:,} held-out images",
    ]
    if job.recipe.settings.get("views"):
        assumes.append("the teacher is asked in every epoch: where its logits are kept already, it is faster")
    if would:
        assumes.append("without torch.compile, which this run would use: a minute first, then faster")
    return {
        "generation": teacher.name,
        "to": job.recipe.arch,
        "method": job.recipe.method,
        "seconds": epochs * (steps * per_step + selection),
        "epochs": epochs,
        "steps": steps,
        "batch_size": size,
        "seconds_per_step": per_step,
        "seconds_per_selection": selection,
        "passes": vars(count) if count else None,
        "precision": job.recipe.precision,
        "compiled": would,
        "assumes": assumes,
    }


def _stepped(trainer: Trainer, seconds: float) -> float:
    """Seconds of a step, on average over those that fit; of the middle of the training, when warm-ups are over."""
    epoch, size = trainer.training.epochs // 2, trainer.training.batch_size
    order = torch.randperm(len(trainer.images), generator=generator("cpu", 0, "estimate"))
    own = [trainer.parts.own(order[step * size : (step + 1) * size]) for step in range(trainer.steps)]
    devices = [trainer.device] if trainer.device.type == "cuda" else []
    began, timed = time.perf_counter(), 0
    with torch.random.fork_rng(devices=devices):
        for step, (x, y) in enumerate(trainer.feed.batches(own)):
            with shortened(trainer.device, trainer.precision):
                trainer.step(own[step], x, y, (epoch, step), trainer.training.lr)
            wait(trainer.device)
            if step == 0 and len(own) > 1:  # warms up
                began = time.perf_counter()
                continue
            timed = step + (len(own) == 1)
            if time.perf_counter() - began > seconds and timed >= STEPS:
                break
    return (time.perf_counter() - began) / timed


def _check_data(registry: Registry, generation: str, data: str | None, data_dir: Path | None) -> None:
    """Raise a RobustKTError where the data would be downloaded: nobody has asked for that."""
    found = registry.get(generation)
    name = found.recipe.data.name
    if data is None and not paths(registry, found) and not datasets.present(name, data_dir):
        what = f"{name}, the data of {found.name}, are not here, and nothing is downloaded for an estimate"
        raise RobustKTError(what, "Name their folder with --data-dir.")
