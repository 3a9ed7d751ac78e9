"""What can be wrong with a certification log: its rows, its radii on the lattice, its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from robustkt.certificates import GRID, lower_bound, round_down
from robustkt.certificates.cohen import randomised_lower_bound
from robustkt.certlog import RANDOMISED
from robustkt.foreignlog import INTEGER, NUMBER, Line, Log
from robustkt.lattice import ALPHAS, Fit, Radii, bounds, places

COUNTS = ("nA", "n", "p_low")  # our columns behind each radius; `drawn` came later
ROUNDING = 1e-10  # relative; another library's Φ⁻¹ may differ in the last bits
HALF = 0.5 / GRID
MOST = 10**9  # draws of an image
LISTED = 100_000  # missing images that are counted


@dataclass(frozen=True)
class Problem:
    """Something wrong, with the images it concerns."""

    kind: str
    rows: tuple[int | str, ...]  # idx of images; of an unreadable line, as printed
    text: str


@dataclass(frozen=True)
class Count:
    """The count behind one radius."""

    line: Line
    successes: int
    trials: int
    p_low: float
    unit: float  # the last printed place of p_low
    drawn: int
    u: float | None = None  # of a randomised bound


def rows(log: Log) -> Iterator[Problem]:
    """Lines that cannot be read, images twice or missing, and columns that contradict each other."""
    if log.faults:
        first = log.faults[0]
        yield Problem(
            "unreadable", tuple(f.idx for f in log.faults), f"lines without a meaning; line {first.number}: {first.why}"
        )
    yield from _images(log)
    wrong = tuple(x.idx for x in log.lines if x.correct != (x.label == x.predict) and x.predict != -1)
    if wrong:
        yield Problem("correct", wrong, "`correct` is not what label and predict say")
    wrong = tuple(x.idx for x in log.lines if x.predict == -1 and x.correct)
    if wrong:
        yield Problem("abstained-correct", wrong, "abstained, yet counted as correct")
    wrong = tuple(x.idx for x in log.lines if x.predict == -1 and x.radius > 0)
    if wrong:
        yield Problem("abstained-radius", wrong, "abstained, yet with a radius")
    wrong = tuple(x.idx for x in log.lines if x.predict < -1 or x.label < 0)
    if wrong:
        yield Problem("class", wrong, "classes below 0, and not −1 for abstaining")


def _images(log: Log) -> Iterator[Problem]:
    times = Counter([line.idx for line in log.lines] + [int(f.idx) for f in log.faults if INTEGER.fullmatch(f.idx)])
    twice = tuple(idx for idx, count in times.items() if count > 1)
    if twice:
        yield Problem("duplicate", twice, "images that stand there more than once")
    order = np.array(sorted(times))
    if len(order) < 3:
        return
    step = int(Counter(np.diff(order).tolist()).most_common(1)[0][0])
    start = int(Counter((order % step).tolist()).most_common(1)[0][0])
    odd = tuple(order[order % step != start].tolist())
    if odd:
        yield Problem("irregular", odd, f"images that are not at the log's step of {step}")
    order = order[order % step == start]
    gaps = [(int(order[i]), int(order[i + 1])) for i in np.flatnonzero(np.diff(order) > step)]
    missing = tuple(islice((idx for low, high in gaps for idx in range(low + step, high, step)), LISTED))
    if missing:
        yield Problem("missing", missing, f"images missing from every {step}-th: were they left out on purpose?")


def radii(log: Log, found: Radii, fits: Sequence[Fit]) -> Iterator[Problem]:
    """Radii that no count gives, under every (n, α) that fits the log as well as the best."""
    best = fits[0]
    place = {value: i for i, value in enumerate(found.values.tolist())}
    at = [(line.idx, place[line.radius]) for line in log.lines if line.radius > 0]
    above, off, up = (np.logical_and.reduce([getattr(f, name) for f in fits]) for name in ("above", "off", "up"))
    off = np.logical_and.reduce([f.off | f.above for f in fits]) & ~above
    which = f"n = {best.n:,} at α = {best.alpha:g}"
    if above.any():
        top = max(f.largest for f in fits)
        text = f"radii above {top:.6g}, the largest possible" + (f" with {which}" if len(fits) == 1 else "")
        text += "; or --sigma is not theirs"
        yield Problem("too-large", tuple(idx for idx, i in at if above[i]), text)
    if off.any():
        text = f"radii that no count gives with {which}"
        yield Problem("off-lattice", tuple(idx for idx, i in at if off[i]), text)
    if up.any():
        idx, i = next((idx, i) for idx, i in at if up[i])
        text = (
            f"radii rounded up: every count that prints so certifies less, such as {found.values[i]:g} of image {idx}"
        )
        yield Problem("rounded-up", tuple(idx for idx, i in at if up[i]), text)


def counts(log: Log) -> tuple[list[Count], list[Problem]] | None:
    """The counts of our columns and the images whose are no counts; None for a log without them."""
    columns = [log.column(name) for name in COUNTS]
    if any(column is None for column in columns):
        return None
    drawn = log.column("drawn") or columns[1]
    uniform = log.column(RANDOMISED) or [""] * len(log.lines)
    good: list[Count] = []
    bad: list[int] = []
    for line, *fields in zip(log.lines, *columns, drawn, uniform, strict=True):  # type: ignore[arg-type]
        successes, trials, p_low, spent, u = fields
        if all(INTEGER.fullmatch(f) for f in (successes, trials, spent)) and NUMBER.fullmatch(p_low) and _share(u):
            unit = 10.0 ** -places(p_low)[0]
            number = float(u) if u else None
            good.append(Count(line, int(successes), int(trials), float(p_low), unit, int(spent), number))
        else:
            bad.append(line.idx)
    problems = [Problem("unreadable", tuple(bad), "columns nA, n, p_low or drawn without a number")] if bad else []
    strange = {
        c.line.idx for c in good if not (0 <= c.successes <= c.trials and 0 < c.trials <= MOST and 0 <= c.p_low <= 1)
    }
    if strange:
        problems.append(
            Problem("counts", tuple(strange), "more successes than draws, no draws or too many, no probability")
        )
    few = tuple(c.line.idx for c in good if c.drawn < c.trials)
    if few:
        problems.append(Problem("drawn", few, "fewer copies drawn than counted"))
    return [c for c in good if c.line.idx not in strange], problems


def _share(text: str) -> bool:
    """Whether the uniform number of a row is there not at all, or from (0, 1]."""
    return not text or (NUMBER.fullmatch(text) is not None and 0 < float(text) <= 1)


def level(found: Sequence[Count], alphas: Sequence[float]) -> float | None:
    """The α at which p_low is the Clopper–Pearson bound of most of the counts, if of more than half."""
    agreeing = {alpha: int(_bounded(found, alpha).sum()) for alpha in (*alphas, *ALPHAS)}
    best = max(agreeing, key=lambda alpha: agreeing[alpha])
    return best if agreeing[best] > len(found) / 2 else None


def _bounded(found: Sequence[Count], alpha: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    p, unit = (np.array([getattr(c, f) for c in found], float) for f in ("p_low", "unit"))
    exact = _exact(found, alpha)
    agree: np.ndarray[tuple[int], np.dtype[np.bool_]] = (p <= exact + 1e-12) & (p >= exact - unit - 1e-12)
    return agree


def _exact(found: Sequence[Count], alpha: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The bound of each count, randomised where it has a uniform number."""
    if found and found[0].u is not None:
        return np.array([randomised_lower_bound(c.successes, c.trials, alpha, c.u or 1.0) for c in found])
    k, n = (np.array([getattr(c, f) for c in found], float) for f in ("successes", "trials"))
    return bounds(k, n, alpha)


def rederived(
    found: Sequence[Count], reach: Callable[[float], float] | None, alpha: float | None, counted: bool
) -> Iterator[Problem]:
    """p_low from the counts where `counted`, and the radius from p_low by `reach`, if known; abstention below ½."""
    if counted and alpha is not None and found:
        agree = _bounded(found, alpha)
        wrong = [c for c, good in zip(found, agree, strict=True) if not good]
        if wrong:
            c = wrong[0]
            text = (
                f"p_low is not the bound of the counts at α = {alpha:g}: image {c.line.idx} says {c.p_low:.9f}, "
                f"{c.successes:,} of {c.trials:,} give {lower_bound(c.successes, c.trials, alpha):.9f}"
            )
            yield Problem("p-low", tuple(c.line.idx for c in wrong), text)
    different = []
    spans = _probabilities(found, alpha if counted else None) if reach is not None else []
    for c, (low, high) in zip(found, spans, strict=reach is not None):
        # one step of the grid apart where another library's Φ⁻¹ falls on the other side of it
        assert reach is not None
        least, most = (
            round_down(reach(p) * e) if p > 0.5 else 0.0 for p, e in ((low, 1 - ROUNDING), (high, 1 + ROUNDING))
        )
        coarser = max(0.0, 10.0 ** -places(c.line.printed)[0] - 1 / GRID)
        if c.line.predict != -1 and not least - coarser < c.line.radius + HALF < most + 2 * HALF:
            different.append((c, most))
    if different:
        c, right = different[0]
        text = f"radii that do not follow from the counts: image {c.line.idx} says {c.line.printed}, it is {right:.6f}"
        yield Problem("radius", tuple(c.line.idx for c, _ in different), text)
    wrong_way = tuple(
        c.line.idx for c in found if (c.line.predict == -1) != (c.p_low < 0.5) and abs(c.p_low - 0.5) > 1e-8
    )
    if wrong_way:
        yield Problem("abstention", wrong_way, "abstained with p_low of ½ or more, or answered with less")


def _probabilities(found: Sequence[Count], alpha: float | None) -> list[tuple[float, float]]:
    """Between which values p_low lies before it was printed; exactly, from the counts, where α is given."""
    low = np.array([c.p_low for c in found])
    high = low + np.array([c.unit for c in found])
    if alpha is not None:
        low = high = _exact(found, alpha)
    below_one = np.nextafter(1.0, 0.0)  # at 1 the radius is infinite
    return list(zip(np.minimum(low, below_one).tolist(), np.minimum(high, below_one).tolist(), strict=True))


def claims(said: Mapping[str, float], seen: Mapping[str, Sequence[float]]) -> Iterator[Problem]:
    """Where what is said of the log (n, alpha) is none of what its rows show."""
    for name, value in said.items():
        shown = seen.get(name) or ()
        if shown and value not in shown:
            sign = {"alpha": "α", "sigma": "σ"}.get(name, name)
            text = f"{sign} = {value:,g} is claimed; the log was made with {' or '.join(f'{x:,g}' for x in shown)}"
            yield Problem("claim", (), text)
