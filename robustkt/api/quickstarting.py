"""The whole life of a robust model on embedded data: train once, transfer twice, certify, attack, publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from robustkt import objectives
from robustkt.api.certifying import certify
from robustkt.api.evaluating import evaluate
from robustkt.api.publishing import push
from robustkt.api.reporting import report
from robustkt.api.training import distill, train
from robustkt.errors import RobustKTError
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.files import writing

SIGMA = "0.25"
EPS = "0.1"  # linf, for the adversarially trained pair and for every attack in the table
SAMPLES = 500
RADII = (Fraction(0), Fraction(1, 4), Fraction(1, 2))


@dataclass(frozen=True)
class Stage:
    """One generation of the quickstart."""

    name: str
    method: str
    arch: str
    teacher: str | None = None
    given: dict[str, Any] = field(default_factory=dict)


# gen1 and scratch are the same network for the same number of epochs, so that their seconds compare.
STAGES = (
    Stage("adv0", "sat", "resnet8", given={"eps": EPS, "steps": 5, "epochs": 6, "batch_size": 64}),
    Stage("adv1", "rslad", "smallcnn", "adv0", {"steps": 5, "epochs": 6, "batch_size": 64}),
    Stage("gen0", "smoothmix", "resnet8", given={"sigma": SIGMA, "epochs": 10, "batch_size": 64}),
    Stage("scratch", "smoothmix", "smallcnn", given={"sigma": SIGMA, "epochs": 10, "batch_size": 64}),
    Stage("gen1", "crt", "smallcnn", "gen0", {"epochs": 10, "batch_size": 64}),
    Stage("gen2", "crt", "resnet20", "gen1", {"epochs": 12}),
)


def quickstart(
    *,
    registry: Registry | None = None,
    out: Path = Path("quickstart"),
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every stage that is not done yet; the same call after an interruption continues.

    Args:
        registry: where the generations go; the nearest one by default.
        out: folder for the page and the publishable form of the last student.
        seed: of every stage.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, generations [{name, id}], registry, table, speedup, retained (None where gen0 certifies
        nothing at r = ¼), seconds (of this call), train_seconds, report, published.

    Raises:
        RobustKTError: a name belongs to another generation, or a folder cannot be written.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    began = time.monotonic()
    _check_names(registry, seed)
    with writing(out):  # minutes before it is needed: in a container the working folder may be read-only
        out.mkdir(parents=True, exist_ok=True)
    made: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        progress.note(
            f"— {stage.name}: {stage.method} {stage.arch}" + (f" from {stage.teacher}" if stage.teacher else "")
        )
        made[stage.name] = _make(stage, registry, seed, device, progress)
    rows = []
    for stage in STAGES:
        row: dict[str, Any] = {
            "generation": stage.name,
            "method": stage.method,
            "arch": stage.arch,
            "teacher": stage.teacher,
            "train_seconds": made[stage.name]["wall_seconds"],
        }
        if "sigma" in stage.given or stage.method == "crt":
            certified = certify(
                stage.name,
                sigma=SIGMA,
                mode="fixed",  # whose radii and ACR are those of the papers' tables
                n=SAMPLES,
                radii=RADII,
                registry=registry,
                device=device,
                progress=progress,
            )
            row |= {
                k: certified[k]
                for k in ("certified_accuracy", "intervals", "acr", "abstain_rate", "images", "n", "alpha")
            }
        attacked = evaluate(
            stage.name,
            attacks=["clean", "pgd-sat"],
            norm="linf",
            eps=EPS,
            registry=registry,
            device=device,
            progress=progress,
        )
        row |= {
            "clean_accuracy": attacked["clean_accuracy"],
            "robust_accuracy": attacked["attacks"]["pgd-sat"]["accuracy"],
        }
        rows.append(row)
    progress.note("— the page")
    names = [stage.name for stage in STAGES]
    page = report(names, out=out, registry=registry, device=device, progress=progress)["files"][0]
    published = push("gen2", to=out / "gen2", registry=registry)
    seconds = {row["generation"]: row["train_seconds"] for row in rows}
    return {
        "generation": "gen2",
        "generations": [{"name": name, "id": one["id"]} for name, one in made.items()],
        "registry": str(registry.root),
        "sigma": SIGMA,
        "eps": EPS,
        "n": SAMPLES,
        "table": rows,
        "speedup": seconds["scratch"] / seconds["gen1"],
        "retained": _at(rows, "gen2") / first if (first := _at(rows, "gen0")) else None,
        "seconds": time.monotonic() - began,
        "train_seconds": sum(seconds.values()),
        "report": page,
        "published": published["to"],
    }


def _check_names(registry: Registry, seed: int) -> None:
    """Refuse before hours of work, not in the middle, when a name belongs to something else."""
    there = {g.name: g.recipe for g in registry.all()} if registry.exists else {}
    for stage in STAGES:
        found = there.get(stage.name)
        # an older version's may have been fewer
        fields = set(objectives.settings_of(stage.method)) - objectives.optional(stage.method)
        wanted = (stage.method, stage.arch, seed, fields)
        if found and (found.method, found.arch, found.seed, set(found.settings)) != wanted:
            raise RobustKTError(
                f"the name {stage.name} belongs to another generation in {registry.root}",
                "Give the quickstart a registry of its own: --registry DIR.",
            )


def _make(stage: Stage, registry: Registry, seed: int, device: str, progress: Progress) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "arch": stage.arch, "name": stage.name, "given": stage.given, "seed": seed,
        "registry": registry, "device": device, "progress": progress,
    }  # fmt: skip
    job: Callable[..., dict[str, Any]] = train if stage.teacher is None else distill
    start = {"data": "digits"} if stage.teacher is None else {"teacher": stage.teacher}
    return job(method=stage.method, **start, **shared)


def _at(rows: list[dict[str, Any]], name: str, radius: str = "0.25") -> float:
    """A generation's certified accuracy at a radius."""
    return float(next(row for row in rows if row["generation"] == name)["certified_accuracy"][radius])
