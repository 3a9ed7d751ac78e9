"""`distill` with no options against every published recipe, on the same epochs and batches.

    python -m benchmarks.experiments.defaults --registry DIR [--data digits] [--seeds 0 1 2] [--only certified attacked]

A student of a smoothed teacher, and one of an adversarially trained teacher, by what `distill` takes when it is told
nothing and by each preset of `distill`, with the default's epochs and batch size. What decides is the figure on
held-out training images by which epochs are selected; test images are not looked at. Presets called `-fast` spell the
default out for sets of 5,000 images and more; they are left out. benchmarks/records/defaults.json, and
defaults-digits.json, grow row by row.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.study import Study
from benchmarks.shared import told_briefly
from robustkt.catalog import METHODS

# part -> the teacher, and the methods whose presets carry over what it has
PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "certified": ({"method": "gaussian", "sigma": "0.25"}, ("crt",)),
    "attacked": ({"method": "sat", "eps": "0.1", "steps": 5}, ("rslad", "ard", "iad")),
}


def main() -> None:
    """Train what the record lacks, seed by seed."""
    study = Study("defaults", __doc__ or "", parts=[*PARTS], epochs=None)
    presets = {name: table["method"] for name, table in METHODS.tables("PRESETS").items()}
    for seed in study.seeds():
        for part in filter(study.wanted, PARTS):
            teacher, methods = PARTS[part]
            study.network(part, seed, arch="Strided", **teacher)
            study.network(f"{part}-default", seed, "auto", "Residual", part)
            for preset, method in sorted(presets.items()):
                if method in methods and not preset.endswith("-fast"):
                    study.network(preset, seed, method, "Residual", part, preset=preset)
    study.ended()


if __name__ == "__main__":
    told_briefly(main)
