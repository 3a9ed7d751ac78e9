"""What makes training fast leaves what is trained as it was: folding, compiling, data on the device, early stops."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustkt import models
from robustkt.attacked import attacked
from robustkt.catalog import ARCHITECTURES
from robustkt.generation import DataSpec
from robustkt.losses import ce

CPU = torch.device("cpu")
SMALL = DataSpec(
    name="x", fingerprint="sha256:" + "0" * 64, shape=(3, 16, 16), classes=tuple("abcde"), mean=(0.3, 0.5, 0.4),
    std=(0.2, 0.3, 0.25), held_out=1,
)  # fmt: skip


def student(arch: str = "resnet8", *, seed: int = 0) -> models.Classifier:
    """A network with statistics and weights as training leaves them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = models.build(arch, SMALL)
        moved(network)
    return network


def moved(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if name.startswith("normalize") or not tensor.is_floating_point():
            continue
        with torch.no_grad():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.8, 1.25))


def images(count: int = 8) -> Tensor:
    return torch.rand(count, *SMALL.shape, generator=torch.Generator().manual_seed(2))


def silent(told: str) -> None:
    raise AssertionError(told)


def logits_and_slope(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    at = x.detach().requires_grad_(True)
    z = model(at)
    (grad,) = torch.autograd.grad(ce(z, torch.arange(len(x)) % 5).sum(), at)
    return z.detach(), grad


# -- folding while the student is trained -----------------------------------------------------------------------------


FOLDABLE = ["smallcnn", "resnet8", "preactresnet18", "mobilenetv2", "wideresnet10_1", "resnet8_gn"]


@pytest.mark.parametrize("arch", FOLDABLE)
def test_the_folded_student_keeps_up_with_the_student_to_the_last_digits(arch: str) -> None:
    """In float64, so that what is left is rounding: logits and the gradient on the images, after weights moved."""
    network = student(arch).double().train()
    twin = attacked(network, SMALL.shape, torch.float64, note=silent)
    assert twin is not None
    for _ in range(2):
        twin.stale = True
        x = images(4).double()
        found = logits_and_slope(twin, x)
        expected = logits_and_slope(copy.deepcopy(network).eval(), x)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
        moved(network)
    assert not torch.allclose(found[0], twin(x)) if twin.stale else True


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES.names())
def test_every_architecture_of_the_catalog_folds_exactly_or_not_at_all(arch: str) -> None:
    network = student(arch).double().train()
    twin = attacked(network, SMALL.shape, torch.float64, note=silent)
    if twin is None:
        return
    moved(network)
    for ours, theirs in zip(
        logits_and_slope(twin, images(2).double()), logits_and_slope(copy.deepcopy(network).eval(), images(2).double()),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7 * float(theirs.abs().max()))
