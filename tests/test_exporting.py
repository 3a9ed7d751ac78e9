"""Exported files compute what the network computes, for batches of any size, and certify with fresh noise only."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkt import api, data, exports
from robustkt.api import exporting
from robustkt.api.loading import load_network
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.numbers import digest
from robustkt.registry import Registry
from tests.conftest import Ran, gaussian_digits

FORMATS = ["safetensors", "onnx", "pt2", "torchscript"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = gaussian_digits(tmp_path_factory.mktemp("made"), epochs=3)
    given = {"epochs": 1, "eps": "8/255", "steps": 1}
    api.train(
        method="sat", arch="smallcnn", data="digits", given=given, registry=registry, device="cpu", name="hardened"
    )
    return registry


def needs(format: str) -> None:
    if format == "onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(library)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_gives_the_networks_logits(format: str, made: Registry, tmp_path: Path) -> None:
    needs(format)
    out = tmp_path / "deep" / "net.bin"
    result = api.export("gen0", format=format, out=out, registry=made)
    parity = result["parity"]
    assert parity["largest_difference"] <= 1e-4 * parity["scale"]
    assert (parity["images"], parity["batches"], parity["disagreements"]) == (64, [1, 7, 56], 0)
    facts = json.loads((tmp_path / "deep" / "net.bin.json").read_text())
    assert facts["sha256"] == digest(out.read_bytes())
    assert (facts["precision"], facts["opset"]) == ("fp32", 18 if format == "onnx" else None)
    assert sorted(p.name for p in out.parent.iterdir()) == ["net.bin", "net.bin.json"]
    read = exports.FORMATS[format].read
    if read is not None:  # other images than those it was compared on, in a batch of another size
        images = data.load("digits").held_out.images(slice(0, 33))
        network = load_network(made, made.get("gen0"))
        with torch.no_grad():
            torch.testing.assert_close(read(out)(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=[pytest.mark.slow] if name == "onnx" else []) for name in FORMATS]
)
def test_the_script_beside_a_smoothed_export_certifies(
    format: str, made: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(format)
    monkeypatch.chdir(tmp_path)
    result = api.export("gen0", format=format, smoothed=True, registry=made)
    assert (result["sigma"], result["smoothed"]) == ("0.25", True)
    script = next(name for name in result["files"] if name.endswith(".py"))
    text = Path(script).read_text()
    assert "fresh noise" in text
    if format == "safetensors":
        assert "build_your_network" in text
        return
    assert result["parity"]["disagreements"] <= 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own torch.jit.load
        certify = runpy.run_path(script)["certify"]
    images = data.load("digits").test.images(slice(0, 20)).numpy()
    labels = data.load("digits").test.y[:20].tolist()
    told = [certify(image, n=500) for image in images]
    right = np.mean([label == y for (label, _), y in zip(told, labels, strict=True)])
    by_us = api.certify(
        "gen0", sigma="0.25", mode="fixed", n=500, n0=100, max_images=60, registry=made, device="cpu"
    )["certified_accuracy"]  # fmt: skip
    assert abs(right - by_us[min(by_us, key=float)]) < 0.3
    assert 0 < max(radius for _, radius in told) < 1
    first, second = (certify(images[0], n=500) for _ in range(2))
    assert isinstance(first[1], float)
    assert first[0] == second[0]


def test_all_files_of_an_export_are_for_the_same_readers(made: Registry, tmp_path: Path) -> None:
    told = api.export("gen0", format="safetensors", smoothed=True, out=tmp_path / "x.safetensors", registry=made)
    (tmp_path / "plain").touch()
    modes = {Path(name).stat().st_mode for name in [*told["files"], tmp_path / "plain"]}
    assert len(told["files"]) == 3
    assert len(modes) == 1


def test_noise_inside_is_fresh_in_every_call(made: Registry, tmp_path: Path) -> None:
    copies = torch.full((500, 1, 8, 8), 0.5)
    for format in ("pt2", "torchscript"):
        api.export("gen0", format=format, smoothed=True, sigma="1", out=tmp_path / format, registry=made)
        read = exports.FORMATS[format].read
        assert read is not None
        votes = read(tmp_path / format)
        with torch.no_grad():
            told = {tuple(votes(copies).tolist()) for _ in range(6)}
        assert len(told) > 1
        assert all(sum(row) == 500 for row in told)


def test_a_file_that_computes_something_else_is_not_left_behind(
    made: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(path: Path) -> exports.Runs:
        return lambda x: torch.zeros(len(x), 10)

    broken = exports.Format(".pt2", exports.FORMATS["pt2"].write, other, exports.Votes)
    monkeypatch.setitem(exporting.FORMATS, "pt2", broken)
    with pytest.raises(IntegrityError, match="computes something else: a logit differs by"):
        api.export("gen0", format="pt2", out=tmp_path / "x.pt2", registry=made)
    assert not list(tmp_path.glob("*x*"))


def test_a_network_that_depends_on_the_batchs_values_is_refused(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n"
        "    def __init__(self, channels, classes):\n        super().__init__()\n"
        "        self.fc = nn.Linear(64, classes)\n\n    def forward(self, x):\n"
        "        z = self.fc(x.flatten(1))\n        return z * 2 if bool(z.sum() > 0) else z\n"
    )
    api.train(
        method="natural", arch=f"{tmp_path}/net.py:Net", data="digits", given={"epochs": 1}, registry=registry,
        device="cpu",
    )  # fmt: skip
    with pytest.raises(RobustKTError, match="cannot be exported as pt2"):
        api.export("gen0", format="pt2", out=tmp_path / "x.pt2", registry=registry)
    assert api.export("gen0", out=tmp_path / "x.safetensors", registry=registry)["parity"]["largest_difference"] == 0


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_two_lines(
    missing: str, made: Registry, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if library != missing and library not in sys.modules:
            monkeypatch.setitem(sys.modules, library, type(sys)(library))
    monkeypatch.setitem(sys.modules, missing, None)
    ran = cli("export", "gen0", "--format", "onnx", "--registry", made.root, "-q")
    assert (ran.code, ran.err.splitlines()) == (
        2, [f"error: --format onnx needs {missing}", "  → Run pip install 'robustkt[export]'."],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "onx"), "unknown format 'onx': did you mean 'onnx'?"),
        (("--sigma", "0.5"), "--sigma is the noise of a smoothed export"),
        (("--out", "."), ". is a folder"),
    ],
)
def test_options_that_mean_nothing(
    arguments: tuple[str, ...], said: str, made: Registry, cli: Callable[..., Ran]
) -> None:
    ran = cli("export", "gen0", *arguments, "--registry", made.root, "-q")
    assert (ran.code, ran.err.splitlines()[0]) == (2, f"error: {said}")


def test_smoothing_needs_its_noise(made: Registry, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hardened was not trained for noise"):
        api.export("hardened", smoothed=True, out=tmp_path / "x", registry=made)


def test_the_command_names_precision_and_opset(made: Registry, cli: Callable[..., Ran], tmp_path: Path) -> None:
    needs("onnx")
    ran = cli("export", "--format", "onnx", "--out", "net.onnx", "--registry", made.root)
    assert ran.code == 0, ran.err
    assert "@latest is hardened" in ran.err
    assert "onnx, fp32, opset 18, any batch size" in ran.out
    assert "largest difference of a logit" in ran.out
    import onnx

    model = onnx.load(tmp_path / "net.onnx")
    assert [o.version for o in model.opset_import if o.domain == ""] == [18]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_an_imported_generation_is_exported_too(made: Registry, tmp_path: Path, registry: Registry) -> None:
    """Export, import, export: the same bytes, with the normalisation inside."""
    api.export("gen0", out=tmp_path / "a.safetensors", registry=made)
    api.import_generation(
        str(tmp_path / "a.safetensors"), arch="smallcnn", data="digits", registry=registry, device="cpu"
    )
    api.export("gen0", out=tmp_path / "b.safetensors", registry=registry)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
