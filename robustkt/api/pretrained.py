"""Published generations as ready PyTorch modules; nothing from a repository is run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn

from robustkt import inference, models, smooth
from robustkt.api.loading import pick_device
from robustkt.api.predicting import BATCH, FINE
from robustkt.api.smoothing import SAMPLES, certifier, check_options, check_reach, noise_for
from robustkt.certificates import Ball, Certificate, lower_bound
from robustkt.errors import IntegrityError, NotFoundError, UsageError, clip
from robustkt.generation import Generation, read_manifest
from robustkt.hub import read_folder
from robustkt.hub.fetching import parse_source, snapshot
from robustkt.hub.folder import check_published
from robustkt.hub.form import MANIFEST
from robustkt.models import Classifier
from robustkt.numbers import digest
from robustkt.streams import noise_seed

M = TypeVar("M", bound="RobustModel")


class Download(TypedDict, total=False):
    """What the Hub's client is told, in its own words."""

    force_download: bool  # even what the cache holds
    token: (
        str | bool | None
    )  # for private repositories; the one that you are logged in with by default, none with False
    cache_dir: str | Path | None  # where downloads are kept
    local_files_only: bool  # ask nobody; take what the cache holds
    revision: str | None  # branch, tag or commit


class RobustModel(Classifier):
    """A published network behind its normalisation: images (B, C, H, W) in [0, 1] to logits (B, K), in eval mode."""

    def __init__(self, whole: Classifier, generation: Generation) -> None:
        super().__init__(whole.normalize, whole.network)
        self.generation = generation
        self.classes = generation.recipe.data.classes

    @classmethod
    def from_pretrained(
        cls: type[M],
        pretrained_model_name_or_path: str | Path,
        *,
        arch: nn.Module | str | None = None,
        domain: str | None = None,
        **download: Unpack[Download],
    ) -> M:
        """The network of a repository `ORG/NAME`, or of a folder in the published form, its weights checked.

        Args:
            pretrained_model_name_or_path: the repository, `@REVISION` behind it if wanted, or the folder.
            arch: where the architecture is its author's own code: the network, or `file.py:Callable` of yours.
            domain: the mode of a generation with adapters, as `clean` or `beta=0.4`; its default one otherwise.
            **download: the Hub client's own arguments, as in `Download`.

        Raises:
            NotFoundError: no such repository, revision, folder or mode.
            IntegrityError: the weights are not those of the manifest.
            RobustKTError: the architecture is code of its author's own and no `arch` was given, or the Hub refuses.
        """
        with _blaming_the_cache(pretrained_model_name_or_path, download):
            folder = _folder(pretrained_model_name_or_path, download, domain)
            data = (folder / MANIFEST).read_bytes()
            generation = read_manifest(data, str(pretrained_model_name_or_path), MANIFEST)
            generation = generation.in_mode(domain) if domain is not None else generation
            network = models.build(arch, generation.recipe.data).network if isinstance(arch, str) else arch
            whole = read_folder(folder, network, domain=domain)
        assert isinstance(whole, Classifier)
        return cls(whole, generation).eval()


class SmoothedClassifier:
    """A published network with noise and a vote around it: classes with a certified radius, or an abstention."""

    def __init__(
        self,
        model: RobustModel,
        *,
        sigma: str | float | Fraction | None = None,
        mode: str = "sequential",
        n: int = SAMPLES,
        n0: int = 100,
        alpha: float = 0.001,
        noise: str = "gaussian",
        norm: str | None = None,
        device: str = "auto",
    ) -> None:
        check_options(mode, n, n0, alpha)
        check_reach(mode, n, alpha)
        self.generation, self.classes = model.generation, model.classes
        self.mode, self.n, self.n0, self.alpha = mode, n, n0, alpha
        self.noise, self.norm = noise_for(model.generation, noise, sigma, norm)
        self.device = pick_device(device)
        self.shape = model.generation.recipe.data.shape
        self.network = inference.prepare(Classifier(model.normalize, model.network), self.shape, self.device, "fp32")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        arch: nn.Module | str | None = None,
        domain: str | None = None,
        **options: Any,
    ) -> SmoothedClassifier:
        """The smoothed classifier of a repository or folder.

        `domain` is the mode of a generation with adapters, as for `RobustModel`; a domain of noise, as `sigma0.12`,
        brings its own σ. `mode` is the certification's, as for the constructor: `options` are its and `Download`'s.

        Raises:
            UsageError: the generation was not trained under noise and no `sigma` was given, or other wrong arguments.
            RobustKTError: as of `RobustModel.from_pretrained`.
        """
        download = cast(Download, {name: options.pop(name) for name in Download.__annotations__ if name in options})
        model = RobustModel.from_pretrained(pretrained_model_name_or_path, arch=arch, domain=domain, **download)
        return cls(model, **options)

    def predict(self, x: Tensor, *, seed: int = 0) -> Certificate:
        """The class of one image (C, H, W) in [0, 1] with its radius; `label` is None where it abstains.

        The answer is wrong with probability at most alpha. The noise is keyed by `seed` and the image.

        Raises:
            UsageError: not one image of the network's shape in [0, 1].
        """
        if tuple(x.shape) != self.shape or not x.is_floating_point() or not bool(((x >= 0) & (x <= 1)).all()):
            raise UsageError(
                f"predict takes one image of shape {self.shape} with values in [0, 1], not {tuple(x.shape)} {x.dtype}",
                "Convert it: pixels / 255, channels first.",
            )
        ball = Ball(self.noise, self.norm, self.shape)
        stream = noise_seed(seed, self.mode, self.n, self.n0)
        largest = ball.radius(lower_bound(self.n, self.n, self.alpha))
        grid = [largest * step / FINE for step in range(FINE)]
        image = x.detach().to("cpu", torch.float32).contiguous()
        key = digest(image.numpy().tobytes())
        random = (f"{self.generation.id} {stream}", key)
        certified = smooth.certify(
            self.network, [(key, image)],
            lambda _: certifier(self.mode, ball, self.alpha, self.n0, self.n, grid, random),
            classes=len(self.classes), noise=self.noise, seed=stream, device=self.device, batch_size=BATCH,
        )  # fmt: skip
        ((_, certificate),) = certified
        return certificate


def _on_disk(name: str | Path) -> bool:
    return isinstance(name, Path) or os.path.isdir(name)


@contextmanager
def _blaming_the_cache(name: str | Path, download: Download) -> Iterator[None]:
    """What is damaged may be so in the client's cache alone, until the files were fetched afresh."""
    try:
        yield
    except IntegrityError as error:
        if _on_disk(name) or download.get("force_download"):
            raise
        fix = "Fetch it again, past the Hub's cache on this disk: from_pretrained(..., force_download=True)."
        raise IntegrityError(error.what, fix) from None


def _folder(name: str | Path, download: Download, domain: str | None) -> Path:
    """The files of a published network on this disk."""
    if _on_disk(name):
        check_published(Path(name))
        return Path(name)
    name = str(name)
    if name.startswith((".", "/", "~")):
        raise NotFoundError(f"there is no folder {clip(name, 80)}", "Give a published folder, or ORG/NAME of the Hub.")
    repo, at = parse_source(name)
    named = download.get("revision")
    if at is not None and named is not None:
        raise UsageError("the revision is given twice", "Give it behind the @, or as revision.")
    told = {key: value for key, value in download.items() if key not in ("revision", "token")}
    return snapshot(repo, at or named, download.get("token"), told, domain)
