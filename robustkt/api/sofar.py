"""What a certification that runs has found so far: counted image by image, told when somebody looks."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

from robustkt.certlog import Row
from robustkt.numbers import exact, wilson

SHOWN = 4  # radii that are told while it runs; the result has all
LEAST = 0.005  # a saving that is worth telling


class SoFar:
    """Figures of the images that are done; adding one costs some comparisons, whatever their number."""

    def __init__(
        self,
        radii: Sequence[Fraction],
        wanted: int,
        per_image: int,
        known: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of `wanted` images at the first of `radii`, against `per_image` copies of each.

        Args:
            radii: those that were asked for.
            wanted: how many images there will be.
            per_image: copies that the fixed procedure draws: n0 + n.
            known: images that an earlier run has begun, which say nothing of this one's speed.
            clock: seconds.
        """
        self.right = dict.fromkeys(radii[:SHOWN], 0)
        self.wanted, self.per_image, self.known, self.clock = wanted, per_image, known, clock
        self.done = self.abstained = self.drawn = 0
        self.began = clock()

    def add(self, row: Row) -> None:
        """One further image."""
        self.done += 1
        self.abstained += row.predict == -1
        self.drawn += row.drawn
        if row.correct:
            for radius in self.right:
                self.right[radius] += row.radius_reaches(radius)
        if self.done == self.known:
            self.began = self.clock()

    @property
    def saved(self) -> float:
        """The share of the fixed procedure's copies that these images did without."""
        return 1 - self.drawn / (self.done * self.per_image)

    @property
    def rate(self) -> float | None:
        """Images a second of this run; None before it has done one."""
        fresh, seconds = self.done - self.known, self.clock() - self.began
        return fresh / seconds if fresh > 0 and seconds > 0 else None

    def certified(self) -> list[str]:
        """`certified at 0.25  84.7%  [80.6%, 88.1%]` for each radius, with the 95 % interval over the images so far."""
        room = max((len(exact(radius)) for radius in self.right), default=0)
        told = []
        for radius, right in self.right.items():
            low, high = wilson(right, self.done)
            told.append(f"certified at {exact(radius):<{room}}  {right / self.done:6.1%}  [{low:.1%}, {high:.1%}]")
        return told

    def copies(self) -> str:
        """`39,976 copies, 65% fewer than 2,100 an image`: the saving against the fixed procedure on the same images."""
        fewer = f", {self.saved:.0%} fewer than {self.per_image:,} an image" if self.saved >= LEAST else ""
        return f"{self.drawn:,} copies{fewer}"

    def shown(self) -> str:
        """Under a bar, which tells the time that is left: lines on images and copies, then one a radius."""
        rate = self.rate
        speed = "" if rate is None else f", {_speed(rate)}"
        images = f"{self.done:,} of {self.wanted:,} images{speed}, abstained {self.abstained / self.done:.1%}"
        return "\n".join([images, self.copies(), *self.certified()])

    def line(self) -> str:
        """The same in one line, with the time that is left."""
        rate = self.rate
        left = "" if rate is None else f", {_speed(rate)}, ETA {_clock((self.wanted - self.done) / rate)}"
        certified = ", ".join(" ".join(told.split()) for told in self.certified())
        return (
            f"{self.done:,} of {self.wanted:,} images{left}: {certified}, "
            f"abstained {self.abstained / self.done:.1%}, {self.copies()}"
        )


def _speed(rate: float) -> str:
    """`16.6 images/s`; of a slow network two digits."""
    return f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"


def _clock(seconds: float) -> str:
    """`0:03:20`, as a bar has it."""
    return str(datetime.timedelta(seconds=round(seconds)))
