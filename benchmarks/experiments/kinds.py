"""Does robustness carry over to the other kind, and to another family of networks?

    python -m benchmarks.experiments.kinds --registry DIR [--seeds 0 1 2] [--only PART …]

A CRT student of a teacher that was trained against attacks, an RSLAD student of a teacher that was trained under
noise, and CRT from a convolutional network into a transformer and back. The teachers are those of rslad.py and
certified.py, from the same registry, or made again from their records. Parts: smoothed, attacked, families, and, only
when asked for, scratch: SmoothMix of the transformer, half an hour a seed. benchmarks/records/kinds.json grows row by
row.
"""

from __future__ import annotations

from benchmarks.experiments.certified import RADII
from benchmarks.experiments.rslad import EPS
from benchmarks.experiments.study import Study
from benchmarks.shared import told_briefly

SIGMA = "0.25"
ATTACKS = ("clean", "pgd-trades", "apgd-ce", "apgd-t")


def smoothed(study: Study, seed: int) -> None:
    """CRT into `Residual` from teachers of other kinds."""
    study.network("natural", seed, "natural", "Strided")
    for teacher in ("rslad", "sat", "natural"):
        name = f"crt-from-{teacher}"
        study.network(name, seed, "crt", "Residual", teacher=teacher, sigma=SIGMA)
        study.certified(name, seed, SIGMA, RADII[SIGMA])
        study.certified(teacher, seed, SIGMA, RADII[SIGMA])


def attacked(study: Study, seed: int) -> None:
    """RSLAD into `Residual` from teachers of other kinds and of no kind, and that network without a teacher."""
    study.network("sat-alone", seed, "sat", "Residual", eps=EPS, steps=10)
    study.attacked("sat-alone", seed, EPS, ATTACKS)
    study.network("natural", seed, "natural", "Strided")
    for teacher in ("trades", f"smoothmix-0-{SIGMA}", f"gaussian-0-{SIGMA}", "natural"):
        name = f"rslad-from-{teacher}"
        study.attacked(teacher, seed, EPS, ATTACKS, base=SIGMA in teacher)
        study.network(name, seed, "rslad", "Residual", teacher=teacher, eps=EPS, norm="linf", steps=10)
        study.attacked(name, seed, EPS, ATTACKS)


def families(study: Study, seed: int) -> None:
    """CRT between convolutions and transformers, against Gaussian training."""
    for name, method, arch, teacher in (
        ("gaussian-vit", "gaussian", "Transformer", None),
        ("cnn-to-vit", "crt", "Transformer", f"smoothmix-0-{SIGMA}"),
        ("vit-to-cnn", "crt", "Residual", "gaussian-vit"),
    ):
        study.network(name, seed, method, arch, teacher, **({} if teacher else {"sigma": SIGMA}))
        study.certified(name, seed, SIGMA, RADII[SIGMA])


def scratch(study: Study, seed: int) -> None:
    """SmoothMix training of the transformer."""
    study.network("smoothmix-vit", seed, "smoothmix", "Transformer", sigma=SIGMA)
    study.certified("smoothmix-vit", seed, SIGMA, RADII[SIGMA])


PARTS = {"smoothed": smoothed, "attacked": attacked, "families": families}
ASKED = {"scratch": scratch}


def main() -> None:
    """Train and measure what the record lacks, seed by seed."""
    after = ["rslad", "certified"]
    study = Study("kinds", __doc__ or "", parts=[*PARTS], asked=[*ASKED], after=after, epochs=15)
    for seed in study.seeds():
        for part, run in {**PARTS, **ASKED}.items():
            if study.wanted(part):
                run(study, seed)
    study.ended()


if __name__ == "__main__":
    told_briefly(main)
