"""Networks mixed from others: weights averaged, BatchNorm estimated again, a mixture chosen by its figures.

Model soups, arXiv:2203.05482; adversarial model soups, arXiv:2210.04886.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkt.core import generator
from robustkt.data import Split, to_float
from robustkt.errors import RobustKTError

BATCH = 128
MOST = 10_000  # images that statistics are taken from
View = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


def reestimate(network: nn.Module, images: Split, *, views: View, seed: int, device: torch.device) -> int:
    """Take BatchNorm's statistics anew from training images, in place: the mean over batches of 128.

    Averaged weights give other activations than those that the averaged statistics describe (arXiv:2203.05482).

    Args:
        network: on `device`; left in eval mode.
        images: training images, of which at most 10,000 from all over are used, in whole batches.
        views: what the network sees of images and labels: attacked, noisy, or as they are. All are made before the
            first statistic changes.
        seed: of every random number.
        device: where the network is.

    Returns:
        The images used; 0 where there is no BatchNorm that keeps statistics.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    step = -(-len(images) // MOST)
    x, y = images.x[::step], images.y[::step]
    used = len(x) // BATCH * BATCH or len(x)
    rng = generator(device, seed, "soup")
    network.eval()
    seen = [
        views(network, to_float(x[start : start + BATCH].to(device)), y[start : start + BATCH].to(device), rng).cpu()
        for start in range(0, used, BATCH)
    ]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()  # and nothing else: dropout stays off
    with torch.no_grad():
        for batch in seen:
            network(batch.to(device))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()
    return used


def chosen(points: Sequence[Mapping[str, Any]], figure: str, *, min_clean: float | None = None) -> Mapping[str, Any]:
    """The point whose `figure` is highest, the smaller β of equals, of those with at least the clean accuracy.

    Raises:
        RobustKTError: none is accurate enough.
    """
    enough = [point for point in points if min_clean is None or point["clean_accuracy"] >= min_clean]
    if not enough:
        best = max(point["clean_accuracy"] for point in points)
        raise RobustKTError(
            f"no mixture has a clean accuracy of {min_clean:.1%}; the highest is {best:.1%}",
            "Give a lower --min-clean.",
        )
    return max(enough, key=lambda point: (point[figure], -point["beta"]))
