"""Reading certification logs, ours and everybody's: tables from them, and what is wrong with them; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from robustkt import certlog, foreignlog, lattice, logchecks
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.foreignlog import Log
from robustkt.noises import certifies, named
from robustkt.numbers import fraction

T = TypeVar("T")

PROBABILITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)  # where the ECDF of pA is told
LONGEST = 16  # radii of a table by default
SHOWN = 10  # images named for a problem
MOST = 10**7  # draws an image; larger ones are a mistake, and their lattice would fill the memory
COUNTED = ("fixed", "adaptive", "randomised")  # modes whose p_low follows from the counts of the log


@dataclass(frozen=True)
class Facts:
    """What is known of how a log was made; None is unknown."""

    sigma: float | None
    n: int | None
    alpha: float | None
    mode: str | None
    notes: tuple[str, ...] = ()


def analyze(
    files: Sequence[Path],
    *,
    sigma: Sequence[str | float] = (),
    alpha: float | None = None,
    radii: Sequence[Fraction] | None = None,
    rho: float = 0.001,
    mixed: bool = False,
) -> dict[str, Any]:
    """Certified accuracy, ACR and abstentions of certification logs.

    n and α come from the header beside a log, its count columns, or the lattice its radii lie on.

    Args:
        files: logs with the columns `idx label predict radius correct time`, and others behind.
        sigma: of the noise, in the radii's unit: one for all logs, or one for each; the header's by default.
        alpha: of the certificates, where the logs do not tell.
        radii: where certified accuracy is reported; steps of ¼ by default.
        rho: probability that the lower bound on the true certified accuracy (1902.02918) fails.
        mixed: allow logs of different n, α or σ beside each other.

    Returns:
        logs [{file, images, acr, abstain_rate, certified_accuracy {radius: value}, intervals {radius: [low, high]},
        lower_bounds {radius: value or None}, ecdf {p: share of images whose pA bound is at most p} or None, n, alpha,
        sigma, mode}], differ [names], rho, notes.

    Raises:
        IntegrityError: a log that figures cannot be taken from.
        RobustKTError: logs of different n, α or σ, without `mixed`.
        UsageError: options that cannot mean anything.
    """
    _check(alpha, None, rho)
    if len(sigma) not in (0, 1, len(files)):
        raise UsageError(f"{len(sigma)} values of --sigma for {len(files)} logs", "Give one for all, or one for each.")
    if radii is not None and (not radii or min(radii) < 0):
        raise UsageError("--radii must be numbers from 0 up", "For instance --radii 0,0.25,0.5.")
    logs = [foreignlog.read(path) for path in files]
    for log in logs:
        foreignlog.check(log)
    given = [None if not sigma else _sigma(sigma[i if len(sigma) > 1 else 0]) for i in range(len(logs))]
    facts = [_facts(log, level, alpha) for log, level in zip(logs, given, strict=True)]
    differ = _differing(facts)
    if differ and not mixed:
        told = "; ".join(f"{name} is {' and '.join(f'{v:,g}' for v in values)}" for name, values in differ.items())
        raise RobustKTError(
            f"the logs were not made alike: {told}", "Analyze them one by one, or add --mixed to see them side by side."
        )
    grid = list(radii) if radii is not None else default_radii(logs)
    return {
        "logs": [_figures(log, fact, grid, rho) for log, fact in zip(logs, facts, strict=True)],
        "differ": list(differ),
        "rho": rho,
        "notes": [*(note for log, fact in zip(logs, facts, strict=True) for note in _notes(log, fact)), *_beside(logs)],
    }


def default_radii(logs: Sequence[Log]) -> list[Fraction]:
    """0, then steps of ¼ up to the largest radius of the logs; of ½, 1 … where that makes too many."""
    largest = Fraction(min(1e6, max(line.radius for log in logs for line in log.lines)))
    step = Fraction(1, 4)
    while largest / step >= LONGEST:
        step *= 2
    return [step * i for i in range(int(largest / step) + 1)]


def _check(alpha: float | None, n: int | None, rho: float = 0.5) -> None:
    if alpha is not None and not 0 < alpha < 0.5:
        raise UsageError(f"--alpha must lie between 0 and ½, not {alpha:g}", "The field uses 0.001.")
    if n is not None and not 1 <= n <= MOST:
        raise UsageError(f"--n must lie between 1 and {MOST:,}, not {n}", "The field uses 100000.")
    if not 0 < rho < 1:
        raise UsageError("--confidence must lie between 0 and 1", "For instance --confidence 0.999.")


def _sigma(value: str | float) -> float:
    level = float(fraction(value, "--sigma"))
    if not 1e-6 <= level <= 1e6:
        raise UsageError(f"--sigma must be positive, not {value}", "For instance --sigma 0.25.")
    return level


def _header_sigma(log: Log) -> float | None:
    return _sigma(log.header["sigma"]) if log.header.get("sigma") else None  # ablation has none


def _header_n(log: Log) -> int | None:
    n = log.figure("n")
    if n is not None and not 1 <= n <= MOST:
        raise IntegrityError(f"the header of {log.file} says n = {n:g}", f"It must lie between 1 and {MOST:,}.")
    return None if n is None else int(n)


def _header_alpha(log: Log) -> float | None:
    alpha = log.figure("alpha_image" if "alpha_image" in log.header else "alpha")  # a share of it, if simultaneous
    if alpha is not None and not 0 < alpha < 0.5:
        raise IntegrityError(f"the header of {log.file} says α = {alpha:g}", "It must lie between 0 and ½.")
    return alpha


def _mode(log: Log) -> str | None:
    mode = log.header.get("mode")
    return None if mode is None else str(mode)


def _facts(log: Log, sigma: float | None, alpha: float | None) -> Facts:
    """From the header, else the count columns, else the lattice."""
    own = _header_sigma(log)
    if sigma is not None and own is not None and sigma != own:
        raise RobustKTError(f"the header of {log.file} says σ = {own:g}, not {sigma:g}", "Leave --sigma out.")
    sigma = own if sigma is None else sigma
    n, mode = _header_n(log), _mode(log)
    alpha = _header_alpha(log) if alpha is None else alpha
    found = logchecks.counts(log)
    if found is not None and found[0]:
        trials = {c.trials for c in found[0]}
        n = n or (trials.pop() if len(trials) == 1 else None)
        return Facts(sigma, n, alpha or logchecks.level(found[0], ()), mode)
    radii = lattice.gather([line.printed for line in log.lines])
    if sigma is None or radii is None or mode not in (None, "fixed") or (n and alpha):
        return Facts(sigma, n, alpha, mode)
    fits = lattice.infer(radii, sigma, sizes=_some(n), alphas=_some(alpha), claim=(n, alpha))
    if not fits:
        return Facts(sigma, n, alpha, mode, (f"no count gives these radii at σ = {sigma:g}: check --sigma",))
    equal = lattice.equals(fits)
    seen_n, seen_alpha = _agreed([f.n for f in equal]), _agreed([f.alpha for f in equal])
    notes: tuple[str, ...] = ()
    if alpha is not None and seen_alpha not in (None, alpha):
        notes = (f"the radii fit α = {seen_alpha:g}, not {alpha:g}; `robustkt audit` tells more",)
    return Facts(sigma, n or seen_n, alpha or seen_alpha, mode, notes)


def _some(value: T | None) -> tuple[T, ...]:
    return () if value is None else (value,)


def _agreed(values: Sequence[T]) -> T | None:
    return values[0] if len(set(values)) == 1 else None


def _differing(facts: Sequence[Facts]) -> dict[str, list[float]]:
    """The names of which the logs have several values, with these."""
    values: dict[str, list[float | None]] = {
        "n": [f.n for f in facts],
        "α": [f.alpha for f in facts],
        "σ": [f.sigma for f in facts],
    }
    known = {name: sorted({v for v in some if v is not None}) for name, some in values.items()}
    return {name: some for name, some in known.items() if len(some) > 1}


def _notes(log: Log, facts: Facts) -> Iterator[str]:
    if log.torn:
        yield f"{log.file}: the last line broke off and is left out"
    yield from (f"{log.file}: {note}" for note in facts.notes)
    unknown = [name for name, value in (("n", facts.n), ("α", facts.alpha)) if value is None]
    if unknown and not facts.notes:
        way = "the radii do not tell" if facts.sigma is not None else "--sigma lets them be inferred"
        yield f"{log.file}: {' and '.join(unknown)} not known ({way})"


def _beside(logs: Sequence[Log]) -> Iterator[str]:
    if len({frozenset(line.idx for line in log.lines) for log in logs}) > 1:
        yield "the logs are of different images, so that their figures differ by chance too"
    if len({mode for mode in map(_mode, logs) if mode is not None}) > 1:
        yield "the logs are of different modes: sequential ones stop early, so that their ACR is lower"


def _figures(log: Log, facts: Facts, radii: Sequence[Fraction], rho: float) -> dict[str, Any]:
    figures = certlog.summarise(log.lines, radii)
    accuracy = figures["certified_accuracy"].items()
    lower = {r: None if facts.alpha is None else lower_bound(m, facts.alpha, len(log.lines), rho) for r, m in accuracy}
    known = {"n": facts.n, "alpha": facts.alpha, "sigma": facts.sigma, "mode": facts.mode}
    return {"file": log.file, **figures, "lower_bounds": lower, "ecdf": _ecdf(log, facts.sigma), **known}


def lower_bound(accuracy: float, alpha: float, images: int, rho: float) -> float:
    """Cohen's lower bound on the true certified accuracy, right with probability 1 − rho (1902.02918).

    m − α − √(α(1 − α)·ln(1/rho)/N) − ln(1/rho)/(3N), at least 0; the noise of the N images must be independent.
    """
    doubt = math.log(1 / rho)
    return max(0.0, accuracy - alpha - math.sqrt(alpha * (1 - alpha) * doubt / images) - doubt / (3 * images))


def _ecdf(log: Log, sigma: float | None) -> dict[str, float] | None:
    """The share of images whose lower bound on pA is at most p; an abstention's is below ½."""
    from scipy.special import ndtr

    found = logchecks.counts(log)
    if found is not None and len(found[0]) == len(log.lines):
        bounds = [count.p_low for count in found[0]]
    elif sigma is not None:
        bounds = [0.0 if line.predict == -1 else float(ndtr(line.radius / sigma)) for line in log.lines]
    else:
        return None
    return {f"{p:g}": sum(b <= p for b in bounds) / len(bounds) for p in PROBABILITIES}


def audit_log(
    file: Path, *, sigma: str | float | None = None, n: int | None = None, alpha: float | None = None
) -> dict[str, Any]:
    """Everything wrong with a certification log, from its rows and the counts or the lattice behind its radii.

    Args:
        file: the log.
        sigma: of the noise, in the radii's unit; the header's by default.
        n: the draws an image that the log claims; the header's by default.
        alpha: the α that it claims; the header's by default.

    Returns:
        file, n, alpha, sigma, mode, images, printed, sure, candidates [{n, alpha, odds, misfits, pile, rounding}],
        problems [{kind, count, rows, text}], notes, ok. The odds are relative to the best candidate, which n and alpha
        are of; they are None when no candidate explains the radii.

    Raises:
        IntegrityError: not a log, or one of only its first line.
        UsageError: σ is not known, or options that cannot mean anything.
    """
    _check(alpha, n)
    log = foreignlog.read(file)
    own = _header_sigma(log)
    level = _sigma(sigma) if sigma is not None else own
    if level is None and "noise" not in log.header:
        raise UsageError(f"the σ of {file} is not known", "Add the one its noise had, such as --sigma 0.5.")
    said = {"n": n or _header_n(log), "alpha": _header_alpha(log) if alpha is None else alpha}
    claim = {name: float(value) for name, value in said.items() if value is not None}
    problems = list(logchecks.rows(log))
    if own is not None and level is not None:
        problems += logchecks.claims({"sigma": level}, {"sigma": [own]})
    read = logchecks.counts(log)
    if read is not None and read[0]:
        result = _by_counts(log, read[0], level, claim)
    else:
        result = _by_lattice(log, level if level is not None else 1.0, claim)
    problems += read[1] if read is not None else []
    problems += result.pop("problems")
    notes = ["the last line broke off and is left out"] if log.torn else []
    return {
        "file": str(file),
        "sigma": level,
        "images": len(log.lines),
        **result,
        "problems": [
            {"kind": p.kind, "count": len(p.rows), "rows": list(p.rows[:SHOWN]), "text": p.text} for p in problems
        ],
        "notes": notes + result["notes"],
        "ok": not problems,
    }


def _by_counts(log: Log, found: list[logchecks.Count], sigma: float | None, claim: dict[str, float]) -> dict[str, Any]:
    """The audit of our columns."""
    problems: list[logchecks.Problem] = []
    trials = sorted({c.trials for c in found})
    mode, level = _mode(log), None
    if mode in (None, *COUNTED):
        level = logchecks.level(found, _some(claim.get("alpha")))
    if mode is None and level is not None:
        mode = "fixed" if len(trials) == 1 else "adaptive"
    alpha = level or claim.get("alpha")
    reach = _reach(log, sigma)
    problems += logchecks.rederived(found, reach, alpha, mode in COUNTED)
    seen: dict[str, Sequence[float]] = {
        "alpha": [level] if level else [],
        "n": trials if mode == "fixed" and len(trials) == 1 else [],
    }
    problems += logchecks.claims(claim, seen)
    if mode == "fixed" and len(trials) > 1:
        usual = max(trials, key=[c.trials for c in found].count)
        rows = tuple(c.line.idx for c in found if c.trials != usual)
        problems.append(logchecks.Problem("draws", rows, f"another number of draws than the others' {usual:,}"))
    unsure = [] if level else ["the copies' number was not fixed, so that p_low is taken as it stands"]
    if reach is None:
        unsure.append("the header does not say enough of noise, norm and images to derive the radii again")
    return {
        "n": trials[0] if len(trials) == 1 else int(claim["n"]) if "n" in claim else trials[-1],
        "alpha": alpha,
        "mode": mode,
        "printed": "with counts",
        "sure": level is not None,
        "candidates": [],
        "problems": problems,
        "notes": unsure,
    }


def _reach(log: Log, sigma: float | None) -> Callable[[float], float] | None:
    """From a bound to the exact radius, by the header's noise and norm; Gaussian in L2 when it names none."""
    text, norm = str(log.header.get("noise", "gaussian")), str(log.header.get("norm", "l2"))
    noise = named(text, None if text.startswith("ablation") else Fraction(sigma or 0))
    if not certifies(noise, norm):
        raise IntegrityError(f"the header of {log.file} says {norm} under {text} noise", "No such radius exists.")
    seen = log.header.get("preprocessing")
    shape = seen.get("shape") if isinstance(seen, dict) else None
    if isinstance(shape, list) and len(shape) == 3 and all(type(s) is int and 0 < s < 2**20 for s in shape):
        return lambda p: noise.radius(p, norm, tuple(shape))
    alone = (text, norm) in (("gaussian", "l2"), ("uniform", "l1"), ("laplace", "l1"))  # whatever the images' shape
    return (lambda p: noise.radius(p, norm, (1, 1, 1))) if alone else None


def _by_lattice(log: Log, sigma: float, claim: dict[str, float]) -> dict[str, Any]:
    """The audit of radii alone."""
    n, alpha = int(claim["n"]) if "n" in claim else None, claim.get("alpha")
    radii = lattice.gather([line.printed for line in log.lines])
    result: dict[str, Any] = {
        "n": n, "alpha": alpha, "mode": _mode(log), "printed": str(radii.printing) if radii else "none", "sure": False,
        "candidates": [], "problems": [], "notes": [],
    }  # fmt: skip
    if radii is None:
        return result | {"notes": ["no radius above 0, so that nothing tells n and α"]}
    if result["mode"] not in (None, "fixed"):
        return result | {"notes": [f"radii of mode {result['mode']} lie on no lattice; its counts would tell"]}
    fits = lattice.infer(radii, sigma, sizes=_some(n), alphas=_some(alpha), claim=(n, alpha))
    if not fits:
        text = f"no n and α tried explain the radii at σ = {sigma:g}: check --sigma, or add --n and --alpha"
        rows = tuple(line.idx for line in log.lines if line.radius > 0)
        return result | {"n": None, "alpha": None, "problems": [logchecks.Problem("no-lattice", rows, text)]}
    equal, best = lattice.equals(fits), fits[0]
    seen = {"n": sorted({float(f.n) for f in equal}), "alpha": sorted({f.alpha for f in equal})}
    shown = max(len(equal), 4)
    return result | {
        "n": best.n,
        "alpha": best.alpha,
        "printed": f"{radii.printing}, {'to the nearest' if best.nearest else 'rounded down'}",
        "sure": len(equal) == 1,
        "candidates": [
            {"n": f.n, "alpha": f.alpha, "odds": math.exp(max(-700.0, f.score - best.score)),
             "misfits": f.misfits(radii), "pile": f.pile, "rounding": "nearest" if f.nearest else "down"}
            for f in fits[:shown]
        ],
        "problems": [*logchecks.claims(claim, seen), *logchecks.radii(log, radii, equal)],
        "notes": [] if len(equal) == 1 else [f"{len(equal)} candidates fit as well as each other"],
    }  # fmt: skip
