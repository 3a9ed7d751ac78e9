"""Fast adaptive boundary attack: walks along the decision boundary towards the image (1907.02044)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks._rolling import Journal, Search, State, hunt, keep
from robustkt.attacks.apgd import classes_of, runner_up
from robustkt.attacks.gradient import misclassified, value_and_grad
from robustkt.core import Model, ThreatModel

__all__ = ["fab_t"]

ETA = 1.05  # overshoot beyond the boundary
ALPHA = 0.1  # largest share of the way back to the image in a step
BETA = 0.9  # an adversarial point moves to this share of its distance


@dataclass(frozen=True)
class FAB:
    """Towards one target class: project on the linearised boundary, from the point and from the image, and mix.

    x' = (1 − a)(x' + η d(x')) + a(x + η d(x)),  a = min(α, |d(x')|/(|d(x')| + |d(x)|)),  inside the box; a point that
    is adversarial goes back to x + β(x' − x). A row ends when an adversarial point lies within eps.
    """

    name: str
    rank: int  # of the target class by clean logits
    steps: int = 100

    def begin(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, seeds: Tensor) -> State:
        """At the image itself, as in AutoAttack."""
        return {
            "x_adv": x, "broken": torch.zeros_like(y, dtype=torch.bool), "at": x,
            "target": runner_up(model, x, y, self.rank),
            "nearest": torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype),
        }  # fmt: skip

    def step(self, model: Model, s: State, threat: ThreatModel) -> None:
        """One projection, one look at the network."""
        x, at, count = s["x"], s["at"], len(s["x"])
        ahead, grad, logits = value_and_grad(model, at, lambda z: losses.margin_targeted(z, s["y"], s["target"]))
        self._note(s, at, misclassified(logits, s["y"]), threat)  # a point on its way back may have come inside
        w = grad.flatten(1).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # a plane whose slope is known, or none
        level = (w * at.flatten(1)).sum(dim=1) - ahead  # the boundary is w·x = level
        points = torch.cat([at.flatten(1), x.flatten(1)])
        d = to_plane(points, w.repeat(2, 1), level.repeat(2), norm=threat.norm)
        length = distance(d, threat.norm).clamp_min(1e-8)
        a = (length[:count] / (length[:count] + length[count:])).clamp(0, ALPHA).view(-1, *[1] * (x.dim() - 1))
        here, there = d[:count].view_as(x), d[count:].view_as(x)
        at = ((at + ETA * here) * (1 - a) + (x + ETA * there) * a).clamp(0, 1)
        wrong = misclassified(model(at), s["y"])
        self._note(s, at, wrong, threat)
        s["at"] = keep(wrong, x + BETA * (at - x), at)

    @staticmethod
    def _note(s: State, at: Tensor, wrong: Tensor, threat: ThreatModel) -> None:
        """Keep the nearest point that the network gets wrong."""
        far = distance((at - s["x"]).flatten(1), threat.norm)
        nearer = wrong & (far < s["nearest"])
        inside = far <= float(threat.eps)
        s["nearest"] = torch.where(nearer, far, s["nearest"])
        kept = keep(inside, at, threat.project(at, s["x"]))  # outside the ball it is only the best direction
        s["x_adv"] = keep(nearer, kept, s["x_adv"])
        s["broken"] = s["broken"] | (wrong & inside)


def to_plane(x: Tensor, w: Tensor, level: Tensor, *, norm: str) -> Tensor:
    """The smallest d (B, D) in `norm` with w·(x + d) = level and 0 ≤ x + d ≤ 1; to the box's corner where none is.

    Every coordinate moves towards the plane, at speed 1 (linf) or |w_i| (l2), until it meets its wall: the change of
    w·x grows piecewise linearly with time, so sorting the walls' times gives the time at which the plane is met.

    Args:
        x: points (B, D) in [0, 1].
        w: normals (B, D).
        level: (B,).
        norm: linf or l2.
    """
    gap, largest = level - (w * x).sum(dim=1), w.abs().amax(dim=1).clamp_min(torch.finfo(w.dtype).tiny)
    w, gap = w / largest[:, None], gap / largest  # the same plane; squares of small weights would vanish
    heading = w.sign() * gap.sign()[:, None]
    size = w.abs()
    speed = torch.ones_like(w) if norm == "linf" else size
    room = torch.where(heading > 0, 1 - x, x)
    tiny = torch.finfo(x.dtype).tiny
    wall = torch.where(size > 0, room / speed.clamp_min(tiny), 0)  # a coordinate without weight need not move
    times, order = wall.sort(dim=1)
    reach, rate = (size * room).gather(1, order), (size * speed).gather(1, order)
    stopped = reach.cumsum(dim=1) - reach  # by coordinates that met their wall before
    moving = rate.flip(1).cumsum(dim=1).flip(1)  # by those that have not
    met = (stopped + moving * times >= gap.abs()[:, None]).to(torch.int8)
    first = met.argmax(dim=1, keepdim=True)
    when = (gap.abs()[:, None] - stopped.gather(1, first)) / moving.gather(1, first).clamp_min(tiny)
    when = torch.where(met.any(dim=1, keepdim=True), when.clamp_min(0), times[:, -1:])
    return heading * torch.minimum(when * speed, room)


def distance(d: Tensor, norm: str) -> Tensor:
    """Lengths (B,) of rows (B, D)."""
    return d.abs().amax(dim=1) if norm == "linf" else d.norm(dim=1)


def targeted(classes: int, targets: int, steps: int) -> list[Search]:
    """One search a target class."""
    return [FAB(f"fab-t {rank}", rank, steps) for rank in range(1, min(targets, classes - 1) + 1)]


def fab_t(
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
    """Targeted FAB (1907.02044) for the min(targets, K − 1) likeliest wrong classes, stopping inside the ball."""
    searches = targeted(classes_of(model, x), targets, steps)
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)
