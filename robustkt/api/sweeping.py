"""The curve of an adversarial soup: what each mixture keeps, clean and under attack, and which one to take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from robustkt import corruptions, mixture, soup
from robustkt import data as datasets
from robustkt.api import swept
from robustkt.api.evaluating import evaluate
from robustkt.api.judging import ball, slice_of
from robustkt.api.loading import check_images, load_data, load_network, load_own_data, pick_device, ready, spread
from robustkt.api.results import SoupPick, Sweep
from robustkt.api.souping import check_free, soup_make
from robustkt.attacks import named
from robustkt.core import ThreatModel
from robustkt.corruptions import Corruption
from robustkt.errors import IntegrityError, UsageError
from robustkt.evaluate import ALGORITHM, attacked
from robustkt.generation import Generation
from robustkt.mixture import CLEAN, ROBUST
from robustkt.numbers import canonical, counted, digest, exact, fraction
from robustkt.progress import Progress, Silent
from robustkt.registry import Registry
from robustkt.registry.files import append_synced, write_atomic
from robustkt.registry.heartbeats import Heartbeat
from robustkt.registry.measurements import MOST_POINTS, SPLITS

PICTURES = (".png", ".svg", ".pdf")
BETAS = "0:1:0.1"
JOB = 2  # counted up when an unfinished sweep comes to keep other things


def soup_sweep(
    generation: str = "@latest",
    *,
    betas: str = BETAS,
    attacks: Sequence[str] = ("pgd-sat",),
    eps: str | float | Fraction | None = None,
    split: str = "held-out",
    max_images: int = 1_000,
    seed: int = 0,
    out: Path | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Clean accuracy and accuracy under attack of φ_β = (1 − β)·φ_clean + β·φ_robust for each β (2210.04886).

    Each mixture is attacked through itself. By default on held-out images of the training data, on which a β may be
    chosen; an interrupted sweep continues. A finished one is stored, and its mixtures are not measured again.

    Args:
        generation: one with the adapters `clean` and `robust`.
        betas: `FIRST:LAST:STEP`, or `B,…`, between 0 and 1.
        attacks: names of the attacks catalog; an image counts as robust if it withstands all.
        eps: in [0, 1] pixel units; the generation's own by default.
        split: held-out or test.
        max_images: at most so many images.
        seed: of the attacks.
        out: also draw the curve there, as PNG, SVG or PDF.
        data: where the generation's own data lie now, if not where they did.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        fresh: measure again although a result is there.
        progress: where to report.

    Returns:
        generation, id, split, images, attacks, norm, eps, file, points [{beta, clean_accuracy, clean_interval,
        robust_accuracy, robust_interval}]; with `.to_pandas()` and `.plot()`.

    Raises:
        UsageError: no such β, split or picture, or a generation without the two adapters.
        RobustKTError: anything else the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    if out is not None and out.suffix.lower() not in PICTURES:
        raise UsageError(f"cannot draw a '{out.suffix}'", f"Name a file that ends in {', '.join(PICTURES)}.")
    if split not in SPLITS:
        raise UsageError(f"there is no split {split}", "Take held-out, or test to report and not to choose.")
    check_images(max_images)
    found = two_modes(registry, generation)
    steps = read_betas(betas)
    wanted = list(dict.fromkeys(named(text).name for text in attacks))
    dataset = load_own_data(registry, found, data, data_dir)
    images = slice_of(dataset.held_out if split == "held-out" else dataset.test, max_images)
    threat = ball(found, eps=eps)
    curve = Curve(registry, found, images, threat, pick_device(device), progress)
    whole = dataset.held_out if split == "held-out" else dataset.test
    asked = {
        "split": split, "attacks": wanted, "norm": threat.norm, "eps": exact(threat.eps), "seed": seed,
        "data": dataset.spec.fingerprint, "images": len(images), "skip": spread(len(whole), max_images),
    }  # fmt: skip
    settings = swept.settings_of(found, steps, asked)
    points = curve.points(steps, wanted, asked, seed=seed, fresh=fresh, store=settings)
    told = ("split", "attacks", "norm", "eps", "images")
    result = Sweep({
        "generation": found.name, "id": found.id, **{key: asked[key] for key in told},
        "file": str(out) if out else None, "points": points,
    })  # fmt: skip
    if out is not None:
        from robustkt import report

        figure = report.soup_curve(points, f"{found.name}, {threat}")
        write_atomic(out, figure.render(out.suffix.lower()[1:], titled=True))
    return result


def soup_pick(
    generation: str = "@latest",
    *,
    min_clean: float | None = None,
    max_robust: bool = False,
    for_shift: str | None = None,
    corruption: str | None = None,
    betas: str = BETAS,
    attacks: Sequence[str] = ("pgd-sat",),
    max_images: int = 1_000,
    seed: int = 0,
    name: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> SoupPick:
    """Choose β on images that are not the test set's, and report the choice on the test set.

    Args:
        generation: one with the adapters `clean` and `robust`.
        min_clean: the most robust mixture with at least this clean accuracy on held-out images.
        max_robust: the most robust mixture on held-out images.
        for_shift: a few labelled images of a shifted domain (a folder with `CLASS/*.png` of some of the classes, or a
            data set as in training): the mixture that is most accurate on them.
        corruption: of held-out images, as `gaussian-noise:3`: the mixture that is most accurate on them; the test
            images are corrupted too.
        betas: the mixtures to choose from, as in `soup_sweep`.
        attacks: of the choice and of the report.
        max_images: at most so many images.
        seed: of the attacks.
        name: also make the soup, under this name.
        data: where the generation's own data lie now, if not where they did.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        fresh: measure again.
        progress: where to report.

    Returns:
        generation, id, beta, mode (`GEN@beta=…`), chosen_by, chosen_on (what and how many images), points, test
        {of, images, clean_accuracy, attacks, worst}, made (the soup's name, or None); with `.to_pandas()` (a row a
        mixture) and `.plot()`.

    Raises:
        UsageError: not exactly one way to choose.
        RobustKTError: no mixture is accurate enough, or anything else the user can fix.
    """
    ways = (min_clean is not None, max_robust, for_shift is not None, corruption is not None)
    if sum(ways) != 1:
        raise UsageError(
            "soup pick takes one of --min-clean, --max-robust, --for-shift and --corruption", "Add --max-robust, say."
        )
    check_images(max_images)
    shift = corruptions.one(corruption) if corruption is not None else None
    if min_clean is not None and not 0 <= min_clean <= 1:
        raise UsageError(f"--min-clean must lie between 0 and 1, not {min_clean}", "For instance --min-clean 0.9.")
    if (min_clean is not None or max_robust) and all(named(text).name == "clean" for text in attacks):
        raise UsageError(
            "--min-clean and --max-robust choose by the accuracy under attack, and there is none",
            "Add --attack pgd-sat.",
        )
    registry, progress = registry or Registry.locate(), progress or Silent()
    check_free(registry, name)
    common: dict[str, Any] = {"registry": registry, "device": device, "data_dir": data_dir, "progress": progress}
    own = {"data": data, **common}
    found = two_modes(registry, generation)
    if for_shift is None and shift is None:
        swept = soup_sweep(
            generation, betas=betas, attacks=attacks, max_images=max_images, seed=seed, fresh=fresh, **own
        )
        points, images = swept["points"], f"{counted(swept['images'], 'held-out image')}"
        figure = "robust_accuracy"
        point = soup.chosen(points, figure, min_clean=min_clean)
        floor = f" with a clean accuracy of at least {min_clean:.1%}" if min_clean is not None else ""
        why = f"robust accuracy{floor}"
    else:
        labelled, fingerprint, kind = _shifted(registry, found, for_shift, shift, max_images, data, data_dir)
        there, classes = len(labelled.y.unique()), len(found.recipe.data.classes)
        if there < classes:
            progress.note(f"the labelled images are of {there} of the {classes} classes")
        asked = {"data": fingerprint, "images": len(labelled), "attacks": [], "split": kind}
        curve = Curve(registry, found, labelled, ball(found), pick_device(device), progress)
        points = curve.points(read_betas(betas), [], asked, seed=seed, fresh=fresh)
        figure, why = "clean_accuracy", "accuracy"
        point = soup.chosen(points, figure)
        images = counted(len(labelled), "held-out image" if shift else "image")
        images += f" under {shift}" if shift else f" of {for_shift}"
    equal = sum(p[figure] == point[figure] and p["clean_accuracy"] >= (min_clean or 0) for p in points) - 1
    if equal:
        progress.note(f"{counted(equal, 'other mixture')} did as well; the smallest β is taken")
    beta = read_betas(betas)[points.index(point)]  # itself, not its float
    shares = mixture.parse(f"beta={exact(beta)}", found.adapters, found.name)
    mode = f"{found.name}@{mixture.spelled(shares)}"
    test = evaluate(mode, attacks=attacks, max_images=max_images, seed=seed, corruption=corruption, fresh=fresh, **own)
    made = soup_make([found.name], adapters=mixture.spelled(shares), name=name, **common) if name is not None else None
    return SoupPick({
        "generation": found.name, "id": found.id, "beta": point["beta"], "mode": mode, "chosen_by": why,
        "chosen_on": images, "points": points,
        "test": {
            "of": found.recipe.data.name + (f" under {shift}" if shift else ""),
            **{key: test[key] for key in ("images", "clean_accuracy", "attacks", "worst")},
        },
        "made": made["generation"] if made else None,
    })  # fmt: skip


def _shifted(
    registry: Registry,
    found: Generation,
    source: str | None,
    corruption: Corruption | None,
    count: int,
    data: str | None,
    data_dir: Path | None,
) -> tuple[datasets.Split, str, str]:
    """Labelled images of another domain, what pins the whole of them, and what they are called."""
    if corruption is not None:
        dataset = load_own_data(registry, found, data, data_dir)
        clean = slice_of(dataset.held_out, count)
        x = datasets.corrupt(clean.x, corruption.name, corruption.severity)
        pinned = corruptions.fingerprint(dataset.spec.fingerprint, corruption)
        return datasets.Split(x, clean.y), pinned, f"held-out under {corruption}"
    few = datasets.labelled(str(source), found.recipe.data)
    if few is not None:
        return slice_of(few[0], count), few[1], str(source)
    shifted = load_data(registry, found, source, data_dir)
    if shifted.spec.fingerprint == found.recipe.data.fingerprint:
        raise UsageError(
            f"{source} is what {found.name} was trained on, its test images among them",
            "Name labelled images of another domain, or choose by --max-robust.",
        )
    parts = [shifted.train, shifted.held_out, shifted.test]
    whole = datasets.Split(torch.cat([s.x for s in parts]), torch.cat([s.y for s in parts]))
    return slice_of(whole, count), shifted.spec.fingerprint, str(source)


def two_modes(registry: Registry, generation: str) -> Generation:
    """A generation with the adapters between which β goes.

    Raises:
        UsageError: it has others, or none.
    """
    found = registry.get(generation)
    if set(found.adapters) != {CLEAN, ROBUST}:
        has = f"the modes {', '.join(sorted(found.adapters))}" if found.adapters else "one mode"
        raise UsageError(
            f"{found.name} has {has}: β mixes adapters called {CLEAN} and {ROBUST}",
            "Train one with `--method cotraining` or `--method dualrslad`.",
        )
    return found


def read_betas(text: str) -> list[Fraction]:
    """`0:1:0.1` or `0:1:0.3` (both ends among them, whatever the step) or `0,0.3,1`.

    Raises:
        UsageError: not such a text, a β outside [0, 1], or too many.
    """
    if ":" in text:
        parts = [fraction(part, "beta") for part in text.split(":")]
        if len(parts) != 3 or parts[2] <= 0 or parts[1] < parts[0]:
            raise UsageError(f"--beta {text} is not FIRST:LAST:STEP", f"Write {BETAS}.")
        first, last, step = parts
        count = (last - first) // step + 1
        betas = [first + k * step for k in range(min(count, MOST_POINTS + 1))]
        betas += [last] if betas[-1] < last else []
    else:
        betas = sorted({fraction(part, "beta") for part in text.split(",")})
    if not all(0 <= beta <= 1 for beta in betas):
        raise UsageError(f"every β of {text} must lie between 0 and 1", f"Write {BETAS}.")
    if len(betas) > MOST_POINTS:
        raise UsageError(f"--beta {text} names more than {MOST_POINTS} mixtures", "Take a larger step.")
    return betas


@dataclass(frozen=True)
class Curve:
    """Mixtures of one generation's two adapters on one set of images."""

    registry: Registry
    found: Generation
    images: datasets.Split
    threat: ThreatModel  # of the attacks
    device: torch.device
    progress: Progress

    def points(
        self,
        betas: Sequence[Fraction],
        attacks: Sequence[str],
        asked: Mapping[str, Any],
        *,
        seed: int,
        fresh: bool,
        store: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A point a β; those that an interrupted sweep has measured are kept in its job.

        With `store`, a sweep's settings, those of stored sweeps are taken over, and this one is stored too.
        """
        names = [exact(beta) for beta in betas]
        there = swept.known(self.registry, self.found, store) if store is not None and not fresh else {}
        if {*names} <= {*there}:
            return [swept.point(name, there[name]) for name in names]
        key = digest(canonical([self.found.id, dict(asked), ALGORITHM, self.device.type, JOB]))[7:23]
        folder = self.registry.job_path("soup", key)
        with self.registry.working(folder, "this very sweep", [self.found.id], fresh=fresh):
            path = folder / "points.jsonl"
            begun = _known(path, {"clean", *attacks}, len(self.images))
            if begun:
                self.progress.note(f"continuing an interrupted sweep: {counted(len(begun), 'point')} there")
            known = {**there, **begun}
            heart = Heartbeat(self.progress, folder, generation=self.found.name, points=len(betas))
            with heart.bar(f"sweeping {self.found.name}", len(betas)) as bar:
                for beta in betas:
                    if exact(beta) not in known:
                        known[exact(beta)] = columns = self._point(beta, attacks, seed)
                        append_synced(path, canonical([exact(beta), columns]) + b"\n")
                    bar.advance(1, f"β {exact(beta)}")
            if store is not None:
                swept.keep(self.registry, self.found, store, self.images.y, known, self.device)
            return [swept.point(name, known[name]) for name in names]

    def _point(self, beta: Fraction, attacks: Sequence[str], seed: int) -> swept.Kept:
        """Which images the mixture keeps without an attack, and under each."""
        network = load_network(self.registry, self.found.in_mode(f"beta={exact(beta)}"))
        model, names = ready(network, self.device, "fp32"), list(dict.fromkeys(["clean", *attacks]))
        return swept.kept(attacked(model, self.images, self.threat, names, seed=seed, device=self.device))


def _known(path: Path, names: set[str], images: int) -> dict[str, swept.Kept]:
    """The points of an interrupted sweep; a torn last line is measured again.

    Raises:
        IntegrityError: a whole line is no point of these attacks and so many images.
    """
    known: dict[str, swept.Kept] = {}
    for line in path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []:
        if line.endswith("\n"):
            try:
                beta, columns = json.loads(line)
                fits = {*columns} == names and all(
                    len(column) == images and {*column} <= {0, 1} for column in columns.values()
                )
            except (ValueError, TypeError, AttributeError, RecursionError):
                fits = False
            if not fits:
                raise IntegrityError(f"{path} holds a point that is none", "Start again with --fresh.")
            known[beta] = columns
    return known
