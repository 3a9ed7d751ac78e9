"""quickstart, train, distill: making generations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import early, tables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (quickstart, train, distill):
        app.command()(guarded(command))


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and the publishable student.")] = Path(
        "quickstart"
    ),
    registry: o.Where = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """The whole life on embedded data: a robust teacher, transfers, certificates, attacks, a publishable folder.

    It may be interrupted and run again: what is done is not done twice.

    Example: `robustkt quickstart`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device)
    result = api.quickstart(registry=o.registry_of(registry), out=out, seed=seed, device=device, progress=output)
    output.answer(result, tables.quickstart)


def train(
    method: o.Method,
    arch: o.Arch,
    data: o.Data,
    sigma: o.Sigma = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    name: o.Name = None,
    preset: o.Preset = None,
    init: o.Init = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    batch_size: o.BatchSize = None,
    settings: o.Set = None,
    seed: o.Seed = 0,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side that images are resized to.")] = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compiled: o.Compiled = "auto",
    resume: o.Resume = True,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train a generation without a teacher.

    Examples: `robustkt train -m smoothmix -a resnet20 -d fashion-mnist --sigma 0.25`,
    `robustkt train -m trades -a resnet18 -d cifar10 --eps 8/255`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    o.check_names(method, arch, data)
    given = o.given(settings, sigma=sigma, norm=norm, eps=eps, epochs=epochs, lr=lr, batch_size=batch_size)
    early.machine(device, precision, compiled)
    early.training(method, given, preset)
    result = api.train(
        method=method,
        arch=arch,
        data=data,
        given=given,
        name=name,
        preset=preset,
        init=init,
        seed=seed,
        image_size=image_size,
        data_dir=data_dir,
        registry=o.registry_of(registry),
        device=device,
        precision=precision,
        compile=compiled,
        fresh=not resume,
        progress=output,
    )
    output.answer(result, tables.trained)


def distill(
    teacher: Annotated[str, typer.Option("--from", autocompletion=o._generations, help="The teacher: GEN.")],
    to: o.To,
    method: Annotated[
        str, typer.Option("--method", "-m", autocompletion=o._methods, help="auto: crt or rslad, by the teacher.")
    ] = "auto",
    data: o.OtherData = None,
    sigma: o.Sigma = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    name: o.Name = None,
    preset: o.Preset = None,
    init: o.Init = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    batch_size: o.BatchSize = None,
    settings: o.Set = None,
    seed: o.Seed = 0,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compiled: o.Compiled = "auto",
    resume: o.Resume = True,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Carry a generation's robustness to a new network: the next generation.

    Data, σ or threat model and image size come from the teacher unless given.

    Examples: `robustkt distill --from gen2 --to resnet18`,
    `torchrun --nproc-per-node 8 -m -- robustkt distill --from gen2 --to resnet18`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    o.check_names(None if method == "auto" else method, to, None)
    given = o.given(settings, sigma=sigma, norm=norm, eps=eps, epochs=epochs, lr=lr, batch_size=batch_size)
    early.machine(device, precision, compiled)
    early.training(early.successor(o.registry_of(registry).get(teacher), method), given, preset)
    result = api.distill(
        teacher=teacher,
        arch=to,
        method=method,
        data=data,
        given=given,
        name=name,
        preset=preset,
        init=init,
        seed=seed,
        data_dir=data_dir,
        registry=o.registry_of(registry),
        device=device,
        precision=precision,
        compile=compiled,
        fresh=not resume,
        progress=output,
    )
    output.answer(result, tables.trained)
