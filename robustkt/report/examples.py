"""Images as a page shows them; they are made where the data and the network are."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from robustkt.report.figure import percent


@dataclass(frozen=True)
class Picture:
    """A test image, or what was made of it."""

    png: bytes
    alt: str
    caption: str

    @property
    def address(self) -> str:
        """The image itself as an address, so that nothing is fetched."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Votes:
    """Noisy copies of one image and what the network says of each."""

    original: Picture
    copies: Sequence[Picture]
    counts: Sequence[tuple[str, int]]  # the classes that were named, the most votes first
    sigma: str
    drawn: int

    @property
    def shares(self) -> list[tuple[str, str, str]]:
        """Class, votes and share, as text."""
        return [(label, f"{count:,}", percent(count / self.drawn)) for label, count in self.counts]


@dataclass(frozen=True)
class Fooled:
    """An adversarial example with its perturbation."""

    original: Picture
    perturbation: Picture
    adversarial: Picture
    attack: str
    norm: str
    eps: str
    factor: str  # by which the perturbation is magnified


@dataclass(frozen=True)
class Examples:
    """What one generation does with some test images."""

    generation: str
    certified: Sequence[Picture]
    votes: Votes | None
    fooled: Fooled | None
    notes: Sequence[str] = ()
