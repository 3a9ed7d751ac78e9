"""The model card: written from the records of a generation, never typed. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from robustkt.generation import Generation, mixed_of
from robustkt.metadata import card_metadata
from robustkt.mixture import CLEAN, ROBUST, SOUP
from robustkt.numbers import counted, exact, number
from robustkt.registry import Result

SHARED = "They are what all modes share, and no network without one of `adapters/`; `RobustModel` puts both together."
MARKUP = re.compile(r"[\\`*\[\]<>|~$]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])")  # what Markdown reads as more than text
OWN_DATA = {"folder": "an image folder of its author's own", "npz": "image arrays of their author's own"}
FEW = 20  # classes that are named
OF_MODE = ("weights", "domain")  # the settings in which evaluations of two modes differ


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
        results: its certificates and evaluations, of the weights that are published, in any of its modes.
        picture: file name of the certified-accuracy curves, if there are any.
        repo: the repository that it is published in, if one is known.
        homes: the repositories of ancestors on the Hub, by their ids.
        license: what it is published under, if anything is known.
    """
    sections = [
        f"# {generation.name}",
        _what(generation, ancestors),
        _modes(generation, [r for r in results if r.kind == "evaluation"]),
        _lineage(generation, ancestors, homes or {}),
        _certificates([r for r in results if r.kind == "certificate"], picture),
        _evaluations([r for r in results if r.kind == "evaluation"]),
        _training(generation, record),
        _terms(generation, license),
        _use(generation, repo),
        _check(generation, repo),
    ]
    default = [r for r in results if _mode(r) in (None, generation.mode)]
    metadata = card_metadata(generation, default, homes=homes or {}, license=license)
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _text(value: Any) -> str:
    """Text of anybody's making as Markdown shows it letter by letter."""
    return MARKUP.sub(r"\\\g<0>", str(value))


def _code(value: Any) -> str:
    """The same in a code span, also within a table."""
    return f"`{str(value).replace('`', chr(39)).replace('|', '/')}`"


def _what(generation: Generation, ancestors: Sequence[Generation]) -> str:
    recipe = generation.recipe
    size = "×".join(str(n) for n in recipe.data.shape)
    known = OWN_DATA.get(recipe.data.name)
    images = (
        f"{known or f'**{_text(recipe.data.name)}**'} ({len(recipe.data.classes)} classes, images {size} in [0, 1])"
    )
    if recipe.method == SOUP:
        parts = " + ".join(f"{exact(share)} · **{one.name}**" for one, share in _ingredients(generation, ancestors))
        lines = [f"An image classifier for {images}, **{_text(recipe.arch)}**, mixed by robustkt: {parts}."]
    elif recipe.training is None:
        source = recipe.settings.get("source") or "a file"
        whose = (
            f"whose weights were imported from {_code(source)} by robustkt; how they were trained is not known here."
        )
        lines = [f"An image classifier for {images}, **{_text(recipe.arch)}**, {whose}"]
    else:
        made = f"trained by **{_text(recipe.method)}** on {images}; made with robustkt."
        lines = [f"An image classifier, **{_text(recipe.arch)}**, {made}"]
    if recipe.sigma is not None:
        lines.append(
            "The certificates below hold for the *smoothed* classifier: the majority vote of this network under "
            f"Gaussian noise of standard deviation σ = {exact(recipe.sigma)}. "
            "The network alone, without noise, has none."
        )
    if recipe.threat is not None:
        norm, eps = recipe.threat[0], exact(recipe.threat[1])
        whose = "What it is mixed of" if recipe.method == SOUP else "It"
        lines.append(
            f"{whose} was trained against {norm} perturbations up to eps = {eps}. Accuracy under attack is measured, "
            "not proven: a stronger attack may lower it."
        )
    if recipe.arch_source is not None:
        lines.append(
            f"**The architecture is code of the author's own** ({_code(recipe.arch)}), published here as "
            "`architecture.py.txt`; read it before you run it."
        )
    return "\n\n".join(lines)


def _ingredients(generation: Generation, ancestors: Sequence[Generation]) -> list[tuple[Generation, Fraction]]:
    return mixed_of(generation, {g.id: g for g in ancestors})


def _mode(result: Result) -> str | None:
    """The mode that was measured."""
    domain = result.content["settings"].get("domain")
    return None if domain is None else str(domain)


def _modes(generation: Generation, evaluations: Sequence[Result]) -> str:
    """Which modes there are, and what the others lose under attack: from pairs that were measured alike."""
    if not generation.adapters:
        return ""
    rows = []
    for one in generation.bound():
        level = generation.in_mode(one.domain).sigma
        sigma = f", for noise of σ = {exact(level)}" if level is not None else ""
        rows.append(f"- `{one.domain}`{', **the default**' if one.domain == generation.mode else ''}{sigma}")
    mixtures = ", and mixtures of them, such as `beta=0.4`" if set(generation.adapters) == {CLEAN, ROBUST} else ""
    lines = [
        f"One network with {counted(len(rows), 'adapter')}, each of which gives it a mode{mixtures}:",
        "\n".join(rows),
    ]
    others = sorted({mode for r in evaluations if (mode := _mode(r)) is not None and mode != generation.mode})
    told = [lost for mode in others if (lost := _lost(generation, mode, evaluations))]
    unmeasured = [d for d in sorted(generation.adapters) if d != generation.mode and d not in others]
    if unmeasured:
        told.append(f"Accuracy under attack has not been measured in {_listed(unmeasured)}.")
    return "\n\n".join(["## Modes", *lines, *told])


def _lost(generation: Generation, mode: str, evaluations: Sequence[Result]) -> str:
    """A sentence on a mode beside the default one, from the pair of evaluations with the most images."""
    pairs = [
        (ours, theirs)
        for ours in evaluations
        for theirs in evaluations
        if (_mode(ours), _mode(theirs)) == (mode, generation.mode) and _same_attack(ours, theirs)
    ]
    if not pairs:
        return ""
    ours, theirs = max(pairs, key=lambda pair: (pair[0].content["settings"]["images"], pair[0].key, pair[1].key))
    settings = ours.content["settings"]
    now, then = (r.content["figures"]["attacks"] for r in (ours, theirs))
    attack = min((a for a in now if a != "clean"), key=lambda a: (now[a]["accuracy"], a))
    clean = ""
    if "clean" in now and "clean" in then:
        clean = f"; without an attack {now['clean']['accuracy']:.1%} against {then['clean']['accuracy']:.1%}"
    return (
        f"{_claimed(ours) or _claimed(theirs)}Under attack ({_code(attack)}, {settings['norm']} "
        f"eps = {settings['eps']}, {settings['images']} test images) the mode `{mode}` is right on "
        f"{now[attack]['accuracy']:.1%} where `{generation.mode}` is on {then[attack]['accuracy']:.1%}{clean}."
    )


def _same_attack(ours: Result, theirs: Result) -> bool:
    """Whether two modes were attacked alike, by something."""
    first, second = ({k: v for k, v in r.content["settings"].items() if k not in OF_MODE} for r in (ours, theirs))
    return first == second and bool(set(ours.content["figures"]["attacks"]) - {"clean"})


def _listed(modes: Sequence[str]) -> str:
    return ", ".join(f"`{mode}`" for mode in modes)


def _in_mode(result: Result) -> str:
    """How a table begins that is about one mode."""
    mode = _mode(result)
    return f"Mode `{mode}`. " if mode is not None else ""


def _lineage(generation: Generation, ancestors: Sequence[Generation], homes: Mapping[str, str]) -> str:
    chain = [generation, *ancestors]
    rows = [
        f"| {_linked(g, homes)} | {_text(g.recipe.method)} | {_text(g.recipe.arch)} | {_text(g.recipe.data.name)} "
        f"| `{g.id[7:19]}` |"
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
                    f"{_claimed(result)}{_in_mode(result)}σ = {settings['sigma']}, {settings['mode']} procedure "
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
            f"| {_text(name)} | {a['accuracy']:.1%} | {a['interval'][0]:.1%} – {a['interval'][1]:.1%} |"
            for name, a in figures["attacks"].items()
        ]
        warned = [f"> Warning: {_text(warning)}." for warning in figures["warnings"]]
        smoothed = ", ".join(_text(name) for name, a in figures["attacks"].items() if a.get("smoothed"))
        but = f"; {smoothed}: the smoothed classifier" if smoothed else ""
        parts.append(
            "\n".join(
                [
                    f"{_claimed(result)}{_in_mode(result)}The network without noise, {settings['norm']} "
                    f"eps = {settings['eps']}, {settings['images']} test images{but}:",
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
    settings = ", ".join(f"{_text(key)} {_text(value)}" for key, value in sorted(recipe.settings.items()))
    passes = ", ".join(f"{_text(name.replace('_', ' '))} {count:,}" for name, count in sorted(cost.items()) if count)
    if recipe.method == SOUP:
        return "\n\n".join(["## Training", f"Mixed from its parents, not trained: {settings}."])
    if recipe.training is None:
        return "\n\n".join(["## Training", f"Imported, not trained here: {settings}."])
    lines = [
        "## Training",
        f"{counted(recipe.training.epochs, 'epoch')}, seed {recipe.seed}, {recipe.precision}; "
        f"{settings or 'no settings of its own'}.",
    ]
    if selected:
        lines.append(
            f"Epoch {selected['epoch'] + 1} was selected by {_text(selected['metric'])} on {recipe.data.held_out} "
            f"held-out training images ({selected['score']:.1%}); test images were used for reporting only."
        )
    if record.get("seconds"):
        lines.append(
            f"It took {record['seconds']:.1f} s on {_text(record.get('device') or 'a device')}; "
            f"images through networks: {passes}."
        )
    lines.append(f"Data fingerprint: `{recipe.data.fingerprint}`.")
    return "\n\n".join(lines)


def _terms(generation: Generation, license: str | None) -> str:
    """The licence, and what the figures do not say."""
    terms = (
        f"Licence: {_code(license)}."
        if license
        else "No licence is recorded: ask whoever published this before you use it."
    )
    data = generation.recipe.data.name
    where = f"; the data's licence and limits are those of {_text(data)}"
    if data in OWN_DATA:
        where = ", not the data"
    return "\n\n".join(
        [
            "## Terms and limits",
            f"{terms} It covers these files{where}.",
            "Figures are of the test images of that data set. They say nothing about other data, other norms or larger "
            "perturbations, and a certificate does not say that the class is right.",
        ]
    )


def _use(generation: Generation, repo: str | None) -> str:
    own = generation.recipe.arch_source is not None
    name = generation.recipe.arch.rpartition(":")[2]
    name = name if name.replace(".", "").isidentifier() else "Network"  # the lines below are there to be run
    extra = f', arch="theirs.py:{name}"' if own else ""
    source = repo or "."
    note = ["# architecture.py.txt is code: read it, save it as theirs.py, and name its network"] if own else []
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
            *_classes(generation),
            *(["", SHARED] if generation.adapters else []),
            "",
            "```python",
            "from robustkt import RobustModel",
            "",
            *note,
            f"# runs {'only the file that you name' if own else 'no code from here'}; "
            "images (B, C, H, W) -> logits (B, K)",
            f'model = RobustModel.from_pretrained("{source}"{extra})',
            *(smoothed if generation.sigma is not None else []),
            *(_use_mode(generation, source, extra) if generation.adapters else []),
            "```",
            "",
            f"`manifest.json` is the whole recipe; its SHA-256 is the id `{generation.id}`.",
        ]
    )


def _classes(generation: Generation) -> list[str]:
    """What the logits are of, where that can be said in a line."""
    names = generation.recipe.data.classes
    if len(names) > FEW:
        return ["Logits and labels are numbered as in `model.classes`."]
    return [
        f"Logits and labels are numbered as in `model.classes`, from 0: {', '.join(_text(name) for name in names)}."
    ]


def _use_mode(generation: Generation, source: str, extra: str) -> list[str]:
    """Lines for a reader who wants another mode than the default one."""
    other = next((d for d in sorted(generation.adapters) if d != generation.mode), str(generation.mode))
    kind = "RobustModel" if generation.in_mode(other).sigma is None else "SmoothedClassifier"
    more = (
        ['# or domain="beta=0.4": 0.4 of robust and 0.6 of clean']
        if set(generation.adapters) == {CLEAN, ROBUST}
        else []
    )
    return [
        "",
        f"from robustkt import {kind}",
        "",
        f"# another mode than {generation.mode}, the default",
        f'other = {kind}.from_pretrained("{source}"{extra}, domain="{other}")',
        *more,
    ]


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
