"""For an image without a GPU: deletes the files of NVIDIA's packages that torch does not load when it is imported.

torch's Linux wheel is linked against CUDA, so some of its libraries must stay for `import torch` to work at all; what
it loads when a GPU is used (most of cuDNN, headers, tools) is never touched on a CPU.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
import torchvision


def loaded() -> set[Path]:
    """The files that this process, torch and torchvision imported, has mapped."""
    fields = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    return {Path(parts[5]).resolve() for parts in fields if len(parts) == 6 and parts[5].startswith("/")}


def main() -> None:
    """Delete, then see in a fresh process that torch still works."""
    package = importlib.util.find_spec("nvidia")
    if package is None or not package.submodule_search_locations:
        sys.exit(f"torch {torch.__version__} brings no CUDA: leave VARIANT at cuda, which then means as it is")
    kept, freed = loaded(), 0
    for folder in map(Path, package.submodule_search_locations):
        for path in folder.rglob("*"):
            if path.is_file() and path.resolve() not in kept:
                freed += path.lstat().st_size
                path.unlink()
    check = "import torch, torchvision; torch.nn.Conv2d(3, 8, 3)(torch.rand(2, 3, 8, 8)).sum().backward()"
    subprocess.run([sys.executable, "-c", check], check=True)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}: {freed / 1e6:.0f} MB of CUDA deleted")


if __name__ == "__main__":
    main()
