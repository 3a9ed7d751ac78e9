"""What the experiments share: one data set, one budget for every arm, and a record that grows row by row.

An experiment asks for networks by name and for what they withstand. A network that the registry has is not trained
again, a row that the record has is not measured again; so a run may be stopped at any time and continued, and several
may work on one record, each on its seeds. A registry may be carried to another machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import torch
from rows import Rows
from transfer import subset

from robustkt import api
from robustkt.progress import Silent
from robustkt.registry import Registry

NETS = HERE / "nets.py"
CERTIFICATE = ("certified_accuracy", "intervals", "acr", "abstain_rate", "images", "n", "alpha")


class Told(Silent):
    """Notes on the terminal, nothing else."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Study:
    """The networks of one experiment and the rows that it writes down."""

    def __init__(self, name: str, about: str, *, epochs: int, images: int = 10_000, tested: int = 500) -> None:
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--registry", type=Path, required=True)
        parser.add_argument("--data", default="fashion-mnist")
        parser.add_argument("--data-dir", type=Path)
        parser.add_argument("--train-images", type=int, default=images, help="the first so many training images")
        parser.add_argument("--test-images", type=int, default=tested, help="the first so many test images")
        parser.add_argument("--epochs", type=int, default=epochs, help="of every network")
        parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
        parser.add_argument("--only", default="", help="parts of the experiment, with commas between them")
        parser.add_argument("--device", default="cpu")
        self.options = parser.parse_args()
        torch.set_num_threads(1)
        self.rows = Rows(name, "networks", "rows", "prices", command=self._command(name))
        self.registry = Registry(self.options.registry)
        self.data = subset(self.options)
        self.shared: dict[str, Any] = {"registry": self.registry, "device": self.options.device}

    def _command(self, name: str) -> str:
        told = vars(self.options)
        kept = (f"--{key.replace('_', '-')} {told[key]}" for key in ("data", "train_images", "test_images", "epochs"))
        return f"python benchmarks/experiments/{name.replace('-', '_')}.py {' '.join(kept)}"

    def seeds(self) -> Iterable[int]:
        """All of them."""
        return self.options.seeds

    def wanted(self, part: str) -> bool:
        """Whether a part of the experiment was asked for."""
        return part in (self.options.only.split(",") if self.options.only else [part])

    def network(self, name: str, seed: int, method: str, arch: str, teacher: str | None = None, **given: Any) -> str:
        """The generation of this name and seed, taught by one of this seed.

        Its row has what it cost in CPU seconds of the whole call.
        """
        made = f"{name}-{seed}"
        known = self.rows.known("networks", name=name, seed=seed)
        there = self.registry.refs()["names"]
        if made in there:
            if known:
                return made
            api.rm([made], registry=self.registry)  # made by a run that ended before it was written down
            api.gc(grace="0", registry=self.registry)
        told: dict[str, Any] = {
            "arch": f"{NETS}:{arch}", "method": method, "name": made, "seed": seed, "fresh": True, "progress": Told(),
            "given": {"epochs": self.options.epochs, "batch_size": 64, **given}, **self.shared,
        }  # fmt: skip
        began = time.process_time()
        one = api.distill(teacher=f"{teacher}-{seed}", **told) if teacher else api.train(data=self.data, **told)
        if not known:
            self.rows.keep("networks", {
                "name": name, "seed": seed, "method": method, "arch": arch, "teacher": teacher, "given": told["given"],
                "id": one["id"], "cost": one["cost"], "cpu_seconds": time.process_time() - began,
                "train_seconds": one["wall_seconds"], "selected": one["selected"], "replay": one["replay"],
            })  # fmt: skip
        return made

    def attacked(
        self, name: str, seed: int, eps: str, attacks: Sequence[str], *, last: bool = False, base: bool = False
    ) -> None:
        """A row with the accuracy under each attack; `last`: of the last epoch, where that is not the chosen one."""
        told = {"name": name, "seed": seed, "kind": "attacks", "checkpoint": "last" if last else "best"}
        if self.rows.known("rows", **told) or (last and self._chose_last(name, seed)):
            return
        found = api.evaluate(
            f"{name}-{seed}", attacks=attacks, norm="linf", eps=eps, max_images=self.options.test_images, last=last,
            base=base, progress=Told(), **self.shared,
        )  # fmt: skip
        told_of = found["attacks"].items()
        figures = {attack: {key: one[key] for key in ("accuracy", "interval")} for attack, one in told_of}
        self.rows.keep("rows", {
            **told, "eps": eps, "attacks": figures, "worst": found["worst"], "warnings": found["warnings"],
            "images": found["images"],
        })  # fmt: skip

    def _chose_last(self, name: str, seed: int) -> bool:
        made = [row for row in self.rows.read()["networks"] if (row["name"], row["seed"]) == (name, seed)]
        return bool(made) and made[0]["selected"]["epoch"] == self.options.epochs - 1

    def certified(self, name: str, seed: int, sigma: str, radii: Sequence[Fraction], *, n: int = 1_000) -> None:
        """A row with certified accuracy at these radii."""
        told = {"name": name, "seed": seed, "kind": "certificates", "sigma": sigma}
        if self.rows.known("rows", **told):
            return
        found = api.certify(
            f"{name}-{seed}", sigma=sigma, mode="fixed", n=n, radii=radii, max_images=self.options.test_images,
            precision="fp32", progress=Told(), **self.shared,
        )  # fmt: skip
        self.rows.keep("rows", {**told, **{key: found[key] for key in CERTIFICATE}, "seconds": found["seconds"]})
