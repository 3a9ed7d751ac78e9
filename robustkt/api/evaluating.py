"""Accuracy under attack; results are kept with the generation, keyed by their settings, and re-used."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import corruptions
from robustkt import data as datasets
from robustkt.api.judging import ball
from robustkt.api.loading import check_images, load_network, load_test_data, machine, pick_device, ready, spread
from robustkt.api.results import Evaluation
from robustkt.api.transferring import teacher_of
from robustkt.api.transferring import transfer as transfer_rate
from robustkt.api.verdicts import earlier, written
from robustkt.attacks import Named, named
from robustkt.core import ThreatModel
from robustkt.corruptions import Corruption
from robustkt.decided import Decided
from robustkt.errors import IntegrityError, UsageError
from robustkt.evaluate import ALGORITHM, Attacked, attacked
from robustkt.generation import Generation
from robustkt.masking import masking_warnings
from robustkt.numbers import canonical, digest, exact, wilson
from robustkt.progress import Progress, Silent
from robustkt.ranks import ALONE, Ranks, ranks
from robustkt.registry import Registry, Result
from robustkt.registry.files import append_synced
from robustkt.registry.heartbeats import Heartbeat
from robustkt.registry.measurements import key_of, settled

ORDER = ("clean", "fgsm", "pgd-sat", "pgd-trades", "cw", "autoattack")  # the columns of 2108.07969

VERDICT = re.compile(r"((?![^\t]*/answer (?!-?\d{1,9}\t))[^\t]+)\t(\d{1,9})\t([01])\n")  # stage, image, whether it fell


def evaluate(
    generation: str = "@latest",
    *,
    attacks: Sequence[str] = ("clean", "fgsm", "pgd-sat", "pgd-trades"),
    norm: str | None = None,
    eps: str | float | Fraction | None = None,
    max_images: int = 1_000,
    seed: int = 0,
    last: bool = False,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    base: bool = False,
    transfer: bool = False,
    corruption: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of the deterministic network under attack, in fp32; measured once, then re-used, attack by attack.

    An interrupted evaluation continues where it stopped.

    Args:
        generation: whose network is attacked; of one trained for smoothing, the base network.
        attacks: names of the attacks catalog, with settings as in `pgd:steps=100:restarts=5`.
        norm: linf or l2; the generation's own by default, else linf.
        eps: in [0, 1] pixel units; the generation's own by default, else 8/255.
        max_images: at most so many test images, spread over the test set.
        seed: of the random starts.
        last: the last epoch's weights instead of the selected ones.
        data: another data set of the same shape and classes.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        fresh: measure again although a result is there.
        base: let AutoAttack and its members score the base network of a generation that is used smoothed.
        transfer: also measure how often adversarial examples of the generation fool its teacher.
        corruption: of the images before any attack, as `gaussian-noise:3`; "clean" is without an attack then.
        progress: where to report.

    Returns:
        generation, id, images, corruption, clean_accuracy, attacks {name: {accuracy, interval, eps, norm, …; of an
        attack on the smoothed classifier wrong and abstained, shares of the images}}, worst {accuracy, interval,
        smoothed} of the images that no attack broke, warnings, reused; with `transfer` also that
        (api.transferring). With `.to_pandas()` and `.plot()`.

    Raises:
        UsageError: attacks that do not fit each other or the generation.
        RobustKTError: anything else the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    shift = corruptions.one(corruption) if corruption is not None else None
    if shift is not None and transfer:
        raise UsageError("--transfer is measured on images as they are", "Leave --corruption out.")
    asked = ask(
        generation, attacks=attacks, norm=norm, eps=eps, max_images=max_images, seed=seed, last=last, data=data,
        data_dir=data_dir, registry=registry, device=device, fresh=fresh, base=base, progress=progress,
    )  # fmt: skip
    found = asked.found
    if transfer:
        teacher_of(registry, found)
    with ranks() as group:
        result, reused = asked.measure(shift, group)
        told = _told(asked, shift, result, reused)
        if transfer and group.rank == 0:
            told["transfer"] = transfer_rate(
                generation, threat=asked.threat, max_images=max_images, seed=seed, data=data, data_dir=data_dir,
                registry=registry, device=device, fresh=fresh, progress=progress,
            )  # fmt: skip
        told = json.loads(group.first(json.dumps(told).encode()))
        return Evaluation(told, found, result.content["settings"], told, functools.partial(registry.log, result))


def _told(asked: Asked, shift: Corruption | None, result: Result, reused: bool) -> dict[str, Any]:
    """What `evaluate` answers, but for transfer."""
    found = asked.found
    if reused:
        asked.progress.note(f"{found.name} has this very evaluation already; --fresh measures it again")
    figures = result.content["figures"]
    return {
        "generation": found.name,
        "id": found.id,
        "images": len(asked.chosen),
        "corruption": None if shift is None else str(shift),
        "clean_accuracy": figures["attacks"]["clean"]["accuracy"],
        "attacks": {name: figures["attacks"][name] for name in asked.names},
        "worst": figures["worst"],
        "warnings": figures["warnings"],
        "network": asked.network,
        "reused": reused,
    }


@dataclass(frozen=True)
class Asked:
    """An evaluation that has been checked: what to measure, on clean images or on corrupted ones."""

    registry: Registry
    found: Generation
    names: Sequence[str]  # of the attacks, clean first
    threat: ThreatModel
    chosen: Tensor  # (N,), rows of the test set
    step: int
    seed: int
    last: bool
    dataset: datasets.Dataset
    device: torch.device
    fresh: bool
    progress: Progress

    @property
    def network(self) -> str:
        """What is attacked, in words."""
        return "base network, without noise" if self.found.sigma is not None else "network"

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network on its device."""
        return ready(load_network(self.registry, self.found, last=self.last), self.device, "fp32")

    def settings(self, shift: Corruption | None) -> dict[str, Any]:
        """What decides the result."""
        clean = self.dataset.spec.fingerprint
        return {
            "attacks": self.names, "norm": self.threat.norm, "eps": exact(self.threat.eps), "images": len(self.chosen),
            "skip": self.step, "seed": self.seed,
            "weights": self.found.network(last=self.last),
            **self.found.domain,
            "data": clean if shift is None else corruptions.fingerprint(clean, shift),
            **({} if shift is None else {"corruption": str(shift)}),
        }  # fmt: skip

    def measure(self, shift: Corruption | None, group: Ranks = ALONE) -> tuple[Result, bool]:
        """The stored result, and whether it was there before; the ranks share the images, and all get it."""
        key = key_of(settings := self.settings(shift))
        group.agree({"generation": self.found.id, "data set": settings["data"], "evaluation": settings})
        stored = None
        if group.rank == 0 and not self.fresh:
            stored = settled(self.registry.result(self.found.id, "evaluation", key))
            if stored is not None and _outdated(stored.content["figures"]):
                stored = None
        there = group.first_says(stored is not None)
        result = stored if there else self._measured(shift, settings, key, group)
        content = json.loads(group.first(json.dumps(result.content if result else None).encode()))
        path = self.registry.result_path(self.found.id, "evaluation", key)
        return result or Result("evaluation", key, content, path), there

    def _measured(self, shift: Corruption | None, settings: Mapping[str, Any], key: str, group: Ranks) -> Result | None:
        """What the ranks measure together, stored by the first; None at the others."""
        registry, found, progress, target = self.registry, self.found, self.progress, self.device
        names, threat, chosen = self.names, self.threat, self.chosen
        # the lock also tells at once, not after the work, that nothing can be written here
        # an evaluation is continued by the algorithm and on the kind of device that it began with
        job = registry.job_path("evaluate", digest(canonical([found.id, key, ALGORITHM, target.type]))[7:23])
        own = job / (f"decided-{group.rank}.tsv" if group.rank else "decided.tsv")
        alone = registry.working(job, "this very evaluation", [found.id], fresh=self.fresh)
        with alone if group.rank == 0 else removed(own, fresh=self.fresh):
            before = earlier(registry, found, settings, names) if group.rank == 0 and not self.fresh else {}
            todo = json.loads(group.first(json.dumps([name for name in names if name not in before]).encode()))
            dataset = self.dataset
            if shift is not None:
                dataset = datasets.corrupted(dataset, shift, chosen.tolist())
            split = datasets.Split(dataset.test.x[chosen], dataset.test.y[chosen])
            decided = Kept(own, len(split), job.glob("decided*.tsv"))
            group.wait()  # everybody has read before anybody writes
            if decided.stages:
                progress.note(
                    f"continuing an interrupted evaluation of {len(chosen)} images; attacked so far: {decided.told()}"
                )
            if before:
                progress.note(f"measured before with the same settings, and re-used: {', '.join(before)}")
            doing, how = ("evaluating", "without an attack") if todo == ["clean"] else ("attacking", f"in {threat}")
            title = f"{found.name} under {shift}" if shift is not None else f"{doing} {found.name} {how}"
            own_job, told_of = None if group.rank else job, {"generation": found.name, "attacks": todo}
            with Heartbeat(progress, own_job, **told_of, images=len(chosen)).bar(title, len(todo) * len(chosen)) as bar:
                made = attacked(
                    self.model, split, threat, todo, seed=self.seed, device=target, sigma=found.sigma,
                    advance=bar.advance, decided=decided, group=group,
                    milestone=lambda attack, right: bar.line(f"{attack}: {right} of {len(chosen)} images still right"),
                )  # fmt: skip
            if group.rank:
                return None
            by_name = {result.name: result for result in made} | {name: old.attacked for name, old in before.items()}
            results = [by_name[name] for name in names]
            told = {result.name: _figures(result, threat) for result in made}
            warnings = masking_warnings(self.model, split, threat, results, device=target) if len(names) > 1 else []
            figures: Mapping[str, Any] = {
                "attacks": {name: before[name].figures if name in before else told[name] for name in names},
                "worst": _worst(results),
                "warnings": warnings,
            }
            content = {
                "settings": settings, "figures": figures, "algorithm": ALGORITHM,
                "earlier": {name: old.key for name, old in before.items()}, **machine(target),
                **({"ranks": group.world} if group.world > 1 else {}),
            }  # fmt: skip
            return registry.put_result(found.id, "evaluation", key, content, written(chosen, split.y, results))


@contextlib.contextmanager
def removed(path: Path, *, fresh: bool) -> Iterator[None]:
    """A file of a rank that holds no lock: it goes when the block ends well, and with `fresh` before."""
    if fresh:
        path.unlink(missing_ok=True)
    yield
    path.unlink(missing_ok=True)


def ask(
    generation: str,
    *,
    attacks: Sequence[str],
    norm: str | None,
    eps: str | float | Fraction | None,
    max_images: int,
    seed: int,
    last: bool,
    data: str | None,
    data_dir: Path | None,
    registry: Registry,
    device: str,
    fresh: bool,
    base: bool,
    progress: Progress,
) -> Asked:
    """The arguments of `evaluate`, checked, with the data loaded; nothing is measured.

    Raises:
        UsageError: no attack, no image, or no ball for an attack of a smoothed classifier.
        RobustKTError: anything else the user can fix.
    """
    wanted = [named(text) for text in attacks]
    if not wanted:
        raise UsageError("no attack is named", "For instance --attack clean,fgsm,pgd-sat.")
    check_images(max_images)
    found = registry.mode(generation)
    threat = ball(found, norm, eps)
    smoothed = [attack.name for attack in wanted if attack.takes("sigma")]
    if smoothed and eps is None and found.recipe.threat is None:
        raise UsageError(
            f"{smoothed[0]} needs to know how far it may go: certificates are in l2", "Add --norm l2 --eps 0.5, say."
        )
    if not base:
        _refuse_base(found, wanted)
    target = pick_device(device)
    dataset = load_test_data(registry, found, data, data_dir)
    step = spread(len(dataset.test), max_images)
    return Asked(
        registry=registry,
        found=found,
        names=sorted({"clean", *(attack.name for attack in wanted)}, key=_place),
        threat=threat,
        chosen=torch.arange(0, len(dataset.test), step)[:max_images],
        step=step,
        seed=seed,
        last=last,
        dataset=dataset,
        device=target,
        fresh=fresh,
        progress=progress,
    )


class Kept(Decided):
    """What an evaluation has decided, in a file: a row of tabs a verdict, appended and synced."""

    def __init__(self, path: Path, images: int, everybody: Iterable[Path] = ()) -> None:
        super().__init__()
        self.path = path
        for file in sorted({path, *everybody}):  # of all ranks that an earlier run had
            if file.is_file():
                self._read(file, images)

    def _read(self, path: Path, images: int) -> None:
        for line in path.read_bytes().decode(errors="replace").splitlines(keepends=True):
            verdict = VERDICT.fullmatch(line)
            if verdict is not None and int(verdict[2]) < images:
                super().tell(verdict[1], [int(verdict[2])], [verdict[3] == "1"])
            elif line.endswith("\n") and line.count("\t") >= 2:  # whole, so no crash has torn it
                raise IntegrityError(f"{path} holds a verdict that is none", "Start again with --fresh.")

    def told(self) -> str:
        """How many images each attack has decided, `fgsm 40, autoattack 12 at apgd-t 3`; of a stage, the last begun."""
        begun: dict[str, tuple[str, int]] = {}
        for page, rows in self.stages.items():
            attack, _, stage = page.rpartition("/")
            if stage.startswith("answer "):  # a page a class
                begun[attack] = "", begun.get(attack, ("", 0))[1] + len(rows)
            elif rows:
                begun[attack] = stage, len(rows)
        return ", ".join(f"{attack} {n}" + (f" at {stage}" if stage else "") for attack, (stage, n) in begun.items())

    def tell(self, stage: str, rows: Sequence[int], broken: Sequence[bool]) -> None:
        """Remember, and write down."""
        super().tell(stage, rows, broken)
        lines = [f"{stage}\t{row}\t{int(fell)}\n" for row, fell in zip(rows, broken, strict=True)]
        append_synced(self.path, "".join(lines).encode())


def _refuse_base(found: Generation, wanted: Sequence[Named]) -> None:
    """What AutoAttack, or a member of it, leaves of the base network would be read as the smoothed classifier's."""
    sigma = exact(found.sigma) if found.sigma is not None else None
    members = [attack.name for attack in wanted if attack.takes("journal")]
    if sigma is not None and members:
        raise UsageError(
            f"{found.name} is used smoothed; {members[0]} can score only its base network without the noise",
            f"`robustkt certify {found.name} --sigma {sigma}` bounds every attack, `--attack smoothadv --norm l2 --eps "
            f"{sigma}` attacks the smoothed classifier; --base scores the base network.",
        )


def _place(name: str) -> tuple[int, str]:
    """The columns of the founding papers, then the rest."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _worst(results: Sequence[Attacked]) -> dict[str, Any]:
    """Images that no attack broke: of the network, or where only it was attacked of the smoothed classifier."""
    whole = [result for result in results if result.predicted is None]
    smoothed = [result for result in results if result.predicted is not None]
    only = bool(smoothed) and all(result.name == "clean" for result in whole)
    right = torch.stack([result.right for result in (smoothed if only else whole)]).all(dim=0)
    return {"accuracy": float(right.double().mean()), "interval": _interval(right), "smoothed": only}


def _outdated(figures: Mapping[str, Any]) -> bool:
    """Whether an earlier version measured this that judged attacks by their last iterate, or a base for a smoothed."""
    worst = figures.get("worst")
    noisy = [bool(attack.get("smoothed")) for name, attack in figures["attacks"].items() if name != "clean"]
    return not worst or (bool(noisy) and all(noisy) and not worst.get("smoothed"))


def _interval(right: Tensor) -> list[float]:
    return wilson(int(right.sum()), len(right))


def _figures(result: Attacked, threat: ThreatModel) -> dict[str, Any]:
    none = result.name == "clean"
    figures = {
        "accuracy": result.accuracy,
        "interval": _interval(result.right),
        "norm": None if none else threat.norm,
        "eps": None if none else exact(threat.eps),
    }
    if result.stages:
        figures["stages"] = {stage: left / len(result.right) for stage, left in result.stages.items()}
    if result.predicted is not None:
        figures["smoothed"] = True
        abstained = result.predicted < 0
        figures["wrong"] = float((~result.right & ~abstained).double().mean())
        figures["abstained"] = float(abstained.double().mean())
    return figures
