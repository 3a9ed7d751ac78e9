"""The sampler: right counts, the same for every batch size, company and interruption."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustkt import smooth
from robustkt.certificates import Certifying
from robustkt.certificates.cohen import fixed
from robustkt.core import seed_of

SIGMA = Fraction(1, 2)


class Halves(nn.Module):
    """Class 1 where the mean pixel is above a threshold, so that its probability under noise is known."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.norm = nn.BatchNorm2d(1)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        assert not self.training
        mean = x.flatten(1).mean(dim=1)
        return torch.stack([-mean, mean, *[torch.full_like(mean, -9)] * (self.classes - 2)], dim=1)


def images(n: int, value: float = 0.02) -> list[tuple[int, Tensor]]:
    return [(i, torch.full((1, 4, 4), value * i)) for i in range(n)]


def certify(model: nn.Module, given: list[tuple[int, Tensor]], *, n: int = 300, n0: int = 20, seed: int = 0, **options):  # type: ignore[no-untyped-def]
    def program() -> Certifying:
        return fixed(sigma=float(SIGMA), alpha=0.001, n0=n0, n=n)

    found = smooth.certify(
        model, given, program, classes=2, sigma=SIGMA, seed=seed, device=torch.device("cpu"), **options
    )
    return [(key, certificate) for key, certificate, _ in found]


@pytest.mark.parametrize("batch_size", [64, 65, 100, 512, 4_096])
def test_counts_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert certify(Halves(), images(7), batch_size=batch_size) == certify(Halves(), images(7), batch_size=128)


def test_counts_do_not_depend_on_the_other_images() -> None:
    together = dict(certify(Halves(), images(9)))
    for key, x in images(9):
        assert certify(Halves(), [(key, x)]) == [(key, together[key])]


def test_another_seed_draws_other_noise() -> None:
    counts = {seed: certify(Halves(), images(9), seed=seed)[3][1].successes for seed in range(4)}
    assert len(set(counts.values())) > 1


def test_batches_are_filled_across_images() -> None:
    model = Halves()
    certify(model, images(20), n=300, n0=20, batch_size=512)
    draws = 20 * 320
    assert sum(model.seen) == draws
    assert max(model.seen) <= 512
    assert len(model.seen) <= 1.5 * draws / 512 + 2  # one image alone would make 40 batches


def test_counts_have_the_probability_of_the_smoothed_class() -> None:
    model, n = Halves(), 20_000
    value = 0.1
    ((_, certificate),) = certify(model, [(0, torch.full((1, 4, 4), value))], n=n)
    p = stats.norm.cdf(value / (float(SIGMA) / 4))  # the mean of 16 pixels has a quarter of their deviation
    assert stats.binomtest(certificate.successes, n, p).pvalue > 1e-3
    assert certificate.label == 1


def test_noise_is_standard_normal_unclipped_and_added_to_the_image() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.zeros(len(x), 2)

    certify(Spy(), [(0, torch.full((1, 8, 8), 0.9))], n=2_000, n0=64)
    noise = (torch.cat(seen).double() - 0.9) / float(SIGMA)
    assert stats.kstest(noise.flatten().numpy()[:50_000], "norm").pvalue > 1e-3
    assert torch.cat(seen).max() > 1  # no clipping
    assert len({tuple(row.flatten()[:4].tolist()) for row in noise}) == len(noise)  # every draw is fresh


def test_results_come_in_the_order_given_and_leave_the_network_as_it_was() -> None:
    model = Halves().train()
    keys = [key for key, _ in certify(model, images(30)[::-1])]
    assert keys == list(range(30))[::-1]
    assert model.training
    assert model.norm.training
    assert all(p.requires_grad for p in model.parameters())


def test_advance_tells_every_draw() -> None:
    told: list[int] = []
    certify(Halves(), images(5), n=130, n0=30, advance=told.append)
    assert sum(told) == 5 * 160


def test_no_images_no_work() -> None:
    assert certify(Halves(), []) == []


def test_program_that_asks_again_and_again() -> None:
    """A sequential certifier may take its draws in many steps of changing size; none is drawn twice."""

    def steps() -> Certifying:
        total = 0
        for size in (1, 63, 64, 65, 200):
            counts = yield size
            assert sum(counts) == size
            total += sum(counts)
        return (yield from fixed(sigma=0.5, alpha=0.001, n0=1, n=total))

    found = list(
        smooth.certify(
            Halves(), images(3), steps, classes=2, sigma=SIGMA, seed=0, device=torch.device("cpu"), batch_size=64
        )
    )
    assert [certificate.trials for _, certificate, _ in found] == [393] * 3


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {seed_of(seed, str(image), chunk) for seed in range(5) for image in range(50) for chunk in range(50)}
    assert len(seeds) == 5 * 50 * 50
    assert all(0 <= s < 2**63 for s in seeds)
