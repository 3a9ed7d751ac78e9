"""What the benchmarks that train share: a slice of a data set, the machine, notes, the command that is recorded."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.written import ROOT
from robustkt import data as datasets
from robustkt.errors import RobustKTError
from robustkt.progress import Silent

RADII = [Fraction(r) for r in ("0", "0.25", "0.5")]


class Told(Silent):
    """Notes on the terminal, nothing else."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def subset(options: argparse.Namespace, *, others: int = 0, unseen: int = 0) -> str:
    """The first --train-images training images and the whole test set, as an .npz beside the registry.

    With `others` so many training images that follow those; `unseen` that follow are in the place of the test set.
    """
    begin, end = (options.train_images, options.train_images + others) if others else (0, options.train_images)
    name = f"{Path(options.data).stem}-{f'{begin}-' if begin else ''}{end}{f'-unseen-{unseen}' if unseen else ''}"
    path: Path = options.registry.with_name(f"{name}.npz")
    if not path.is_file():
        whole = datasets.load(options.data, data_dir=options.data_dir)
        x, y = whole.train.x[begin:end], whole.train.y[begin:end]
        after = slice(end, end + unseen)
        tested = datasets.Split(whole.train.x[after], whole.train.y[after]) if unseen else whole.test
        arrays = {"train_images": x, "train_labels": y, "test_images": tested.x, "test_labels": tested.y}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
            np.savez(file, **{k: (v.movedim(1, 3) if v.dim() == 4 else v).numpy() for k, v in arrays.items()})
        os.replace(file.name, path)
    return str(path)


def positive(text: str) -> int:
    """A number of an option, from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def told_briefly(main: Callable[[], None]) -> None:
    """Run a benchmark; what its user can mend is told as the commands tell it, without a traceback."""
    try:
        main()
    except RobustKTError as error:
        raise SystemExit(f"error: {error.what}\n  → {error.fix}") from None
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    sources = ("robustkt", "benchmarks", ":!benchmarks/records")
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *sources], capture_output=True, check=False)
    return {
        "processor": cpu or platform.processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.strip() + ("+" if changed.returncode == 1 else ""),  # + is of uncommitted changes
    }


def shown(arguments: list[str]) -> str:
    """The command without the places of this machine."""
    private = [i for i, a in enumerate(arguments) if a in ("--registry", "--data-dir")]
    return " ".join(a for i, a in enumerate(arguments) if i not in private and i - 1 not in private)
