"""certify, evaluate, predict: measuring generations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustkt.cli import early, tables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.errors import UsageError

PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # endings of no generation


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (certify, evaluate, predict):
        app.command()(guarded(command, keeps=command is not predict))
    bench = typer.Typer(no_args_is_help=True)
    bench.command("train")(guarded(bench_train, keeps=False))
    bench.command("certify")(guarded(bench_certify, keeps=False))
    app.add_typer(bench, name="bench", help="Speed on this machine against plain reference loops, in one run.")


N = Annotated[int, typer.Option("--n", help="Noisy copies an image that bound the probability.")]
N0 = Annotated[int, typer.Option("--n0", help="Further copies that select the class.")]
Alpha = Annotated[str, typer.Option("--alpha", help="Largest probability that a certificate is wrong.")]


def certify(
    generation: o.Gen = "@latest",
    sigma: o.Sigma = None,
    mode: o.Mode = "sequential",
    n: N = 10_000,
    n0: N0 = 100,
    alpha: Alpha = "0.001",
    radii: Annotated[str | None, typer.Option("--radii", help="Where to report, such as 0,0.25,0.5.")] = None,
    skip: Annotated[int | None, typer.Option("--skip", help="Every SKIP-th test image.", show_default="spread")] = None,
    max_images: Annotated[int, typer.Option("--max-images", help="At most so many test images.")] = 500,
    noise: o.Noise = "gaussian",
    norm: o.CertifiedNorm = None,
    simultaneous: Annotated[
        bool, typer.Option("--simultaneous", help="α for all images together, not for each.")
    ] = False,
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the log here too.")] = None,
    last: o.Last = False,
    data: o.TestData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compiled: o.Compiled = "auto",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Noisy images a forward pass.", show_default="by device")
    ] = None,
    fresh: o.Fresh = False,
    corruption: o.Corrupted = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Certificates by randomized smoothing: radii within which no perturbation changes the smoothed class.

    σ defaults to the one the generation was trained for. An interrupted run continues where it stopped.

    Modes: sequential decides the radii of the table with as few copies as that takes, looks does so by five looks;
    fixed is the papers' procedure and randomised its exact form; adaptive comes within 1 % of the radius of fixed.

    Examples: `robustkt certify --sigma 0.25`, `robustkt certify gen1 --n 100000 --mode fixed`,
    `robustkt certify gen1 --noise quantised`, `torchrun --nproc-per-node 4 -m -- robustkt certify gen1 --n 100000`
    """
    from robustkt import api, corruptions
    from robustkt.api import smoothing
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if corruption is not None:
        corruptions.one(corruption)
    share = float(fraction(alpha, "--alpha"))
    grid = [fraction(r, "a radius") for r in radii.split(",")] if radii is not None else None
    early.machine(device, precision)
    smoothing.check_options(mode, n, n0, share, skip, max_images, batch_size, grid, compiled)
    where = o.registry_of(registry)
    found = where.mode(generation)
    smoothing.noise_for(found, noise, sigma, norm)
    if generation == "@latest":
        output.note(f"@latest is {found.name}")
    if found.sigma is None:
        output.note(f"{found.name} was not trained under noise: expect abstentions and small radii")
    result = api.certify(
        found.name,
        sigma=sigma,
        mode=mode,
        n=n,
        n0=n0,
        alpha=share,
        radii=grid,
        skip=skip,
        max_images=max_images,
        noise=noise,
        norm=norm,
        simultaneous=simultaneous,
        seed=seed,
        out=out,
        last=last,
        data=data,
        data_dir=data_dir,
        registry=where,
        device=device,
        precision=precision,
        compile=compiled,
        batch_size=batch_size,
        fresh=fresh,
        corruption=corruption,
        progress=output,
    )
    output.answer(result, tables.certified)


def evaluate(
    generation: o.Gen = "@latest",
    attack: o.Attacks = None,
    norm: o.Norm = None,
    eps: o.Eps = None,
    max_images: Annotated[int, typer.Option("--max-images", help="At most so many test images.")] = 1_000,
    seed: o.Seed = 0,
    last: o.Last = False,
    data: o.TestData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    fresh: o.Fresh = False,
    base: Annotated[bool, typer.Option("--base", help="Score a smoothed generation's base network.")] = False,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Do adversarial examples of it fool its teacher too?")
    ] = False,
    corruption: o.Corrupted = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Accuracy under attack, with warnings when an attack was fooled rather than resisted.

    Norm and eps default to the generation's own, else linf 8/255. Settings of an attack follow its name. An
    interrupted run continues where it stopped.

    --corruption NAME:SEVERITY has the images corrupted first; NAME, several with commas, or all make a table.

    Examples: `robustkt evaluate gen3 --attack fgsm,pgd-sat,cw,autoattack --eps 8/255`,
    `robustkt evaluate gen3 --attack pgd:steps=100:restarts=5`, `robustkt evaluate gen3 --corruption all`
    """
    from robustkt import api, corruptions

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    shifts = corruptions.parse(corruption) if corruption is not None else []
    attack = attack or ("clean" if len(shifts) > 1 else "clean,fgsm,pgd-sat,pgd-trades")
    attacks = [name.strip() for name in attack.split(",") if name.strip()]
    found = where.mode(generation)
    early.machine(device)
    early.attacks(attacks, found, norm, eps)
    early.shifted(corruption, transfer)
    if generation == "@latest":
        output.note(f"@latest is {found.name}")
    given: dict[str, Any] = {
        "attacks": attacks, "norm": norm, "eps": eps, "max_images": max_images, "seed": seed, "last": last,
        "data": data, "data_dir": data_dir, "registry": where, "device": device, "fresh": fresh, "base": base,
        "progress": output,
    }  # fmt: skip
    if corruption is not None and len(shifts) > 1:
        output.answer(api.evaluate_corruptions(generation, corruption=corruption, **given), tables.shifted)
    else:
        output.answer(api.evaluate(generation, corruption=corruption, transfer=transfer, **given), tables.evaluated)


def bench_train(
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", help="Objectives, separated by commas, and autoattack.", show_default="the usual ones"
        ),
    ] = None,
    arch: Annotated[str, typer.Option("--arch", "-a", help="Network of the training step.")] = "resnet20",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images a training step.")] = 128,
    image_size: Annotated[int, typer.Option("--image-size", help="Side of the images.")] = 32,
    images: Annotated[int, typer.Option("--images", help="Images that AutoAttack is run on.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds; each takes every step once.")] = 5,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compiled: o.Compiled = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Training steps against plain training, their arithmetic minimum, and loops as the papers' scripts write them.

    Examples: `robustkt bench train --arch resnet18`, `robustkt bench train -m rslad,autoattack`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device, precision, compiled)
    o.check_names(None, arch, None)
    result = api.bench_train(
        methods=[name.strip() for name in method.split(",")] if method is not None else None,
        arch=arch,
        batch_size=batch_size,
        image_size=image_size,
        images=images,
        repeats=repeats,
        device=device,
        precision=precision,
        compile=compiled,
        progress=output,
    )
    output.answer(result, tables.bench_trained)


def bench_certify(
    generation: Annotated[str | None, typer.Argument(metavar="[GEN]", help="Times a whole table of it too.")] = None,
    arch: Annotated[str, typer.Option("--arch", "-a", help="Network when no GEN is named.")] = "resnet20",
    samples: Annotated[int, typer.Option("--samples", help="Noisy copies each side votes on.")] = 5_120,
    images: Annotated[int, typer.Option("--images", help="Test images of the table.")] = 50,
    n: N = 100_000,
    alpha: Alpha = "0.001",
    repeats: Annotated[int, typer.Option("--repeats", help="Pairs.")] = 3,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Certification against the reference's loop and against the network alone; with GEN a whole table of radii.

    Examples: `robustkt bench certify`, `robustkt bench certify gen1 --images 100`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device, precision)
    o.check_names(None, arch, None)
    result = api.bench_certify(
        generation,
        arch=arch,
        samples=samples,
        images=images,
        n=n,
        alpha=float(fraction(alpha, "--alpha")),
        repeats=repeats,
        precision=precision,
        data_dir=data_dir,
        registry=o.registry_of(registry) if generation else None,
        device=device,
        progress=output,
    )
    output.answer(result, tables.benched)


def predict(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[GEN] IMAGE…", help="Image files, after the generation if not @latest; - reads names from stdin."
        ),
    ],
    sigma: o.Sigma = None,
    mode: o.Mode = "sequential",
    n: N = 10_000,
    n0: N0 = 100,
    alpha: Alpha = "0.001",
    noise: o.Noise = "gaussian",
    norm: o.CertifiedNorm = None,
    seed: o.Seed = 0,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """The smoothed class of images with its certified radius, or an abstention.

    Examples: `robustkt predict gen2 photo.png`, `ls photos/*.png | robustkt predict gen2 - --json`
    """
    from robustkt import api
    from robustkt.api import smoothing
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    first, *rest = arguments
    picture = first == "-" or Path(first).is_file() or Path(first).suffix.lower() in PICTURES
    named = bool(rest) and not picture
    if not rest and not picture:
        raise UsageError(
            f"{first} is no picture, and none is named after it", f"Type `robustkt predict {first} IMAGE`."
        )
    share = float(fraction(alpha, "--alpha"))
    early.machine(device)
    smoothing.check_options(mode, n, n0, share)
    found = o.registry_of(registry).mode(first if named else "@latest")
    smoothing.noise_for(found, noise, sigma, norm)
    if not named:
        output.note(f"@latest is {found.name}")
    result = api.predict(
        first if named else "@latest",
        images=_files(rest if named else arguments),
        sigma=sigma,
        mode=mode,
        n=n,
        n0=n0,
        alpha=share,
        noise=noise,
        norm=norm,
        seed=seed,
        registry=o.registry_of(registry),
        device=device,
        progress=output,
    )
    output.answer(result, tables.predicted)


def _files(names: list[str]) -> list[Path]:
    """The names, `-` replaced by the lines of stdin.

    Raises:
        UsageError: stdin has none.
    """
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files need be no UTF-8
    listed = [line.strip() for line in sys.stdin if line.strip()] if "-" in names else []
    files = [Path(name) for given in names for name in (listed if given == "-" else [given])]
    if not files:
        raise UsageError("no image is named on stdin", "Give one file name a line.")
    return files
