"""The reference procedure of Cohen, Rosenfeld and Kolter: fixed numbers of samples."""

from __future__ import annotations

from robustkt.certificates import Ball, Certificate, Certifying, Counts, lower_bound

__all__ = ["fixed", "randomised"]


def fixed(*, ball: Ball, alpha: float, n0: int, n: int) -> Certifying:
    """CERTIFY (1902.02918): select a class on n0 copies, bound its probability on n fresh ones.

    Abstains when the one-sided Clopper–Pearson bound at 1 − α is below ½; else the radius is that of the bound, for
    Gaussian noise σ·Φ⁻¹(bound) in L2.
    """
    label = top((yield n0))
    successes = int((yield n)[label])
    return certificate(label, lower_bound(successes, n, alpha), ball, alpha, n0 + n, successes, n)


def randomised(*, ball: Ball, alpha: float, n0: int, n: int, u: float) -> Certifying:
    """`fixed` with the randomised Clopper–Pearson bound: exact coverage, so radii that are larger by a few per mille.

    `u` is uniform on (0, 1] and drawn before the data, for each image its own.
    """
    label = top((yield n0))
    successes = int((yield n)[label])
    p_low = randomised_lower_bound(successes, n, alpha, u)
    return certificate(label, p_low, ball, alpha, n0 + n, successes, n, u)


def randomised_lower_bound(successes: int, trials: int, alpha: float, u: float) -> float:
    """The p at which P(X > k) + u·P(X = k) = α, X ~ Bin(n, p) (Stevens, Biometrika 37, 1950); u = 1 is Clopper–Pearson.

    P(bound > p) is α exactly when u is uniform on (0, 1] and drawn before the data; less for p near 1, as a unanimous
    vote takes u as ½ at least: else luck in u alone would give it a bound of 1.
    """
    from scipy.optimize import brentq
    from scipy.special import bdtr, bdtrc

    u = max(u, 0.5) if successes == trials else u

    def excess(p: float) -> float:
        above, not_above = float(bdtrc(successes, trials, p)), float(bdtr(successes, trials, p))
        below = float(bdtr(successes - 1, trials, p)) if successes else 0.0
        return above + u * max(0.0, not_above - below) - alpha

    low = lower_bound(successes, trials, alpha)
    high = lower_bound(successes + 1, trials, alpha) if successes < trials else 1.0
    if excess(low) >= 0:
        return low
    if excess(high) <= 0:  # u near 0
        return high if successes < trials else 1 - 1e-15
    root = float(brentq(excess, low, high, xtol=1e-15, rtol=8.9e-16))
    return max(low, root - 1e-13)


def top(counts: Counts) -> int:
    """The class with most votes, the first of equals."""
    return max(range(len(counts)), key=lambda k: (counts[k], -k))


def certificate(
    label: int, p_low: float, ball: Ball, alpha: float, n: int, successes: int, trials: int, u: float | None = None
) -> Certificate:
    """The certificate of a lower bound: an abstention below ½."""
    certified = p_low >= 0.5
    return Certificate(
        label=label if certified else None,
        radius=ball.radius(p_low) if certified else 0.0,
        alpha=alpha,
        n=n,
        successes=successes,
        trials=trials,
        p_low=p_low,
        u=u,
    )
