"""The model card: written from the records of a generation, never typed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustkt.generation import Generation
from robustkt.numbers import counted, number
from robustkt.registry import Result


def model_card(
    generation: Generation,
    ancestors: Sequence[Generation],
    record: Mapping[str, Any],
    results: Sequence[Result],
    *,
    picture: str | None,
) -> str:
    """README.md for a published generation, with the metadata that the Hugging Face Hub reads.

    Args:
        generation: what is published.
        ancestors: its parents and theirs, nearest first.
        record: its run record.
        results: its certificates and evaluations, of the weights that are published.
        picture: file name of the certified-accuracy curves, if there are any.
    """
    sections = [
        f"# {generation.name}",
        _what(generation),
        _lineage(generation, ancestors),
        _certificates([r for r in results if r.kind == "certificate"], picture),
        _evaluations([r for r in results if r.kind == "evaluation"]),
        _training(generation, record),
        _use(generation),
    ]
    return _metadata(generation) + "\n" + "\n\n".join(section for section in sections if section) + "\n"


def _metadata(generation: Generation) -> str:
    from huggingface_hub import ModelCardData

    recipe = generation.recipe
    tags = ["robustkt", "adversarial-robustness", recipe.method]
    tags += ["randomized-smoothing", "certified-robustness"] if recipe.sigma else []
    tags += ["distillation"] if "teacher" in generation.parents else []
    card = ModelCardData(
        library_name="robustkt",
        pipeline_tag="image-classification",
        tags=tags,
        datasets=_hub_datasets(recipe.data.name),
    )
    return f"---\n{card.to_yaml()}\n---\n"


def _hub_datasets(name: str) -> list[str] | None:
    """The data set's name on the Hub, for those that have a canonical one."""
    known = {
        "mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10",
        "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn", "imagenette": "frgfm/imagenette",
    }  # fmt: skip
    return [known[name]] if name in known else None


def _what(generation: Generation) -> str:
    recipe = generation.recipe
    size = "×".join(str(n) for n in recipe.data.shape)
    lines = [
        f"An image classifier, **{recipe.arch}**, trained by **{recipe.method}** on **{recipe.data.name}** "
        f"({len(recipe.data.classes)} classes, images {size} in [0, 1]); made with robustkt."
    ]
    if recipe.sigma is not None:
        lines.append(
            "The certificates below hold for the *smoothed* classifier: the majority vote of this network under "
            f"Gaussian noise of standard deviation σ = {recipe.settings['sigma']}. "
            "The network alone, without noise, has none."
        )
    if recipe.threat is not None:
        norm, eps = recipe.settings["norm"], recipe.settings["eps"]
        lines.append(
            f"It was trained against {norm} perturbations up to eps = {eps}. Accuracy under attack is measured, not "
            "proven: a stronger attack may lower it."
        )
    if recipe.arch_source is not None:
        lines.append(
            f"**The architecture is code of the author's own** (`{recipe.arch}`), published here as "
            "`architecture.py.txt`; read it before you run it."
        )
    return "\n\n".join(lines)


def _lineage(generation: Generation, ancestors: Sequence[Generation]) -> str:
    chain = [generation, *ancestors]
    rows = [
        f"| {g.name} | {g.recipe.method} | {g.recipe.arch} | {g.recipe.data.name} | `{g.id[7:19]}` |" for g in chain
    ]
    return "\n".join(
        ["## Lineage", "", "| generation | method | architecture | data | id |", "|---|---|---|---|---|", *rows]
    )


def _certificates(results: Sequence[Result], picture: str | None) -> str:
    parts = []
    for result in results:
        settings, figures = result.content["settings"], result.content["figures"]
        radii = figures["certified_accuracy"]
        rows = [
            f"| {r} | {value:.1%} | {figures['intervals'][r][0]:.1%} – {figures['intervals'][r][1]:.1%} |"
            for r, value in sorted(radii.items(), key=lambda item: number(item[0]))
        ]
        parts.append(
            "\n".join(
                [
                    f"σ = {settings['sigma']}, {settings['mode']} procedure (Cohen et al., 1902.02918), "
                    f"n = {settings['n']:,}, α = {settings['alpha']}, {figures['images']} test images "
                    f"(every {_ordinal(settings['skip'])}), {settings['precision']}; average certified radius "
                    f"{figures['acr']:.3f}, abstained on {figures['abstain_rate']:.1%}. Each certificate is wrong with "
                    "probability at most α; the intervals are 95 % Wilson intervals over images.",
                    "",
                    "| L2 radius | certified accuracy | interval |",
                    "|---|---|---|",
                    *rows,
                ]
            )
        )
    if not parts:
        return ""
    shown = [f"![certified accuracy against L2 radius]({picture})"] if picture else []
    return "\n\n".join(["## Certificates", *parts, *shown])


def _evaluations(results: Sequence[Result]) -> str:
    parts = []
    for result in results:
        settings, figures = result.content["settings"], result.content["figures"]
        rows = [
            f"| {name} | {a['accuracy']:.1%} | {a['interval'][0]:.1%} – {a['interval'][1]:.1%} |"
            for name, a in figures["attacks"].items()
        ]
        warned = [f"> Warning: {warning}." for warning in figures["warnings"]]
        parts.append(
            "\n".join(
                [
                    f"The network without noise, {settings['norm']} eps = {settings['eps']}, "
                    f"{settings['images']} test images:",
                    "",
                    "| attack | accuracy | 95 % interval |",
                    "|---|---|---|",
                    *rows,
                    *(["", *warned] if warned else []),
                ]
            )
        )
    return "\n\n".join(["## Accuracy under attack", *parts]) if parts else ""


def _training(generation: Generation, record: Mapping[str, Any]) -> str:
    recipe, selected, cost = generation.recipe, record.get("selected") or {}, record.get("cost") or {}
    settings = ", ".join(f"{key} {value}" for key, value in sorted(recipe.settings.items()))
    passes = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(cost.items()) if count)
    if recipe.training is None:
        return "\n\n".join(["## Training", f"Imported, not trained here: {settings}."])
    lines = [
        "## Training",
        f"{counted(recipe.training.epochs, 'epoch')}, seed {recipe.seed}, {recipe.precision}; "
        f"{settings or 'no settings of its own'}.",
    ]
    if selected:
        lines.append(
            f"Epoch {selected['epoch'] + 1} was selected by {selected['metric']} on {recipe.data.held_out} held-out "
            f"training images ({selected['score']:.1%}); test images were used for reporting only."
        )
    if record.get("seconds"):
        lines.append(
            f"It took {record['seconds']:.1f} s on {record.get('device', 'a device')}; "
            f"images through networks: {passes}."
        )
    lines.append(f"Data fingerprint: `{recipe.data.fingerprint}`.")
    return "\n\n".join(lines)


def _use(generation: Generation) -> str:
    own = generation.recipe.arch_source is not None
    name = generation.recipe.arch.rpartition(":")[2]
    call = f'read_folder(Path("."), {name}(...))' if own else 'read_folder(Path("."))'
    return "\n".join(
        [
            "## Use",
            "",
            "`model.safetensors` holds the weights with the normalisation as the first layer: feed images in [0, 1].",
            "",
            "```python",
            "from pathlib import Path",
            "from robustkt.hub import read_folder",
            "",
            *([f"# {name} is in architecture.py.txt: read it before you run it"] if own else []),
            f"model = {call}  # images (B, C, H, W) in [0, 1] -> logits; runs no code from the folder",
            "```",
            "",
            f"`manifest.json` is the whole recipe; its SHA-256 is the id `{generation.id}`.",
        ]
    )


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return "one" if n == 1 else f"{n}{ending}"
