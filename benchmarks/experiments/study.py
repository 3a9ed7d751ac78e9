"""What the experiments share: one data set, one budget for every arm, and a record that grows row by row.

An experiment asks for networks by name and for what they withstand. A network or a figure that the record has is not
made again, so a run may be stopped at any time and continued, and several may work on one record, each on its seeds.
On another machine the record is enough: a network that is needed there and that the registry lacks is made again from
its row, with other rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Rows
from benchmarks.shared import Told, positive, subset
from benchmarks.written import exists, record
from robustkt import api
from robustkt import data as datasets
from robustkt.api.recipes import defaults
from robustkt.registry import Registry

NETS = Path(__file__).resolve().parent / "nets.py"
CERTIFICATE = ("id", "seconds", "certified_accuracy", "intervals", "acr", "abstain_rate", "images", "n", "alpha")
RECIPE = ("method", "arch", "teacher", "others", "preset", "given")


def trained(command: str) -> dict[str, str]:
    """Of the command that is a record's budget, what its networks come from."""
    return {
        word: value for word, value in pairwise(command.split()) if word in ("--data", "--train-images", "--epochs")
    }


class Study:
    """The networks of one experiment and the rows that it writes down; `epochs` None is what the product would take."""

    def __init__(
        self, name: str, about: str, *, parts: Sequence[str], asked: Sequence[str] = (), after: Sequence[str] = (),
        epochs: int | None, images: int = 8_000, tested: int = 500,
    ) -> None:  # fmt: skip
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--registry", type=Path, required=True)
        parser.add_argument("--data", default="fashion-mnist", help="a name, or an .npz in MedMNIST's form")
        parser.add_argument("--data-dir", type=Path)
        parser.add_argument("--train-images", type=positive, default=images, help="the first so many training images")
        parser.add_argument("--test-images", type=positive, default=tested, help="about so many, evenly of the set")
        if epochs is not None:
            parser.add_argument("--epochs", type=positive, default=epochs, help="of every network")
        parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
        parser.add_argument("--only", nargs="+", default=parts, choices=[*parts, *asked], metavar="PART", help=(
            f"of {', '.join([*parts, *asked])}; all" + (f" but {', '.join(asked)}" if asked else "") + " when not given"
        ))  # fmt: skip
        parser.add_argument("--device", default="cpu")
        self.options = parser.parse_args()
        torch.set_num_threads(1)
        source = Path(self.options.data)
        budget = {"data": source.name}
        budget |= {key: vars(self.options).get(key) for key in ("train_images", "test_images", "epochs")}
        told = (f"--{key.replace('_', '-')} {value}" for key, value in budget.items() if value is not None)
        command = f"python -m benchmarks.experiments.{name} {' '.join(told)}"
        self.kind = "" if self.options.data == parser.get_default("data") else f"-{source.stem}"
        self.rows = Rows(f"{name}{self.kind}", "networks", "rows", command=command)
        self.after = after
        self.budget = {"epochs": epochs and self.options.epochs, "batch_size": 64}
        if epochs is None:
            usual = defaults(datasets.load(subset(self.options)))
            self.budget = {key: usual[key] for key in self.budget}
        self.registry = Registry(self.options.registry)
        self.shared: dict[str, Any] = {"registry": self.registry, "device": self.options.device}

    def ended(self) -> None:
        """Say what was added, and that what was there has not been measured again."""
        told = f"{self.rows.added} rows are new in {self.rows.path}; to measure again what it had, move it away first"
        print(told, file=sys.stderr)

    def seeds(self) -> Iterable[int]:
        """All of them."""
        return self.options.seeds

    def wanted(self, part: str) -> bool:
        """Whether a part of the experiment was asked for."""
        return part in self.options.only

    def network(
        self, name: str, seed: int, method: str, arch: str, teacher: str | None = None, *, others: int = 0,
        preset: str | None = None, **given: Any,
    ) -> None:  # fmt: skip
        """The generation of this name and seed, taught by one of this seed; its row has what it cost in CPU seconds.

        With `others` it sees so many training images that follow those of all the rest.
        """
        told: dict[str, Any] = {"method": method, "arch": arch, "teacher": teacher, "given": {**self.budget, **given}}
        told |= {"others": others} if others else {}
        told |= {"preset": preset} if preset else {}
        known = self._row(self.rows.read(), name, seed)
        if known is None:
            self.rows.keep("networks", self._make(name, seed, told), name=name, seed=seed)
        elif any(known.get(key) != told[key] for key in told):
            raise SystemExit(f"{self.rows.path} has {name} of seed {seed} by another recipe: {known['given']}")

    @staticmethod
    def _row(told: dict[str, Any], name: str, seed: int) -> dict[str, Any] | None:
        return next((row for row in told["networks"] if (row["name"], row["seed"]) == (name, seed)), None)

    def _there(self, name: str, seed: int) -> str:
        """The generation's name in the registry, into which it is made again where only its row is known."""
        if self._called(name, seed) not in self.registry.refs()["names"]:
            after = [self._alike(f"{other}{self.kind}") for other in self.after if exists(f"{other}{self.kind}")]
            known = [row for told in (self.rows.read(), *after) if (row := self._row(told, name, seed))]
            if not known:
                first = f", or {' or '.join(f'{other}.py' for other in self.after)}" if self.after else ""
                raise SystemExit(f"no record has {name} of seed {seed}: run the parts before this one first{first}")
            one = self._make(name, seed, {key: known[0][key] for key in RECIPE if key in known[0]})
            if one["id"] != known[0]["id"]:
                Told().note(
                    f"{name} of seed {seed} is not the network of the record: made again, it came out otherwise"
                )
        return self._called(name, seed)

    def _alike(self, name: str) -> dict[str, Any]:
        """The record of an experiment from which this one goes on; ends where its networks are of another budget."""
        told: dict[str, Any] = record(name)
        if trained(told["command"]) != trained(self.rows.command):
            raise SystemExit(f"{name} is of another budget:\n  {told['command']}\ntake its images and epochs")
        return told

    def _called(self, name: str, seed: int) -> str:
        return f"{name}{self.kind}-{seed}"

    def _make(self, name: str, seed: int, told: dict[str, Any]) -> dict[str, Any]:
        """Train it, or go on with it; one that is there was made by a run that ended before it was written down."""
        made = self._called(name, seed)
        there = made in self.registry.refs()["names"]
        shared: dict[str, Any] = {
            "arch": f"{NETS}:{told['arch']}", "method": told["method"], "name": made, "seed": seed,
            "progress": Told(), "given": told["given"], "preset": told.get("preset"),
            "data": subset(self.options, others=told.get("others", 0)), **self.shared,
        }  # fmt: skip
        teacher = self._there(told["teacher"], seed) if told["teacher"] else None
        began = time.process_time()
        one = api.distill(teacher=teacher, **shared) if teacher else api.train(**shared)
        cpu = one["wall_seconds"] if there else time.process_time() - began
        return {
            **told, **{key: one[key] for key in ("id", "cost", "selected", "replay")}, "cpu_seconds": cpu,
            "train_seconds": one["wall_seconds"], "teacher_id": self.registry.get(teacher).id if teacher else None,
        }  # fmt: skip

    def attacked(
        self, name: str, seed: int, eps: str, attacks: Sequence[str], *, last: bool = False, base: bool = False
    ) -> None:
        """A row with the accuracy under each attack; `last`: of the last epoch, where that is not the chosen one."""
        told = {"name": name, "seed": seed, "kind": "attacks", "checkpoint": "last" if last else "best"}
        if self.rows.known("rows", **told) or (last and self._chose_last(name, seed)):
            return
        found = api.evaluate(
            self._there(name, seed), attacks=attacks, norm="linf", eps=eps, max_images=self.options.test_images,
            last=last, base=base, progress=Told(), **self.shared,
        )  # fmt: skip
        told_of = found["attacks"].items()
        figures = {attack: {key: one[key] for key in ("accuracy", "interval")} for attack, one in told_of}
        kept = {key: found[key] for key in ("id", "worst", "warnings", "images")}
        self.rows.keep("rows", {"eps": eps, "attacks": figures, **kept}, **told)

    def _chose_last(self, name: str, seed: int) -> bool:
        made = self._row(self.rows.read(), name, seed)
        return made is not None and made["selected"]["epoch"] == made["given"]["epochs"] - 1

    def certified(
        self, name: str, seed: int, sigma: str, radii: Sequence[Fraction], *, n: int = 1_000, unseen: int = 0
    ) -> None:
        """A row with certified accuracy at these radii.

        With `unseen` it is among that list's rows, and of so many training images that follow those of all networks.
        """
        rows, told = (
            "unseen" if unseen else "rows",
            {"name": name, "seed": seed, "kind": "certificates", "sigma": sigma},
        )
        if self.rows.known(rows, **told):
            return
        found = api.certify(
            self._there(name, seed), sigma=sigma, mode="fixed", n=n, radii=radii, precision="fp32", progress=Told(),
            max_images=unseen or self.options.test_images,
            data=subset(self.options, unseen=unseen) if unseen else None, **self.shared,
        )  # fmt: skip
        self.rows.keep(rows, {key: found[key] for key in CERTIFICATE}, **told)
