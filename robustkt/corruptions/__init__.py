"""Common corruptions of images at five severities, a file a family; names and severities are read here, without torch.

Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, arXiv:1903.12261, with the numbers of
its CIFAR-10-C. A corruption is a function of one image (C, H, W) in [0, 1], its severity and a generator of random
numbers; what leaves [0, 1] is cut, and the result is rounded to 8 bits, where the published images are cut off to them.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustkt.catalog import CORRUPTIONS, plain, unknown
from robustkt.errors import UsageError
from robustkt.numbers import canonical, digest

__all__ = ["ALGORITHM", "SEED", "SEVERITIES", "Corruption", "fingerprint", "one", "parse"]

ALGORITHM = 1  # counted up when the same name, severity and seed come to mean other images
SEED = 0  # of the random numbers: a corrupted data set is a data set, the same one for everybody
SEVERITIES = (1, 2, 3, 4, 5)
ALL = "all"
SPELLING = "Write NAME:SEVERITY, such as gaussian-noise:3; NAME for its five severities; or all."


@dataclass(frozen=True)
class Corruption:
    """A corruption at one severity; its text is `gaussian-noise:3`."""

    name: str
    severity: int

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"


def parse(text: str) -> list[Corruption]:
    """What `--corruption` names: `NAME:SEVERITY`, `NAME` (five severities), `all`, or several with commas between.

    Raises:
        UsageError: no such corruption or severity.
    """
    found: dict[Corruption, None] = {}
    for item in text.split(","):
        name, colon, severity = item.strip().partition(":")
        if plain(name) == ALL:
            names = CORRUPTIONS.names()
        elif CORRUPTIONS.has(name):
            names = [CORRUPTIONS.spelled(name)]
        else:
            error = unknown("corruption", name, [*CORRUPTIONS.names(), ALL])
            raise UsageError(error.what, f"{error.fix} {SPELLING}")
        if colon and severity not in map(str, SEVERITIES):
            raise UsageError(f"a severity is 1, 2, 3, 4 or 5, not '{severity[:20]}'", SPELLING)
        chosen = [int(severity)] if colon else SEVERITIES
        found |= {Corruption(name, level): None for name in names for level in chosen}
    return list(found)


def one(text: str) -> Corruption:
    """The one corruption at one severity that `text` names.

    Raises:
        UsageError: no such corruption or severity, or several of them.
    """
    found = parse(text)
    if len(found) > 1:
        raise UsageError(
            f"'{text}' is {len(found)} corruptions; this takes one at one severity", f"For instance {found[0]}."
        )
    return found[0]


def fingerprint(clean: str, corruption: Corruption) -> str:
    """What pins the corrupted data, from the fingerprint of the clean: no result of one is taken for the other's."""
    return digest(canonical([clean, str(corruption), SEED, ALGORITHM]))
