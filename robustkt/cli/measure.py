"""certify, evaluate, predict: measuring generations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustkt.cli import early, tables
from robustkt.cli import options as o
from robustkt.cli.output import Output, guarded
from robustkt.errors import UsageError

PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")  # endings of no generation


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (certify, evaluate, predict, bench):
        app.command()(guarded(command))


N = Annotated[int, typer.Option("--n", help="Noisy copies an image that bound the probability.")]
N0 = Annotated[int, typer.Option("--n0", help="Further copies that select the class.")]
Alpha = Annotated[str, typer.Option("--alpha", help="Largest probability that a certificate is wrong.")]


def certify(
    generation: o.Gen = "@latest",
    sigma: Annotated[str, typer.Option("--sigma", help="Standard deviation of the noise.", show_default=False)] = "",
    mode: o.Mode = "fixed",
    n: N = 10_000,
    n0: N0 = 100,
    alpha: Alpha = "0.001",
    radii: Annotated[str | None, typer.Option("--radii", help="Where to report, such as 0,0.25,0.5.")] = None,
    skip: Annotated[int | None, typer.Option("--skip", help="Every SKIP-th test image.", show_default="spread")] = None,
    max_images: Annotated[int, typer.Option("--max-images", help="At most so many test images.")] = 500,
    noise: Annotated[str, typer.Option("--noise", help="gaussian.")] = "gaussian",
    norm: Annotated[str, typer.Option("--norm", help="l2.")] = "l2",
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the log here too.")] = None,
    last: o.Last = False,
    data: o.OtherData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Noisy images a forward pass.")] = 512,
    fresh: o.Fresh = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Certificates by randomized smoothing: radii within which no perturbation changes the smoothed class.

    An interrupted run continues where it stopped. σ defaults to the one the generation was trained for. The modes
    sequential and looks decide the table's radii with far fewer copies, adaptive gives a radius within 1 % of fixed.

    Examples: `robustkt certify --sigma 0.25`, `robustkt certify gen1 --sigma 0.25 --n 100000 --mode sequential`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    share = fraction(alpha, "--alpha")
    counts = {"--n": n, "--n0": n0, "--max-images": max_images, "--batch-size": batch_size, "--skip": skip}
    early.machine(device, precision)
    early.sampling(sigma or None, share, counts, mode)
    where = o.registry_of(registry)
    found = where.get(generation)
    if generation == "@latest":
        output.note(f"@latest is {found.name}")
    chosen = sigma or found.recipe.settings.get("sigma")
    if not chosen:
        raise UsageError(f"{found.name} was not trained under noise, so it has no σ of its own", "Add --sigma 0.25.")
    if found.recipe.sigma is None:
        output.note(f"{found.name} was not trained under noise: expect abstentions and small radii")
    result = api.certify(
        found.name,
        sigma=str(chosen),
        mode=mode,
        n=n,
        n0=n0,
        alpha=float(share),
        radii=[fraction(r, "a radius") for r in radii.split(",")] if radii else None,
        skip=skip,
        max_images=max_images,
        noise=noise,
        norm=norm,
        seed=seed,
        out=out,
        last=last,
        data=data,
        data_dir=data_dir,
        registry=where,
        device=device,
        precision=precision,
        batch_size=batch_size,
        fresh=fresh,
        progress=output,
    )
    output.answer(result, tables.certified)


def evaluate(
    generation: o.Gen = "@latest",
    attack: o.Attacks = "clean,fgsm,pgd-sat,pgd-trades",
    norm: o.Norm = None,
    eps: o.Eps = None,
    max_images: Annotated[int, typer.Option("--max-images", help="At most so many test images.")] = 1_000,
    seed: o.Seed = 0,
    last: o.Last = False,
    data: o.OtherData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    fresh: o.Fresh = False,
    base: Annotated[bool, typer.Option("--base", help="Score a smoothed generation's base network.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Accuracy under attack, with warnings when an attack was fooled rather than resisted.

    Norm and eps default to the generation's own, else linf 8/255. Settings of an attack follow its name. An
    interrupted run continues where it stopped.

    Examples: `robustkt evaluate gen3 --attack fgsm,pgd-sat,cw,autoattack --eps 8/255`,
    `robustkt evaluate gen3 --attack pgd:steps=100:restarts=5`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    attacks = [name.strip() for name in attack.split(",") if name.strip()]
    found = where.get(generation)
    early.machine(device)
    early.attacks(attacks, found, norm, eps)
    if generation == "@latest":
        output.note(f"@latest is {found.name}")
    result = api.evaluate(
        generation,
        attacks=attacks,
        norm=norm,
        eps=eps,
        max_images=max_images,
        seed=seed,
        last=last,
        data=data,
        data_dir=data_dir,
        registry=where,
        device=device,
        fresh=fresh,
        base=base,
        progress=output,
    )
    output.answer(result, tables.evaluated)


def bench(
    subject: Annotated[str, typer.Argument(metavar="train", help="What to time.")],
    arch: Annotated[str, typer.Option("--arch", "-a", help="Network of the training step.")] = "resnet20",
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images a training step.")] = 128,
    images: Annotated[int, typer.Option("--images", help="Images that AutoAttack is run on.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", help="Pairs of training steps.")] = 5,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Speed on this machine against plain loops as the papers' scripts write them, in one run.

    Example: `robustkt bench train --arch resnet18`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.subject(subject)
    early.machine(device)
    o.check_names(None, arch, None)
    result = api.bench(
        subject, arch=arch, batch_size=batch_size, images=images, repeats=repeats, device=device, progress=output
    )
    output.answer(result, tables.benched)


def predict(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[GEN] IMAGE…", help="Image files, after the generation if not @latest.")
    ],
    sigma: o.Sigma = None,
    n: N = 10_000,
    n0: N0 = 100,
    alpha: Alpha = "0.001",
    seed: o.Seed = 0,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """The smoothed class of images with its certified radius, or an abstention.

    Example: `robustkt predict gen2 photo.png`
    """
    from robustkt import api
    from robustkt.numbers import fraction

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    first, *rest = arguments
    named = bool(rest) and not Path(first).is_file() and Path(first).suffix.lower() not in PICTURES
    if not rest and not Path(first).exists() and Path(first).suffix.lower() not in PICTURES:
        raise UsageError(
            f"{first} is no picture, and none is named after it", f"Type `robustkt predict {first} IMAGE`."
        )
    share = fraction(alpha, "--alpha")
    early.machine(device)
    early.sampling(sigma, share, {"--n": n, "--n0": n0})
    found = o.registry_of(registry).get(first if named else "@latest")
    if not named:
        output.note(f"@latest is {found.name}")
    result = api.predict(
        first if named else "@latest",
        images=[Path(name) for name in (rest if named else arguments)],
        sigma=sigma,
        n=n,
        n0=n0,
        alpha=float(share),
        seed=seed,
        registry=o.registry_of(registry),
        device=device,
        progress=output,
    )
    output.answer(result, tables.predicted)
