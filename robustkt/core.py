"""The central types: what a model, a batch, a threat, an attack and an objective are. Read this first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robustkt.numbers import check_ball, exact

Model = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, K)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of forward passes; states and losses stay in fp32
Terms = Mapping[str, Tensor]  # named scalars; their sum is what is minimised


class Batch(NamedTuple):
    """What one step of training sees."""

    x: Tensor  # (B, C, H, W), float, in [0, 1]
    y: Tensor  # (B,), int64
    epoch: int  # from 0, for objectives that warm up
    rng: torch.Generator  # every random number of the step comes from here, but those of a view that is kept
    keys: Tensor | None = None  # (B,) int64, of the images in a view that is kept: its random numbers come from these
    target: Tensor | None = None  # (m·B, K), the teacher's logits on that view, where they are known already


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of the clean one in `norm`, inside the box [0, 1].

    Raises:
        UsageError: a norm other than linf and l2, or an eps that is not above 0 (and, for linf, at most 1).
    """

    norm: Literal["linf", "l2"]
    eps: Fraction  # in [0, 1] pixel units

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)

    def __str__(self) -> str:
        return f"{self.norm} {exact(self.eps)}"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x_adv` (B, C, H, W) moved to the nearest point of the ball around `x`, then clamped to [0, 1]."""
        eps = float(self.eps)
        if self.norm == "linf":
            return torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
        delta = x_adv - x
        length: Tensor = delta.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
        return (x + delta * (eps / length).clamp_max(1)).clamp(0, 1)

    def steepest(self, grad: Tensor) -> Tensor:
        """The step of length 1 in this norm that raises a loss with gradient `grad` (B, C, H, W) most."""
        return finite(grad).sign() if self.norm == "linf" else unit(grad)

    def holds(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """(B,) bool: which rows of `x_adv` are images of this threat to `x`, up to rounding; one with a NaN is none."""
        delta, eps = (x_adv - x).flatten(1), float(self.eps)
        far = delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)
        lowest, highest = x_adv.flatten(1).aminmax(dim=1)
        return (far <= eps * (1 + 1e-4) + 1e-6) & (lowest >= -1e-6) & (highest <= 1 + 1e-6)

    def random_start(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """A point drawn uniformly from the ball around `x` (B, C, H, W), clamped to [0, 1]."""
        eps = float(self.eps)
        if self.norm == "linf":
            return (x + (torch.rand(x.shape, generator=rng, device=x.device) * 2 - 1) * eps).clamp(0, 1)
        direction = unit(torch.randn(x.shape, generator=rng, device=x.device))
        length = torch.rand(len(x), generator=rng, device=x.device) ** (1 / x[0].numel())
        return (x + direction * eps * length.view(-1, *[1] * (x.dim() - 1))).clamp(0, 1)


def finite(v: Tensor) -> Tensor:
    """`v` with 0 for what is no number, which has no direction, and the largest number for what is infinite."""
    return v.nan_to_num(nan=0.0)


def unit(v: Tensor) -> Tensor:
    """`v` (B, …) with each row scaled to L2 length 1; rows of zeros stay zero, and entries that are no number too."""
    v = finite(v)
    tiny, column = torch.finfo(v.dtype).tiny, (-1, *[1] * (v.dim() - 1))
    largest = v.flatten(1).abs().amax(dim=1).clamp_min(tiny)
    scaled: Tensor = v / largest.view(column)  # first: a sure network's gradients are so small that squares vanish
    scaled = scaled / scaled.flatten(1).norm(dim=1).clamp_min(tiny).view(column)
    return scaled


class Attack(Protocol):
    """Looks for an image in the threat model that the network gets wrong."""

    def __call__(self, model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
        """Images (B, C, H, W) within `threat` of `x`; the network's mode, buffers and `.grad` stay as they were."""
        ...


V = TypeVar("V")


class Objective(Protocol[V]):
    """A training method: a frozen dataclass whose fields are its hyper-parameters; it owns its teacher."""

    def perturb(self, student: Model, batch: Batch) -> V:
        """The inner maximisation: the views of the batch that the loss is taken on.

        `student` gives logits in eval mode and gradients on images; it may be a folded copy, so none reaches a weight.
        """
        ...

    def loss(self, student: Model, batch: Batch, view: V) -> Terms:
        """The outer minimisation: scalar terms, already weighted, whose sum is the loss."""
        ...


class InPrecision(nn.Module):
    """A network whose forward pass runs in `dtype` and whose logits come out in fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to fp32 logits (B, K)."""
        with torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.module(x)
        return logits.float()


@contextmanager
def attacking(model: Model) -> Iterator[None]:
    """Eval mode and no weight gradients while an attack runs; everything as before afterwards, also when it raises."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def gaussian(x: Tensor, sigma: Fraction, rng: torch.Generator) -> Tensor:
    """Noise N(0, sigma² I) of the shape of `x`, in fp32; it is added unclipped, before the normalisation layer."""
    return torch.randn(x.shape, generator=rng, device=x.device) * float(sigma)


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A generator whose stream depends on `key` alone: the same (seed, image, chunk) gives the same noise."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key, well mixed: neighbouring keys give unrelated streams (on a CPU torch uses 32 bits)."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest(), "big") >> 1
