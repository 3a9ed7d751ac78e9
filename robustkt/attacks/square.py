"""Square attack: random search with square patches, which needs the network's scores only (1912.00049)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from robustkt.attacks._rolling import Journal, Search, State, hunt, uniform
from robustkt.attacks.gradient import misclassified
from robustkt.core import Model, ThreatModel, unit
from robustkt.losses import margin

__all__ = ["square"]

BLOCK = 256  # queries whose random numbers a row draws at once
HALVINGS = (10, 50, 200, 500, 1_000, 2_000, 4_000, 6_000, 8_000)  # of 10,000 queries: after each, p is halved


@dataclass(frozen=True)
class Square:
    """Proposes patches of ever smaller size and keeps those that raise the margin.

    linf: a square of ±2 eps a channel, clipped to the ball. l2: mass is taken out of one window and put into another,
    shaped by two pyramids of opposite sign, the whole at distance eps.
    """

    queries: int = 5_000
    p: float = 0.8  # share of the image that the first patches cover
    name: str = "square"

    @property
    def steps(self) -> int:
        """The start is a query too."""
        return self.queries - 1

    def begin(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, seeds: Tensor) -> State:
        """Stripes (linf) or a tiling of pyramids (l2)."""
        start = _stripes if threat.norm == "linf" else _tiling
        at = (x + float(threat.eps) * start(x, seeds)).clamp(0, 1)
        logits = model(at)
        drawn = torch.zeros(len(x), BLOCK, 5 + x.shape[1], device=x.device)
        return {"x_adv": at, "broken": misclassified(logits, y), "value": margin(logits, y), "drawn": drawn}

    def step(self, model: Model, s: State, threat: ThreatModel) -> None:
        """One proposal a row."""
        numbers = self._numbers(s)
        propose = _squares if threat.norm == "linf" else _windows
        at = propose(s, numbers, self._share(s["age"]), threat)
        logits = model(at)
        value, wrong = margin(logits, s["y"]), misclassified(logits, s["y"])
        better = ((value > s["value"]) | wrong) & ~s["broken"]
        s["x_adv"] = torch.where(better.view(-1, 1, 1, 1), at, s["x_adv"])
        s["value"] = torch.where(better, value, s["value"])
        s["broken"] = s["broken"] | wrong

    def _share(self, age: Tensor) -> Tensor:
        """(B,): the share of the image that a patch covers after `age` queries."""
        done = (age.double() / self.queries * 10_000).long()
        bounds = torch.tensor(HALVINGS, device=age.device)
        return self.p / 2.0 ** (done[:, None] > bounds).sum(dim=1)

    @staticmethod
    def _numbers(s: State) -> Tensor:
        """(B, 5 + C) in [0, 1) for this query, from blocks that each row draws from its own seed."""
        place = s["age"] % BLOCK
        empty = (place == 0).nonzero().squeeze(1)
        if len(empty):
            shape = s["drawn"].shape[1:]
            blocks = [
                uniform(s["seed"][row : row + 1], shape, "square", int(s["age"][row]) // BLOCK)[0]
                for row in empty.tolist()
            ]
            s["drawn"][empty] = torch.stack(blocks)
        return s["drawn"][torch.arange(len(place), device=place.device), place]


def _sign(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0)


def _stripes(x: Tensor, seeds: Tensor) -> Tensor:
    """±1 (B, C, H, W), constant along columns."""
    return _sign(uniform(seeds, (x.shape[1], 1, x.shape[3]), "stripes")).to(x).expand_as(x)


def _squares(s: State, u: Tensor, share: Tensor, threat: ThreatModel) -> Tensor:
    x, at = s["x"], s["x_adv"]
    height, width = x.shape[2:]
    side = (share * height * width).sqrt().round().long().clamp(1, min(height, width))
    mask = _window(u[:, 0], u[:, 1], side, height, width)
    colour = _sign(u[:, 5:]).to(x)[:, :, None, None]
    return threat.project(at + 2 * float(threat.eps) * mask * colour, x)


def _window(u: Tensor, v: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W) bool: a square of `side` (B,) placed by u and v (B,) in [0, 1)."""
    down, across = _corner(u, side, height), _corner(v, side, width)
    rows, columns = torch.arange(height, device=u.device), torch.arange(width, device=u.device)
    inside = (rows >= down[:, None]) & (rows < (down + side)[:, None])
    beside = (columns >= across[:, None]) & (columns < (across + side)[:, None])
    return (inside[:, :, None] & beside[:, None, :])[:, None]


def _corner(u: Tensor, side: Tensor, size: int) -> Tensor:
    return (u * (size - side + 1)).long()


def _tiling(x: Tensor, seeds: Tensor) -> Tensor:
    """Directions (B, C, H, W) of length 1: pyramids of random sign, five across the shorter side."""
    _, channels, height, width = x.shape
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    signs = _sign(uniform(seeds, (channels, down, across), "tiling")).to(x)
    tile = _pyramids(side).to(x)
    tiled = torch.einsum("bcij,hw->bcihjw", signs, tile).reshape(len(x), channels, down * side, across * side)
    out = torch.zeros_like(x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    out[:, :, top : top + down * side, left : left + across * side] = tiled
    return unit(out)


def _windows(s: State, u: Tensor, share: Tensor, threat: ThreatModel) -> Tensor:
    x, delta = s["x"], s["x_adv"] - s["x"]
    _, channels, height, width = x.shape
    largest = min(height, width)
    side = (share * height * width).sqrt().round().long().clamp(min=3)
    side = (side + (side % 2 == 0)).clamp(max=largest)
    into = _window(u[:, 0], u[:, 1], side, height, width)
    out_of = _window(u[:, 2], u[:, 3], side, height, width)
    old = delta * into
    new = _placed(u, side, height, width).to(x) * _sign(u[:, 5:]).to(x)[:, :, None, None]
    new = new + old / (_plane(old) + 1e-12)
    eps = float(threat.eps)
    unused = (eps**2 - delta.flatten(1).square().sum(dim=1)).clamp_min(0) / channels
    freed = _plane(delta * (into | out_of)).square()
    mass = (unused.view(-1, 1, 1, 1) + freed).sqrt()
    new = new / (_plane(new) + 1e-12) * mass
    delta = torch.where(into, new, torch.where(out_of, 0.0, delta))
    return (x + eps * unit(delta)).clamp(0, 1)


def _plane(v: Tensor) -> Tensor:
    """L2 lengths (B, C, 1, 1) of the channels."""
    return v.square().sum(dim=(-2, -1), keepdim=True).sqrt()


def _placed(u: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """(B, 1, H, W): the two pyramids of each row's side in its first window, lying down where u₄ ≥ ½."""
    out = torch.zeros(len(u), 1, height, width, device=u.device)
    down, across = _corner(u[:, 0], side, height), _corner(u[:, 1], side, width)
    rows, columns = torch.arange(height, device=u.device), torch.arange(width, device=u.device)
    for length in side.unique().tolist():
        of = side == length
        shape = _pyramids(length).to(u.device)
        r = (rows - down[of, None]).clamp(0, length - 1)[:, :, None]
        c = (columns - across[of, None]).clamp(0, length - 1)[:, None, :]
        lying = (u[of, 4] >= 0.5).view(-1, 1, 1)
        values = torch.where(lying, shape[c, r], shape[r, c])
        out[of] = values[:, None] * _window(u[of, 0], u[of, 1], side[of], height, width)
    return out


@functools.cache
def _pyramids(side: int) -> Tensor:
    """(side, side) of length 1: a pyramid over the upper half, its negative over the lower one."""
    upper = side // 2
    out: Tensor = torch.zeros(side, side)
    if upper:
        out[:upper] = _pyramid(upper, side)
    out[upper:] = -_pyramid(side - upper, side)
    out /= out.norm()
    return out


def _pyramid(height: int, width: int) -> Tensor:
    """(height, width) of length 1: ever larger rectangles about the middle, weighted 1/k²."""
    out: Tensor = torch.zeros(height, width)
    for k in range(max(height, width) // 2 + 1):
        top, left = height // 2 - k, width // 2 - k
        out[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += 1 / (k + 1) ** 2
    out /= out.norm()
    return out


def square(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    queries: int = 5_000,
    batch_size: int = 256,
    journal: Journal | None = None,
) -> Tensor:
    """Square attack (1912.00049): no gradients; an image is done when it is broken or has had its queries."""
    searches: list[Search] = [Square(queries)]
    return hunt(model, x, y, threat, searches, rng=rng, batch_size=batch_size, journal=journal)
