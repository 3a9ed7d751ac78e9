"""Losses a row: value and gradient against float64 numpy, direction, and logits so large that they saturate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from robustkt import losses

Array = npt.NDArray[np.float64]
CLASSES = [2, 10, 100]
ROWS = 5


@dataclass(frozen=True)
class Case:
    """A loss of two arguments, the same in numpy, and whether the first argument is probabilities."""

    loss: Callable[[Tensor, Tensor], Tensor]
    reference: Callable[[Array, Array], Array]
    probabilities: bool = False


def _kl(target: Array, logits: Array) -> Array:
    return rel_entr(softmax(target, axis=1), softmax(logits, axis=1)).sum(axis=1)


def _kl_soft(p: Array, logits: Array) -> Array:
    # rel_entr would demand q; −Σ p log q is written out so that p need not sum to 1 under a finite difference
    return (p * np.log(p)).sum(axis=1) - (p * log_softmax(logits, axis=1)).sum(axis=1)


def _l2(target: Array, logits: Array) -> Array:
    return np.sqrt(((logits - target) ** 2).sum(axis=1))


CASES = {
    "kl": Case(losses.kl, _kl),
    "kl_soft": Case(losses.kl_soft, _kl_soft, probabilities=True),
    "l2": Case(losses.l2, _l2),
}


def arguments(case: Case, classes: int, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    target, logits = 2 * random.standard_normal((2, ROWS, classes))
    flat = (softmax(target, axis=1) + 1 / classes) / 2  # away from 0, where p log p is too curved for differences
    return (flat if case.probabilities else target), logits


def slopes(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences of `function` in each entry of `at`."""
    found = np.empty_like(at)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = (function(up) - function(down)) / (2 * step)
    return found


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_values_are_those_of_numpy_and_one_a_row(name: str, classes: int, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[name]
    target, logits = arguments(case, classes)
    value = case.loss(torch.tensor(target, dtype=dtype), torch.tensor(logits, dtype=dtype))
    assert value.shape == (ROWS,)
    assert value.dtype == dtype
    np.testing.assert_allclose(value.double().numpy(), case.reference(target, logits), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CASES)
def test_gradients_to_both_arguments_are_finite_differences(name: str, classes: int) -> None:
    case = CASES[name]
    target, logits = arguments(case, classes, seed=1)
    weights = np.linspace(0.5, 2.0, ROWS)  # a row's own weight, so that no row may stand in for another
    first, second = (torch.tensor(a, requires_grad=True) for a in (target, logits))
    (case.loss(first, second) * torch.tensor(weights)).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    wanted = slopes(lambda t: float(weights @ case.reference(t, logits)), target)
    np.testing.assert_allclose(first.grad.numpy(), wanted, rtol=1e-5, atol=1e-5 if case.probabilities else 1e-8)
    wanted = slopes(lambda z: float(weights @ case.reference(target, z)), logits)
    np.testing.assert_allclose(second.grad.numpy(), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy(classes: int) -> None:
    random = np.random.default_rng(2)
    logits, y = 2 * random.standard_normal((ROWS, classes)), random.integers(classes, size=ROWS)
    z = torch.tensor(logits, requires_grad=True)
    value = losses.ce(z, torch.tensor(y))
    assert value.shape == (ROWS,)
    np.testing.assert_allclose(value.detach().numpy(), -log_softmax(logits, axis=1)[range(ROWS), y], rtol=1e-12)
    weights = np.linspace(0.5, 2.0, ROWS)
    (value * torch.tensor(weights)).sum().backward()
    assert z.grad is not None
    wanted = weights[:, None] * (softmax(logits, axis=1) - np.eye(classes)[y])
    np.testing.assert_allclose(z.grad.numpy(), wanted, rtol=1e-10, atol=1e-14)


def test_the_uniform_guess_costs_log_k_whatever_k() -> None:
    """A mean over classes, or a fixed K, would show here."""
    for classes in CLASSES:
        flat = torch.zeros(3, classes, dtype=torch.float64)
        sure = torch.full((3, classes), -1e4, dtype=torch.float64)
        sure[:, 0] = 0
        wanted = torch.full((3,), math.log(classes), dtype=torch.float64)
        torch.testing.assert_close(losses.ce(flat, torch.zeros(3, dtype=torch.int64)), wanted)
        torch.testing.assert_close(losses.kl(sure, flat), wanted)
        torch.testing.assert_close(losses.kl_soft(sure.softmax(1), flat), wanted)


def test_a_row_does_not_depend_on_the_others() -> None:
    target, logits = (torch.tensor(a) for a in arguments(CASES["kl"], 10))
    y = torch.arange(ROWS)
    for loss, first in ((losses.kl, target), (losses.kl_soft, target.softmax(1)), (losses.l2, target)):
        whole = loss(first, logits)
        rows = torch.cat([loss(first[i : i + 1], logits[i : i + 1]) for i in range(ROWS)])
        torch.testing.assert_close(whole, rows, rtol=0, atol=1e-15)
    rows = torch.cat([losses.ce(logits[i : i + 1], y[i : i + 1]) for i in range(ROWS)])
    torch.testing.assert_close(losses.ce(logits, y), rows, rtol=0, atol=1e-15)


def test_kl_takes_its_target_first() -> None:
    p, q = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert losses.kl(p.log(), q.log()).item() == pytest.approx(forward, rel=1e-12)
    assert losses.kl(q.log(), p.log()).item() == pytest.approx(backward, rel=1e-12)
    assert losses.kl_soft(p, q.log()).item() == pytest.approx(forward, rel=1e-12)
    assert forward != pytest.approx(backward, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("saturated", ["target", "logits", "both, agreeing", "both, at odds"])
def test_kl_is_finite_for_saturated_logits(saturated: str, dtype: torch.dtype) -> None:
    mild, sure = np.array([[0.5, -0.5, 0.0]]), np.array([[1e4, -1e4, -1e4]])
    target, logits = {
        "target": (sure, mild),
        "logits": (mild, sure),
        "both, agreeing": (sure, sure),
        "both, at odds": (sure, -sure),
    }[saturated]
    first, second = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in (target, logits))
    value = losses.kl(first, second)
    value.sum().backward()
    p, gap = softmax(target, axis=1), log_softmax(target, axis=1) - log_softmax(logits, axis=1)
    wanted = (p * gap).sum(axis=1)
    np.testing.assert_allclose(value.detach().double().numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert (wanted > 1e3).item() == (saturated in ("logits", "both, at odds"))
    assert first.grad is not None
    assert second.grad is not None
    np.testing.assert_allclose(first.grad.double().numpy(), p * (gap - wanted), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second.grad.double().numpy(), softmax(logits, axis=1) - p, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=50, derandomize=True, database=None)
@given(st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=2, max_size=6))
def test_kl_is_never_negative_and_zero_only_for_one_distribution(pairs: list[tuple[float, float]]) -> None:
    target, logits = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    assert losses.kl(target, logits).item() >= -1e-13
    assert losses.kl(target, target + 7).item() == pytest.approx(0, abs=1e-12)
    distance = (target.softmax(1) - logits.softmax(1)).abs().sum().item()
    assert losses.kl(target, logits).item() >= distance**2 / 2 - 1e-12  # Pinsker


def test_kl_soft_takes_probabilities_that_are_zero() -> None:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]], requires_grad=True)
    value = losses.kl_soft(p, logits)
    wanted = rel_entr(p.double().numpy(), softmax(logits.detach().double().numpy(), axis=1)).sum(axis=1)
    np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-6)
    value.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - p)


def test_l2_is_the_plain_distance_of_raw_logits() -> None:
    target, logits = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[1.0, 5.0, 6.0]])
    assert losses.l2(target, logits).item() == pytest.approx(5)
    assert losses.l2(2 * target, 2 * logits).item() == pytest.approx(10)  # a square would give 100
    assert losses.l2(target, target + 1).item() == pytest.approx(math.sqrt(3))  # a softmax would see no difference


def test_l2_has_a_gradient_of_zero_where_the_networks_agree() -> None:
    logits = torch.ones(2, 3, requires_grad=True)
    losses.l2(torch.ones(2, 3), logits).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(2, 3))


# -- what attacks raise: against a plain evaluation, a row at a time ---


def _other(z: Array, y: int) -> float:
    return float(np.delete(z, y).max())


ROWWISE: dict[str, tuple[int, Callable[..., Tensor], Callable[[Array, int, int], float]]] = {
    "ce_unrounded": (2, losses.ce_unrounded, lambda z, y, t: float(-log_softmax(z)[y])),
    "margin": (2, losses.margin, lambda z, y, t: _other(z, y) - z[y]),
    "margin_targeted": (2, losses.margin_targeted, lambda z, y, t: z[t] - z[y]),
    "dlr": (3, losses.dlr, lambda z, y, t: -(z[y] - _other(z, y)) / (np.sort(z)[-1] - np.sort(z)[-3])),
    "dlr_targeted": (
        4,
        losses.dlr_targeted,
        lambda z, y, t: -(z[y] - z[t]) / (np.sort(z)[-1] - (np.sort(z)[-3] + np.sort(z)[-4]) / 2),
    ),
}


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 10, 100])
@pytest.mark.parametrize("name", ROWWISE)
def test_losses_of_attacks_are_those_of_the_papers(name: str, classes: int) -> None:
    least, loss, reference = ROWWISE[name]
    if classes < least:
        pytest.skip(f"{name} needs {least} classes")
    random = np.random.default_rng(classes)
    z, y = 3 * random.standard_normal((40, classes)), random.integers(classes, size=40)
    y[:20] = z[:20].argmax(axis=1)  # both sides of the boundary
    target = (y + 1 + random.integers(classes - 1, size=40)) % classes
    further = (torch.tensor(target),) if "targeted" in name else ()
    logits = torch.tensor(z, requires_grad=True)
    value = loss(logits, torch.tensor(y), *further)
    wanted = [reference(*row) for row in zip(z, y, target, strict=True)]
    np.testing.assert_allclose(value.detach().numpy(), wanted, rtol=1e-9, atol=1e-9)
    few = torch.tensor(z[18:22], requires_grad=True)
    rest = tuple(f[18:22] for f in further)
    assert torch.autograd.gradcheck(lambda at: loss(at, torch.tensor(y[18:22]), *rest), (few,))
    small = loss(torch.tensor(z, dtype=torch.float32), torch.tensor(y), *further)
    np.testing.assert_allclose(small.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_entropy_is_that_of_scipy_and_its_end_is_finite() -> None:
    p = softmax(np.random.default_rng(0).standard_normal((5, 7)), axis=1)
    np.testing.assert_allclose(losses.entropy(torch.tensor(p)).numpy(), -(p * np.log(p)).sum(axis=1), rtol=1e-12)
    assert torch.autograd.gradcheck(losses.entropy, (torch.tensor(p, requires_grad=True),))
    assert losses.entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])


@pytest.mark.parametrize("gap", [5.0, 16.0, 30.0, 80.0])
def test_the_unrounded_cross_entropy_of_a_sure_network_still_falls_with_its_margin(gap: float) -> None:
    y = torch.tensor([0])
    low, high = (losses.ce_unrounded(torch.tensor([[by, 0.0, -1.0]]), y).item() for by in (gap, 0.99 * gap))
    assert 0 < low < high
    assert low == pytest.approx(math.exp(-gap) * (1 + math.exp(-1)), rel=0.02)
    assert losses.ce_unrounded(torch.tensor([[-500.0, 500.0]]), y).item() == pytest.approx(1000)
