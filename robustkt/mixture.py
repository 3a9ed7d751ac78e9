"""Which mode of a generation is meant: a domain, or adapters mixed in shares, as `clean`, `beta=0.4`, `a=.3,b=.7`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from robustkt.errors import NotFoundError, UsageError, clip
from robustkt.numbers import exact, fraction

CLEAN, ROBUST = "clean", "robust"  # between which β goes: the weight of the robust adapter
BETA = "beta"
SOUP = "soup"  # the method of a generation that was mixed, not trained

LONGEST = 40  # characters of a share

Shares = Mapping[str, Fraction]


def parse(text: str, domains: Iterable[str], who: str) -> dict[str, Fraction]:
    """The shares of a mode, none of them 0, in the order of the names.

    Args:
        text: a domain, `beta=B`, or `DOMAIN=SHARE,…` with shares that add up to 1.
        domains: those that `who` has adapters for; none of a generation without.
        who: what messages call it.

    Raises:
        NotFoundError: it has no such mode.
        UsageError: a share outside [0, 1], shares that do not add up to 1, or two of one domain.
    """
    known = sorted(domains)
    if not known:
        raise NotFoundError(f"{who} has no modes, so no @{clip(text, 40)}", f"Name it alone: {who}.")
    if text in known:
        return {text: Fraction(1)}
    given = [part.partition("=") for part in text.split(",")]
    if len(given) == 1 and given[0][0] == BETA and given[0][1] and known == [CLEAN, ROBUST]:
        beta = _share(given[0][2], BETA)
        return _ordered({CLEAN: 1 - beta, ROBUST: beta})
    unknown = next((name for name, equals, _ in given if name not in known or not equals), None)
    if unknown is not None:
        fix = f"It has @{', @'.join(known)}" + (", and @beta=0.4." if known == [CLEAN, ROBUST] else ", and mixtures.")
        raise NotFoundError(f"{who} has no mode @{clip(text, 40)}", fix)
    shares = {name: _share(share, name) for name, _, share in given}
    if len(shares) < len(given):
        raise UsageError(f"@{clip(text, 60)} names a domain twice", "Give each domain one share.")
    if sum(shares.values()) != 1:
        raise UsageError(
            f"the shares of @{clip(text, 60)} do not add up to 1", f"Write @{known[0]}=0.3,{known[-1]}=0.7."
        )
    return _ordered(shares)


def spelled(shares: Shares) -> str:
    """The one spelling of a mode that `parse` reads."""
    if len(shares) == 1:
        return next(iter(shares))
    if set(shares) == {CLEAN, ROBUST}:
        return f"{BETA}={exact(shares[ROBUST])}"
    return ",".join(f"{name}={exact(share)}" for name, share in sorted(shares.items()))


def _share(text: str, name: str) -> Fraction:
    if len(text) > LONGEST:  # names of modes are drawn
        raise UsageError(f"{name} has {len(text):,} characters: {clip(text, 40)}", "For instance @beta=0.4.")
    share = fraction(text, name)
    if not 0 <= share <= 1:
        raise UsageError(f"{name} must lie between 0 and 1, not {exact(share)}", "For instance @beta=0.4.")
    return share


def _ordered(shares: Shares) -> dict[str, Fraction]:
    return {name: shares[name] for name in sorted(shares) if shares[name]}
