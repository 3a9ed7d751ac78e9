"""Noises: what is drawn has the stated distribution, what is certified is the radius of the source."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustkt import smooth
from robustkt.catalog import NOISES
from robustkt.certificates import Ball, Certificate, lower_bound
from robustkt.certificates.cohen import fixed
from robustkt.errors import UsageError
from robustkt.noises import Noise, named, spelled
from robustkt.noises.ablation import Ablation
from robustkt.noises.gaussian import Gaussian, Quantised, rounded_normal, support, thresholds
from robustkt.noises.l1 import Laplace, Uniform
from robustkt.streams import HostStream

SHAPE = (3, 8, 8)
SIGMA = Fraction(1, 4)
EVERY = [Gaussian(SIGMA), Quantised(SIGMA), Uniform(SIGMA), Laplace(SIGMA), Ablation(5)]
PAIRS = [(noise, "l4" if norm == "lq" else norm) for noise in EVERY for norm in noise.norms]


def draws(noise: Noise, x: Tensor, n: int, seed: int = 0) -> Tensor:
    out = torch.empty(n, *x.shape)
    noise.draw(out, x, HostStream(seed, 0, 0))
    return out


def test_every_noise_of_the_catalog_is_tested_here() -> None:
    assert {type(noise).__name__.lower() for noise in EVERY} == set(NOISES.names())


@pytest.mark.parametrize(("noise", "norm"), PAIRS)
@pytest.mark.parametrize("p", [0.500001, 0.6, 0.9, 0.99, 0.9999, 0.9999999])
def test_needed_is_the_inverse_of_radius(noise: Noise, norm: str, p: float) -> None:
    ball = Ball(noise, norm, SHAPE)
    radius = ball.radius(p)
    assert radius >= 0
    assert ball.needed(radius) <= p * (1 + 1e-9)  # p is enough for the radius that it certifies
    if radius > 0:
        assert ball.radius(ball.needed(radius)) >= radius * (1 - 1e-6) - 1e-6
        assert noise.needed(radius, norm, SHAPE) > 0.5


@pytest.mark.parametrize("p", [0.51, 0.7, 0.99, 0.99993])
@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_radii_are_those_of_the_table(p: float, sigma: float) -> None:
    """Each formula again, in float64, from other functions."""
    level, d = Fraction(sigma), math.prod(SHAPE)
    l2 = sigma * stats.norm.ppf(p)
    expected = {
        ("l2", Gaussian(level)): l2,
        ("linf", Gaussian(level)): l2 / math.sqrt(d),
        ("l4", Gaussian(level)): l2 / d**0.25,
        ("l1", Uniform(level)): 2 * (sigma * 3**0.5) * (p - 0.5),
        ("l1", Laplace(level)): -(sigma / 2**0.5) * math.log(2 * (1 - p)),
    }
    for (norm, noise), radius in expected.items():
        assert noise.radius(p, norm, SHAPE) == pytest.approx(radius, rel=1e-12, abs=1e-12)
        assert 0 <= radius - Ball(noise, norm, SHAPE).radius(p) <= 1.001e-6
    assert 0 <= l2 - Quantised(level).radius(p, "l2", SHAPE) <= 1e-5 * sigma + 1e-9  # near-identical, never larger


@pytest.mark.parametrize(("height", "keep"), [(2, 1), (2, 2), (3, 2), (3, 4)])
@pytest.mark.parametrize("p", [0.55, 0.8, 0.95, 1.0])
def test_ablation_counts_the_copies_that_see_a_changed_pixel(height: int, keep: int, p: float) -> None:
    pixels = height * height
    sets = list(combinations(range(pixels), keep))
    largest = 0
    for changed in range(1, pixels + 1):
        touched = sum(any(i < changed for i in chosen) for chosen in sets) / len(sets)
        largest = changed if p - touched > 0.5 + 1e-12 else largest
    assert Ablation(keep).radius(p, "l0", (1, height, height)) == largest


def test_gaussian_uniform_and_laplace_noise_have_their_distributions() -> None:
    x = torch.full((1, 16, 16), 0.9)
    sigma = float(SIGMA)
    for noise, law in [
        (Gaussian(SIGMA), stats.norm(scale=sigma)),
        (Uniform(SIGMA), stats.uniform(-sigma * 3**0.5, 2 * sigma * 3**0.5)),
        (Laplace(SIGMA), stats.laplace(scale=sigma / 2**0.5)),
    ]:
        found = (draws(noise, x, 400).double() - 0.9).flatten().numpy()
        assert stats.kstest(found[:100_000], law.cdf).pvalue > 1e-3
        assert found.std() == pytest.approx(sigma, rel=0.02)


def test_ablation_keeps_that_many_pixels_each_as_often() -> None:
    x = torch.rand(3, 5, 5) * 0.9 + 0.1
    out = draws(Ablation(7), x, 4_000)
    kept = (out != 0).all(dim=1)
    assert ((out != 0).any(dim=1) == kept).all()  # all channels or none
    assert (kept.flatten(1).sum(dim=1) == 7).all()
    assert torch.equal(out[kept.unsqueeze(1).expand_as(out)], x.expand_as(out)[kept.unsqueeze(1).expand_as(out)])
    assert stats.chisquare(kept.sum(dim=0).flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
def test_quantised_noise_has_the_mass_of_the_rounded_normal(sigma: float) -> None:
    """The probability of each grey level, from the integer thresholds, against Φ in float64."""
    edges, largest = thresholds(sigma), support(sigma)
    mass = np.diff(np.array([0, *(int(edge) for edge in edges), 2**60], dtype=object)) / 2**60
    levels = np.arange(-largest, largest + 1)
    assert len(mass) == len(levels)
    unit = sigma * 255
    ideal = stats.norm.cdf((levels + 0.5) / unit) - stats.norm.cdf((levels - 0.5) / unit)
    difference = np.abs(mass.astype(float) - ideal).sum() / 2 + stats.norm.sf(8)
    assert difference < Quantised(Fraction(sigma))._loss((1, 1, 1)) < 1e-11
    assert (edges == 2**60 - edges[::-1]).all()  # symmetric to the last bit
    found = rounded_normal(sigma, HostStream(0, 0, 0).integers(200_000)).numpy()
    assert stats.kstest((found + np.random.default_rng(0).random(len(found)) - 0.5) / unit, "norm").pvalue > 1e-3


def test_quantised_copies_lie_on_the_grid_and_others_are_refused() -> None:
    x = torch.tensor([0, 51, 255, 128]).view(1, 2, 2) / 255
    out = draws(Quantised(SIGMA), x, 500)
    assert torch.equal(out, (out * 255).round() / 255)
    assert out.min() < 0
    assert out.max() > 1
    with pytest.raises(UsageError, match="8 bits"):
        draws(Quantised(SIGMA), x + 1e-3, 1)


class LowBits(nn.Module):
    """A linear network that is constant in real arithmetic and sees what rounding an addition has lost.

    Its residual ((z − 1) + 1) − z is 0 for every real z. In fp32 it is 0 only where the last bits of z are: always for
    1 + noise, as that addition has rounded them away, and hardly ever for noise around a small number.
    """

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)
        residual = (((z - 1) + 1) - z).sum(dim=1)
        return torch.stack([torch.zeros_like(residual), residual, -residual], dim=1)


def certified(noise: Noise, value: float, n: int = 10_000) -> Certificate:
    ball = Ball(noise, "l2", (1, 1, 1))
    ((_, found),) = smooth.certify(
        LowBits(), [(0, torch.full((1, 1, 1), value))], lambda key: fixed(ball=ball, alpha=0.001, n0=100, n=n),
        classes=3, noise=noise, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    return found


def probability_of(noise: Noise, label: int, value: float) -> float:
    """An upper bound on the probability of a class at another image, wrong with probability 1e-6."""
    n = 10_000
    votes = LowBits()(draws(noise, torch.full((1, 1, 1), value), n, seed=1)).argmax(dim=1)
    return 1 - lower_bound(n - int((votes == label).sum()), n, 1e-6)


def test_floating_point_breaks_the_plain_sampler_and_not_the_quantised_one() -> None:
    """The certificate of 1.0 says that 38/255 keeps its class; the plain sampler's does not (Voráček and Hein 2023)."""
    white, grey = 1.0, 38 / 255
    plain = certified(Gaussian(SIGMA), white, n=100_000)
    assert plain.label == 0
    assert plain.radius > white - grey + 0.04  # the attack stays inside the ball
    claimed = stats.norm.cdf((plain.radius - (white - grey)) / float(SIGMA))
    assert claimed > 0.5 > probability_of(Gaussian(SIGMA), 0, grey)  # broken

    for value in range(0, 256, 15):
        sound = certified(Quantised(SIGMA), value / 255)
        if sound.label is None:
            continue
        for other in range(0, 256, 15):
            if abs(other - value) / 255 < sound.radius:
                votes = probability_of(Quantised(SIGMA), sound.label, other / 255)
                bound = stats.norm.cdf((sound.radius - abs(other - value) / 255) / float(SIGMA))
                assert votes >= bound - 1e-9


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("gaussian", Gaussian(SIGMA)),
        ("Quantised", Quantised(SIGMA)),
        ("laplace:sigma=1/4", Laplace(SIGMA)),
        ("uniform", Uniform(SIGMA)),
    ],
)
def test_noises_are_found_by_name(text: str, noise: Noise) -> None:
    assert named(text, SIGMA) == noise
    assert named(spelled(noise), SIGMA) == noise
    assert named("ablation:keep=20") == Ablation(20)
    assert spelled(Ablation(20)) == "ablation:keep=20"


@pytest.mark.parametrize(
    ("text", "sigma"),
    [
        ("gausian", SIGMA), ("gaussian", None), ("gaussian:sigma=1", SIGMA), ("gaussian:tau=1", SIGMA),
        ("ablation", None), ("ablation:keep=0", None), ("ablation:keep=x", None), ("ablation:keep", None),
        ("laplace:sigma=-1", None), ("ablation:keep=2:keep=3", None),
    ],
)  # fmt: skip
def test_noises_that_cannot_be_read_are_refused(text: str, sigma: Fraction | None) -> None:
    with pytest.raises(UsageError):
        named(text, sigma)


@pytest.mark.parametrize(
    ("noise", "norm", "worst"),
    [
        (Gaussian(SIGMA), "l2", lambda z, t: z[:, 0] < t),
        (Uniform(SIGMA), "l1", lambda z, t: z[:, 0] < t),
        (Laplace(SIGMA), "l1", lambda z, t: z[:, 0] < t),
    ],
)
def test_no_classifier_of_a_half_space_loses_its_class_before_the_radius(
    noise: Noise, norm: str, worst: Callable[[Tensor, float], Tensor]
) -> None:
    """On one pixel: the class `noise < t` of probability p keeps more than half of the votes up to the radius of p."""
    n = 200_000
    sample = draws(noise, torch.zeros(1, 1, 1), n).view(n, 1)
    for p in (0.6, 0.8, 0.95):
        threshold = float(sample[:, 0].quantile(p))
        radius = noise.radius(p, norm, (1, 1, 1))
        kept = worst(sample + 0.98 * radius, threshold).double().mean()
        lost = worst(sample + 1.1 * radius, threshold).double().mean()
        assert kept > 0.5 - 0.005
        if type(noise) is not Laplace or p < 0.99:
            assert lost < 0.5  # the bound is tight: a little further the class is lost
