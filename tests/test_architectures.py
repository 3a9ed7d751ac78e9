"""Networks without batch norm, and those of libraries, in everything that a generation goes through."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustkt import api, data, models, updates
from robustkt.api.loading import load_network
from robustkt.attacks import named
from robustkt.core import ThreatModel, generator
from robustkt.errors import IntegrityError, UsageError
from robustkt.generation import Training
from robustkt.numbers import fraction
from robustkt.registry import Registry
from tests.conftest import Ran

ARCHITECTURES = ["vit_tiny", "resnet8_gn", "resnet8_ln"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A generation of each, trained for a moment on the digits."""
    registry = Registry(tmp_path_factory.mktemp("made") / "registry")
    for arch in ARCHITECTURES:
        given = {"epochs": 3, "sigma": "0.12"}
        api.train(method="gaussian", arch=arch, data="digits", given=given, registry=registry, device="cpu", name=arch)
    return registry


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_learns_and_is_attacked_and_certified(arch: str, made: Registry) -> None:
    told = api.evaluate(arch, attacks=["fgsm"], eps="8/255", max_images=60, registry=made, device="cpu")
    assert told["clean_accuracy"] > 0.6  # a tenth is chance
    certified = api.certify(arch, n=100, n0=20, max_images=10, registry=made, device="cpu", compile="off")
    assert certified["certified_accuracy"]["0"] > 0.4
    assert certified["self_check"]["differ_from_fp32"] <= certified["self_check"]["votes"] // 100


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attacks_find_a_gradient_in_every_pixel(arch: str, made: Registry) -> None:
    network = load_network(made, made.get(arch))
    test = data.load("digits").test
    x, y = test.images(slice(0, 40)), test.y[:40]
    x.requires_grad_()
    (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), y), x)
    assert (grad.abs().amax((0, 1)) > 0).all(), "no patch and no border is left out"
    x = x.detach()
    threat = ThreatModel("linf", fraction("16/255"))
    pgd = named("pgd:steps=10")
    attacked = pgd.run(network, x, y, threat, rng=generator("cpu", 0), **pgd.options)
    left = [int((network(images).argmax(1) == y).sum()) for images in (x, attacked)]
    assert left[1] < left[0]


@pytest.mark.parametrize(
    "format", ["torchscript", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pt2", "onnx"))]
)
def test_it_is_exported(format: str, made: Registry, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    told = api.export("vit_tiny", format=format, out=tmp_path / "file", registry=made)
    assert told["parity"]["disagreements"] == 0


def test_a_checkpoint_of_one_becomes_the_same_generation_of_it(made: Registry, tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    api.export("vit_tiny", out=file, registry=made)
    told = api.import_generation(str(file), arch="vit_tiny", data="digits", registry=made, name="again", device="cpu")
    assert made.get(told["generation"]).weights == made.get("vit_tiny").weights
    with pytest.raises(Exception, match="It fits --arch vit_tiny"):
        api.import_generation(str(file), arch="resnet8", data="digits", registry=made, name="wrong", device="cpu")


@pytest.mark.parametrize("arch", ["vit_tiny", "timm:test_vit"])
def test_weight_decay_spares_what_a_transformer_says_is_no_weight(arch: str) -> None:
    if arch.startswith("timm:"):
        pytest.importorskip("timm")
    student = models.build(arch, data.load("digits", image_size=32).spec)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, spared = (
        {names[id(parameter)].removeprefix("network.") for parameter in group["params"]}
        for group in updates.sgd(student, Training(weight_decay=0.1)).param_groups
    )
    assert {"cls_token", "pos_embed", "blocks.0.norm1.weight", "head.bias"} <= spared
    assert {"head.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= decayed
    assert len(decayed) + len(spared) == len(names)


# timm and torchvision as students


def test_a_student_of_timm_is_pinned_to_its_version(
    made: Registry, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    pytest.importorskip("timm")

    def distilled() -> str:
        told = api.distill(
            teacher="resnet8_gn",
            arch="timm:test_resnet",
            method="crt",
            registry=made,
            given={"epochs": 1},
            device="cpu",
        )
        return str(told["generation"])

    installed = importlib.metadata.version("timm")
    first = distilled()
    assert made.get(first).recipe.arch_version == f"timm {installed}"
    assert made.get("vit_tiny").recipe.arch_version is None
    assert b"arch_version" not in made.get("vit_tiny").manifest()
    assert distilled() == first, "trained already"
    assert f"timm:test_resnet of timm {installed}" in cli("show", first, "--registry", str(made.root)).out
    monkeypatch.setattr(models, "library_version", lambda arch: "timm 9.9")
    monkeypatch.setattr("robustkt.api.recipes.library_version", lambda arch: "timm 9.9")
    other = distilled()
    assert made.get(other).id != made.get(first).id
    smaller = models.build("timm:test_byobnet", made.get(first).recipe.data)
    monkeypatch.setattr(models, "build", lambda *given, **named: smaller)
    with pytest.raises(IntegrityError, match=rf"made with timm {installed}, and here is timm 9\.9"):
        load_network(made, made.get(first))


def test_timm_is_asked_for_before_anything_is_written(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    for arch, said in {"timm:vit_tiny_patch16_225": "did you mean 'vit_tiny_patch16_224'"}.items():
        with pytest.raises(UsageError, match=said):
            api.train(method="natural", arch=arch, data="digits", registry=registry)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'robustkt\[timm\]'"):
        api.train(method="natural", arch="timm:test_vit", data="digits", registry=registry)
    assert not registry.exists
