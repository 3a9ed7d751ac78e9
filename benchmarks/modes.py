"""Adapters and soups measured: Figure 2 of arXiv:2210.04886 in miniature, tokens, the β curve, RSLAD, σ-adapters.

    python -m benchmarks.modes --data-dir DIR --work FOLDER [--only figure2 …]

DIR holds Fashion-MNIST, of which every arm sees the same training images at 16 x 16. What FOLDER holds already is not
trained or measured again, so the script may be stopped and continued; it writes benchmarks/records/modes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.shared import Told, machine, positive, told_briefly
from benchmarks.written import RECORDS, changed
from robustkt import api, data
from robustkt.catalog import CORRUPTIONS
from robustkt.provenance import circumstances
from robustkt.registry import Registry

RECORD = RECORDS / "modes.json"
SIDE = 16
EPS = "0.2"  # linf
FIVE: Mapping[str, Any] = {"steps": 5}  # of PGD, a quarter of eps each
ONE: Mapping[str, Any] = {"steps": 1, "step_size": "0.25"}  # a weak inner attack, which shared parameters get around
SMALL: Mapping[str, Any] = {"eps": "0.1", "steps": 1, "step_size": "0.125"}  # for a ViT
INNER = {"figure2": ONE, "tokens": SMALL, "strong": FIVE, "curve": FIVE, "rslad": FIVE, "shift": FIVE}
ATTACKS = ("clean", "pgd:steps=50:restarts=2", "apgd-dlr")
NORMS = {"batch": "resnet8", "layer": "resnet8_ln", "group": "resnet8_gn"}
ARMS = {
    "batch": ("none", "dualparams", "dualbatchnorm"),
    "layer": ("none", "dualparams"),
    "group": ("none", "dualparams"),
}
SIGMAS = ("0.12", "0.25", "0.5")
RADII = [Fraction(r) for r in ("0", "0.25", "0.5", "0.75")]
SEVERITY, FEW = 3, 100  # of the corruptions of a shifted domain; its labelled images
BETAS = [f"{k / 10:g}" for k in range(11)]


class Bench:
    """One registry, one slice of the data, one budget for every arm."""

    def __init__(self, work: Path, data_dir: Path, images: int, epochs: int, seeds: int, tested: int) -> None:
        self.registry = Registry(work / "registry")
        self.path = work / f"fashion-{images}-{tested}.npz"
        self.epochs, self.seeds, self.tested = epochs, range(seeds), tested
        if not self.path.is_file():
            whole = data.load("fashion-mnist", data_dir=data_dir, image_size=SIDE)
            parts = {"train": (whole.train, images), "test": (whole.test, tested)}
            arrays = {f"{name}_images": split.x[:count, 0].numpy() for name, (split, count) in parts.items()}
            arrays |= {f"{name}_labels": split.y[:count].numpy() for name, (split, count) in parts.items()}
            np.savez_compressed(self.path, **arrays)

    def train(self, name: str, method: str, arch: str, seed: int, teacher: str | None = None, **given: Any) -> str:
        """A generation of the budget, trained once."""
        told: dict[str, Any] = {"name": f"{name}-{seed}", "seed": seed, "registry": self.registry, "device": "cpu"}
        told |= {"given": {"epochs": self.epochs, "batch_size": 64, **given}, "progress": Told()}
        if teacher is not None:
            api.distill(teacher=f"{teacher}-{seed}", arch=arch, method=method, **told)
        else:
            api.train(method=method, arch=arch, data=str(self.path), **told)
        return f"{name}-{seed}"

    def attacked(self, name: str, eps: str = EPS) -> dict[str, float]:
        """Clean accuracy and the worst case under all attacks, on the test images."""
        told = api.evaluate(
            name, attacks=ATTACKS, norm="linf", eps=eps, max_images=self.tested, registry=self.registry, device="cpu"
        )
        return {"clean": told["clean_accuracy"], "robust": told["worst"]["accuracy"]}

    def adversarial(self, name: str, seed: int, inner: Mapping[str, Any], arch: str = "resnet8") -> str:
        """The network that modes are compared with: adversarial training alone."""
        return self.train(name, "sat", arch, seed, eps=EPS, **inner)

    def parameters(self, name: str) -> dict[str, int]:
        """All of them, and those that belong to one mode each."""
        record = self.registry.record(self.registry.get(name).id)
        return {"parameters": record["parameters"], "adapters": record.get("adapter_parameters", 0)}

    def modes(self, name: str, arch: str, adapter: str, inner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A row a seed: both modes of a co-trained network, or the one of a shared one."""
        rows, told = [], {"eps": EPS, **inner}
        for seed in self.seeds:
            made = self.train(name, "cotraining", arch, seed, adapter=adapter, **told)
            clean = f"{made}@clean" if adapter != "none" else made
            rows.append({
                "seed": seed, "clean_mode": self.attacked(clean, told["eps"]),
                "robust_mode": self.attacked(made, told["eps"]), **self.parameters(made),
            })  # fmt: skip
        return rows

    def arms(self, norm: str, prefix: str, inner: Mapping[str, Any]) -> dict[str, Any]:
        """One kind of normalisation: shared, its adapters, and adversarial training alone."""
        arch = NORMS[norm]
        table = {f"{norm} {a}": self.modes(f"{prefix}{norm}-{a}", arch, a, inner) for a in ARMS[norm]}
        alone = [self.adversarial(f"{prefix}{norm}-sat", seed, inner, arch) for seed in self.seeds]
        table[f"{norm} sat"] = [
            {"seed": s, "robust_mode": self.attacked(n)} for s, n in zip(self.seeds, alone, strict=True)
        ]
        return table

    def figure2(self) -> dict[str, Any]:
        """Shared norms against DualParams against dual BatchNorm, beside adversarial training: a weak inner attack."""
        return {name: rows for norm in NORMS for name, rows in self.arms(norm, "one-", ONE).items()}

    def strong(self) -> dict[str, Any]:
        """The same for BatchNorm with a stronger inner attack, beside natural training."""
        natural = [self.train("natural", "natural", "resnet8", seed) for seed in self.seeds]
        table = self.arms("batch", "", FIVE)
        table["batch natural"] = [
            {"seed": s, "clean_mode": self.attacked(n)} for s, n in zip(self.seeds, natural, strict=True)
        ]
        return table

    def tokens(self) -> dict[str, Any]:
        """A ViT's class token, its norms, both, and its last layer as adapters."""
        kinds = ("none", "dualtoken", "dualparams", "dualtoken+dualhead")
        return {kind: self.modes(f"vit-{kind.replace('+', '-')}", "vit_tiny", kind, SMALL) for kind in kinds}

    def two(self, seed: int) -> str:
        """The network with two modes, between which β goes."""
        more = {"eps": EPS, "adapter": "dualparams", **FIVE}
        return self.train("batch-dualparams", "cotraining", "resnet8", seed, **more)

    def curve(self) -> dict[str, Any]:
        """The trade-off over β on the test images, each mixture attacked through itself."""
        found = {}
        for seed in self.seeds:
            made = self.two(seed)
            swept = api.soup_sweep(
                made, attacks=ATTACKS[1:], eps=EPS, split="test", max_images=self.tested, registry=self.registry,
                device="cpu",
            )  # fmt: skip
            found[str(seed)] = swept["points"]
        return found

    def shift(self) -> dict[str, Any]:
        """β from a few labelled images of each corruption, beside every other β on the corrupted test images."""
        rows = []
        common: dict[str, Any] = {"attacks": ("clean",), "registry": self.registry, "device": "cpu"}
        for seed in self.seeds:
            made = self.two(seed)
            for name in CORRUPTIONS.names():
                kind = f"{name}:{SEVERITY}"
                chosen = api.soup_pick(made, corruption=kind, max_images=FEW, **common)
                told = {
                    beta: api.evaluate(f"{made}@beta={beta}", corruption=kind, max_images=self.tested, **common)
                    for beta in BETAS
                }
                accuracy = {beta: one["clean_accuracy"] for beta, one in told.items()}
                rows.append({"seed": seed, "corruption": name, "beta": chosen["beta"], "accuracy": accuracy})
                print(json.dumps(rows[-1]), flush=True)
        return {"rows": rows, "few": FEW, "severity": SEVERITY}

    def rslad(self) -> dict[str, Any]:
        """RSLAD against two-mode RSLAD: one teacher, one budget."""
        rows = []
        for seed in self.seeds:
            teacher = self.adversarial("batch-sat", seed, FIVE)
            common: dict[str, Any] = {"teacher": "batch-sat", **FIVE}
            plain = self.train("rslad", "rslad", "smallcnn", seed, **common)
            two = self.train("dualrslad", "dualrslad", "smallcnn", seed, **common)
            rows.append({
                "seed": seed, "teacher": self.attacked(teacher), "rslad": self.attacked(plain),
                "robust_mode": self.attacked(two), "clean_mode": self.attacked(f"{two}@clean"), **self.parameters(two),
            })  # fmt: skip
        return {"rows": rows}

    def sigmas(self) -> dict[str, Any]:
        """One backbone with a σ-adapter a level against a network a level: certified accuracy and bytes."""
        rows = []
        for seed in self.seeds:
            one = self.train("sigmas", "sigmaadapters", "resnet8", seed, sigma="0.25", sigmas=",".join(SIGMAS))
            row: dict[str, Any] = {"seed": seed, "bytes": self.bytes(one), "levels": {}}
            apart = 0
            for sigma in SIGMAS:
                single = self.train(f"gaussian{sigma}", "gaussian", "resnet8", seed, sigma=sigma)
                apart += self.bytes(single)
                row["levels"][sigma] = {
                    "adapter": self.certified(f"{one}@sigma{sigma}"), "network": self.certified(single),
                }  # fmt: skip
            rows.append({**row, "bytes_apart": apart})
        return {"rows": rows}

    def bytes(self, name: str) -> int:
        """What the selected weights and adapters take on the disk."""
        made = self.registry.get(name)
        return sum(self.registry.object_path(i).stat().st_size for i in (made.weights, *made.adapters.values()))

    def certified(self, name: str) -> dict[str, float]:
        """Certified accuracy at radii in L2, n = 2,000, α = .001, on every fifth test image."""
        told = api.certify(
            name, mode="fixed", n=2_000, n0=100, alpha=0.001, radii=RADII, max_images=self.tested // 5,
            registry=self.registry, device="cpu", precision="fp32", compile="off",
        )  # fmt: skip
        return {"acr": told["acr"], **told["certified_accuracy"]}


PARTS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "strong": Bench.strong, "figure2": Bench.figure2, "curve": Bench.curve, "rslad": Bench.rslad,
    "sigmas": Bench.sigmas, "tokens": Bench.tokens, "shift": Bench.shift,
}  # fmt: skip


def main() -> None:
    """Measure the parts asked for and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=positive, default=6_000)
    parser.add_argument("--test-images", type=positive, default=1_000)
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--seeds", type=positive, default=2, help="so many, from 0 on")
    parser.add_argument("--suffix", help="of the parts' names in the record, where the budget is another")
    parser.add_argument("--replace", action="store_true", help="what the record has of another budget")
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()
    torch.set_num_threads(1)
    budget = {
        "data": f"fashion-mnist at {SIDE}x{SIDE}", "images": options.images, "test_images": options.test_images,
        "epochs": options.epochs, "seeds": options.seeds, "norm": "linf", "attacks": list(ATTACKS),
    }  # fmt: skip
    budgets = {
        part: budget | {"inner": INNER.get(part)} | {"eps": INNER.get(part, {}).get("eps", EPS)} for part in PARTS
    }
    names = {part: f"{part}-{options.suffix}" if options.suffix else part for part in options.only}
    kept = json.loads(options.record.read_text()) if options.record.is_file() else {}
    for part, name in names.items():
        told = kept.get(name, {}).get("budget")
        if told not in (None, budgets[part]) and not options.replace:
            sys.exit(
                f"{options.record} has {name} of another budget:\n  {told}\n--suffix keeps both, --replace this one"
            )
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work, options.data_dir, options.images, options.epochs, options.seeds, options.test_images)
    for part, name in names.items():
        found = PARTS[part](bench)
        made = {key: value for key, value in circumstances(Path.cwd()).items() if key in ("git", "lock")}
        told = {"budget": budgets[part], **made, "torch": torch.__version__, "processor": machine()["processor"]}
        with changed(options.record) as record:
            record[name] = {**told, "found": found}


if __name__ == "__main__":
    told_briefly(main)
