"""The reference procedure of Cohen, Rosenfeld and Kolter: fixed numbers of samples."""

from __future__ import annotations

from robustkt.certificates import Certificate, Certifying, lower_bound, radius_l2

__all__ = ["fixed"]


def fixed(*, sigma: float, alpha: float, n0: int, n: int) -> Certifying:
    """CERTIFY (1902.02918): select a class on n0 copies, bound its probability on n fresh ones.

    Abstains when the one-sided Clopper–Pearson bound at 1 − α is below ½; else the L2 radius is σ·Φ⁻¹(bound).
    """
    selection = yield n0
    label = max(range(len(selection)), key=lambda k: (selection[k], -k))
    successes = int((yield n)[label])
    p_low = lower_bound(successes, n, alpha)
    certified = p_low >= 0.5
    return Certificate(
        label=label if certified else None,
        radius=radius_l2(p_low, sigma) if certified else 0.0,
        alpha=alpha,
        n=n0 + n,
        successes=successes,
        trials=n,
        p_low=p_low,
    )
