"""The model card: written from the records of a generation, never typed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustkt.generation import Generation
from robustkt.metadata import card_metadata
from robustkt.numbers import counted, number
from robustkt.registry import Result


def model_card(
    generation: Generation,
    ancestors: Sequence[Generation],
    record: Mapping[str, Any],
    results: Sequence[Result],
    *,
    picture: str | None,
    repo: str | None = None,
    homes: Mapping[str, str] | None = None,
    license: str | None = None,
) -> str:
    """README.md for a published generation, with the metadata that the Hugging Face Hub reads.

    Args:
        generation: what is published.
        ancestors: its parents and theirs, nearest first.
        record: its run record.
        results: its certificates and evaluations, of the weights that are published.
        picture: file name of the certified-accuracy curves, if there are any.
        repo: the repository that it is published in, if one is known.
        homes: the repositories of ancestors on the Hub, by their ids.
        license: what it is published under, if anything is known.
    """
    sections = [
        f"# {generation.name}",
        _what(generation),
        _lineage(generation, ancestors, homes or {}),
        _certificates([r for r in results if r.kind == "certificate"], picture),
        _evaluations([r for r in results if r.kind == "evaluation"]),
        _training(generation, record),
        _terms(generation, license),
        _use(generation, repo),
        _check(generation, repo),
    ]
    metadata = card_metadata(generation, results, homes=homes or {}, license=license)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _what(generation: Generation) -> str:
    recipe = generation.recipe
    size = "×".join(str(n) for n in recipe.data.shape)
    images = f"**{recipe.data.name}** ({len(recipe.data.classes)} classes, images {size} in [0, 1])"
    if recipe.training is None:
        source = recipe.settings.get("source") or "a file"
        whose = f"whose weights were imported from `{source}` by robustkt; how they were trained is not known here."
        lines = [f"An image classifier for {images}, **{recipe.arch}**, {whose}"]
    else:
        made = f"trained by **{recipe.method}** on {images}; made with robustkt."
        lines = [f"An image classifier, **{recipe.arch}**, {made}"]
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


def _lineage(generation: Generation, ancestors: Sequence[Generation], homes: Mapping[str, str]) -> str:
    chain = [generation, *ancestors]
    rows = [
        f"| {_linked(g, homes)} | {g.recipe.method} | {g.recipe.arch} | {g.recipe.data.name} | `{g.id[7:19]}` |"
        for g in chain
    ]
    return "\n".join(
        ["## Lineage", "", "| generation | method | architecture | data | id |", "|---|---|---|---|---|", *rows]
    )


def _linked(generation: Generation, homes: Mapping[str, str]) -> str:
    home = homes.get(generation.id)
    return f"[{generation.name}](https://huggingface.co/{home})" if home else generation.name


def _claimed(result: Result) -> str:
    """A sentence about a measurement that its publisher took over from elsewhere."""
    return f"**Claimed** by {result.claimed}; whoever publishes this has not measured it again. " * bool(result.claimed)


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
                    f"{_claimed(result)}σ = {settings['sigma']}, {settings['mode']} procedure "
                    f"(Cohen et al., 1902.02918), n = {settings['n']:,}, α = {settings['alpha']}, "
                    f"{figures['images']} test images (every {_ordinal(settings['skip'])}), "
                    f"{settings['precision']}; average certified radius {figures['acr']:.3f}, "
                    f"abstained on {figures['abstain_rate']:.1%}. Each certificate is wrong with probability at most "
                    "α; the intervals are 95 % Wilson intervals over images.",
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
                    f"{_claimed(result)}The network without noise, {settings['norm']} eps = {settings['eps']}, "
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


def _terms(generation: Generation, license: str | None) -> str:
    """The licence, and what the figures do not say."""
    terms = (
        f"Licence: `{license}`." if license else "No licence is recorded: ask whoever published this before you use it."
    )
    where = "the data's licence and limits are those of " + generation.recipe.data.name
    return "\n\n".join(
        [
            "## Terms and limits",
            f"{terms} It covers these files; {where}.",
            "Figures are of the test images of that data set. They say nothing about other data, other norms or larger "
            "perturbations, and a certificate does not say that the class is right.",
        ]
    )


def _use(generation: Generation, repo: str | None) -> str:
    own = generation.recipe.arch_source is not None
    name = generation.recipe.arch.rpartition(":")[2]
    extra = f", arch={name}(...)" if own else ""
    source = repo or "."
    note = [f"# {name} is in architecture.py.txt: read it before you run it"] if own else []
    smoothed = [
        "",
        "from robustkt import SmoothedClassifier",
        "",
        f'classifier = SmoothedClassifier.from_pretrained("{source}"{extra})',
        "answer = classifier.predict(x)  # one image (C, H, W) -> answer.label, answer.radius; label None = abstained",
    ]
    return "\n".join(
        [
            "## Use",
            "",
            "`model.safetensors` holds the weights with the normalisation as the first layer: feed images in [0, 1].",
            "",
            "```python",
            "from robustkt import RobustModel",
            "",
            *note,
            "# runs no code from here; images (B, C, H, W) -> logits (B, K)",
            f'model = RobustModel.from_pretrained("{source}"{extra})',
            *(smoothed if generation.recipe.sigma is not None else []),
            "```",
            "",
            f"`manifest.json` is the whole recipe; its SHA-256 is the id `{generation.id}`.",
        ]
    )


def _check(generation: Generation, repo: str | None) -> str:
    name = generation.name
    return "\n".join(
        [
            "## Check",
            "",
            "```",
            f"robustkt pull {repo or 'ORG/NAME'}   # re-derives every hash, then keeps the figures as claims",
            f"robustkt audit {name}   # fresh noise on a sample of its certified images",
            f"robustkt evaluate {name}   # the attacks again",
            "```",
        ]
    )


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return "one" if n == 1 else f"{n}{ending}"
