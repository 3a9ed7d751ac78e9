"""soup make, sweep, pick: mixtures of adapters and of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustkt.cli import early
from robustkt.cli import options as o
from robustkt.cli.fitting import say
from robustkt.cli.output import Output, guarded
from robustkt.cli.tables import Columns, percent

if TYPE_CHECKING:
    from rich.console import Console

Betas = Annotated[str, typer.Option("--beta", help="FIRST:LAST:STEP, or B,…: weights of the robust adapter.")]
Attack = Annotated[
    str,
    typer.Option("--attack", autocompletion=o._attacks, help="Attacks, separated by commas; all count."),
]
Images = Annotated[int, typer.Option("--max-images", help="At most so many images.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    family = typer.Typer(
        name="soup", help="Mix adapters, or the weights of generations.", no_args_is_help=True, rich_markup_mode="rich"
    )
    for name, command in (("make", make), ("sweep", sweep), ("pick", pick)):
        family.command(name)(guarded(command))
    app.add_typer(family)


def make(
    generations: Annotated[list[str], typer.Argument(metavar="GEN…", autocompletion=o._generations, help="Of what.")],
    adapters: Annotated[
        str | None, typer.Option("--adapters", help="Of one GEN: clean=.3,robust=.7, or beta=0.7.")
    ] = None,
    shares: Annotated[
        str | None, typer.Option("--shares", help="Of several: SHARE,… in their order.", show_default="equal ones")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Add a generation only if the held-out robust accuracy rises.")
    ] = False,
    unrelated: Annotated[
        bool, typer.Option("--unrelated", help="Although they were not fine-tuned from a common ancestor.")
    ] = False,
    max_images: Images = 1_000,
    name: o.Name = None,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Make a generation of one generation's adapters, or of the averaged weights of several.

    Examples: `robustkt soup make two --adapters clean=.3,robust=.7`, `robustkt soup make gen3 gen4 gen5 --greedy`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    early.machine(device)
    result = api.soup_make(
        generations, adapters=adapters, shares=shares, greedy=greedy, unrelated=unrelated, max_images=max_images,
        name=name, data=data, data_dir=data_dir, registry=o.registry_of(registry), device=device, progress=output,
    )  # fmt: skip
    output.answer(result, _made)


def sweep(
    generation: o.Gen = "@latest",
    betas: Betas = "0:1:0.1",
    attack: Attack = "pgd-sat",
    eps: o.Eps = None,
    split: Annotated[str, typer.Option("--split", help="held-out, or test to report and not to choose.")] = "held-out",
    max_images: Images = 1_000,
    seed: o.Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Draw the curve there: .png, .svg or .pdf.")] = None,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    fresh: o.Fresh = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Clean accuracy and accuracy under attack of every mixture of the clean and the robust adapter.

    Each mixture is attacked through itself. An interrupted sweep continues where it stopped.

    Example: `robustkt soup sweep two --beta 0:1:0.1 --attack pgd-sat --out curve.png`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    early.machine(device)
    early.attacks(attack.split(","), where.get(generation), None, eps)
    result = api.soup_sweep(
        generation, betas=betas, attacks=attack.split(","), eps=eps, split=split, max_images=max_images, seed=seed,
        out=out, data=data, data_dir=data_dir, registry=where, device=device, fresh=fresh, progress=output,
    )  # fmt: skip
    output.answer(result, _swept)


def pick(
    generation: o.Gen = "@latest",
    min_clean: Annotated[
        float | None, typer.Option("--min-clean", help="The most robust mixture of at least this clean accuracy.")
    ] = None,
    max_robust: Annotated[bool, typer.Option("--max-robust", help="The most robust mixture.")] = False,
    for_shift: Annotated[
        str | None,
        typer.Option(
            "--for-shift", metavar="DATA", help="The best for labelled images: a folder of CLASS/*.png, or a data set."
        ),
    ] = None,
    corruption: Annotated[
        str | None,
        typer.Option("--corruption", autocompletion=o._corruptions, help="The best for held-out images so corrupted."),
    ] = None,
    betas: Betas = "0:1:0.1",
    attack: Attack = "pgd-sat",
    max_images: Images = 1_000,
    seed: o.Seed = 0,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Also make the soup, under this name.")] = None,
    data: o.OwnData = None,
    data_dir: o.DataDir = None,
    registry: o.Where = None,
    device: o.Device = "auto",
    fresh: o.Fresh = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Choose a mixture on held-out or shifted images, and report it on the test set.

    Examples: `robustkt soup pick two --min-clean 0.9 --name served`, `robustkt soup pick two --for-shift foggy/`
    """
    from robustkt import api

    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    where = o.registry_of(registry)
    early.machine(device)
    early.attacks(attack.split(","), where.get(generation), None, None)
    result = api.soup_pick(
        generation, min_clean=min_clean, max_robust=max_robust, for_shift=for_shift, corruption=corruption, betas=betas,
        attacks=attack.split(","), max_images=max_images, seed=seed, name=name, data=data, data_dir=data_dir,
        registry=where, device=device, fresh=fresh, progress=output,
    )  # fmt: skip
    output.answer(result, _picked)


def _made(console: Console, result: Mapping[str, Any]) -> None:
    parts = " + ".join(f"{part['share']} · {part['generation']}" for part in result["ingredients"])
    there = "" if result["created"] else " (was there already)"
    say(console, f"{result['generation']}{there} = {parts}")
    if result["reestimated"]:
        say(console, f"BatchNorm estimated again from {result['reestimated']:,} training images")


def _swept(console: Console, result: Mapping[str, Any]) -> None:
    say(
        console,
        f"{', '.join(result['attacks'])} {result['norm']} {result['eps']}; "
        f"{result['images']:,} {result['split']} images",
        f"{result['generation']}  ",
    )
    _curve(console, result["points"])
    if result["file"]:
        say(console, f"drawn in {result['file']}")


def _curve(console: Console, points: list[Mapping[str, Any]], taken: float | None = None) -> None:
    robust = ("robust", "95 % interval") if "robust_accuracy" in points[0] else ()
    table = Columns("β", "clean", "95 % interval", *robust, left=0)
    for point in points:
        cells = [f"{point['beta']:g}{' ←' * (point['beta'] == taken)}"]
        for kind in ("clean", "robust")[: 1 + bool(robust)]:
            low, high = point[f"{kind}_interval"]
            cells += [percent(point[f"{kind}_accuracy"]), f"{percent(low)} – {percent(high)}"]
        table.add_row(*cells)
    table.show(console)


def _picked(console: Console, result: Mapping[str, Any]) -> None:
    _curve(console, result["points"], result["beta"])
    say(console, f"{result['mode']} has the highest {result['chosen_by']} on {result['chosen_on']}")
    test = result["test"]
    attacks = "  ".join(f"{name} {percent(told['accuracy'])}" for name, told in test["attacks"].items())
    say(console, f"on {test['images']:,} test images of {test['of']}: {attacks}")
    if result["made"]:
        say(console, f"made {result['made']}")
