"""Folding and compiling change how a network is computed, not what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustkt import inference, models
from robustkt.catalog import ARCHITECTURES
from robustkt.core import InPrecision
from robustkt.generation import DataSpec
from robustkt.models import Classifier, Normalize

CPU = torch.device("cpu")
COLOUR = DataSpec(
    name="x", fingerprint="sha256:" + "0" * 64, shape=(3, 32, 32), classes=tuple("abcde"), mean=(0.3, 0.5, 0.4),
    std=(0.2, 0.3, 0.25), held_out=1,
)  # fmt: skip


def trained(network: nn.Module) -> nn.Module:
    """Statistics and weights as training would leave them, not those of a fresh BatchNorm."""
    rng = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.2, generator=rng)  # type: ignore[union-attr]
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5, generator=rng)  # type: ignore[union-attr]
    return network.eval()


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 0.5


LARGE = ("resnet56", "resnet110", "vit_s4")  # of small ones of their kind


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES.names() if a not in LARGE])
def test_a_folded_network_gives_the_same_logits(arch: str) -> None:
    if "wideresnet" in arch:
        arch = arch.partition("28")[0].partition("34")[0] + "10_1"
    torch.manual_seed(0)
    network = trained(models.build(arch, COLOUR))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = inference.fold(network, COLOUR.shape)
    assert folded is not None
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), network(images()), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    before_folding = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert len(norms) < before_folding or not before_folding
    if arch.startswith(("resnet", "mobilenet")):
        assert not norms
    assert not any(isinstance(m, inference._Divide) for m in folded.modules()) or "preact" in arch or "wide" in arch


@pytest.mark.parametrize("arch", ["vit_tiny", "resnet8_gn", "resnet8_ln"])
def test_networks_without_batch_norm_are_the_same_in_bf16_and_channels_last(arch: str) -> None:
    torch.manual_seed(0)
    network = models.build(arch, COLOUR).eval()
    with torch.inference_mode():
        expected = network(images())
        for other in (
            inference.prepare(network, COLOUR.shape, CPU, "bf16"),
            InPrecision(network, torch.bfloat16),
        ):
            torch.testing.assert_close(other(images()), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
        laid_out = network.to(memory_format=torch.channels_last)
        torch.testing.assert_close(laid_out(images()), expected, rtol=1e-4, atol=1e-4)


def test_the_border_of_a_convolution_stands_for_the_mean() -> None:
    """What a folded bias would get wrong: images whose border matters."""
    network = Classifier(
        Normalize((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)), nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten())
    ).eval()
    folded = inference.fold(network, (3, 4, 4))
    assert folded is not None
    x = torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


class Branches(nn.Module):
    """Cannot be traced: what it does depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) if x.sum() > 0 else -self.layer(x.flatten(1))


class Shared(nn.Module):
    """One convolution used twice, once behind a BatchNorm: folding it would change the other use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(self.norm(self.conv(x))).mean(dim=(2, 3))
        return logits


def test_networks_that_cannot_be_traced_run_as_they_are() -> None:
    network = Classifier(Normalize((0.5,) * 3, (0.2,) * 3), Branches()).eval()
    assert inference.fold(network, COLOUR.shape) is None
    ready = inference.prepare(network, COLOUR.shape, CPU, "fp32")
    with torch.inference_mode():
        assert torch.equal(ready(images()), network(images()))
    assert inference.fold(nn.Identity(), COLOUR.shape) is None


def test_a_layer_that_is_used_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    network = trained(Classifier(Normalize((0.5,) * 3, (0.2,) * 3), Shared()))
    folded = inference.fold(network, COLOUR.shape)
    assert folded is not None
    with torch.inference_mode():
        torch.testing.assert_close(folded(images()), network(images()), rtol=1e-4, atol=1e-4)


def test_bf16_is_the_network_in_bf16_and_its_logits_are_fp32() -> None:
    torch.manual_seed(0)
    network = trained(models.build("smallcnn", COLOUR))
    ready = inference.prepare(network, COLOUR.shape, CPU, "bf16")
    assert {p.dtype for p in ready.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with torch.inference_mode():
        found, expected = ready(images()), network(images())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * float(expected.abs().max()))


@pytest.mark.skipif(not inference.can_compile(CPU), reason="no C++ compiler for torch.compile")
def test_a_compiled_network_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    network = trained(models.build("resnet8", COLOUR))
    ready = inference.prepare(network, COLOUR.shape, CPU, "fp32", compiled=True)
    with torch.inference_mode():
        torch.testing.assert_close(ready(images(8)), network(images(8)), rtol=1e-3, atol=1e-3)


def test_the_fastest_precision_is_one_there_is() -> None:
    assert inference.fastest_precision(CPU) in ("fp32", "bf16")
