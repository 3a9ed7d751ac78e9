"""Families whose members are named by their size."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from robustkt.errors import UsageError

SIZE = re.compile(r"([a-z]+)([1-9]\d{0,2})_([1-9]\d{0,2})")


def wide(name: str, family: str, make: Callable[..., nn.Module]) -> Callable[..., nn.Module] | None:
    """`make(depth, width, …)` of the wide ResNet `FAMILY{depth}_{width}`; None for a name of another form.

    Raises:
        UsageError: a depth that is not 6n + 4.
    """
    match = SIZE.fullmatch(name)
    if match is None or match[1] != family:
        return None
    depth, width = int(match[2]), int(match[3])
    n, rest = divmod(depth - 4, 6)
    if n < 1 or rest:
        near = sorted({4 + 6 * max(1, n), 4 + 6 * max(1, n + 1)})
        raise UsageError(
            f"{name}: the depth of a wide ResNet is 6n + 4, not {depth}",
            "Take " + " or ".join(f"{family}{d}_{width}" for d in near) + ".",
        )
    return partial(make, depth, width)
