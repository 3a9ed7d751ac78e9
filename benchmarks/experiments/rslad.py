"""RSLAD's table at the scale of two CPU cores, what its soft labels do alone, and what the teacher's strength does.

    python -m benchmarks.experiments.rslad --registry DIR [--seeds 0 1 2] [--only PART …]

One student network for every objective, one wider TRADES teacher a seed; epochs are selected on held-out
training images. Parts: table, labels, teachers, adaad, strong: the same students of a teacher that has seen five times
as many images, none of them theirs, and long: two objectives with four times as many epochs.
benchmarks/records/rslad.json grows row by row.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.study import Study
from benchmarks.shared import told_briefly

EPS = "0.1"
LONG = 60  # epochs
ATTACKS = ("clean", "fgsm", "pgd-sat", "pgd-trades", "cw", "autoattack")
TEACHERS: dict[str, dict[str, Any]] = {
    "teacher": {"method": "trades", "arch": "wide", "eps": EPS, "steps": 5},
    "strong": {"method": "sat", "arch": "wide", "eps": EPS, "steps": 5, "others": 40_000},
}
# part -> arm -> how it differs from a student of `Strided` with ten steps of PGD
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "table": {
        "sat": {"method": "sat"},
        "trades": {"method": "trades"},
        "rslad": {"method": "rslad", "teacher": "teacher"},
        "ard": {"method": "ard", "teacher": "teacher"},
        "iad": {"method": "iad", "teacher": "teacher"},
    },
    # from hard labels to soft ones, one problem after the other: SAT, then these two, then RSLAD
    "labels": {
        "soft-outer": {"method": "ard", "teacher": "teacher", "temperature": 1.0},
        "soft-both": {"method": "rslad", "teacher": "teacher", "adversarial_weight": "1"},
    },
    "teachers": {"rslad-equal": {"method": "rslad", "teacher": "trades"}},
    "adaad": {"adaad": {"method": "adaad", "teacher": "teacher"}},
    "strong": {
        "strong-rslad": {"method": "rslad", "teacher": "strong"},
        "strong-ard": {"method": "ard", "teacher": "strong"},
        "strong-soft-both": {"method": "rslad", "teacher": "strong", "adversarial_weight": "1"},
        "strong-soft-outer": {"method": "ard", "teacher": "strong", "temperature": 1.0},
    },
    "long": {
        "long-sat": {"method": "sat", "epochs": LONG},
        "long-rslad": {"method": "rslad", "teacher": "strong", "epochs": LONG},
    },
}


def main() -> None:
    """Train and attack what the record lacks, seed by seed."""
    study = Study("rslad", __doc__ or "", parts=[*ARMS], epochs=15, images=8_000, tested=300)
    for seed in study.seeds():
        for arms in (arms for part, arms in ARMS.items() if study.wanted(part)):
            for name, told in arms.items():
                given: dict[str, Any] = {"arch": "Strided", "steps": 10, **told}
                if "teacher" not in given:
                    given["eps"] = EPS
                elif given["teacher"] in TEACHERS:
                    study.network(given["teacher"], seed, **TEACHERS[given["teacher"]])
                    study.attacked(given["teacher"], seed, EPS, ATTACKS)
                study.network(name, seed, **given)
                study.attacked(name, seed, EPS, ATTACKS)
                study.attacked(name, seed, EPS, ATTACKS, last=True)
    study.ended()


if __name__ == "__main__":
    told_briefly(main)
