"""The threat model's geometry, random starts, noise, and what an attack leaves behind of a network."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from robustkt.core import InPrecision, ThreatModel, attacking, gaussian, generator, seed_of, unit
from robustkt.errors import UsageError

Norm = Literal["linf", "l2"]
EPS = Fraction(8, 255)
NORMS: list[Norm] = ["linf", "l2"]
SHAPE = (1, 4, 4)
quick = settings(deadline=None, max_examples=40, derandomize=True, database=None)


def draw(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Images in [0, 1], some on its edge, and points anywhere, some of them the images themselves."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *SHAPE, generator=rng).mul(1.4).sub(0.2).clamp(0, 1)
    move = torch.randn(count, *SHAPE, generator=rng) * torch.logspace(-3, 1, count).view(-1, 1, 1, 1)
    move[0] = 0
    return x, x + move


def length(norm: Norm, delta: Tensor) -> Tensor:
    rows = delta.double().flatten(1)
    return rows.abs().amax(dim=1) if norm == "linf" else rows.norm(dim=1)


# -- the threat model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "eps", "said"),
    [
        ("l1", EPS, "unknown norm 'l1'"),
        ("Linf", EPS, "unknown norm"),
        ("linf", Fraction(0), "above 0"),
        ("l2", Fraction(-1, 2), "above 0"),
        ("linf", Fraction(8), "--eps 8/255"),
        ("linf", Fraction(256, 255), "over 1"),
    ],
)
def test_threats_that_cannot_be_are_refused(norm: Norm, eps: Fraction, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        ThreatModel(norm, eps)
    assert said in str(caught.value)


def test_threats_that_can_be() -> None:
    assert str(ThreatModel("linf", EPS)) == "linf 8/255"
    assert str(ThreatModel("linf", Fraction(1))) == "linf 1"
    assert str(ThreatModel("l2", Fraction(512, 255))) == "l2 512/255"  # the box is wider than 1 in L2
    assert str(ThreatModel("l2", Fraction(1, 2))) == "l2 0.5"


@pytest.mark.parametrize("norm", NORMS)
@quick
@given(seed=st.integers(0, 10**6), eps=st.fractions(Fraction(1, 1000), 1))
def test_projections_lie_in_ball_and_box_and_keep_what_does_already(norm: Norm, seed: int, eps: Fraction) -> None:
    threat, (x, far) = ThreatModel(norm, eps), draw(seed)
    near = threat.project(far, x)
    assert (length(norm, near - x) <= float(eps) + 1e-6).all()
    assert near.min() >= 0
    assert near.max() <= 1
    torch.testing.assert_close(threat.project(near, x), near, rtol=0, atol=1e-6)
    inside = (x + (far - x) * float(eps) / length(norm, far - x).clamp_min(float(eps)).view(-1, 1, 1, 1)).float()
    torch.testing.assert_close(threat.project(inside, x), inside.clamp(0, 1), rtol=0, atol=1e-6)
    assert torch.equal(threat.project(x, x), x)


def test_projections_are_the_nearest_points() -> None:
    x, far = (t.double() for t in draw(3))
    wanted = np.clip(np.clip(far.numpy(), x.numpy() - 8 / 255, x.numpy() + 8 / 255), 0, 1)
    np.testing.assert_allclose(ThreatModel("linf", EPS).project(far, x).numpy(), wanted, atol=1e-15)
    delta = (far - x).flatten(1).numpy()
    shrink = np.minimum(1, 0.5 / np.maximum(np.linalg.norm(delta, axis=1, keepdims=True), 1e-12))
    wanted = np.clip(x.flatten(1).numpy() + delta * shrink, 0, 1)
    np.testing.assert_allclose(ThreatModel("l2", Fraction(1, 2)).project(far, x).flatten(1).numpy(), wanted, atol=1e-15)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_steepest_step_has_length_one_and_gains_the_dual_norm(norm: Norm, dual: int) -> None:
    grad = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = ThreatModel(norm, EPS).steepest(grad)
    torch.testing.assert_close(length(norm, step), torch.ones(5, dtype=torch.float64))
    gain = (step * grad).flatten(1).sum(1)
    torch.testing.assert_close(gain, torch.linalg.vector_norm(grad.flatten(1), dual, dim=1))
    assert torch.equal(ThreatModel(norm, EPS).steepest(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-13, 1.0, 1e20, 1e30])
def test_unit_rows_have_length_one_however_small_or_large_they_were(scale: float) -> None:
    """A sure network's gradients are tiny; its attacks must not be tiny steps for it."""
    v = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit(v * scale), unit(v), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(unit(v * scale).flatten(1).norm(dim=1), torch.ones(4))


def test_unit_rows_are_scaled_each_by_itself_and_zeros_stay_zero() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    torch.testing.assert_close(unit(v), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


# -- random starts and noise ------------------------------------------------------------------------------------------


def starts(norm: Norm, eps: Fraction, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.full((count, *SHAPE), 0.5)  # the ball does not reach the box from here
    start = ThreatModel(norm, eps).random_start(x, torch.Generator().manual_seed(seed))
    return (start - x).flatten(1).double(), start


def test_linf_starts_are_uniform_in_every_coordinate() -> None:
    delta, _ = starts("linf", Fraction(1, 10), 3000)
    for coordinate in delta.T.numpy():
        assert stats.kstest(coordinate, stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-4
    correlation = np.corrcoef(delta.T.numpy()) - np.eye(delta.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(3000)


def test_l2_starts_are_uniform_in_the_ball() -> None:
    delta, _ = starts("l2", Fraction(3, 10), 3000)
    radius, d = delta.norm(dim=1), delta.shape[1]
    assert radius.max() <= 0.3 + 1e-6
    assert stats.kstest((radius.numpy() / 0.3) ** d, stats.uniform.cdf).pvalue > 1e-3
    direction = delta / radius[:, None]
    for coordinate in direction.T.numpy():  # a coordinate of a uniform direction: its square is Beta(1/2, (d − 1)/2)
        assert stats.kstest(coordinate**2, stats.beta(0.5, (d - 1) / 2).cdf).pvalue > 1e-4
        assert abs(np.sign(coordinate).mean()) < 5 / np.sqrt(3000)
    assert abs(np.corrcoef(radius.numpy(), direction[:, 0].numpy())[0, 1]) < 5 / np.sqrt(3000)


@pytest.mark.parametrize("norm", NORMS)
def test_starts_stay_in_the_box_and_follow_their_generator(norm: Norm) -> None:
    threat, x = ThreatModel(norm, Fraction(1, 4)), torch.rand(50, *SHAPE).round()
    first, again, other = (threat.random_start(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.min() >= 0
    assert first.max() <= 1
    assert (length(norm, first - x) <= 0.25 + 1e-6).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_gaussian_unclipped_and_in_fp32() -> None:
    x = torch.rand(500, *SHAPE)
    noise = gaussian(x, Fraction(1, 4), generator("cpu", 0, "noise"))
    assert noise.shape == x.shape
    assert noise.dtype == torch.float32
    assert gaussian(x.double(), Fraction(1, 4), generator("cpu", 0)).dtype == torch.float32
    assert stats.kstest(noise.flatten().numpy(), stats.norm(scale=0.25).cdf).pvalue > 1e-3
    assert noise.abs().max() > 0.75
    assert torch.equal(noise, gaussian(x, Fraction(1, 4), generator("cpu", 0, "noise")))


def test_keys_give_seeds_of_their_own_the_same_on_every_machine() -> None:
    assert seed_of(0, "step", 1) == 2752179012869973653  # noise that certificates rest on can be drawn again
    seeds = {seed_of(seed, name, i) for seed in range(20) for name in ("step", "order") for i in range(50)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 23) != seed_of(12, 3)
    assert torch.equal(
        torch.rand(3, generator=generator("cpu", 5, "x")), torch.rand(3, generator=generator("cpu", 5, "x"))
    )
    assert not torch.equal(
        torch.rand(3, generator=generator("cpu", 5, "x")), torch.rand(3, generator=generator("cpu", 6, "x"))
    )


# -- networks under attack --------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> nn.Sequential:
    """Modes and wishes that differ from layer to layer, as in a network that is fine-tuned."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net.train()
    net[2].eval()
    net[1].weight.requires_grad_(False)
    return net


def state(net: nn.Module) -> list[bool]:
    return [m.training for m in net.modules()] + [p.requires_grad for p in net.parameters()]


def test_a_network_is_in_eval_mode_and_without_weight_gradients_while_attacked(network: nn.Sequential) -> None:
    before = state(network)
    assert True in before
    assert False in before
    with attacking(network):
        assert not any(state(network))
        with attacking(network):
            assert not any(state(network))
        assert not any(state(network))
    assert state(network) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_network_is_restored_when_the_attack_raises(network: nn.Sequential, error: type[BaseException]) -> None:
    before = state(network)

    def attack() -> None:
        with attacking(network):
            network[0].train()
            raise error

    with pytest.raises(error):
        attack()
    assert state(network) == before


def test_a_wrapped_network_is_reached_through_its_wrapper(network: nn.Sequential) -> None:
    before = state(network)
    with attacking(InPrecision(network, torch.float32)):
        assert not any(state(network))
    assert state(network) == before


def test_a_plain_function_can_be_attacked_too() -> None:
    def model(x: Tensor) -> Tensor:
        return x.flatten(1)

    with attacking(model):
        assert model(torch.ones(1, 2, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float32, lambda a, b: torch.equal(a, b)), (torch.bfloat16, lambda a, b: 0 < (a - b).abs().max() < 0.05)],
)
def test_precision_is_that_of_the_forward_pass_alone(
    dtype: torch.dtype, close: Callable[[Tensor, Tensor], bool]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 3)
    inside: list[torch.dtype] = []
    layer.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    x = torch.rand(4, 16, requires_grad=True)
    logits = InPrecision(layer, dtype)(x)
    assert inside == [dtype]
    assert logits.dtype == torch.float32
    assert close(logits, layer(x))
    logits.sum().backward()
    assert layer.weight.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
