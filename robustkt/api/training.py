"""Making generations: train one without a teacher, distil the next from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkt import data as datasets
from robustkt import objectives
from robustkt.api.jobs import Job
from robustkt.api.loading import load_data, pick_device, pick_precision
from robustkt.api.recipes import assemble, inherited, named_source, spelling, started_from
from robustkt.errors import UsageError
from robustkt.generation import Generation, check_name
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

COMPILE_FROM = 500_000  # images in all epochs that are worth the minute that compiling takes
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
    compile: str = "auto",
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
        compile: `on`, `off`, or `auto`: torch.compile where there is a compiler and enough work.
        fresh: start over instead of continuing an interrupted run.
        progress: where to report.

    Returns:
        generation, id, method, arch, data, wall_seconds, selected, cost, replay (views and reused, of a student whose
        teacher's logits are kept, else None), parents, created.

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
    parents = started_from(start, recipe)
    return Job(registry, recipe, parents, name, dataset, source, target, fresh, progress, start, compile).run(None)


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
    compile: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The next generation: `teacher`'s robustness carried to a new network.

    What is not given comes from the teacher: the data, σ or the threat model, the image size, and with `method` auto
    the method: `crt` from one trained under Gaussian noise, `rslad` from one trained against an attack. The other
    arguments, the result and the errors are those of `train`.
    """
    job, origin = student_of(
        registry or Registry.locate(), teacher, arch, method=method, data=data, name=name, given=given or {},
        preset=preset, init=init, seed=seed, data_dir=data_dir, device=device, precision=precision, compile=compile,
        fresh=fresh, progress=progress or Silent(),
    )  # fmt: skip
    return job.run(origin)


def student_of(
    registry: Registry,
    teacher: str,
    arch: str,
    *,
    method: str = "auto",
    data: str | None = None,
    name: str | None = None,
    given: Mapping[str, Any],
    preset: str | None = None,
    init: str | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: str = "auto",
    fresh: bool = False,
    progress: Progress,
) -> tuple[Job, Generation]:
    """What `distill` is to do, and the teacher: its arguments checked, the data loaded, nothing trained.

    Raises:
        RobustKTError: anything the user can fix.
    """
    origin = registry.get(teacher)
    method, merged = inherited(origin, method, given)
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
    parents = {"teacher": origin.id, **started_from(start, recipe)}
    job = Job(registry, recipe, parents, name, dataset, source, target, fresh, progress, start, compile)
    return job, origin
