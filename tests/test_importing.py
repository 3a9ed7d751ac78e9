"""Foreign checkpoints: all five families in every wrapping load; what is hostile, damaged or misfitting is refused."""

from __future__ import annotations

import argparse
import http.server
import io
import os
import pickle
import re
import sys
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from robustkt import api, models
from robustkt.api.loading import load_network
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import DataSpec, read_manifest
from robustkt.imports import files, fitting, sources, zoo
from robustkt.progress import Silent
from robustkt.registry import Registry, verify
from tests.conftest import Ran

State = dict[str, Tensor]
DIGITS = DataSpec(
    name="digits", fingerprint="", classes=tuple("0123456789"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,), held_out=9
)


def numbered(network: nn.Module) -> nn.Module:
    """With statistics that differ from layer to layer, so that a swap shows."""
    rng = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=rng)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
    return network.eval()


@cache
def sketch(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return numbered(models.build(arch, DIGITS).network)


def kuangliu(name: str) -> str:
    """What RobustBench calls a parameter of our ResNet."""
    name = re.sub(r"^stages\.(\d)", lambda m: f"layer{int(m[1]) + 1}", name)
    return re.sub(r"^(conv|bn)\.", r"\g<1>1.", name).replace("fc.", "linear.")


def locuslab(name: str) -> str:
    return kuangliu(name).replace("shortcut.", "downsample.").replace("linear.", "fc.")


def trades(name: str) -> str:
    """Of wideresnet10_1: one block a stage."""
    name = re.sub(r"^blocks\.(\d)", lambda m: f"block{int(m[1]) + 1}.layer.0", name)
    return re.sub(r"^(conv|bn)\.", r"\g<1>1.", name).replace("shortcut.", "convShortcut.")


def mobile(name: str) -> str:
    places = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
    name = re.sub(r"^blocks\.(\d+)\.body\.(\d)", lambda m: f"layers.{m[1]}.{places[m[2]]}", name)
    name = re.sub(r"^blocks\.(\d+)\.shortcut", r"layers.\1.shortcut", name)
    for ours, theirs in {
        "stem.0": "conv1",
        "stem.1": "bn1",
        "head.0": "conv2",
        "head.1": "bn2",
        "fc": "linear",
    }.items():
        name = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", name)
    return name


def itself(name: str) -> str:
    return name


FAMILIES: dict[str, tuple[str, Callable[[str], str]]] = {
    "WideResNet": ("wideresnet10_1", trades),
    "ResNet": ("resnet18", kuangliu),
    "certified ResNet": ("resnet20", locuslab),
    "PreActResNet": ("preactresnet18_nobn_raw", itself),
    "DeepMind WideResNet": ("dmwideresnet10_1", itself),
    "DeepMind PreActResNet": ("dmpreactresnet18", itself),
    "MobileNetV2": ("mobilenetv2", mobile),
}

SMALL = {"WideResNet", "certified ResNet", "DeepMind WideResNet"}  # files of 1 MB; the others have up to 50


def foreign(family: str) -> State:
    arch, rename = FAMILIES[family]
    state = {rename(name): value for name, value in sketch(arch).state_dict().items()}
    if family == "WideResNet":
        state |= {f"sub_{name}": value for name, value in state.items() if name.startswith("block1.")}
    if family.startswith("DeepMind"):
        state |= {"mean": torch.tensor([0.25]).view(1, 1, 1), "std": torch.tensor([0.5]).view(1, 1, 1)}
    return state


def before(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def wrong(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


STATISTICS = {"0.mean": torch.tensor([0.1]), "0.std": torch.tensor([0.2])}
WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "ordered": lambda s: OrderedDict(s),
    "state_dict": lambda s: {"epoch": 7, "arch": "x", "state_dict": s, "optimizer": {"state": {0: {}}}},
    "model": lambda s: {"model": s},
    "net": lambda s: {"net": s, "acc": 84.0},
    "model_state_dict": lambda s: {"model_state_dict": s, "unaveraged_model_state_dict": wrong(s)},
    "DataParallel": lambda s: {"state_dict": before("module.", s)},
    "compiled": lambda s: before("_orig_mod.", s),
    "compiled DataParallel": lambda s: before("_orig_mod.module.", s),
    "lightning": lambda s: {"state_dict": before("model.", s)},
    "normalised": lambda s: {"state_dict": before("1.", s)},
    "normalised DataParallel": lambda s: {"state_dict": before("1.module.", s) | STATISTICS},
    "RobustBench's normalised": lambda s: (
        before("model.", s) | {"normalize.mean": torch.zeros(1, 1, 1, 1), "normalize.std": torch.ones(1, 1, 1, 1)}
    ),
    "timm's EMA": lambda s: {"state_dict": wrong(s), "state_dict_ema": before("module.", s)},
    "EMA": lambda s: {"model": wrong(s), "ema": {"decay": 0.99, "state_dict": s}},
    "averaged": lambda s: before("module.", s) | {"n_averaged": torch.tensor(3)},
    "ema_pytorch": lambda s: (
        before("ema_model.", s)
        | before("online_model.", wrong(s))
        | {"initted": torch.tensor(True), "step": torch.tensor(9)}
    ),
    "old torch": lambda s: {n: v for n, v in s.items() if not n.endswith("num_batches_tracked")},
    "profiled": lambda s: s | {"conv1.total_ops": torch.zeros(1)},
}


FEW = {"bare", "normalised DataParallel", "old torch"}  # where each family's own names and buffers meet


@pytest.mark.parametrize(
    ("family", "wrapping"),
    [
        pytest.param(family, wrapping, marks=[] if wrapping in FEW or family in SMALL else pytest.mark.slow)
        for family in FAMILIES
        for wrapping in WRAPPINGS
    ],
)
def test_every_family_loads_in_every_wrapping(family: str, wrapping: str, tmp_path: Path) -> None:
    arch, _ = FAMILIES[family]
    path = tmp_path / "best.pt"
    torch.save(WRAPPINGS[wrapping](foreign(family)), path)
    fitted = fitting.fit(files.read(path, "best.pt"), sketch(arch), shown="best.pt", arch=arch)
    wanted = sketch(arch).state_dict()
    assert set(fitted.state) == set(wanted)
    assert all(torch.equal(fitted.state[name], value) for name, value in wanted.items())
    assert bool(fitted.unused) == (family == "WideResNet")


def test_names_of_the_public_codes() -> None:
    """Literally: the renaming above could share a mistake with ours."""
    known = {
        "WideResNet": ("conv1.weight", "block2.layer.0.convShortcut.weight", "block3.layer.0.bn2.bias", "fc.bias"),
        "ResNet": ("conv1.weight", "layer2.0.shortcut.1.bias", "layer4.1.conv2.weight", "linear.weight", "bn1.bias"),
        "certified ResNet": ("conv1.weight", "layer2.0.downsample.0.weight", "layer3.2.bn2.weight", "fc.weight"),
        "PreActResNet": ("conv1.weight", "layer2.0.shortcut.0.weight", "layer4.1.conv2.weight", "linear.weight"),
        "DeepMind WideResNet": (
            "init_conv.weight", "layer.1.block.0.shortcut.weight", "layer.2.block.0.batchnorm_1.weight", "logits.bias",
        ),
        "DeepMind PreActResNet": ("conv_2d.weight", "layer_1.0.shortcut.weight", "layer_3.1.conv_2d_2.weight"),
        "MobileNetV2": ("conv1.weight", "layers.16.bn3.weight", "layers.0.shortcut.0.weight", "linear.bias"),
    }  # fmt: skip
    for family, names in known.items():
        assert set(names) <= set(foreign(family)), family


# What is refused, each with its own two lines


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return buffer.getvalue()


WEIGHTS = {"conv.weight": torch.arange(3000.0), "fc.bias": torch.zeros(10)}
PACKED, LOOSE = saved(WEIGHTS), save(WEIGHTS)
SCRIPTED = "x.pt is a TorchScript program"
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "x.pt is empty"),
    "page": (b"  \n<!DOCTYPE html><html>Google Drive - Virus scan warning", "x.pt is a web page, not a checkpoint"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "x.pt is a Git LFS pointer, not the file"),
    "answer": (b'{"error": "not found"}', 'x.pt is text, not a checkpoint: {"error"'),
    "noise": (b"hello world, I am no checkpoint", "x.pt is neither a safetensors file nor a PyTorch checkpoint"),
    "cut archive": (PACKED[:-300], "x.pt is truncated: the table at its end is missing"),
    "cut safetensors": (LOOSE[:-300], f"x.pt is truncated: it should have {len(LOOSE):,} bytes"),
    "cut header": (LOOSE[:60], "x.pt is truncated: its header should have"),
    "cut old pickle": (saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-300], "x.pt is truncated"),
    "broken header": (LOOSE[:20] + b"\xff\xff" + LOOSE[22:], "x.pt is a damaged safetensors file"),
    "flipped": (PACKED.replace(torch.arange(3000.0).numpy().tobytes()[:64], b"\1" * 64), "x.pt is damaged: "),
    "malicious": (saved({"state_dict": Evil()}), f"x.pt is malicious: as a pickle it would call {os.name}.system"),
    "malicious old": (saved(Evil(), _use_new_zipfile_serialization=False), "x.pt is malicious"),
    "malicious bare": (pickle.dumps(Evil(), protocol=2), "x.pt is malicious"),
    "needs code": (
        saved({"args": argparse.Namespace(lr=1), "state_dict": WEIGHTS}),
        "x.pt is a pickle that needs code of its authors to load: argparse.Namespace",
    ),
    "whole network": (saved(nn.Conv2d(1, 1, 1)), "x.pt is a pickle that needs code of its authors to load: torch.nn"),
    "program": (zipped(a__constants_pkl=b"", a__data_pkl=b""), SCRIPTED),
    "archive": (zipped(readme=b"hello"), "x.pt is a zip archive without a checkpoint in it: readme"),
    "bomb": (zipped(a__data_pkl=b"\0" * 2**24), "x.pt would unpack to far more than its"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_hostile_files_are_refused_each_in_its_own_words(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    data, said = REFUSED[kind]
    (tmp_path / "x.pt").write_bytes(data)
    ran = cli("import", "x.pt", "--arch", "resnet8", "--data", "digits")
    assert ran.code == 1
    assert ran.err.splitlines()[0].startswith(f"error: {said}")
    assert len(ran.err.splitlines()) == 2
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "registry").exists()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_do_more_than_be_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Mutations of real files and noise: a state dict, or an error that the user can read."""
    original = bytearray(data.draw(st.sampled_from([PACKED, LOOSE, REFUSED["malicious"][0], b"\x80\x02}q\x00."])))
    for _ in range(data.draw(st.integers(0, 4))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    original = original[: data.draw(st.integers(0, len(original)))] + data.draw(st.binary(max_size=20))
    path = tmp_path_factory.mktemp("fuzz") / "x.pt"
    path.write_bytes(original)
    try:
        content = files.read(path, "x.pt")
        fitting.fit(content, sketch("resnet8"), shown="x.pt", arch="resnet8")
    except RobustKTError as error:
        if not error.fix:
            raise


def test_a_header_whose_length_looks_like_a_page_is_none(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for length in (0x3C20, 0x203C, 0x7B22):  # " <" and "<" and a brace
        data = length.to_bytes(8, "little") + header.ljust(length) + bytes(4)
        (tmp_path / "x.safetensors").write_bytes(data)
        assert files.read(tmp_path / "x.safetensors", "x")["w"].tolist() == [0]


def test_a_wrong_architecture_is_told_what_is_missing_and_which_fits(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    torch.save(foreign("ResNet"), tmp_path / "x.pt")
    ran = cli("import", "x.pt", "--arch", "resnet20", "--data", "digits")
    assert ran.code == 1
    assert re.match(r"error: x.pt does not fit resnet20: \d+ tensors missing \(.*unexpected.*misshapen \(", ran.err)
    assert ran.err.splitlines()[1] == "  → It fits --arch resnet18."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "bn1.bias"}, "1 tensor missing (bn.bias)"),
        (lambda s: s | {"extra.weight": torch.zeros(1)}, "1 tensor unexpected (extra.weight)"),
        (lambda s: s | {"linear.bias": torch.zeros(100)}, "1 tensor misshapen (fc.bias is (100,), not (10,))"),
    ],
)
def test_strictly(change: Callable[[State], State], said: str) -> None:
    with pytest.raises(RobustKTError) as caught:
        fitting.fit(change(foreign("ResNet")), sketch("resnet18"), shown="x.pt", arch="resnet18")
    assert caught.value.what == f"x.pt does not fit resnet18: {said}"


def test_half_a_normalisation_and_no_weights_are_refused() -> None:
    resnet8 = sketch("resnet8")
    with pytest.raises(RobustKTError, match="holds half a normalisation: mu"):
        fitting.fit(resnet8.state_dict() | {"mu": torch.zeros(1)}, resnet8, shown="x", arch="resnet8")
    with pytest.raises(RobustKTError, match="x holds no weights: epoch, args"):
        fitting.fit({"epoch": 3, "args": {}}, resnet8, shown="x", arch="resnet8")
    with pytest.raises(UsageError, match="holds no weights under 'ema'\nKnown: model"):
        fitting.fit({"model": resnet8.state_dict()}, resnet8, shown="x", arch="resnet8", key="ema")


# Generations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, str]:
    registry = Registry(tmp_path_factory.mktemp("trained"))
    given_ = {"sigma": "0.25", "epochs": 4}
    api.train(method="gaussian", arch="smallcnn", data="digits", given=given_, registry=registry, device="cpu")
    return registry, "gen0"


def test_our_own_weights_come_back_with_their_normalisation_and_teach(
    trained: tuple[Registry, str], registry: Registry, tmp_path: Path
) -> None:
    source, name = trained
    network = load_network(source, source.get(name))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    made = api.import_generation(
        str(tmp_path / "model.safetensors"), arch="smallcnn", data="digits", sigma="0.250", license="MIT",
        registry=registry, device="cpu",
    )  # fmt: skip
    found = registry.get("gen0")
    assert registry.object(found.weights) == source.object(source.get(name).weights)
    assert found.recipe.training is None
    assert read_manifest(found.manifest(), "gen0", "x").recipe == found.recipe
    assert dict(found.recipe.settings) == {
        "source": "file",
        "source_hash": files.sha256(tmp_path / "model.safetensors"),
        "license": "MIT",
        "sigma": "0.25",
    }
    assert made["normalization"]["from"] == "the file"
    assert made["measured"]["score"] > 0.4
    assert made["notes"] == []
    student = api.distill(
        teacher="gen0", arch="smallcnn", given={"epochs": 1}, registry=registry, device="cpu", name="student"
    )
    assert (student["method"], student["parents"]) == ("crt", {"teacher": found.id})
    again = api.import_generation(
        str(tmp_path / "model.safetensors"), arch="smallcnn", data="digits", sigma="1/4", license="MIT",
        registry=registry, device="cpu",
    )  # fmt: skip
    assert (again["id"], again["created"]) == (made["id"], False)
    assert not [f for f in verify(registry) if f.damage]
    assert str(tmp_path) not in found.manifest().decode()


def test_what_nothing_says_is_found_by_accuracy(
    trained: tuple[Registry, str], registry: Registry, tmp_path: Path
) -> None:
    source, name = trained
    torch.save(load_network(source, source.get(name)).network.state_dict(), tmp_path / "x.pt")  # type: ignore[arg-type,union-attr]
    made = api.import_generation(
        str(tmp_path / "x.pt"),
        arch="smallcnn",
        data="digits",
        norm="linf",
        eps="8/255",
        registry=registry,
        device="cpu",
    )
    assert made["normalization"]["from"] in ("accuracy: data", "accuracy: half", "accuracy: none")
    assert made["measured"]["score"] > 0.4
    assert made["claimed"] == {"norm": "linf", "eps": "8/255"}
    student = api.distill(teacher="gen0", arch="smallcnn", given={"epochs": 1}, registry=registry, device="cpu")
    assert student["method"] == "rslad"


def test_the_commands_show_what_was_imported(
    trained: tuple[Registry, str], tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    source, name = trained
    torch.save(load_network(source, source.get(name)).state_dict(), tmp_path / "x.pt")
    ran = cli("import", "x.pt", "-a", "smallcnn", "-d", "digits", "--sigma", "0.25", "--name", "teacher")
    assert ran.code == 0, ran.err
    assert "note  no licence is recorded" in ran.out
    shown = cli("show", "teacher")
    assert shown.code == 0, shown.err
    assert "training      elsewhere: imported" in shown.out
    assert "measured      accuracy under noise 0.25" in shown.out
    assert cli("list", "--json").json["generations"][0]["guarantee"] == "σ 0.25"
    assert "Imported, not trained here" in cli("push", "teacher", "--dry-run", "--json").json["card"]
    taken = cli("import", "x.pt", "-a", "smallcnn", "-d", "digits", "--name", "teacher")
    assert taken.code == 1
    plain = cli("import", "x.pt", "-a", "smallcnn", "-d", "digits", "--name", "plain")
    assert plain.code == 0, plain.err
    refused = cli("distill", "--from", "plain", "--to", "smallcnn")
    assert refused.err.splitlines()[0] == "error: plain was imported without a claim of robustness"


def test_the_users_own_network_loads_too(tmp_path: Path, registry: Registry) -> None:
    text = "from torch import nn\n\ndef net(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    (tmp_path / "net.py").write_text(text)
    torch.save(
        {"model": before("module.", {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)})}, tmp_path / "x.pt"
    )
    made = api.import_generation(
        str(tmp_path / "x.pt"), arch=f"{tmp_path}/net.py:net", data="digits", registry=registry, device="cpu",
        normalization="0.5/0.25",
    )  # fmt: skip
    assert made["arch"] == "net.py:net"
    assert "as good as guessing" in made["notes"][0]
    assert load_network(registry, registry.get("gen0")).normalize.std.item() == 0.25  # type: ignore[union-attr,operator]


def test_rows_of_a_larger_head_are_picked(tmp_path: Path, registry: Registry) -> None:
    state = dict(sketch("resnet8").state_dict())
    state |= {"fc.weight": torch.randn(1000, 64), "fc.bias": torch.arange(1000.0)}
    torch.save(state, tmp_path / "x.pt")
    rows = [5, 3, 1, 700, 9, 2, 0, 8, 7, 6]
    api.import_generation(
        str(tmp_path / "x.pt"), arch="resnet8", data="digits", classes=rows, registry=registry, device="cpu",
        normalization="none",
    )  # fmt: skip
    found = registry.get("gen0")
    assert found.recipe.settings["classes"] == "5,3,1,700,9,2,0,8,7,6"
    assert load_network(registry, found).network.fc.bias.tolist() == rows  # type: ignore[union-attr,operator]


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x.flatten(1)[:, :10], dim=1)


class Batchwise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] - x.mean()


@pytest.mark.parametrize(
    ("network", "said"),
    [(Softmax(), "gives probabilities, not logits"), (Batchwise(), "other logits alone than among others")],
)
def test_networks_that_are_no_classifiers_of_single_images(network: nn.Module, said: str) -> None:
    from robustkt.api.importing import check_outputs

    with pytest.raises(RobustKTError, match=said):
        check_outputs(network, DIGITS, torch.device("cpu"), "x.pt")


def test_weights_that_are_not_finite(tmp_path: Path, registry: Registry) -> None:
    torch.save(sketch("resnet8").state_dict() | {"fc.bias": torch.full((10,), float("nan"))}, tmp_path / "x.pt")
    with pytest.raises(IntegrityError, match=r"not finite numbers: fc\.bias"):
        api.import_generation(str(tmp_path / "x.pt"), arch="resnet8", data="digits", registry=registry, device="cpu")
    assert not registry.exists


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sigma": "1", "eps": "8/255"}, "a guarantee is one for noise or one for a ball"),
        ({"norm": "l2"}, "which ball in l2"),
        ({"normalization": "cifra10"}, "unknown normalisation 'cifra10': did you mean 'cifar10'"),
        ({"normalization": "imagenet"}, "the normalisation has 3 channels, the images of digits have 1"),
        ({"classes": [1, 2]}, "--classes names 2 rows; digits has 10 classes"),
        ({"arch": None}, "x.pt does not say its architecture"),
        ({"data": None}, "x.pt does not say what data it was trained on"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], said: str, tmp_path: Path, registry: Registry) -> None:
    torch.save(sketch("resnet8").state_dict(), tmp_path / "x.pt")
    given_ = {"arch": "resnet8", "data": "digits", "registry": registry, "device": "cpu", **options}
    with pytest.raises(UsageError, match=re.escape(said)):
        api.import_generation(str(tmp_path / "x.pt"), **given_)
    assert not registry.exists


# Addresses, on this machine only


class Answers(http.server.BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}

    def do_GET(self) -> None:
        status, headers, body = self.pages.get(self.path.partition("?")[0], (404, {}, b"<html>"))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Answers, "pages", {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_an_address_is_fetched_and_recorded_without_its_token(server: str, registry: Registry) -> None:
    Answers.pages["/a.pt"] = 302, {"Location": f"{server}/b.pt"}, b""
    Answers.pages["/b.pt"] = 200, {}, saved(foreign("certified ResNet"))
    made = api.import_generation(
        f"{server}/a.pt?token=secret", arch="resnet20", data="digits", registry=registry, device="cpu",
        normalization="none",
    )  # fmt: skip
    assert made["source"] == f"{server}/a.pt"
    assert "secret" not in registry.get("gen0").manifest().decode()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ((200, {}, b"<!doctype html>Sign in"), "is a web page, not a checkpoint"),
        ((200, {"Content-Length": "9999"}, b"\x80abc"), "is truncated: 4 of 9,999 bytes came"),
        ((200, {"Content-Length": str(2**40)}, b""), "more than the"),
        ((200, {"Content-Length": "", "Connection": "close"}, b"\x80" * 5000), "goes on after 4,096 bytes"),
        ((403, {}, b"<html>"), "may not be fetched: the server answers 403"),
        ((404, {}, b""), "there is nothing at"),
        ((503, {}, b""), "could not be fetched: the server answers 503"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "could not be fetched: the server answers 302"),
        ((302, {"Location": "http://example.invalid/x"}, b""), "is not an https address"),
    ],
)
def test_answers_that_are_refused(server: str, page: tuple[int, dict[str, str], bytes], said: str) -> None:
    Answers.pages["/a.pt"] = page
    with (
        pytest.raises(RobustKTError, match=re.escape(said)),
        sources.downloaded(f"{server}/a.pt", "a.pt", Silent(), limit=4_096 if b"\x80" * 9 in page[2] else None),
    ):
        pass
    assert not any((Path(os.environ["XDG_CACHE_HOME"]) / "robustkt" / "imports").iterdir())


def test_addresses_that_are_not_safe() -> None:
    for url in ("http://example.invalid/x.pt", "https+x://a/b"):
        with pytest.raises(RobustKTError), sources.downloaded(url, url, Silent()):
            pass


def test_a_closed_port_is_no_traceback(server: str) -> None:
    with (
        pytest.raises(RobustKTError, match="could not be fetched"),
        sources.downloaded("http://127.0.0.1:9/x.pt", "x.pt", Silent()),
    ):
        pass


def test_verbose_tells_where_and_says_the_error_once(cli: Callable[..., Ran]) -> None:
    ran = cli("import", "http://127.0.0.1:9/x.pt", "--arch", "smallcnn", "--data", "digits", "--verbose")
    assert ran.code == 1
    assert "Traceback (most recent call last)" in ran.err
    assert ran.err.count("x.pt could not be fetched: [Errno") == 1


def test_a_file_of_the_hub_by_its_commit(
    server: str, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = "1" * 40
    head = {"X-Repo-Commit": commit, "ETag": '"abc"'}
    Answers.pages["/org/net/resolve/v1/sub/model.safetensors"] = 200, head, save(sketch("resnet8").state_dict())
    monkeypatch.setenv("HF_ENDPOINT", server)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    made = api.import_generation(
        "hf:org/net/sub/model.safetensors@v1", arch="resnet8", data="digits", registry=registry, device="cpu",
        normalization="none",
    )  # fmt: skip
    assert made["source"] == f"hf:org/net/sub/model.safetensors@{commit}"
    with pytest.raises(UsageError, match="names no file of a repository"), sources.fetch("hf:org/net", Silent()):
        pass
    with pytest.raises(RobustKTError, match="hf:org/other"), sources.fetch("hf:org/other/x.pt", Silent()):
        pass


# RobustBench, torchvision, timm


def test_every_entry_names_an_architecture_that_is_known() -> None:
    for name, entry in zoo.ENTRIES.items():
        models.known(entry.arch)
        assert entry.license in ("MIT", "Apache-2.0")
        assert len(entry.drive) == 33, name
    assert zoo.entry("wong2020fast").robust == 0.4321
    with pytest.raises(UsageError, match="did you mean 'Wong2020Fast'"):
        zoo.entry("Wong2020Fst")


def test_an_entry_brings_all_that_is_known_of_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = zoo.Entry("resnet8", "x", ((0.5,), (0.5,)), 0.9, 0.5, eps="0.031")
    monkeypatch.setitem(zoo.ENTRIES, "Wong2020Fast", entry)
    torch.save(sketch("resnet8").state_dict(), tmp_path / "downloaded.pt")
    made = api.import_generation(
        "robustbench:Wong2020Fast", file=tmp_path / "downloaded.pt", data="digits", registry=registry, device="cpu"
    )
    assert made["claimed"] == {
        "norm": "linf", "eps": "0.031", "claimed_clean_accuracy": 0.9, "claimed_autoattack_accuracy": 0.5,
    }  # fmt: skip
    assert (made["source"], made["license"]) == ("robustbench:Wong2020Fast", "MIT")
    assert made["normalization"] == {"mean": [0.5], "std": [0.5], "from": "the source"}


def test_pretrained_weights_of_torchvision(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    torch.manual_seed(0)
    state = squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", lambda self, **options: state)
    with sources.fetch("torchvision:squeezenet1_1:IMAGENET1K_V1", Silent()) as found:
        assert (found.arch, found.source) == ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1:IMAGENET1K_V1")
        assert found.statistics == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    spec = DataSpec(
        name="imagenette", fingerprint="", classes=tuple("0123456789"), shape=(3, 64, 64), mean=(0.5,) * 3,
        std=(0.5,) * 3, held_out=9,
    )  # fmt: skip
    network = models.build("torchvision:squeezenet1_1", spec).network
    fitted = fitting.fit(state, network, shown="x", arch="x", rows=range(10))
    assert fitted.cut
    unknown = pytest.raises(UsageError, match="torchvision has no weights 'squeezenet1_1:V9'")
    with unknown, sources.fetch("torchvision:squeezenet1_1:V9", Silent()):
        pass


def plain_squeezenet(classes: int) -> State:
    """A small network of torchvision as torchvision alone saves it."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    return squeezenet1_1(weights=None, num_classes=classes).state_dict()


@pytest.mark.parametrize("arch", ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_torchvision_fit_behind_grey_images(arch: str, prefix: str) -> None:
    """The network is wrapped to take one channel; the file knows nothing of that."""
    network = models.build(arch, replace(DIGITS, shape=(1, 32, 32))).network
    state = {name.removeprefix("network."): value for name, value in network.state_dict().items()}
    fitted = fitting.fit(before(prefix, state), network, shown="x", arch=arch)
    assert set(fitted.state) == set(network.state_dict())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in fitted.state.items())
    with pytest.raises(fitting.MisfitError, match=r"1 tensor unexpected \(more\)"):
        fitting.fit({**state, "more": torch.ones(1)}, network, shown="x", arch=arch)


def test_a_file_of_torchvisions_network_is_imported(registry: Registry, tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    state = plain_squeezenet(10)
    torch.save(state, tmp_path / "theirs.pth")
    made = api.import_generation(
        str(tmp_path / "theirs.pth"), arch="torchvision:squeezenet1_1", data="digits", image_size=32,
        normalization="none", registry=registry, device="cpu",
    )  # fmt: skip
    theirs = squeezenet1_1(weights=None, num_classes=10).eval()
    theirs.load_state_dict(state)
    ours = load_network(registry, registry.get(made["generation"]))
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x.expand(-1, 3, -1, -1)))


def test_pretrained_weights_of_torchvision_that_were_downloaded_already(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    state, file = plain_squeezenet(1000), tmp_path / "squeezenet.pth"
    torch.save(state, file)
    start = files.sha256(file)[7:15]
    monkeypatch.setattr(SqueezeNet1_1_Weights, "url", f"https://example.org/squeezenet-{start}.pth")
    monkeypatch.setattr(SqueezeNet1_1_Weights, "get_state_dict", lambda self, **options: state)
    options: dict[str, Any] = {"data": "digits", "image_size": 32, "classes": range(10), "device": "cpu"}
    source = "torchvision:squeezenet1_1"
    made = [
        api.import_generation(source, file=given, normalization="none", registry=registry, **options)
        for given in (file, None)
    ]
    assert made[0]["id"] == made[1]["id"], "it is the same, whoever downloaded it"
    assert (made[0]["source"], made[0]["license"]) == (f"{source}:IMAGENET1K_V1", "BSD-3-Clause")
    with pytest.raises(UsageError, match="the normalisation has 3 channels, the images of digits have 1"):
        api.import_generation(source, file=file, registry=registry, **options)
    torch.save(plain_squeezenet(10), file)
    with pytest.raises(IntegrityError, match=r"squeezenet\.pth is not the file of torchvision:squeezenet1_1:IMAGE"):
        api.import_generation(source, file=file, registry=registry, **options)


def test_pretrained_weights_of_timm_that_were_downloaded_already(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    state = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    with sources.fetch("timm:mobilenetv3_small_050.lamb_in1k", Silent(), tmp_path / "model.safetensors") as found:
        assert (found.source, found.arch) == ("timm:mobilenetv3_small_050.lamb_in1k", "timm:mobilenetv3_small_050")
        assert found.license is not None
        assert all(torch.equal(found.content[name], value) for name, value in state.items())
        assert found.hash == sources.state_hash(state)
    for damage, what in (({"more": torch.ones(1)}, "does not hold timm:mobile"), ({}, "holds no weights")):
        torch.save(damage, tmp_path / "other.pt")
        refused = pytest.raises(RobustKTError, match=f"other\\.pt {what}")
        with refused, sources.fetch("timm:mobilenetv3_small_050", Silent(), tmp_path / "other.pt"):
            pass


def test_weights_for_other_channels_are_told_as_such() -> None:
    network = models.build("smallcnn", replace(DIGITS, shape=(3, 8, 8), mean=(0.3,) * 3, std=(0.4,) * 3)).network
    with pytest.raises(fitting.MisfitError, match=r"1 tensor misshapen .*\nIt takes images of another form"):
        fitting.fit(sketch("smallcnn").state_dict(), network, shown="x", arch="smallcnn")


def test_pretrained_weights_of_timm_have_to_be_known() -> None:
    pytest.importorskip("timm")
    unknown = pytest.raises(UsageError, match=r"timm has no pretrained weights 'resnet18\.nope'")
    with unknown, sources.fetch("timm:resnet18.nope", Silent()):
        pass


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"there is no file nowhere\.pt"), sources.fetch("nowhere.pt", Silent()):
        pass


def test_the_docs_converter_makes_an_old_pickle_importable(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle of a whole network of somebody's class: refused with the way to it, converted, taken."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "import-export.md").read_text()
    script = text.partition("### Old pickles")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "theirs.py").write_text(
        "from robustkt import data, models\n\nbase = models.build('smallcnn', data.load('digits').spec).network\n\n\n"
        "class Net(type(base)): ...\n"
    )
    make = (
        "import torch, theirs\n"
        "net = theirs.base\nnet.__class__ = theirs.Net\n"
        "torch.save({'epoch': 3, 'net': net}, 'old.pt')\n"
    )
    with monkeypatch.context() as theirs:  # where their class can be imported; here it cannot
        theirs.chdir(tmp_path)
        theirs.syspath_prepend(tmp_path)
        exec(compile(make + script.replace("/in/", "").replace("/out/", ""), "converter", "exec"), {})
    del sys.modules["theirs"]
    options: dict[str, Any] = {"arch": "smallcnn", "data": "digits", "normalization": "data", "device": "cpu"}
    with pytest.raises(
        RobustKTError, match=r"needs code of its authors.*theirs\.Net.*\n.*import-export\.md#old-pickles"
    ):
        api.import_generation(str(tmp_path / "old.pt"), registry=registry, **options)
    told = api.import_generation(str(tmp_path / "new.safetensors"), registry=registry, **options)
    assert told["created"]
