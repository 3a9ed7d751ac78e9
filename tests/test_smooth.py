"""The sampler: right counts, the same for every batch size, company and interruption."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustkt import smooth
from robustkt.catalog import CERTIFIERS
from robustkt.certificates import Certificate, Certifying
from robustkt.certificates.cohen import fixed
from robustkt.core import seed_of
from robustkt.errors import IntegrityError
from robustkt.noises.gaussian import Gaussian
from robustkt.streams import HostStream
from tests.conftest import l2

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
    def program(key: int) -> Certifying:
        return fixed(ball=l2(float(SIGMA)), alpha=0.001, n0=n0, n=n)

    found = smooth.certify(
        model, given, program, classes=2, noise=Gaussian(SIGMA), seed=seed, device=torch.device("cpu"), **options
    )
    return list(found)


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
    assert set(model.seen) == {512}  # one constant shape
    assert len(model.seen) <= draws / 512 + 2  # one image alone would make 40 batches


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

    certify(Spy(), [(0, torch.full((1, 8, 8), 0.9))], n=2_048, n0=64, batch_size=64)
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

    def steps(key: int) -> Certifying:
        total = 0
        for size in (1, 63, 64, 65, 200):
            counts = yield size
            assert sum(counts) == size
            total += sum(counts)
        return (yield from fixed(ball=l2(0.5), alpha=0.001, n0=1, n=total))

    found = list(
        smooth.certify(
            Halves(),
            images(3),
            steps,
            classes=2,
            noise=Gaussian(SIGMA),
            seed=0,
            device=torch.device("cpu"),
            batch_size=64,
        )
    )
    assert [certificate.trials for _, certificate in found] == [393] * 3


class Kept:
    """A journal that fails at a forward pass, as a killed process does, before or after it has written."""

    def __init__(self, fails_at: int = -1) -> None:
        self.shares: dict[int, list[smooth.Share]] = {}
        self.fails_at = fails_at
        self.passes = 0

    def before(self, key: int) -> list[smooth.Share]:
        return self.shares.get(key, [])

    def add(self, found: Sequence[tuple[int, smooth.Share]]) -> None:
        self.passes += 1
        if self.passes == self.fails_at:
            raise KeyboardInterrupt
        for key, share in found:
            self.shares.setdefault(key, []).append(share)


@pytest.mark.parametrize("fails_at", [1, 2, 5, 12])
@pytest.mark.parametrize("mode", ["fixed", "sequential"])
def test_an_interrupted_run_goes_on_where_it_was_and_draws_nothing_twice(fails_at: int, mode: str) -> None:
    def run(journal: Kept | None, model: nn.Module) -> list[tuple[int, Certificate, float]]:
        def program(key: int) -> Certifying:
            more = {"radii": [0.1, 0.2]} if mode == "sequential" else {}
            certifier: Certifying = CERTIFIERS.get(mode)(ball=l2(0.5), alpha=0.001, n0=50, n=500, **more)
            return certifier

        found = smooth.certify(
            model, images(6), program, classes=2, noise=Gaussian(SIGMA), seed=0, device=torch.device("cpu"),
            batch_size=128, journal=journal,
        )  # fmt: skip
        return list(found)

    whole = run(None, everything := Halves())
    journal = Kept(fails_at)
    with pytest.raises(KeyboardInterrupt):
        run(journal, Halves())
    kept = sum(share.draws for shares in journal.shares.values() for share in shares)
    journal.fails_at = -1
    again = Halves()
    assert run(journal, again) == whole
    total = sum(certificate.n for _, certificate in whole)
    assert sum(share.draws for shares in journal.shares.values() for share in shares) == total
    assert len(again.seen) <= len(everything.seen) - kept // 128 + 2
    silent = Halves()
    assert run(journal, silent) == whole
    assert silent.seen == []  # all is known


def test_votes_of_another_certification_are_refused() -> None:
    journal = Kept()
    journal.shares = {0: [smooth.Share(0, 2, 70, [35, 35])]}  # more than the 20 of the selection
    with pytest.raises(IntegrityError, match="--fresh"):
        certify(Halves(), images(1), journal=journal)


def test_chunks_images_and_seeds_have_streams_of_their_own() -> None:
    firsts = {
        tuple(HostStream(seed, image, chunk).normal(torch.empty(4)).tolist())
        for seed in range(5) for image in range(20) for chunk in (0, 1, 2, 10**6)
    }  # fmt: skip
    assert len(firsts) == 5 * 20 * 4
    again = HostStream(1, 2, 3)
    assert torch.equal(again.normal(torch.empty(100)), HostStream(1, 2, 3).normal(torch.empty(100)))
    assert again.integers(1_000).max() < 2**60


def test_disagreements_of_a_network_with_itself_and_with_its_opposite() -> None:
    class Opposite(Halves):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    options = {"noise": Gaussian(SIGMA), "seed": 0, "device": torch.device("cpu")}
    assert smooth.disagreements(Halves(), Halves(), images(3), **options) == (0, 3 * smooth.CHUNK)
    assert smooth.disagreements(Halves(), Opposite(), images(3), **options) == (3 * smooth.CHUNK, 3 * smooth.CHUNK)


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = {seed_of(seed, str(image), chunk) for seed in range(5) for image in range(50) for chunk in range(50)}
    assert len(seeds) == 5 * 50 * 50
    assert all(0 <= s < 2**63 for s in seeds)
