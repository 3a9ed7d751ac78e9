"""Speed against plain loops, both sides in turn in one process, so that ratios hold on a busy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkt.attacks._rolling import Search
from robustkt.core import Batch, Objective, ThreatModel


def pairs(ours: Callable[[], object], theirs: Callable[[], object], count: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both, in turn and in changing order, after one of each to warm up; the ratio is theirs over ours."""

    def seconds(run: Callable[[], object]) -> float:
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        return time.perf_counter() - began

    ours(), theirs()
    times = []
    for turn in range(count):
        first, second = (seconds(ours), seconds(theirs)) if turn % 2 == 0 else (seconds(theirs), seconds(ours))
        times.append((first, second) if turn % 2 == 0 else (second, first))
    ratios = [b / a for a, b in times]
    return {
        "ours_seconds": statistics.median(a for a, _ in times),
        "plain_seconds": statistics.median(b for _, b in times),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def our_step(student: nn.Module, objective: Objective[Any], batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """One step as the engine takes it."""
    student.train()
    terms = objective.loss(student, batch, objective.perturb(student, batch))
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def plain_rslad_step(
    student: nn.Module, teacher: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, *, eps: float, steps: int
) -> None:
    """One step of RSLAD as training scripts of the field write it: fp32, weights' gradients in the attack too."""
    with torch.no_grad():
        soft = F.softmax(teacher(x), dim=1)
    student.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        F.kl_div(F.log_softmax(student(x_adv), dim=1), soft, reduction="sum").backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + eps / 4 * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    student.train()
    optimizer.zero_grad()
    adversarial = F.kl_div(F.log_softmax(student(x_adv.detach()), dim=1), soft, reduction="batchmean")
    clean = F.kl_div(F.log_softmax(student(x), dim=1), soft, reduction="batchmean")
    (5 / 6 * adversarial + 1 / 6 * clean).backward()
    optimizer.step()


def plain_counts(model: nn.Module, x: Tensor, num: int, sigma: float, batch_size: int, classes: int) -> list[int]:
    """Votes on copies of one image as the reference code of 1902.02918 takes them: fp32, a Python loop over votes."""
    counts = [0] * classes
    with torch.no_grad():
        while num > 0:
            this_batch = min(batch_size, num)
            num -= this_batch
            batch = x.repeat((this_batch, 1, 1, 1))
            predictions = model(batch + torch.randn_like(batch) * sigma).argmax(1)
            for index in predictions.cpu().numpy():
                counts[index] += 1
    return counts


def plain_ensemble(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, searches: Sequence[Search], batch_size: int
) -> Tensor:
    """An ensemble as scripts run it, batch by batch: a search takes all its steps with the rows that stood before it.

    Square alone drops rows as they fall, as in the authors' code. Returns (N,) bool, which rows stand at the end.
    """
    model.eval()
    left = []
    for start in range(0, len(x), batch_size):
        images, labels = x[start : start + batch_size], y[start : start + batch_size]
        with torch.no_grad():
            standing = model(images).argmax(dim=1) == labels
        for search in searches:
            rows = standing.nonzero().squeeze(1)
            if not len(rows):
                break
            seeds = torch.arange(start, start + len(rows))
            with torch.no_grad():
                state = search.begin(model, images[rows], labels[rows], threat, seeds)
                state |= {"row": rows, "x": images[rows], "y": labels[rows], "seed": seeds}
                state["age"] = torch.zeros_like(rows)
                for _ in range(search.steps):
                    if search.name == "square":
                        standing[state["row"][state["broken"]]] = False
                        state = {key: value[~state["broken"]] for key, value in state.items()}
                        if not len(state["row"]):
                            break
                    search.step(model, state, threat)
                    state["age"] = state["age"] + 1
            standing[state["row"][state["broken"]]] = False
        left.append(standing)
    return torch.cat(left)
