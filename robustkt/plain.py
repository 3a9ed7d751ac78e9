"""Training steps as the scripts of the field write them: fp32, one layout, nothing shared; what ours are timed against.

Written anew from how those scripts go, not copied; each takes images (B, C, H, W) in [0, 1] and labels (B,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def _update(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _moved(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float) -> Tensor:
    x_adv = x_adv.detach() + eps / 4 * grad.sign()
    return torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)


def gaussian(student: nn.Module, x: Tensor, y: Tensor, optimizer: Optimizer, *, sigma: float) -> None:
    """Gaussian augmentation, as in the script of 1902.02918; σ = 0 is plain training."""
    student.train()
    noisy = x + sigma * torch.randn_like(x) if sigma else x
    _update(optimizer, F.cross_entropy(student(noisy), y))


def crt(student: nn.Module, teacher: nn.Module, x: Tensor, optimizer: Optimizer, *, sigma: float) -> None:
    """CRT (2210.14283): the teacher is asked anew for every noisy batch."""
    student.train()
    noisy = x + sigma * torch.randn_like(x)
    with torch.no_grad():
        target = teacher(noisy)
    _update(optimizer, (student(noisy) - target).norm(dim=1).mean())


def sat(student: nn.Module, x: Tensor, y: Tensor, optimizer: Optimizer, *, eps: float, steps: int) -> None:
    """PGD-AT (1706.06083), with gradients of the weights in the attack too."""
    student.eval()
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        F.cross_entropy(student(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = _moved(x_adv, x_adv.grad, x, eps)
    student.train()
    _update(optimizer, F.cross_entropy(student(x_adv.detach()), y))


def trades(student: nn.Module, x: Tensor, y: Tensor, optimizer: Optimizer, *, eps: float, steps: int) -> None:
    """TRADES (1901.08573), whose loop asks for the clean prediction again at every step."""
    student.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        with torch.enable_grad():
            apart = F.kl_div(F.log_softmax(student(x_adv), dim=1), F.softmax(student(x), dim=1), reduction="sum")
        (grad,) = torch.autograd.grad(apart, [x_adv])
        x_adv = _moved(x_adv, grad, x, eps)
    student.train()
    logits = student(x)
    apart = F.kl_div(F.log_softmax(student(x_adv), dim=1), F.softmax(logits, dim=1), reduction="batchmean")
    _update(optimizer, F.cross_entropy(logits, y) + 6.0 * apart)


def rslad(student: nn.Module, teacher: nn.Module, x: Tensor, optimizer: Optimizer, *, eps: float, steps: int) -> None:
    """RSLAD (2108.07969), with gradients of the weights in the attack too."""
    with torch.no_grad():
        soft = F.softmax(teacher(x), dim=1)
    student.eval()
    x_adv = x + 0.001 * torch.randn_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        F.kl_div(F.log_softmax(student(x_adv), dim=1), soft, reduction="sum").backward()
        assert x_adv.grad is not None
        x_adv = _moved(x_adv, x_adv.grad, x, eps)
    student.train()
    adversarial = F.kl_div(F.log_softmax(student(x_adv.detach()), dim=1), soft, reduction="batchmean")
    clean = F.kl_div(F.log_softmax(student(x), dim=1), soft, reduction="batchmean")
    _update(optimizer, 5 / 6 * adversarial + 1 / 6 * clean)


def smoothmix(
    student: nn.Module, x: Tensor, y: Tensor, optimizer: Optimizer, *, sigma: float, steps: int, draws: int
) -> None:
    """SmoothMix (2111.09277) of whole weight: an ascent on the mean prediction, then a mix of both ends."""
    noise = [sigma * torch.randn_like(x) for _ in range(draws)]
    student.eval()
    x_adv = x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        mean = torch.stack([F.softmax(student(x_adv + n), dim=1) for n in noise]).mean(dim=0)
        (grad,) = torch.autograd.grad(F.nll_loss(mean.log(), y, reduction="sum"), [x_adv])
        length = grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        x_adv = (x_adv.detach() + 2 * sigma * grad / length).clamp(0, 1)
    student.train()
    logits = [student(x + n) for n in noise]
    p = torch.stack([z.softmax(dim=1) for z in logits]).mean(dim=0)
    share = torch.rand(len(x), device=x.device) / 2
    x_mix = (1 - share.view(-1, 1, 1, 1)) * x + share.view(-1, 1, 1, 1) * x_adv
    y_mix = (1 - share.view(-1, 1)) * p + share.view(-1, 1) / p.shape[1]
    mixed = torch.stack([F.kl_div(F.log_softmax(student(x_mix + n), 1), y_mix, reduction="none").sum(1) for n in noise])
    right = (p.argmax(dim=1) == y).float()
    loss = torch.stack([F.cross_entropy(z, y) for z in logits]).mean() + 5.0 * (right * mixed.mean(dim=0)).mean()
    _update(optimizer, loss)
