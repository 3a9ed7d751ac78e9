"""Accuracy: clean, under noise, under attack; and signs that an attack was fooled rather than resisted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from robustkt.attacks import ascend
from robustkt.catalog import ATTACKS
from robustkt.core import Attack, ThreatModel, attacking, gaussian, generator
from robustkt.data import Split, to_float
from robustkt.losses import ce

BATCH = 250  # images at a time; the noise of a batch is keyed by its first image, so this is part of the result
MASKING_IMAGES = 100


@dataclass(frozen=True)
class Attacked:
    """What an attack left of a network's accuracy."""

    name: str
    right: Tensor  # (N,), bool
    accuracy: float


def noisy_accuracy(model: nn.Module, split: Split, sigma: Fraction, *, draws: int, device: torch.device) -> float:
    """Mean accuracy of the base classifier over `draws` noisy copies of each image, the same noise at every call."""
    return _accuracy(
        model, split, device, lambda x, y, rng: x + gaussian(x, sigma, rng), key="held-out noise", repeats=draws
    )


def robust_accuracy(model: nn.Module, split: Split, threat: ThreatModel, *, steps: int, device: torch.device) -> float:
    """Accuracy under a short PGD of steps of eps/4 from a uniform start, the same at every call."""

    def view(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
        start = threat.random_start(x, rng)
        return ascend(model, x, threat, lambda z: ce(z, y), steps=steps, step_size=threat.eps / 4, start=start)

    return _accuracy(model, split, device, view, key="held-out attack")


def clean_accuracy(model: nn.Module, split: Split, *, device: torch.device) -> float:
    """Accuracy on the images as they are."""
    return _accuracy(model, split, device, lambda x, y, rng: x, key="clean")


def _accuracy(
    model: nn.Module,
    split: Split,
    device: torch.device,
    view: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    *,
    key: str,
    repeats: int = 1,
) -> float:
    right = [_right(model, split, device, view, seed=repeat, key=key) for repeat in range(repeats)]
    return float(torch.cat(right).double().mean())


def _right(
    model: nn.Module,
    split: Split,
    device: torch.device,
    view: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    *,
    seed: int,
    key: str,
    advance: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """(N,) bool: which images of `split` are classified rightly in the given view of them."""
    right = []
    for start in range(0, len(split), BATCH):
        x = to_float(split.x[start : start + BATCH].to(device))
        y = split.y[start : start + BATCH].to(device)
        x = view(x, y, generator(device, seed, key, start))
        with attacking(model), torch.no_grad():
            right.append((model(x).argmax(dim=1) == y).cpu())
        advance(len(x))
    return torch.cat(right)


def attacked(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    attacks: Sequence[str],
    *,
    seed: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Attacked]:
    """Every named attack on every image of `split` (N images); the same seed gives the same attacks."""
    results = []
    for name in attacks:
        run: Attack = ATTACKS.get(name)

        def view(x: Tensor, y: Tensor, rng: torch.Generator, run: Attack = run) -> Tensor:
            return run(model, x, y, threat, rng=rng)

        right = _right(model, split, device, view, seed=seed, key=name, advance=advance)
        results.append(Attacked(name, right, float(right.double().mean())))
    return results


def masking_warnings(model: nn.Module, split: Split, results: Sequence[Attacked], *, device: torch.device) -> list[str]:
    """Signs that the gradient misleads the attacks, so that the accuracies flatter the network (1802.00420)."""
    count = min(len(split), MASKING_IMAGES)
    chosen = torch.arange(count) * len(split) // count  # from all over a set that may be sorted
    some = Split(split.x[chosen], split.y[chosen])
    x, y = to_float(some.x.to(device)), some.y.to(device)
    found = []
    first, second = _logits(model, x), _logits(model, x)
    if not torch.equal(first, second):
        found.append(
            "the output is randomised: gradients of one draw say little; a smoothed classifier has certificates"
        )
    if bool((first >= 0).all()) and torch.allclose(first.sum(dim=1), torch.ones(len(x), device=device), atol=1e-4):
        found.append("the network returns probabilities, not logits: its gradients vanish where it is sure")
    zero = _zero_gradients(model, x, y)
    if zero > 0.01:
        found.append(f"the gradient at the image is exactly zero for {zero:.0%} of the images")
    half = ThreatModel("linf", Fraction(1, 2))
    left = attacked(model, some, half, ["pgd-sat"], seed=0, device=device)
    if left[0].accuracy > float(y.bincount().max()) / len(y) + 0.1:
        found.append(f"{left[0].accuracy:.0%} survive PGD at linf 0.5, where any image can be made uniform grey")
    accuracy = {result.name: result.accuracy for result in results}
    if accuracy.get("pgd-sat", 0.0) > accuracy.get("fgsm", 1.0) + 0.002:
        found.append("20 steps of PGD do less than one step of FGSM")
    return found


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with attacking(model), torch.no_grad():
        logits: Tensor = model(x)
    return logits


def _zero_gradients(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images at which the cross-entropy has no gradient at all."""
    with attacking(model), torch.enable_grad():
        x = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    return float((grad.flatten(1).abs().amax(dim=1) == 0).double().mean())
