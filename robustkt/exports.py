"""A classifier as a file that runs without robustkt: safetensors, ONNX, torch.export, TorchScript; written and read."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkt.errors import UsageError

OPSET = 18  # of ONNX: what every runtime since 2023 reads
EXAMPLES = 2  # images that a graph is traced with: of one, tracers take the batch for constant

Runs = Callable[..., Tensor]  # what a written file computes, read back


class Votes(nn.Module):
    """The base of a smoothed classifier: copies of one image to counts of classes, noise and vote inside.

    The noise comes from torch's own generator when the graph runs, fresh in every call.
    """

    def __init__(self, network: nn.Module, sigma: float, classes: int) -> None:
        super().__init__()
        self.network, self.sigma, self.classes = network, sigma, classes

    def forward(self, x: Tensor) -> Tensor:
        """One image N times, (N, C, H, W) in [0, 1], to counts (K,), int64."""
        return self.count(x + self.sigma * torch.randn_like(x))

    def count(self, noisy: Tensor) -> Tensor:
        """Noisy copies (N, C, H, W) to counts (K,)."""
        return F.one_hot(self.network(noisy).argmax(dim=1), self.classes).sum(dim=0)


class NoisedVotes(Votes):
    """The same with the noise as a second input: ONNX does not say which generator its runtimes have."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """One image N times and N(0, I) noise, both (N, C, H, W), to counts (K,), int64."""
        return self.count(x + self.sigma * noise)


@dataclass(frozen=True)
class Format:
    """A way to write a network and to read it back."""

    suffix: str
    write: Callable[[nn.Module, tuple[Tensor, ...], Path], None]  # network, example inputs, file
    read: Callable[[Path], Runs] | None  # None: the reader needs the architecture
    votes: type[Votes] | None  # the smoothed predictor's graph, where the format holds one
    opset: int | None = None


def _safetensors(network: nn.Module, examples: tuple[Tensor, ...], path: Path) -> None:
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # the library makes its files for the owner alone
    save_file({name: value.contiguous() for name, value in sorted(network.state_dict().items())}, path)
    path.chmod(mode)


def _onnx(network: nn.Module, examples: tuple[Tensor, ...], path: Path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        _library(needed)
    batch = torch.export.Dim("batch", min=1)
    names = ["images", "noise"][: len(examples)]
    outputs = ["votes" if isinstance(network, Votes) else "logits"]
    with _quiet():
        torch.onnx.export(
            network, examples, path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
            input_names=names, output_names=outputs, dynamic_shapes=tuple({0: batch} for _ in examples),
        )  # fmt: skip


def _read_onnx(path: Path) -> Runs:
    session: Any = _library("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        given = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def _pt2(network: nn.Module, examples: tuple[Tensor, ...], path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.export.export(network, examples, dynamic_shapes=tuple({0: batch} for _ in examples))
        torch.export.save(program, path)


def _read_pt2(path: Path) -> Runs:
    with _quiet():
        module: Runs = torch.export.load(path).module()
    return module


def _torchscript(network: nn.Module, examples: tuple[Tensor, ...], path: Path) -> None:
    with _quiet():  # torch calls TorchScript deprecated; runtimes in the field still read nothing else
        torch.jit.save(torch.jit.trace(network, examples, check_trace=False), str(path))


def _read_torchscript(path: Path) -> Runs:
    with _quiet():
        module: Runs = torch.jit.load(str(path), map_location="cpu")
    return module


FORMATS = {
    "safetensors": Format(".safetensors", _safetensors, None, None),
    "onnx": Format(".onnx", _onnx, _read_onnx, NoisedVotes, OPSET),
    "pt2": Format(".pt2", _pt2, _read_pt2, Votes),
    "torchscript": Format(".torchscript.pt", _torchscript, _read_torchscript, Votes),
}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"--format onnx needs {name}", "Run pip install 'robustkt[export]'.") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own deprecations and print what they do; neither is the user's business."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


LOADERS = {  # of the reference script: N copies of an image to counts
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])
rng = np.random.default_rng()  # fresh noise for every call: a certificate is worth nothing with noise used before


def votes(copies):
    noise = rng.standard_normal(copies.shape, dtype=np.float32)
    return session.run(None, {"images": copies, "noise": noise})[0]
""",
    "pt2": """import torch

module = torch.export.load(FILE).module()
torch.seed()  # fresh noise: a certificate is worth nothing with noise used before


def votes(copies):
    with torch.inference_mode():
        return module(torch.from_numpy(copies)).numpy()
""",
    "torchscript": """import torch

module = torch.jit.load(FILE)
torch.seed()  # fresh noise: a certificate is worth nothing with noise used before


def votes(copies):
    with torch.inference_mode():
        return module(torch.from_numpy(copies)).numpy()
""",
    "safetensors": """import torch
from robustkt.models import Classifier, Normalize
from safetensors.torch import load_file

# Build ARCH here, without weights: a network from normalised images (B, C, H, W) to CLASSES logits.
network = Classifier(Normalize((0.0,) * SHAPE[0], (1.0,) * SHAPE[0]), build_your_network())
network.load_state_dict(load_file(FILE))
network.eval()
torch.seed()  # fresh noise: a certificate is worth nothing with noise used before


def votes(copies):
    x = torch.from_numpy(copies)
    with torch.inference_mode():
        return torch.bincount(network(x + SIGMA * torch.randn_like(x)).argmax(1), minlength=CLASSES).numpy()
""",
}

SCRIPT = '''"""CERTIFY of arXiv:1902.02918 with an exported smoothed classifier: class and L2 radius of one image."""

import numpy as np
from scipy.stats import beta, norm

FILE, SIGMA, SHAPE, CLASSES = {file!r}, {sigma!r}, {shape!r}, {classes!r}
BATCH = 500

{loader}

def counts(image, n):
    """Votes of n noisy copies of an image (C, H, W) in [0, 1], float32."""
    total = np.zeros(CLASSES, dtype=np.int64)
    for first in range(0, n, BATCH):
        copies = np.repeat(image[None], min(BATCH, n - first), axis=0)
        total += votes(np.ascontiguousarray(copies, dtype=np.float32))
    return total


def certify(image, n0=100, n=10_000, alpha=0.001):
    """The class and the radius within which it cannot change, wrong with probability at most alpha; or (None, 0)."""
    label = int(counts(image, n0).argmax())
    hits = int(counts(image, n)[label])
    low = beta.ppf(alpha, hits, n - hits + 1) if hits else 0.0
    return (label, SIGMA * norm.ppf(low)) if low > 0.5 else (None, 0.0)


if __name__ == "__main__":
    print(certify(np.full(SHAPE, 0.5, dtype=np.float32), n=1_000))
'''


def script(kind: str, file: str, sigma: float, shape: tuple[int, ...], classes: int, arch: str) -> str:
    """A reference script that certifies with an exported file, self-contained but for its runtime."""
    loader = LOADERS[kind].replace("ARCH", arch)
    return SCRIPT.format(file=file, sigma=sigma, shape=tuple(shape), classes=classes, loader=loader)
