"""Projected gradient ascent on the image, and the named attacks that are one call of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from robustkt import losses
from robustkt.attacks._rolling import keep
from robustkt.catalog import unknown
from robustkt.core import Model, ThreatModel, attacking
from robustkt.errors import RobustKTError, UsageError

__all__ = ["clean", "cw", "fgsm", "pgd", "pgd_sat", "pgd_trades"]

Loss = Callable[[Tensor], Tensor]  # logits (B, K) -> (B,)

TRADES_STEP = Fraction("0.003") / Fraction(8, 255)  # the step of the TRADES evaluation, as a share of eps
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": losses.ce, "margin": losses.margin, "dlr": losses.dlr}


def value_and_grad(model: Model, x: Tensor, loss: Loss, draws: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (B,) at `x`, its gradient (B, C, H, W) and the logits (B, K), each the mean over `draws` passes.

    More than one pass is for networks that draw random numbers (EoT, 1707.07397).

    Raises:
        RobustKTError: no gradient reaches the images.
    """
    at = x.detach().requires_grad_(True)
    sums: list[Tensor] = []
    for _ in range(draws):
        with torch.enable_grad():
            logits = model(at)
            value = loss(logits)
            if not value.requires_grad:
                raise RobustKTError(
                    "the network has no gradient with respect to its images, so gradient attacks say nothing",
                    "Attack a differentiable network, or use --attack clean,square, which need no gradient.",
                )
            (grad,) = torch.autograd.grad(value.sum(), at)
        found = [value.detach(), grad, logits.detach()]
        sums = found if not sums else [a + b for a, b in zip(sums, found, strict=True)]
    value, grad, logits = (total / draws for total in sums) if draws > 1 else sums
    return value, grad, logits


def ascend(
    model: Model,
    x: Tensor,
    threat: ThreatModel,
    loss: Loss,
    *,
    steps: int,
    step_size: Fraction,
    start: Tensor,
    wrong: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Projected gradient ascent (PGD, 1706.06083): repeat x' ← Π(x' + step_size · steepest(∇ loss(model(x')))).

    Args:
        model: images (B, C, H, W) to logits (B, K); attacked in eval mode and left as it was.
        x: clean images (B, C, H, W) in [0, 1].
        threat: the ball that every iterate stays in.
        loss: logits (B, K) to a loss a row (B,), to be raised.
        steps: number of gradient steps.
        step_size: length of a step in the threat's norm, in [0, 1] pixel units.
        start: the first iterate (B, C, H, W); it is projected first.
        wrong: logits (B, K) to (B,) bool; a row that was wrong at some iterate returns its last wrong one. Without
            it, which is what training wants, and where no iterate is wrong, the last iterate returns.

    Returns:
        Images (B, C, H, W), without gradient.

    Raises:
        RobustKTError: no gradient reaches the images.
    """
    with attacking(model):
        x_adv = threat.project(start.detach(), x)
        found, broken = x_adv, torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(steps):
            _, grad, logits = value_and_grad(model, x_adv, loss)
            if wrong is not None:
                fell = wrong(logits)
                found, broken = keep(fell, x_adv, found), broken | fell
            x_adv = threat.project(x_adv + float(step_size) * threat.steepest(grad), x)
        if wrong is not None:
            with torch.no_grad():
                last = wrong(model(x_adv))
            x_adv = keep(broken & ~last, found, x_adv)
    return x_adv


def ascend_friendly(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    loss: Loss,
    *,
    steps: int,
    step_size: Fraction,
    start: Tensor,
    extra: int,
    own: Callable[[Tensor], Tensor],
) -> Tensor:
    """Ascent that stops early (PGD-K-τ of friendly adversarial training, 2002.11242, algorithm 1), each row by itself.

    Before each step a row that is misclassified where it stands spends one of its τ = `extra` steps; when none is left
    it stays where it is and leaves the batch. A row that is classified rightly takes its step and spends nothing.

    Args:
        model: as in `ascend`.
        x: clean images (B, C, H, W) in [0, 1].
        y: labels (B,), which tell what is misclassified.
        threat: the ball.
        loss: logits (B, K) of the whole batch to a loss a row (B,); rows that have left are zeros there.
        steps: most gradient steps, K.
        step_size: in [0, 1] pixel units.
        start: the first iterate (B, C, H, W).
        extra: τ, steps that a row may take from places where it is misclassified.
        own: of what the model gives, the logits (B, K) that classify.
    """
    rows, left = torch.arange(len(x), device=x.device), torch.full((len(x),), extra, device=x.device)

    def whole(at: Tensor) -> Tensor:
        logits = model(at)
        return logits.new_zeros(len(x), logits.shape[1]).index_copy(0, rows, logits)

    with attacking(model):
        x_adv = threat.project(start.detach(), x)
        for _ in range(steps):
            _, grad, logits = value_and_grad(whole, x_adv[rows], loss)
            left[rows] -= misclassified(own(logits[rows]), y[rows]).long()
            going = left[rows] >= 0
            rows, grad = rows[going], grad[going]
            if not len(rows):
                break
            moved = x_adv[rows] + float(step_size) * threat.steepest(grad)
            x_adv[rows] = threat.project(moved, x[rows])
    return x_adv


def clean(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """No attack: the images as they are."""
    return x


def fgsm(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """FGSM (1412.6572): one step of length eps from the clean image on the cross-entropy."""
    return ascend(model, x, threat, lambda z: losses.ce(z, y), steps=1, step_size=threat.eps, start=x)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    rng: torch.Generator,
    loss: str = "ce",
    steps: int = 20,
    step_size: Fraction | None = None,
    restarts: int = 1,
) -> Tensor:
    """PGD (1706.06083) from uniform starts: the last wrong iterate of any restart, else one of highest loss.

    Args:
        model: the network; left as it was.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: the ball.
        rng: of the starts.
        loss: ce, margin (CW), dlr (K ≥ 3) or kl (from the clean prediction).
        steps: gradient steps a restart.
        step_size: in [0, 1] pixel units; eps/4 by default.
        restarts: further starts for the images that are still classified rightly.

    Raises:
        UsageError: an unknown loss, or one that needs more classes.
    """
    best, value = x.clone(), torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    rows = torch.arange(len(x), device=x.device)  # still classified rightly
    for _ in range(max(1, restarts)):
        start = threat.random_start(x, rng)[rows]  # drawn for all: a row's does not depend on which others have fallen
        some, label = x[rows], y[rows]
        raised = _loss(model, some, label, loss)
        x_adv = ascend(
            model, some, threat, raised, steps=steps, step_size=step_size or threat.eps / 4, start=start,
            wrong=functools.partial(misclassified, y=label),
        )  # fmt: skip
        if restarts <= 1:
            return x_adv
        with attacking(model), torch.no_grad():
            logits = model(x_adv)
            fell, reached = misclassified(logits, label), raised(logits).to(value.dtype)
        best[rows] = keep(fell | (reached > value[rows]), x_adv, best[rows])
        value[rows] = torch.maximum(reached, value[rows])
        rows = rows[~fell]
        if not len(rows):
            break
    return best


def pgd_sat(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """PGD_SAT (1706.06083): 20 steps of eps/4 (2/255 at eps 8/255) on the cross-entropy from a uniform start."""
    return pgd(model, x, y, threat, rng=rng)


def pgd_trades(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """PGD_TRADES (1901.08573): 20 steps of 0.003 at eps 8/255, in proportion at others, CE, from a uniform start."""
    return pgd(model, x, y, threat, rng=rng, step_size=threat.eps * TRADES_STEP)


def cw(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, *, rng: torch.Generator) -> Tensor:
    """CW∞ as the field reports it: PGD on the margin loss of 1608.04644, 30 steps of eps/4 from a uniform start."""
    return pgd(model, x, y, threat, rng=rng, loss="margin", steps=30)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: which rows of logits (B, K) have another class than `y` (B,) highest, or one that is no number."""
    return (logits.argmax(dim=1) != y) | logits.isnan().any(dim=1)


def _loss(model: Model, x: Tensor, y: Tensor, name: str) -> Loss:
    if name == "kl":
        with attacking(model), torch.no_grad():
            target = model(x)
        return lambda z: losses.kl(target, z)
    if name not in LOSSES:
        raise unknown("loss", name, [*LOSSES, "kl"])

    def raised(z: Tensor) -> Tensor:
        if name == "dlr" and z.shape[1] < 3:
            raise UsageError("the DLR loss needs 3 classes", "Use loss=margin.")
        return LOSSES[name](z, y)

    return raised
