"""RSLAD's table at the scale of two CPU cores, what its soft labels do alone, and what the teacher's strength does.

    python benchmarks/experiments/rslad.py --registry DIR [--seeds 0,1,2] [--only table,labels,teachers,adaad]

One student network for every objective, one wider TRADES teacher a seed; epochs are selected on held-out
training images. benchmarks/records/rslad.json grows row by row.
"""

from __future__ import annotations

from typing import Any

from study import Study

EPS = "0.1"
ATTACKS = ("clean", "fgsm", "pgd-sat", "pgd-trades", "cw", "autoattack")
TEACHER: dict[str, Any] = {"method": "trades", "arch": "wide", "eps": EPS, "steps": 5}
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
}


def main() -> None:
    """Train and attack what the record lacks, seed by seed."""
    study = Study("rslad", __doc__ or "", epochs=15, images=8_000, tested=300)
    for seed in study.seeds():
        study.network("teacher", seed, **TEACHER)
        study.attacked("teacher", seed, EPS, ATTACKS)
        for arms in (arms for part, arms in ARMS.items() if study.wanted(part)):
            for name, told in arms.items():
                given: dict[str, Any] = {"arch": "Strided", "steps": 10, **told}
                if "teacher" not in given:
                    given["eps"] = EPS
                study.network(name, seed, **given)
                study.attacked(name, seed, EPS, ATTACKS)
                study.attacked(name, seed, EPS, ATTACKS, last=True)


if __name__ == "__main__":
    main()
