"""Makes the reference generations that ship in registry/: small networks with certificates and evaluations.

    python -m benchmarks.reference --registry registry --data-dir DIR

DIR holds Fashion-MNIST. What is there already is not made again; an interrupted run continues.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from robustkt import api
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry

RADII = [Fraction(r) for r in ("0", "0.25", "0.5", "0.75")]


@dataclass(frozen=True)
class Made:
    """One reference generation and how it is measured."""

    name: str
    method: str
    arch: str
    data: str = "digits"
    teacher: str | None = None
    given: dict[str, Any] = field(default_factory=dict)
    eps: str = "0.1"  # linf, of its evaluation
    n: int = 10_000
    images: int = 360
    seed: int = 1  # the quickstart's generations have 0: it is to train its own


# the latest is the one that commands take without GEN
REFERENCE = (
    Made(
        "fashion-smoothmix", "smoothmix", "resnet8", "fashion-mnist",
        given={"sigma": "0.25", "epochs": 2, "warmup_epochs": 1},
        eps="4/255", n=2_000, images=300, seed=0,
    ),
    Made(
        "fashion-crt", "crt", "smallcnn", "fashion-mnist", "fashion-smoothmix", {"epochs": 3}, eps="4/255", n=2_000,
        images=300, seed=0,
    ),
    Made("digits-sat", "sat", "resnet8", given={"eps": "0.1", "steps": 5, "epochs": 6, "batch_size": 64}),
    Made("digits-rslad", "rslad", "smallcnn", teacher="digits-sat", given={"steps": 5, "epochs": 6, "batch_size": 64}),
    Made("digits-smoothmix", "smoothmix", "resnet8", given={"sigma": "0.25", "epochs": 10, "batch_size": 64}),
    Made("digits-crt-1", "crt", "smallcnn", teacher="digits-smoothmix", given={"epochs": 10, "batch_size": 64}),
    Made(
        "digits-two-modes", "dualrslad", "smallcnn", teacher="digits-sat",
        given={"steps": 5, "epochs": 6, "batch_size": 64},
    ),
    Made("digits-crt-2", "crt", "resnet8", teacher="digits-crt-1", given={"epochs": 12, "batch_size": 64}),
)  # fmt: skip


def train(made: Made, registry: Registry, data_dir: Path | None, progress: Progress) -> dict[str, Any]:
    """The generation by its recipe, from its teacher in the same registry."""
    common: dict[str, Any] = {
        "name": made.name,
        "seed": made.seed,
        "given": made.given,
        "registry": registry,
        "data_dir": data_dir,
    }
    common |= {"device": "cpu", "progress": progress}
    if made.teacher is not None:
        return api.distill(teacher=made.teacher, arch=made.arch, method=made.method, **common)
    return api.train(method=made.method, arch=made.arch, data=made.data, **common)


def measure(made: Made, registry: Registry, data_dir: Path | None, progress: Progress) -> None:
    """Certificates where it was trained under noise, attacks, and whom its adversarial examples fool."""
    common: dict[str, Any] = {"registry": registry, "data_dir": data_dir, "device": "cpu", "progress": progress}
    if registry.get(made.name).recipe.sigma is not None:
        api.certify(made.name, n=made.n, max_images=made.images, radii=RADII, precision="fp32", compile="off", **common)
    attacks: dict[str, Any] = {"attacks": ["clean", "fgsm", "pgd-sat"], "norm": "linf", "eps": made.eps}
    for mode in registry.get(made.name).adapters:
        api.evaluate(f"{made.name}@{mode}", max_images=1_000, **attacks, **common)
    api.evaluate(made.name, max_images=1_000, transfer=made.teacher is not None, **attacks, **common)


def main() -> None:
    """Make and measure all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path("registry"))
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()

    class Told(Silent):
        def note(self, text: str) -> None:
            print(text, flush=True)

    registry = Registry(options.registry)
    for made in REFERENCE:
        train(made, registry, options.data_dir, Told())
        measure(made, registry, options.data_dir, Told())


if __name__ == "__main__":
    main()
