"""How often adversarial examples of a student fool its teacher too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustkt import data as datasets
from robustkt.api.loading import load_network, load_test_data, machine, pick_device, ready, spread
from robustkt.core import ThreatModel
from robustkt.errors import UsageError
from robustkt.evaluate import ALGORITHM, transferred
from robustkt.generation import Generation
from robustkt.numbers import exact, wilson
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.measurements import key_of, settled

COLUMNS = ("idx", "label", "student", "teacher", "student_adv", "teacher_adv")


def transfer(
    generation: str,
    *,
    threat: ThreatModel,
    max_images: int = 1_000,
    seed: int = 0,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The share of the student's adversarial examples (PGD_SAT) that fool its teacher, stored beside the student.

    Counted over images that both classify rightly and that the attack breaks for the student.

    Returns:
        teacher, images, fooled_student, fooled_teacher, rate (None where no example fools the student), interval.

    Raises:
        RobustKTError: the generation has no teacher, or anything else the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    found = registry.mode(generation)
    teacher = teacher_of(registry, found)
    target = pick_device(device)
    dataset = load_test_data(registry, found, data, data_dir)
    step = spread(len(dataset.test), max_images)
    chosen = torch.arange(0, len(dataset.test), step)[:max_images]
    settings: dict[str, Any] = {
        "teacher": teacher.id, "teacher_weights": teacher.network(), "attack": "pgd-sat", "norm": threat.norm,
        "eps": exact(threat.eps), "images": len(chosen), "skip": step, "seed": seed,
        "weights": found.network(), **found.domain,
        "data": dataset.spec.fingerprint,
    }  # fmt: skip
    key = key_of(settings)
    stored = None if fresh else settled(registry.result(found.id, "transfer", key))
    if stored is not None and stored.content.get("algorithm") == ALGORITHM:
        return {"teacher": teacher.name, **stored.content["figures"]}
    student, guide = (ready(load_network(registry, g), target, "fp32") for g in (found, teacher))
    split = datasets.Split(dataset.test.x[chosen], dataset.test.y[chosen])
    with progress.bar(f"do examples that fool {found.name} fool {teacher.name} too", len(chosen)) as bar:
        right = transferred(student, guide, split, threat, seed=seed, device=target, advance=bar.advance)
    both = right[:, 0] & right[:, 1]
    fooled = both & ~right[:, 2]
    count, too = int(fooled.sum()), int((fooled & ~right[:, 3]).sum())
    figures = {
        "images": int(both.sum()), "fooled_student": count, "fooled_teacher": too,
        "rate": too / count if count else None, "interval": wilson(too, count) if count else [0.0, 1.0],
    }  # fmt: skip
    rows = torch.cat([chosen[:, None], split.y[:, None], right.long()], dim=1).tolist()
    log = "\n".join("\t".join(map(str, row)) for row in [COLUMNS, *rows]) + "\n"
    content = {"settings": settings, "figures": figures, "algorithm": ALGORITHM, **machine(target)}
    registry.put_result(found.id, "transfer", key, content, log.encode())
    return {"teacher": teacher.name, **figures}


def teacher_of(registry: Registry, found: Generation) -> Generation:
    """The generation that it learnt from.

    Raises:
        UsageError: it learnt from none.
    """
    identity = found.parents.get("teacher")
    if identity is None:
        raise UsageError(
            f"{found.name} has no teacher that its adversarial examples could fool", "Leave --transfer out."
        )
    return registry.by_id(identity)
