"""Our attacks against those of the package torchattacks, on one network, the same images and the same ball.

    pip install --no-deps torchattacks
    python -m benchmarks.parity --data-dir DATA --registry REGISTRY --eps 0.2

What was passed to torchattacks 3.5.1, whose defaults are not those of AutoAttack:
- steps=100 for APGD, APGDT and FAB (its default is 10, also inside its AutoAttack: there `steps` of the members is set
  to 100 after it is built), n_queries=5000 for Square; n_classes = K for APGDT, FAB and AutoAttack;
- FAB with multi_targeted=True, which is FAB-T;
- an explicit seed everywhere (AutoAttack's default is the clock);
- all images in one batch, as ours.
Quirks left as they are: its checkpoint compares a run's first loss with 0; its Square gives all images of a batch the
same windows and signs, which never reach the last row and column; its FAB forgets points that come inside the ball on
their way back. Both sides are judged alike: an image is robust when the network is right on what the attack returns.

FAB is run once a side: it starts at the image and draws no random numbers. APGD-CE has four times the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

try:
    import torchattacks
except ImportError:
    sys.exit("this compares with torchattacks: pip install --no-deps torchattacks (its requests pin is outdated)")

from benchmarks.written import RECORDS
from robustkt import api
from robustkt import data as datasets
from robustkt.api.loading import load_network, spread
from robustkt.attacks import ascend, named
from robustkt.core import ThreatModel, generator
from robustkt.data import to_float
from robustkt.losses import ce
from robustkt.registry import Registry

Run = Callable[[Tensor, Tensor, int], Tensor]  # images, labels, seed -> images
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square", "autoattack")


def ours(model: nn.Module, threat: ThreatModel, queries: int) -> Mapping[str, Run]:
    """Each attack with its own defaults, on all images at once."""

    def run(name: str) -> Run:
        attack = named(f"square:queries={queries}" if name == "square" else name)
        return lambda x, y, seed: attack.run(
            model, x, y, threat, rng=generator("cpu", seed, name), batch_size=len(x), **attack.options
        )

    return {name: run(name) for name in ATTACKS}


def theirs(model: nn.Module, threat: ThreatModel, queries: int, classes: int) -> Mapping[str, Run]:
    """The same with the settings of AutoAttack."""
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    ball: dict[str, Any] = {"norm": norm, "eps": float(threat.eps)}

    def ensemble(seed: int) -> Any:
        attack = torchattacks.AutoAttack(model, **ball, version="standard", n_classes=classes, seed=seed)
        for member in attack._autoattack.attacks[:3]:
            member.steps = 100
        return attack

    return {
        "apgd-ce": lambda x, y, seed: torchattacks.APGD(model, **ball, steps=100, seed=seed, loss="ce")(x, y),
        "apgd-t": lambda x, y, seed: torchattacks.APGDT(model, **ball, steps=100, seed=seed, n_classes=classes)(x, y),
        "fab-t": lambda x, y, seed: torchattacks.FAB(
            model, **ball, steps=100, seed=seed, n_classes=classes, multi_targeted=True
        )(x, y),
        "square": lambda x, y, seed: torchattacks.Square(model, **ball, n_queries=queries, seed=seed)(x, y),
        "autoattack": lambda x, y, seed: ensemble(seed)(x, y),
    }


def measured(run: Run, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seeds: int) -> dict[str, Any]:
    """Images that stay right, seed by seed; a point outside the ball is refused."""
    robust, seconds = [], []
    for seed in range(seeds):
        begun = time.perf_counter()
        x_adv = run(x, y, seed).detach()
        seconds.append(time.perf_counter() - begun)
        delta = (x_adv - x).flatten(1)
        far = delta.abs().amax(dim=1) if threat.norm == "linf" else delta.norm(dim=1)
        if float(far.max()) > float(threat.eps) + 1e-5 or bool((x_adv < 0).any() | (x_adv > 1).any()):
            raise RuntimeError(f"an image outside the ball: {float(far.max())}")
        with torch.no_grad():
            robust.append(int((model(x_adv).argmax(dim=1) == y).sum()))
    return {"robust": robust, "seconds": seconds}


def compare(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, seeds: int, queries: int, attacks: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both sides of each attack, in turn in one process.

    `agree`: every figure of ours lies within the reference's spread, or within 1 image in 500 of it. `mean_difference`:
    ours less theirs, below 0 where ours is the stronger attack, with its standard error over seeds.
    """
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    mine, other = ours(model, threat, queries), theirs(model, threat, queries, classes)
    for name in attacks:
        count = {"fab-t": 1, "apgd-ce": 4 * seeds}.get(name, seeds)  # it draws nothing; it varies most and costs least
        a = measured(mine[name], model, x, y, threat, count)
        b = measured(other[name], model, x, y, threat, count)
        allowed = max(1, len(x) // 500)
        low, high = min(b["robust"]) - allowed, max(b["robust"]) + allowed
        row = {
            "ours": a, "torchattacks": b,
            "spread_ours": [min(a["robust"]), max(a["robust"])],
            "spread_torchattacks": [min(b["robust"]), max(b["robust"])],
            "within_spread": all(min(b["robust"]) <= r <= max(b["robust"]) for r in a["robust"]),
            "agree": all(low <= r <= high for r in a["robust"]),
            "mean_difference": statistics.fmean(a["robust"]) - statistics.fmean(b["robust"]),
            "standard_error": _error(a["robust"], b["robust"]),
            "seconds_ratio": sum(a["seconds"]) / sum(b["seconds"]),
        }  # fmt: skip
        print(name, json.dumps(row), file=sys.stderr, flush=True)
        yield name, row


def _error(*samples: Sequence[int]) -> float | None:
    """Of the difference of two means; None for single figures."""
    if any(len(sample) < 2 for sample in samples):
        return None
    return math.sqrt(sum(statistics.variance(sample) / len(sample) for sample in samples))


def step_for_step(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, steps: int = 20) -> float:
    """Largest difference of any iterate of `ascend` and of torchattacks' PGD from the clean image."""
    step_size, worst = threat.eps / 4, 0.0
    at = x
    for done in range(1, steps + 1):
        pgd = torchattacks.PGD(model, eps=float(threat.eps), alpha=float(step_size), steps=done, random_start=False)
        reference = pgd(x, y)
        at = ascend(model, x, threat, lambda z: ce(z, y), steps=1, step_size=step_size, start=at)
        worst = max(worst, float((at - reference).abs().max()))
    return worst


def network(options: argparse.Namespace) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """TinyCNN trained by SAT, and the test images."""
    registry = Registry(options.registry)
    arch = f"{Path(__file__).resolve().with_name('parity_net.py')}:TinyCNN"
    made = api.train(
        method="sat", arch=arch, data="fashion-mnist", name="parity", registry=registry, data_dir=options.data_dir,
        given={"eps": "0.1", "epochs": options.epochs}, device="cpu",
    )  # fmt: skip
    model = load_network(registry, registry.get(made["generation"])).requires_grad_(False)
    test = datasets.load("fashion-mnist", data_dir=options.data_dir).test
    chosen = torch.arange(0, len(test), spread(len(test), options.images))[: options.images]
    about = {"method": "sat", "eps": "0.1", "epochs": options.epochs, "id": made["id"]}
    return model.eval(), to_float(test.x[chosen]), test.y[chosen], about


def main() -> None:
    """Train or re-use, compare, record."""
    from benchmarks.shared import machine, shown

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--eps", default="0.2", type=Fraction, help="linf, of the attacks")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=5_000, help="of Square by itself; AutoAttack's are 5,000")
    parser.add_argument("--attacks", default=",".join(ATTACKS), type=lambda text: tuple(text.split(",")))
    options = parser.parse_args()
    model, x, y, about = network(options)
    threat = ThreatModel("linf", options.eps)
    with torch.no_grad():
        clean = int((model(x).argmax(dim=1) == y).sum())
    record = {
        "command": "python -m benchmarks.parity " + shown(sys.argv[1:]),
        "machine": machine(),
        "torchattacks": getattr(torchattacks, "__version__", ""),
        "network": about,
        "threat": str(threat),
        "images": len(x),
        "clean": clean,
        "pgd_largest_difference": step_for_step(model, x[:100], y[:100], threat),
    }
    print(json.dumps(record), file=sys.stderr, flush=True)
    record["attacks"] = {}
    RECORDS.mkdir(exist_ok=True)
    how: dict[str, Any] = {"seeds": options.seeds, "queries": options.queries, "attacks": options.attacks}
    for name, row in compare(model, x, y, threat, **how):
        record["attacks"][name] = row
        (RECORDS / "parity.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{name}: ours {row['spread_ours']}, torchattacks {row['spread_torchattacks']} of {len(x)}", end="; ")
        print(f"agree {row['agree']}, mean {row['mean_difference']:+.1f}, seconds {row['seconds_ratio']:.2f} of theirs")


if __name__ == "__main__":
    main()
