"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size (2003.01690)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks._rolling import Journal, Search, State, hunt, keep, uniform
from robustkt.attacks.gradient import misclassified, value_and_grad
from robustkt.core import Model, ThreatModel, attacking, unit

__all__ = ["apgd_ce", "apgd_dlr", "apgd_t"]

MOMENTUM = 0.75  # share of the new direction in a step, after the first
RISING = 0.75  # a step size stays while at least this share of its window's steps raised the loss

Raised = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (B, K), labels (B,), targets (B,) -> (B,)


@dataclass(frozen=True)
class APGD:
    """One run from one random start: x^(k+1) = Π(x^k + ¾(z − x^k) + ¼(x^k − x^(k−1))), z = Π(x^k + η·steepest).

    η begins at 2 eps and is halved at checkpoints where fewer than ¾ of the window's steps raised the loss, or where
    neither η nor the best loss has changed since the last; then the search goes on from the best point.
    """

    name: str
    loss: Raised
    steps: int = 100
    rank: int = 0  # of the target class by clean logits: 0 = none, 1 = the runner-up, …
    draws: int = 1  # passes a gradient, for networks that draw random numbers
    restart: int = 0

    def begin(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, seeds: Tensor) -> State:
        """A start on the ball's surface."""
        target = runner_up(model, x, y, self.rank) if self.rank else y
        noise = uniform(seeds, x.shape[1:], self.name, self.restart, normal=threat.norm == "l2").to(x)
        away = unit(noise) if threat.norm == "l2" else _stretched(2 * noise - 1)
        at = (x + float(threat.eps) * away).clamp(0, 1)
        value, grad, logits = value_and_grad(model, at, lambda z: self.loss(z, y, target), self.draws)
        count = len(x)
        window = max(int(0.22 * self.steps), 1)
        return {
            "x_adv": at, "broken": misclassified(logits, y), "target": target, "at": at, "before": at, "grad": grad,
            "size": torch.full((count,), 2 * float(threat.eps), device=x.device, dtype=x.dtype),
            "value": value, "best": value, "x_best": at, "grad_best": grad, "best_then": value,
            "reduced": torch.ones(count, dtype=torch.bool, device=x.device),
            "rises": torch.zeros_like(y), "since": torch.zeros_like(y), "window": torch.full_like(y, window),
        }  # fmt: skip

    def step(self, model: Model, s: State, threat: ThreatModel) -> None:
        """One step and, where a row's window is full, its checkpoint."""
        column = (-1, *[1] * (s["x"].dim() - 1))
        share = torch.where(s["age"] > 0, MOMENTUM, 1.0).to(s["x"]).view(column)
        aim = threat.project(s["at"] + s["size"].view(column) * threat.steepest(s["grad"]), s["x"])
        at = threat.project(s["at"] + share * (aim - s["at"]) + (1 - share) * (s["at"] - s["before"]), s["x"])
        value, grad, logits = value_and_grad(model, at, lambda z: self.loss(z, s["y"], s["target"]), self.draws)
        wrong = misclassified(logits, s["y"])
        better = value > s["best"]
        s["x_best"], s["grad_best"] = keep(better, at, s["x_best"]), keep(better, grad, s["grad_best"])
        s["best"] = torch.where(better, value, s["best"])
        s["x_adv"] = torch.where(s["broken"].view(column), s["x_adv"], torch.where(wrong.view(column), at, s["x_best"]))
        s["broken"] = s["broken"] | wrong
        s["rises"] = s["rises"] + (value > s["value"])
        s["before"], s["at"], s["grad"], s["value"] = s["at"], at, grad, value
        s["since"] = s["since"] + 1
        self._checkpoint(s)

    def _checkpoint(self, s: State) -> None:
        due = s["since"] == s["window"]
        if not bool(due.any()):
            return
        stuck = ~s["reduced"] & (s["best_then"] >= s["best"])
        halve = due & ((s["rises"] <= RISING * s["window"]) | stuck)
        s["size"] = torch.where(halve, s["size"] / 2, s["size"])
        s["at"], s["grad"] = keep(halve, s["x_best"], s["at"]), keep(halve, s["grad_best"], s["grad"])
        s["reduced"] = torch.where(due, halve, s["reduced"])
        s["best_then"] = torch.where(due, s["best"], s["best_then"])
        shorter = (s["window"] - max(int(0.03 * self.steps), 1)).clamp_min(max(int(0.06 * self.steps), 1))
        s["window"] = torch.where(due, shorter, s["window"])
        s["since"], s["rises"] = torch.where(due, 0, s["since"]), torch.where(due, 0, s["rises"])


def _stretched(v: Tensor) -> Tensor:
    """`v` (B, …) with the largest entry of each row at ±1."""
    return v / v.flatten(1).abs().amax(dim=1).view(-1, *[1] * (v.dim() - 1))


def runner_up(model: Model, x: Tensor, y: Tensor, rank: int) -> Tensor:
    """(B,): of the classes other than `y`, the one with the `rank`-th highest logit at `x`."""
    with torch.no_grad():
        logits = model(x)
    return logits.scatter(1, y[:, None], -torch.inf).topk(rank, dim=1).indices[:, -1]


def untargeted(
    name: str, loss: Callable[[Tensor, Tensor], Tensor], steps: int, restarts: int, draws: int
) -> list[APGD]:
    """One search a restart."""
    return [
        APGD(numbered(name, r, restarts), lambda z, y, t: loss(z, y), steps, draws=draws, restart=r)
        for r in range(max(1, restarts))
    ]


def targeted(classes: int, targets: int, steps: int) -> list[Search]:
    """One search a target class; the DLR loss where it is defined (K ≥ 4), else the difference of the two logits."""
    loss: Raised = losses.dlr_targeted if classes >= 4 else losses.margin_targeted
    return [APGD(f"apgd-t {rank}", loss, steps, rank=rank) for rank in range(1, min(targets, classes - 1) + 1)]


def numbered(name: str, number: int, of: int) -> str:
    """`name` with its number where there are several."""
    return name if of <= 1 else f"{name} {number + 1}"


def classes_of(model: Model, x: Tensor) -> int:
    """K, by asking the network."""
    with attacking(model), torch.no_grad():
        return int(model(x[:1]).shape[1])


def apgd_ce(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    steps: int = 100,
    restarts: int = 1,
    draws: int = 1,
    batch_size: int = 256,
    journal: Journal | None = None,
) -> Tensor:
    """APGD on the cross-entropy (2003.01690), stopping an image when it is broken."""
    searches = untargeted("apgd-ce", losses.ce_unrounded, steps, restarts, draws)
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)


def apgd_dlr(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    steps: int = 100,
    restarts: int = 1,
    draws: int = 1,
    batch_size: int = 256,
    journal: Journal | None = None,
) -> Tensor:
    """APGD on the difference of logits ratio (2003.01690); on the margin where K < 3 leaves it undefined."""
    loss = losses.dlr if classes_of(model, x) >= 3 else losses.margin
    searches = untargeted("apgd-dlr", loss, steps, restarts, draws)
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)


def apgd_t(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    steps: int = 100,
    targets: int = 9,
    batch_size: int = 256,
    journal: Journal | None = None,
) -> Tensor:
    """APGD on the targeted DLR loss (2003.01690), for the min(targets, K − 1) likeliest wrong classes in turn."""
    searches = targeted(classes_of(model, x), targets, steps)
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)
