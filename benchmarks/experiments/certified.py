"""Certified transfer at the scale of two CPU cores: three generations, their price, CRT's variants, kept logits.

    python -m benchmarks.experiments.certified --registry DIR [--seeds 0 1 2] [--only PART …]

A SmoothMix teacher and three students of other architectures, each taught by the one before it, against the same
networks from scratch by SmoothMix and by Gaussian training, and a second line of three that begins at another of those
networks; all have the same number of epochs and see the same images. Parts: generations-0.25 and generations-0.5 (σ),
line, losses, views, teachers, longer: CRT and Gaussian training with more epochs, choice: what CRT's defaults might be,
on more images, which are not test images; and only when asked for prices: CPU seconds of an epoch, in turn in one
process, on a machine that does nothing else. benchmarks/records/certified.json grows row by row.
"""

from __future__ import annotations

import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.experiments.study import NETS, Study
from benchmarks.shared import subset, told_briefly
from robustkt import api
from robustkt.registry import Registry

RADII = {
    "0.25": [Fraction(r) for r in ("0", "0.25", "0.5")],
    "0.5": [Fraction(r) for r in ("0", "0.25", "0.5", "0.75", "1")],
}
FIRST, STUDENTS = "Strided", ("Residual", "wide", "Pooled")
SECOND = (("smoothmix-1", "wide"), ("line-1", "Pooled"), ("line-2", "Strided"))  # teacher -> student
# part -> arm -> how it differs from CRT into `Residual` with the SmoothMix teacher
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "losses": {
        "squared": {"match": "squared-l2"},
        "probabilities": {"match": "probabilities"},
        "kl": {"match": "kl"},
        "draws-2": {"draws": 2},
        "draws-4": {"draws": 4},
    },
    "views": {"fresh": {"views": None}, "views-1": {"views": 1}, "views-8": {"views": 8}},
    "teachers": {
        "from-consistency": {"teacher": "consistency-0"},
        "from-gaussian": {"teacher": "gaussian-0"},
        "to-wide": {"arch": "wide"},
    },
    "longer": {"epochs-30": {"epochs": 30}, "epochs-60": {"epochs": 60}},
}


CHOICE, UNSEEN = ("crt-1", "probabilities", "kl", "fresh"), 2_000  # a default is one of these, by so many images


class Certified:
    """The experiment for one σ and one seed."""

    def __init__(self, study: Study, sigma: str, seed: int) -> None:
        self.study, self.sigma, self.seed = study, sigma, seed

    def scratch(self, method: str, generation: int, arch: str, more: str = "", **given: Any) -> None:
        """A network without a teacher."""
        self._made(f"{method}-{generation}{more}", method, arch, sigma=self.sigma, **given)

    def crt(self, name: str, arch: str, teacher: str, **given: Any) -> None:
        """A student."""
        self._made(name, "crt", arch, teacher=f"{teacher}-{self.sigma}", **given)

    def _made(self, name: str, *told: Any, **given: Any) -> None:
        name = f"{name}-{self.sigma}"
        self.study.network(name, self.seed, *told, **given)
        self.study.certified(name, self.seed, self.sigma, RADII[self.sigma])

    def generations(self) -> None:
        """Three of them, and the same networks from scratch."""
        self.scratch("smoothmix", 0, FIRST)
        teacher = "smoothmix-0"
        for number, arch in enumerate(STUDENTS, 1):
            self.crt(f"crt-{number}", arch, teacher)
            teacher = f"crt-{number}"
        for method in ("gaussian", "smoothmix"):
            for number, arch in enumerate(STUDENTS, 1):
                self.scratch(method, number, arch)

    def line(self) -> None:
        """Three generations that begin at the SmoothMix network of another architecture."""
        for number, (teacher, arch) in enumerate(SECOND, 1):
            self.crt(f"line-{number}", arch, teacher)

    def variants(self, part: str) -> None:
        """CRT into one architecture with one thing changed."""
        if part == "teachers":
            self.scratch("consistency", 0, FIRST)
            self.scratch("consistency", 1, STUDENTS[0])
            self.scratch("gaussian", 0, FIRST)
        if part == "longer":
            for name, told in VARIANTS[part].items():
                self.scratch("gaussian", 1, STUDENTS[0], f"-{name}", **told)
        for name, told in VARIANTS[part].items():
            self.crt(name, **{"arch": STUDENTS[0], "teacher": "smoothmix-0", **told})

    def choice(self) -> None:
        """The losses that might be the default, on training images that no network has seen."""
        for name in CHOICE:
            self.study.certified(f"{name}-{self.sigma}", self.seed, self.sigma, RADII[self.sigma], unseen=UNSEEN)


def prices(study: Study, arch: str, rounds: int = 2) -> None:
    """CPU seconds of an epoch by Gaussian training, CRT on kept logits and on fresh views, and SmoothMix, in turn.

    An epoch is what three of them cost more than one, by two: checkpoints and selection count, the start does not.
    """
    if study.rows.known("prices", arch=arch):
        return
    seconds: dict[str, list[float]] = {"gaussian": [], "crt": [], "crt-fresh": [], "smoothmix": []}
    images = subset(study.options)
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder) / "registry")
        common = {"registry": registry, "device": "cpu"}

        def run(method: str, epochs: int, seed: int) -> float:
            told = {"arch": f"{NETS}:{arch}", "seed": seed, "method": method.partition("-")[0], **common}
            given = {"epochs": epochs, "batch_size": 64, **({"views": None} if method == "crt-fresh" else {})}
            began = time.process_time()
            if "crt" in method:
                api.distill(teacher="teacher", given=given, **told)
            else:
                api.train(data=images, given={**given, "sigma": "0.25"}, **told)
            return time.process_time() - began

        first = {"arch": f"{NETS}:{FIRST}", "given": {"sigma": "0.25", "epochs": 1}, "name": "teacher", **common}
        api.train(method="gaussian", data=images, **first)
        for seed in range(rounds + 1):  # the first warms up and keeps the logits
            for method, told in seconds.items():
                told.append((run(method, 3, seed) - run(method, 1, seed)) / 2)
    kept = {method: told[1:] for method, told in seconds.items()}
    study.rows.keep("prices", {"images": study.options.train_images, "cpu_seconds": kept}, arch=arch)


def main() -> None:
    """Train and certify what the record lacks."""
    parts = (*(f"generations-{sigma}" for sigma in RADII), "line", *VARIANTS, "choice")
    study = Study("certified", __doc__ or "", parts=parts, asked=["prices"], epochs=15, images=8_000)
    for arch in STUDENTS if study.wanted("prices") else ():
        prices(study, arch)
    for sigma in RADII:
        for seed in study.seeds() if study.wanted(f"generations-{sigma}") else ():
            Certified(study, sigma, seed).generations()
    for seed in study.seeds() if study.wanted("line") else ():
        Certified(study, "0.25", seed).line()
    for part in filter(study.wanted, VARIANTS):
        for seed in study.seeds():
            Certified(study, "0.25", seed).variants(part)
    for seed in study.seeds() if study.wanted("choice") else ():
        Certified(study, "0.25", seed).choice()
    study.ended()


if __name__ == "__main__":
    told_briefly(main)
