"""Speed against plain loops, both sides in turn in one process, so that ratios hold on a busy machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustkt.attacks._rolling import Search
from robustkt.core import ThreatModel


def rounds(tasks: Mapping[str, Callable[[], object]], count: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each task in each of `count` rounds, in turn and in changing order, after one of each to warm up."""

    def seconds(run: Callable[[], object]) -> float:
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        return time.perf_counter() - began

    for run in tasks.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(count):
        for name in list(tasks)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(seconds(tasks[name]))
    return found


def pairs(ours: Callable[[], object], theirs: Callable[[], object], count: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both, in turn and in changing order, after one of each to warm up; the ratio is theirs over ours."""
    found = rounds({"ours": ours, "plain": theirs}, count, device)
    ratios = [b / a for a, b in zip(found["ours"], found["plain"], strict=True)]
    return {
        "ours_seconds": statistics.median(found["ours"]),
        "plain_seconds": statistics.median(found["plain"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Laps:
    """Seconds of each phase of a training step, as the trainer's `lap` is told; a watched teacher's are its own."""

    def __init__(self, device: torch.device, teacher: nn.Module | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._asked = self._teacher = 0.0
        self._last = time.perf_counter()
        self._hooks = []
        if teacher is not None:
            self._hooks = [
                teacher.register_forward_pre_hook(self._asking),
                teacher.register_forward_hook(self._answered),
            ]

    def __call__(self, phase: str) -> None:
        """A phase has ended."""
        wait(self.device)
        now = time.perf_counter()
        self._add(phase, now - self._last - self._teacher)
        self._add("teacher", self._teacher)
        self._last, self._teacher = now, 0.0

    def start(self) -> None:
        """A step begins: what was before is nobody's."""
        wait(self.device)
        self._last, self._teacher = time.perf_counter(), 0.0

    def close(self) -> None:
        """Watch the teacher no longer."""
        for hook in self._hooks:
            hook.remove()

    def _add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def _asking(self, module: nn.Module, inputs: Any) -> None:
        wait(self.device)
        self._asked = time.perf_counter()

    def _answered(self, module: nn.Module, inputs: Any, output: Any) -> None:
        wait(self.device)
        self._teacher += time.perf_counter() - self._asked


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that `run` has at once, beyond those that are there before it.

    On CUDA as the allocator counts them; else from the allocations and releases that torch's profiler sees, which are
    those of every tensor but not the scratch memory that a kernel takes for itself.
    """
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells people about its own start, and of no GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    peak = now = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        now += change
        peak = max(peak, now)
    return peak


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
