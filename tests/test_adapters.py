"""One backbone with several modes: whose each parameter is, which adapter a pass takes, files that are bound."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from robustkt import adapters, losses, mixture, models
from robustkt.adapters.stored import read_adapter
from robustkt.api.modes import adapter_bytes
from robustkt.attacks import ascend
from robustkt.catalog import ADAPTERS
from robustkt.core import ThreatModel, attacking
from robustkt.errors import IntegrityError, NotFoundError, UsageError
from robustkt.generation import Adapter, DataSpec, Training
from robustkt.modes import modes_of, through
from robustkt.numbers import digest
from robustkt.updates import sgd

DOMAINS = ("clean", "robust")
DATA = DataSpec(
    name="digits", fingerprint=digest(b""), classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,),
    held_out=9,
)  # fmt: skip


class Attends(nn.Module):
    """A ViT of one block, as small as can be: pooled patches, a class token, attention with qkv and proj."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, dim=2)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v))
        logits: Tensor = self.head(tokens[:, 1:].mean(dim=1))
        return logits


class Grouped(nn.Module):
    """A convolution, then GroupNorm, then a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))
        return logits


def built(kind: str) -> nn.Module:
    """A network that a kind of adapter fits, its statistics those of some images."""
    torch.manual_seed(0)
    vit = any(name in kind for name in ("token", "lora", "ln"))
    plain: nn.Module = Attends(1, 10) if vit else Grouped() if "gn" in kind else models.build("resnet8", DATA).network
    network = models.Classifier(models.Normalize(DATA.mean, DATA.std), plain)
    network.train()(images(32))
    return network.eval()


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *DATA.shape, generator=torch.Generator().manual_seed(seed))


KINDS = [
    "dualparams", "dualparams:ln", "dualparams:gn", "dualbatchnorm", "dualhead", "dualtoken", "lora",
    "dualtoken+dualhead", "dualbatchnorm+dualhead",
]  # fmt: skip


MIXED = ("dualparams", "dualhead")


def adapted(kind: str, domains: Sequence[str] = DOMAINS, *, differ: bool = True) -> tuple[nn.Module, nn.Module]:
    """A network with adapters that differ from one another, and the plain one that it was."""
    network = built(kind)
    plain = copy.deepcopy(network)
    adapters.attach(network, kind.partition(":")[0], domains, default=domains[-1])
    if differ:
        with torch.no_grad():
            for parameter in (p for p in network.parameters() if p in adapters.own_parameters(network)):
                parameter += 0.3 * torch.randn(parameter.shape)
    return network.eval(), plain


def test_every_kind_is_tried() -> None:
    tried = {part for kind in KINDS for part in kind.partition(":")[0].split("+")}
    assert tried == set(ADAPTERS.names())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_begin_as_the_network_is(kind: str) -> None:
    network, plain = adapted(kind, differ=False)
    for domain in DOMAINS:
        with through(network, domain):
            torch.testing.assert_close(network(images(6)), plain(images(6)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_put_together_is_the_plain_network_bit_for_bit(kind: str) -> None:
    network, plain = adapted(kind)
    shared, own = adapters.split(network, network.state_dict())
    x = images(6)
    seen = []
    for domain in DOMAINS:
        plain.load_state_dict(adapters.merged(shared, own[domain]), strict=True)
        with through(network, domain):
            found = network(x)
        if "lora" in kind:  # (W + BA)x for Wx + BAx
            torch.testing.assert_close(plain(x), found)
        else:
            assert torch.equal(plain(x), found)
        seen.append(found)
    assert not torch.allclose(*seen), "the modes differ"


@pytest.mark.parametrize(
    ("kind", "training"),  # BatchNorm that is shared sees the mixture in training: see the test below
    [(kind, training) for kind in KINDS for training in (False, True) if not training or kind not in MIXED],
)
def test_one_concatenated_pass_is_a_pass_a_domain(kind: str, training: bool) -> None:
    network, _ = adapted(kind)
    network.train(training)
    if (training and kind == "dualparams") or (training and kind in ("dualhead",)):
        pytest.skip("BatchNorm that is shared sees the mixture: see the test below")
    x, other = images(4), images(4, seed=2)
    with through(network, *DOMAINS):
        together = copy.deepcopy(network)(torch.cat([x, other])) if training else network(torch.cat([x, other]))
    parts = []
    for domain, part in zip(DOMAINS, (x, other), strict=True):
        with through(network, domain):
            parts.append(network(part))
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-5, rtol=1e-4)


def test_shared_statistics_are_those_of_the_mixture() -> None:
    """Against BatchNorm by its definition, in float64: Ioffe & Szegedy, 1502.03167, with 2210.04886's two affines."""
    norm = nn.BatchNorm2d(3).double()
    network = nn.Sequential(norm)
    adapters.attach(network, "dualparams", DOMAINS, default="robust")
    own = list(network[0].own)  # type: ignore[arg-type]
    with torch.no_grad():
        for part in own:
            part.weight.normal_()
            part.bias.normal_()
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    normal = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    expected = torch.cat(
        [
            part.weight[:, None, None] * half + part.bias[:, None, None]
            for part, half in zip(own, normal.chunk(2), strict=True)
        ]
    )
    network.train()
    with through(network, *DOMAINS):
        torch.testing.assert_close(network(x), expected, atol=1e-12, rtol=1e-12)
    assert torch.allclose(network[0].norm.running_mean, 0.1 * mean)  # type: ignore[union-attr,arg-type]
    assert network[0].norm.num_batches_tracked == 1  # type: ignore[union-attr]


def test_dual_batch_norm_keeps_statistics_apart() -> None:
    network, _ = adapted("dualbatchnorm")
    network.train()
    with through(network, *DOMAINS):
        network(torch.cat([images(8), images(8) + 3]))
    first = next(m for m in network.modules() if type(m).__name__ == "DualBatchNorm")
    clean, robust = (one.running_mean for one in first.own)  # type: ignore[union-attr]
    assert not torch.allclose(clean, robust)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_belongs_to_all_or_to_one(kind: str) -> None:
    network, plain = adapted(kind)
    shared, own = adapters.split(network, network.state_dict())
    assert own["clean"].keys() == own["robust"].keys() != set()
    low_rank = {f"{key.rpartition('.')[0]}.weight" for key in own["clean"] if ".lora_" in key}
    names = {key for key in own["clean"] if ".lora_" not in key} | low_rank
    assert names | shared.keys() == plain.state_dict().keys()
    assert names & shared.keys() == low_rank
    counted = sum(p.numel() for p in adapters.own_parameters(network))
    buffers = {name for name, _ in network.named_buffers()}
    held = sum(v.numel() for d in own.values() for v in d.values())
    extra = sum(network.state_dict()[name].numel() for name in buffers if ".own." in name)
    assert counted == held - extra


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_active_adapter_learns(kind: str) -> None:
    network, _ = adapted(kind)
    with through(network, "clean"):
        network(images(4)).square().sum().backward()
    learning = {name for name, p in network.named_parameters() if p.grad is not None and ".own." in name}
    assert learning
    assert all(".own.0." in name for name in learning)


def test_adapters_are_not_decayed() -> None:
    network, _ = adapted("dualhead")
    groups = sgd(network, Training(decay_norm=True, weight_decay=0.1)).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(p) for p in adapters.own_parameters(network)}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


@pytest.mark.parametrize("kind", ["dualparams", "dualtoken", "lora", "dualbatchnorm"])
def test_what_is_frozen_keeps_its_bytes(kind: str) -> None:
    network, _ = adapted(kind)
    adapters.freeze(network)
    before, _ = adapters.split(network, copy.deepcopy(network.state_dict()))
    optimizer = sgd(network, Training())
    for _ in range(2):
        network.train()
        adapters.hold(network)
        with through(network, *DOMAINS):
            network(torch.cat([images(8), images(8, seed=3)])).square().sum().backward()
        optimizer.step()
    after, own = adapters.split(network, network.state_dict())
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not all(torch.equal(own["clean"][key], own["robust"][key]) for key in own["clean"])


def test_a_copy_has_adapters_of_its_own() -> None:
    network, _ = adapted("dualtoken")
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in adapters.own_parameters(other):
            parameter.zero_()
    assert modes_of(other) is not modes_of(network)
    assert not torch.allclose(other(images(2)), network(images(2)))
    with through(other, "clean"):
        assert modes_of(network).active == (1,)  # type: ignore[union-attr]


def test_an_attack_through_its_own_adapter_is_the_strongest() -> None:
    """The loss of images crafted through the active adapter is no lower than of those crafted through the other."""
    network, _ = adapted("dualparams")
    x, y = images(64), torch.arange(64) % 10
    threat = ThreatModel("linf", Fraction(1, 10))
    crafted = {}
    for domain in DOMAINS:
        with through(network, domain), attacking(network):
            crafted[domain] = ascend(
                network, x, threat, lambda z: losses.ce(z, y), steps=20, step_size=Fraction(1, 80), start=x.clone()
            )
    for active, other in (DOMAINS, DOMAINS[::-1]):
        with through(network, active), torch.no_grad():
            own, foreign = (losses.ce(network(crafted[d]), y).mean() for d in (active, other))
        assert own > foreign


def test_what_cannot_be_adapted_is_refused() -> None:
    plain = models.Classifier(models.Normalize(DATA.mean, DATA.std), nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    for kind, what in (
        ("dualparams", "no normalisation"), ("dualbatchnorm", "no BatchNorm"), ("dualtoken", "no class token"),
        ("lora", "no attention"), ("dualhead", "last layer"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=what):
            adapters.attach(copy.deepcopy(plain), kind, DOMAINS, default="clean")
    with pytest.raises(UsageError, match="unknown adapter 'dualparam': did you mean 'dualparams'"):
        adapters.check_kinds("dualparam")
    with pytest.raises(UsageError, match="twice"):
        adapters.check_kinds("dualhead+dualhead")
    with pytest.raises(UsageError, match="two kinds of adapters would change the same layers"):
        adapters.attach(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), "dualbatchnorm+dualparams", DOMAINS, default="clean"
        )
    assert adapters.check_kinds("DualToken+DUALHEAD") == "dualhead+dualtoken", "one spelling"
    network, _ = adapted("dualhead")
    with pytest.raises(UsageError, match="no domain foggy"), through(network, "foggy"):
        pass
    with through(network, *DOMAINS), pytest.raises(ValueError, match="evenly"):
        network(images(3))


# -- mixtures ----------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_sum_in_float64() -> None:
    parts = {name: {"w": torch.randn(50), "n": torch.tensor(3)} for name in DOMAINS}
    shares = {"clean": Fraction(3, 10), "robust": Fraction(7, 10)}
    expected = 0.3 * parts["clean"]["w"].double() + 0.7 * parts["robust"]["w"].double()
    found = adapters.mixed(parts, shares)
    assert torch.equal(found["w"], expected.float())
    assert found["n"] == 3
    backwards = adapters.mixed(dict(reversed(parts.items())), dict(reversed(shares.items())))
    assert torch.equal(found["w"], backwards["w"])


@pytest.mark.parametrize("beta", [0, 1])
def test_the_ends_are_the_adapters_bit_for_bit(beta: int) -> None:
    parts = {name: {"w": torch.tensor([-0.0, 1e-45, float(place)])} for place, name in enumerate(DOMAINS)}
    found = adapters.mixed(parts, {"clean": Fraction(1 - beta), "robust": Fraction(beta)})["w"]
    assert found.numpy().tobytes() == parts[DOMAINS[beta]]["w"].numpy().tobytes()


def test_modes_have_one_spelling() -> None:
    for text, told in {
        "clean": "clean", "robust": "robust", "beta=0.4": "beta=0.4", "clean=.6,robust=.4": "beta=0.4",
        "beta=0": "clean", "beta=1": "robust", "robust=2/5,clean=3/5": "beta=0.4", "clean=1,robust=0": "clean",
    }.items():  # fmt: skip
        shares = mixture.parse(text, DOMAINS, "gen2")
        assert mixture.spelled(shares) == told
        assert mixture.parse(told, DOMAINS, "gen2") == shares
    assert mixture.spelled(mixture.parse("b=.25,a=.75", ["a", "b"], "gen2")) == "a=0.75,b=0.25"


@pytest.mark.parametrize(
    "text", ["foggy", "beta", "beta=", "clean=.5", "clean=.6,robust=.5", "beta=1.2", "clean=.5,clean=.5"]
)
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises((UsageError, NotFoundError)) as error:
        mixture.parse(text, DOMAINS, "gen2")
    assert error.value.fix
    assert ("twice" in error.value.what) == (text == "clean=.5,clean=.5")
    with pytest.raises(NotFoundError, match="gen1 has no modes"):
        mixture.parse(text, [], "gen1")


def test_low_rank_changes_are_mixed_as_products() -> None:
    """Against Σ share·B·A in float64; an adapter mixed with another factoring of itself stays what it is."""
    torch.manual_seed(0)
    base = {"qkv.weight": torch.randn(6, 4)}
    one, two = ({"qkv.lora_A": torch.randn(2, 4), "qkv.lora_B": torch.randn(6, 2)} for _ in range(2))
    turn = torch.linalg.qr(torch.randn(2, 2))[0]
    same = {"qkv.lora_A": turn @ one["qkv.lora_A"], "qkv.lora_B": one["qkv.lora_B"] @ turn.T}
    shares = {"a": Fraction(3, 10), "b": Fraction(7, 10)}

    def changed(adapter: dict[str, Tensor]) -> Tensor:
        return adapters.merged(base, adapter)["qkv.weight"].double() - base["qkv.weight"].double()

    products = [part["qkv.lora_B"].double() @ part["qkv.lora_A"].double() for part in (one, two)]
    found = changed(adapters.mixed({"a": one, "b": two}, shares))
    torch.testing.assert_close(found, 0.3 * products[0] + 0.7 * products[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        changed(adapters.mixed({"a": one, "b": same}, shares)), products[0], atol=1e-5, rtol=1e-5
    )


def test_a_normalisation_that_does_more_is_refused() -> None:
    class Activates(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    with pytest.raises(UsageError, match="Activates does more than normalise"):
        adapters.attach(nn.Sequential(Activates(3)), "dualparams", DOMAINS, default="clean")
    network = nn.Sequential(Activates(3))
    adapters.attach(network, "dualbatchnorm", DOMAINS, default="clean")
    with through(network, *DOMAINS):
        assert network(torch.randn(4, 3, 2, 2)).shape == (4, 3, 2, 2)


def test_two_modes_compute_in_the_precision_of_one() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).train()
    adapters.attach(network, "dualparams", DOMAINS, default="clean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with through(network, *DOMAINS):
            together = network(torch.randn(4, 1, 5, 5))
        assert together.dtype == network(torch.randn(4, 1, 5, 5)).dtype == torch.bfloat16


# -- files -------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_bound_to_its_base_and_domain() -> None:
    tensors = {"network.bn.weight": torch.randn(4)}
    data = adapter_bytes(tensors, base=digest(b"base"), kind="dualparams", domain="clean")
    assert data == adapter_bytes(tensors, base=digest(b"base"), kind="dualparams", domain="clean")
    found = read_adapter(data, Adapter("clean", digest(data), digest(b"base")), "gen2")
    assert torch.equal(found["network.bn.weight"], tensors["network.bn.weight"])
    assert load(data).keys() == tensors.keys()
    with pytest.raises(IntegrityError, match="belongs to another base"):
        read_adapter(data, Adapter("clean", digest(data), digest(b"other")), "gen2")
    with pytest.raises(IntegrityError, match="is that of clean"):
        read_adapter(data, Adapter("robust", digest(data), digest(b"base")), "gen2")
    for damaged in (b"", data[:20], b"\xff" * 64, data.replace(b"robustkt", b"robustkx")):
        with pytest.raises(IntegrityError, match="is not one"):
            read_adapter(damaged, Adapter("clean", digest(data), digest(b"base")), "gen2")


def test_half_of_a_low_rank_pair_is_refused() -> None:
    base = {"qkv.weight": torch.zeros(6, 4)}
    whole = {"qkv.lora_A": torch.ones(2, 4), "qkv.lora_B": torch.ones(6, 2)}
    assert torch.equal(adapters.merged(base, whole)["qkv.weight"], torch.full((6, 4), 2.0))
    for wrong in (
        {"qkv.lora_A": whole["qkv.lora_A"]},
        {"x.lora_A": torch.ones(2, 4), "x.lora_B": torch.ones(6, 2)},
        {**whole, "qkv.lora_B": torch.ones(5, 2)},
    ):
        with pytest.raises(IntegrityError, match="is not whole"):
            adapters.merged(base, wrong)
