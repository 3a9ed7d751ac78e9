"""The front matter of a model card: what the Hugging Face Hub reads and shows beside it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustkt.generation import Generation
from robustkt.mixture import SOUP
from robustkt.registry import Result

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "image-classification"
HUB_DATA = {  # names that have one canonical home there
    "mnist": "ylecun/mnist", "fashion-mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn", "imagenette": "frgfm/imagenette",
}  # fmt: skip


def card_metadata(
    generation: Generation, results: Sequence[Result], *, homes: Mapping[str, str], license: str | None
) -> str:
    """YAML for the card of `generation`; figures that are only claimed are left out of its results."""
    from huggingface_hub import ModelCardData

    recipe = generation.recipe
    tags = ["robustkt", "adversarial-robustness", recipe.method]
    tags += ["randomized-smoothing", "certified-robustness"] if recipe.sigma else []
    tags += ["distillation"] if "teacher" in generation.parents else []
    tags += ["merge", "model-soup"] if recipe.method == SOUP else []
    bases = list(dict.fromkeys(homes[i] for _, i in sorted(generation.parents.items()) if i in homes))
    figures = [figure for result in results if not result.claimed for figure in _figures(generation, result)]
    data = HUB_DATA.get(recipe.data.name)
    # Of what the Hub knows "finetune" is said of weights that were trained on, and is the nearest for a teacher.
    relation = "merge" if recipe.method == SOUP else "finetune"
    more: dict[str, Any] = {"base_model_relation": relation} if bases else {}
    card = ModelCardData(
        library_name="robustkt",
        pipeline_tag=TASK,
        tags=tags,
        datasets=[data] if data else None,
        base_model=bases or None,
        license=license,
        model_name=generation.name if figures else None,
        eval_results=figures or None,
        **more,
    )
    return card.to_yaml()


def _figures(generation: Generation, result: Result) -> Iterator[EvalResult]:
    """The entries of the model index that one measurement gives."""
    from huggingface_hub import EvalResult

    name = generation.recipe.data.name
    settings, figures = result.content["settings"], result.content["figures"]
    shared: dict[str, Any] = {
        "task_type": TASK,
        "dataset_type": HUB_DATA.get(name, name),
        "dataset_name": f"{name}, {figures['images'] if 'images' in figures else settings['images']} test images",
        "dataset_split": "test",
    }
    if result.kind == "certificate":
        told = {key: settings[key] for key in ("sigma", "norm", "noise", "mode", "n", "alpha")}
        for radius, value in sorted(figures["certified_accuracy"].items(), key=lambda item: float(item[0])):
            title = f"Certified accuracy @ r={radius} ({settings['norm']}, σ={settings['sigma']})"
            yield EvalResult(
                **shared, metric_type="certified_accuracy", metric_name=title, metric_value=value, metric_args=told
            )
    elif result.kind == "evaluation":
        for attack, found in figures["attacks"].items():
            told = {"attack": attack, "norm": found["norm"], "eps": found["eps"]}
            clean = attack == "clean"
            title = "Accuracy" if clean else f"Robust accuracy, {attack}, {found['norm']} eps {found['eps']}"
            yield EvalResult(
                **shared,
                metric_type="accuracy" if clean else "robust_accuracy",
                metric_name=title,
                metric_value=found["accuracy"],
                metric_args=None if clean else told,
            )
