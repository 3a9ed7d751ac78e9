"""Options that many commands share, and their completion; read from the registry and the sources, without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.errors import RobustKTError, UsageError

if TYPE_CHECKING:
    from robustkt.registry import Registry


def _data_sets(incomplete: str) -> list[str]:
    from robustkt import catalog

    names = catalog.literal(Path(__file__).parents[1] / "data" / "__init__.py", "NAMES")
    return [name for name in names if name.startswith(incomplete)]


def _generations(incomplete: str) -> list[str]:
    from robustkt.registry import Registry

    try:
        refs = Registry.locate().refs()
    except RobustKTError:
        return []
    known = [*refs["names"], *(f"@{tag}" for tag in refs["tags"]), "@latest"]
    return [name for name in known if name.startswith(incomplete)]


def _methods(incomplete: str) -> list[str]:
    from robustkt.catalog import METHODS

    return [name for name in METHODS.names() if name.startswith(incomplete)]


def _architectures(incomplete: str) -> list[str]:
    from robustkt.catalog import ARCHITECTURES

    return [name for name in ARCHITECTURES.names() if name.startswith(incomplete)]


def _presets(incomplete: str) -> list[str]:
    from robustkt.catalog import METHODS

    return [name for name in sorted(METHODS.tables("PRESETS")) if name.startswith(incomplete)]


def _attacks(incomplete: str) -> list[str]:
    from robustkt.catalog import ATTACKS

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in ATTACKS.names() if name.startswith(last)]


def _noises(incomplete: str) -> list[str]:
    from robustkt.catalog import NOISES

    return [name for name in NOISES.names() if name.startswith(incomplete)]


def _corruptions(incomplete: str) -> list[str]:
    from robustkt.catalog import CORRUPTIONS

    return [name for name in CORRUPTIONS.names() if name.startswith(incomplete)]


def _modes(incomplete: str) -> list[str]:
    from robustkt.catalog import CERTIFIERS

    return [name for name in CERTIFIERS.names() if name.startswith(incomplete)]


Gen = Annotated[
    str,
    typer.Argument(
        metavar="[GEN]",
        autocompletion=_generations,
        help="A name, an id or its prefix, @tag, @latest, GEN~1.",
        show_default=False,
    ),
]
Method = Annotated[
    str, typer.Option("--method", "-m", autocompletion=_methods, help="Objective, such as smoothmix or sat.")
]
Arch = Annotated[
    str,
    typer.Option(
        "--arch", "-a", autocompletion=_architectures, help="resnet20, torchvision:NAME, timm:NAME, file.py:Callable."
    ),
]
To = Annotated[
    str,
    typer.Option(
        "--to", autocompletion=_architectures, help="The student: resnet18, torchvision:NAME, file.py:Callable."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--data", "-d", autocompletion=_data_sets, help="digits, mnist, fashion-mnist, cifar10 …, a folder, or an .npz."
    ),
]
OtherData = Annotated[
    str | None, typer.Option("--data", "-d", help="Other data of the same shape and classes.", show_default="its own")
]
TestData = Annotated[
    str | None,
    typer.Option(
        "--data", "-d", help="Other test images of its classes: a set, a folder, CLASS/*.png.", show_default="its own"
    ),
]
OwnData = Annotated[
    str | None, typer.Option("--data", "-d", help="Where the generation's data lie now.", show_default="where they lay")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where named data sets lie.", envvar="ROBUSTKT_DATA")]
Where = Annotated[
    str | None, typer.Option("--registry", help="The registry's folder.", show_default="the nearest registry/")
]
ReadWhere = Annotated[
    str | None,
    typer.Option("--registry", help="The registry's folder or address.", show_default="the nearest registry/"),
]
Name = Annotated[str | None, typer.Option("--name", "-n", help="The generation's name.", show_default="genN")]
Init = Annotated[
    str | None,
    typer.Option("--init", metavar="GEN", autocompletion=_generations, help="Start from this generation's weights."),
]
Preset = Annotated[str | None, typer.Option("--preset", autocompletion=_presets, help="A published recipe.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any field of the method or the training.")
]
Epochs = Annotated[str | None, typer.Option("--epochs", help="Passes over the data.", show_default="by size")]
Rate = Annotated[str | None, typer.Option("--lr", help="Peak learning rate.", show_default="0.1")]
BatchSize = Annotated[str | None, typer.Option("--batch-size", help="Images a step.", show_default="by size")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every random number.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32 or bf16.")]
Compiled = Annotated[str, typer.Option("--compile", help="torch.compile: auto, on or off.")]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Continue an interrupted run, or start over.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again although the result is there.")]
Last = Annotated[bool, typer.Option("--last", help="The last epoch's weights, not the selected ones.")]
Sigma = Annotated[str | None, typer.Option("--sigma", help="Standard deviation of the noise, such as 0.25.")]
Norm = Annotated[str | None, typer.Option("--norm", help="linf or l2.")]
Eps = Annotated[str | None, typer.Option("--eps", help="Size of the perturbation, such as 8/255.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        "--attack",
        autocompletion=_attacks,
        help="Attacks, separated by commas.",
        show_default="clean,fgsm,pgd-sat,pgd-trades; clean under several corruptions",
    ),
]
Corrupted = Annotated[
    str | None,
    typer.Option("--corruption", autocompletion=_corruptions, help="Of the images, such as gaussian-noise:3."),
]
Mode = Annotated[str, typer.Option("--mode", autocompletion=_modes, help="Statistical procedure.")]
Noise = Annotated[
    str,
    typer.Option(
        "--noise", autocompletion=_noises, help="gaussian, quantised, uniform, laplace or ablation:keep=PIXELS."
    ),
]
CertifiedNorm = Annotated[
    str | None,
    typer.Option("--norm", help="l2, linf, l4 …; l1 (uniform, laplace); l0 (ablation).", show_default="by noise"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Times, every milestone, an error's traceback.")]


def registry_of(place: str | None) -> Registry:
    """The registry to work in, given --registry or not.

    Raises:
        RobustKTError: it is a remote one.
    """
    from robustkt.registry import Registry

    remote = remote_of(place)
    if remote is not None:
        raise RobustKTError(
            f"{remote} is a remote registry, and this command works in a local one",
            f"`robustkt copy GEN --from {remote}` brings a generation here, and --to takes one there.",
        )
    return Registry.locate(Path(place) if place else None)


def remote_of(place: str | None) -> str | None:
    """The address of the registry, when --registry or $ROBUSTKT_REGISTRY names a remote one."""
    from robustkt.registry.remote import remote_at

    named = place or os.environ.get("ROBUSTKT_REGISTRY")
    return remote_at(named) if named else None


def readable(place: str | None) -> Registry:
    """The registry to read, which may be a remote one."""
    from robustkt import api

    remote = remote_of(place)
    return api.open_registry(remote) if remote else registry_of(place)


def check_names(method: str | None, arch: str, data: str | None) -> None:
    """Answer a misspelt name at once, from the sources, before torch is imported.

    Raises:
        UsageError: an unknown method, architecture or data set.
    """
    from robustkt.catalog import ARCHITECTURES, METHODS, plain, unknown

    if method is not None and not METHODS.has(method):
        raise unknown("method", method, METHODS.names())
    if arch.endswith(".py"):
        raise UsageError(f"{arch} is a file; which network in it?", f"Write {arch}:NAME, a class or function in it.")
    if ":" not in arch and not ARCHITECTURES.has(arch) and not plain(arch).startswith(("wideresnet", "dmwideresnet")):
        raise unknown("architecture", arch, ARCHITECTURES.names())
    if data is not None and not Path(data).exists() and not {"/", "."} & set(data):
        known = _data_sets("")
        if plain(data).replace("_", "-") not in known:
            error = unknown("data set", data, known)
            raise UsageError(error.what, f"{error.fix} Or a path to an image folder or an .npz; there is no ./{data}.")


def given(pairs: list[str] | None, **named: Any) -> dict[str, Any]:
    """The options that were given, and `--set key=value` pairs, as one table.

    Raises:
        UsageError: a pair without `=`, or a key that is given twice.
    """
    chosen = {key: value for key, value in named.items() if value is not None}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise UsageError(f"--set takes key=value, not '{pair}'", "For instance --set steps=10.")
        if key in chosen:
            raise UsageError(f"{key} is given twice", "Give it once.")
        chosen[key] = value.strip()
    return chosen
