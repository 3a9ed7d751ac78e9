"""Images as a shifted world shows them: common corruptions as evaluation data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from robustkt.catalog import CORRUPTIONS
from robustkt.corruptions import SEVERITIES
from robustkt.data._augment import to_float
from robustkt.errors import UsageError
from robustkt.streams import philox


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, *, indices: Sequence[int] | None = None) -> Tensor:
    """Images (N, C, H, W) with a common corruption (arXiv:1903.12261), as CIFAR-10-C has them.

    An image's random numbers are keyed by (seed, name, its index): the images beside it make no difference.

    Args:
        images: uint8, or floats in [0, 1], which are rounded to 8 bits first; any size, grey or in colours.
        name: of the corruptions catalog, `gaussian-noise`, `jpeg-compression` …
        severity: 1 to 5.
        seed: of the random numbers.
        indices: of the images in their data set; 0 to N − 1 by default.

    Returns:
        New images of the same shape and type, on the CPU, with 256 levels.

    Raises:
        UsageError: no such corruption or severity, images of another kind, or as many indices as there are no images.
    """
    function, name = CORRUPTIONS.get(name), CORRUPTIONS.spelled(name)
    if severity not in SEVERITIES:
        raise UsageError(f"a severity is 1, 2, 3, 4 or 5, not {severity}", "3 is the middle.")
    if images.dim() != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise UsageError(
            f"images are (N, C, H, W), uint8 or floats, not {tuple(images.shape)} {images.dtype}",
            "Give a batch, such as Split.x of a data set.",
        )
    if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
        raise UsageError("floating-point images lie in [0, 1]", "Divide by 255, or give uint8.")
    keys = range(len(images)) if indices is None else indices
    if len(keys) != len(images):
        raise UsageError(f"there are {len(keys)} indices for {len(images)} images", "Give each image its own.")
    levels = images.cpu() if images.dtype == torch.uint8 else (images.cpu() * 255).round().to(torch.uint8)
    out = np.empty(tuple(levels.shape), np.uint8)
    for place, (image, index) in enumerate(zip(levels.numpy(), keys, strict=True)):
        rng = philox(f"{seed} {name}", int(index))
        made = function(image / np.float64(255), int(severity), rng)
        out[place] = (made.clip(0, 1) * 255).round()
    corrupted = torch.from_numpy(out)
    return corrupted if images.dtype == torch.uint8 else to_float(corrupted).to(images.dtype)
