"""Soups: adapters of one generation, or weights of several, mixed into the one network of a new generation."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkt import data as datasets
from robustkt import mixture, soup
from robustkt.adapters import mixed
from robustkt.api.jobs import outcome
from robustkt.api.judging import judge, seen, slice_of
from robustkt.api.loading import check_images, load_network, load_own_data, machine, paths, pick_device
from robustkt.api.modes import count_of, state_of, weight_bytes
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.generation import INGREDIENT, Generation, Recipe, Setting, check_name, mixed_of
from robustkt.numbers import digest, exact, fraction
from robustkt.progress import Progress, Silent
from robustkt.provenance import circumstances
from robustkt.registry import Registry
from robustkt.registry.refs import name_taken

SAME_WEIGHTS = ("init", INGREDIENT)  # roles of parents that a generation shares its first weights with
ALIKE: Mapping[str, Callable[[Generation], object]] = {
    "architecture": lambda one: (one.recipe.arch, one.recipe.arch_source),
    "classes": lambda one: one.recipe.data.classes,
    "normalisation": lambda one: (one.recipe.data.mean, one.recipe.data.std),
}


def soup_make(
    generations: Sequence[str],
    *,
    adapters: str | None = None,
    shares: str | None = None,
    greedy: bool = False,
    unrelated: bool = False,
    max_images: int = 1_000,
    name: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    registry: Registry | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A generation whose weights are a mixture of one generation's adapters, or of several generations' weights.

    Of one generation φ = Σ share·φ_d goes into its base: `clean=.3,robust=.7`. Of several the weights are averaged in
    float64, in the order of their hashes, and BatchNorm is estimated again from training images.

    Args:
        generations: one with adapters, or two and more of one architecture; each may name a mode, as `gen2@clean`.
        adapters: of one generation, `DOMAIN=SHARE,…` or `beta=B`.
        shares: of several generations, `SHARE,…` in their order; equal ones by default.
        greedy: begin with the most robust and add one only if the held-out robust accuracy rises.
        unrelated: mix generations that were not fine-tuned from a common ancestor.
        max_images: held-out images that `greedy` judges by.
        name: what it is called; `genN` by default.
        data: where the data of the first lie now, if not where they did; of one generation none are read.
        data_dir: where named data sets lie.
        registry: the nearest one by default.
        device: auto, cpu, cuda or mps.
        progress: where to report.

    Returns:
        generation, id, method, arch, parents, created, ingredients [{generation, share}], reestimated (images).

    Raises:
        UsageError: shares that do not add up to 1, or generations that cannot be mixed.
        RobustKTError: anything else the user can fix.
    """
    registry, progress = registry or Registry.locate(), progress or Silent()
    target = pick_device(device)
    check_free(registry, name)
    check_images(max_images)
    if len(generations) == 1:
        if greedy or unrelated or shares is not None:
            raise UsageError("--shares, --greedy and --unrelated mix several generations", "Name two or more.")
        found = registry.get(generations[0])
        if adapters is None:
            raise UsageError("what the soup is made of is missing", "Add --adapters clean=.3,robust=.7, say.")
        mode = dataclasses.replace(found, shares=mixture.parse(adapters, found.adapters, found.name))
        settings: dict[str, Setting] = {"adapters": mixture.spelled(mode.shares)}
        parents = {f"soup.{place}": found.id for place, _ in enumerate(mode.shares)}
        state = state_of(registry, mode)
        told = [{"generation": f"{found.name}@{d}", "share": exact(share)} for d, share in mode.shares.items()]
        count = count_of(load_network(registry, mode).parameters())
        return _put(registry, mode, settings, parents, state, name, told, 0, count, target, paths(registry, mode))
    if adapters is not None:
        raise UsageError("--adapters mixes the adapters of one generation", "Name one, or give --shares.")
    given = [registry.mode(one) for one in generations]
    like = given[0]
    if len({(one.sigma, one.recipe.threat, one.recipe.data.fingerprint) for one in given}) > 1:
        progress.note(f"they were made for different noise, threats or data; what {like.name} was made for decides")
    pairs = sorted(zip(given, _shares(shares, len(given)), strict=True), key=lambda pair: pair[0].network())
    given = [one for one, _ in pairs]
    _check_alike(given)
    if not unrelated:
        _check_related(registry, given)
    states = [state_of(registry, one) for one in given]
    pot = _Pot(registry, like, given, states, load_own_data(registry, like, data, data_dir), target)
    return pot.make(pot.greedy(max_images, progress) if greedy else [share for _, share in pairs], greedy, name)


@dataclasses.dataclass(frozen=True)
class _Pot:
    """Generations whose weights are to be averaged, in the order of their hashes."""

    registry: Registry
    like: Generation  # the first that was named: what it was made for, the soup is judged and measured by
    given: Sequence[Generation]
    states: Sequence[Mapping[str, Tensor]]
    dataset: datasets.Dataset
    device: torch.device

    def cooked(self, shares: Sequence[Fraction]) -> tuple[nn.Module, int]:
        """The averaged network, and how many images BatchNorm was estimated again from; one alone stays as it is."""
        return _averaged(self.registry, self.like, self.states, shares, self.dataset, self.device)

    def greedy(self, max_images: int, progress: Progress) -> list[Fraction]:
        """Equal shares of the ingredients that raise the held-out accuracy, taken in the order of their own."""
        count = len(self.given)
        like = self.like
        split = slice_of(self.dataset.held_out, max_images)
        metric, score = judge(like.sigma, like.recipe.threat, split, self.device)

        def equal(picked: Sequence[int]) -> list[Fraction]:
            return [Fraction(int(place in picked), len(picked)) for place in range(count)]

        alone = [score(self.cooked(equal([place]))[0]) for place in range(count)]
        start, *rest = sorted(range(count), key=lambda place: (-alone[place], place))
        kept, best = [start], alone[start]
        progress.note(f"{self.given[start].name} alone: {metric} {best:.1%} on held-out images")
        for place in rest:
            found = score(self.cooked(equal([*kept, place]))[0])
            better = found > best
            progress.note(f"with {self.given[place].name}: {found:.1%}, {'kept' if better else 'left out'}")
            if better:
                kept, best = [*kept, place], found
        return equal(kept)

    def make(self, shares: Sequence[Fraction], greedy: bool, name: str | None) -> dict[str, Any]:
        """The soup with these shares, stored."""
        network, used = self.cooked(shares)
        kept = [(one, share) for one, share in zip(self.given, shares, strict=True) if share]
        settings: dict[str, Setting] = {
            "shares": ",".join(exact(share) for _, share in kept), "greedy": greedy, "reestimated": used,
            **{f"mode.{place}": mixture.spelled(one.meant) for place, (one, _) in enumerate(kept) if one.meant},
        }  # fmt: skip
        parents = {f"soup.{place}": one.id for place, (one, _) in enumerate(kept)}
        told = [{"generation": one.name, "share": exact(share)} for one, share in kept]
        state = {key: value.cpu() for key, value in network.state_dict().items()}
        count = count_of(network.parameters())
        where = self.dataset.paths
        return _put(self.registry, self.like, settings, parents, state, name, told, used, count, self.device, where)


def _averaged(
    registry: Registry,
    like: Generation,
    states: Sequence[Mapping[str, Tensor]],
    shares: Sequence[Fraction],
    dataset: datasets.Dataset,
    device: torch.device,
) -> tuple[nn.Module, int]:
    """The network of `like` with averaged weights, and how many images its BatchNorm was estimated again from."""
    named = {f"{place:04}": state for place, state in enumerate(states)}
    state = mixed(named, {f"{place:04}": share for place, share in enumerate(shares)})
    network = load_network(registry, like)
    network.load_state_dict(state, strict=True)
    network = network.to(device)
    if sum(map(bool, shares)) == 1:
        return network, 0
    views = seen(like.sigma, like.recipe.threat)
    return network, soup.reestimate(network, dataset.train, views=views, seed=0, device=device)


def mixed_again(
    registry: Registry,
    found: Generation,
    data: str | None,
    data_dir: Path | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """The weights of a soup, made again from its parents as its manifest says; nothing is stored.

    Args:
        registry: where it and its parents are.
        found: the soup.
        data: where the data lie now, if not where they did: BatchNorm is estimated again from them.
        data_dir: where named data sets lie.
        device: as it was made on.

    Raises:
        IntegrityError: its manifest does not say what it is mixed of, or a parent is damaged.
        RobustKTError: the data have changed.
    """
    parts = mixed_of(found, {identity: registry.by_id(identity) for identity in found.parents.values()})
    if "adapters" in found.recipe.settings:
        shares = {domain: share for one, share in parts for domain in one.meant}
        return state_of(registry, dataclasses.replace(parts[0][0], shares=shares))
    states = [state_of(registry, one) for one, _ in parts]
    dataset = load_own_data(registry, found, data, data_dir)
    network, _ = _averaged(registry, found, states, [share for _, share in parts], dataset, device)
    return {name: value.cpu() for name, value in network.state_dict().items()}


def _put(
    registry: Registry,
    like: Generation,
    settings: Mapping[str, Setting],
    parents: Mapping[str, str],
    state: Mapping[str, Tensor],
    name: str | None,
    ingredients: list[dict[str, Any]],
    used: int,
    parameters: int,
    device: torch.device,
    where: Mapping[str, str],
) -> dict[str, Any]:
    """Store a soup; what its ingredients were made for is what it is measured for."""
    guarantee = {key: like.recipe.settings[key] for key in ("norm", "eps") if key in like.recipe.settings}
    guarantee |= {"sigma": exact(like.sigma)} if like.sigma is not None else {}
    recipe: Recipe = dataclasses.replace(
        like.recipe, method=mixture.SOUP, settings={**guarantee, **settings}, training=None, seed=0
    )
    if not all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point()):
        raise IntegrityError("a weight of the mixture is not a finite number", "Look at its ingredients.")
    data = weight_bytes(state)
    identity = digest(data)
    made = Generation(name=name or "", recipe=recipe, weights=identity, last_weights=identity, parents=dict(parents))
    record = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "ingredients": ingredients,
        "parameters": parameters,
        "paths": dict(where),
        **circumstances(Path.cwd()),
        **machine(device),
    }
    if name and registry.refs()["names"].get(name) not in (None, made.id):
        raise name_taken(name)
    there = registry.has(made.id)
    if there and name is None:
        made = dataclasses.replace(made, name=registry.names_of(made.id)[0])
    registry.put_object(data)
    made = registry.add(made, record)
    return {**outcome(made, record, created=not there), "ingredients": ingredients, "reestimated": used}


def check_free(registry: Registry, name: str | None) -> None:
    """Raise an error for a name that no soup can take, before anything is measured; whose it is, is told in the end.

    Raises:
        UsageError: it is no name.
        RobustKTError: it is that of a generation that is no soup.
    """
    if name is None:
        return
    check_name(name)
    there = registry.refs()["names"].get(name)
    if there is not None and registry.by_id(there).recipe.method != mixture.SOUP:
        raise name_taken(name)


def _shares(text: str | None, count: int) -> list[Fraction]:
    if text is None:
        return [Fraction(1, count)] * count
    shares = [fraction(part, "a share") for part in text.split(",")]
    if len(shares) != count or sum(shares) != 1 or min(shares) <= 0:
        raise UsageError(f"--shares {text} are not {count} shares above 0 that add up to 1", "Such as --shares .5,.5.")
    return shares


def _check_alike(given: Sequence[Generation]) -> None:
    first = given[0]
    if len({one.network() for one in given}) < len(given):
        raise UsageError("one network is named twice", "Name each once; --shares gives one more weight.")
    for what, of in ALIKE.items():
        other = next((one for one in given if of(one) != of(first)), None)
        if other is not None:
            raise UsageError(f"{first.name} and {other.name} have not the same {what}", "Mix generations that have.")


def _check_related(registry: Registry, given: Sequence[Generation]) -> None:
    """Raise an error unless all were trained from the weights of one ancestor, or of one of them."""
    common = set.intersection(*(_origins(registry, one) for one in given))
    if not common:
        raise RobustKTError(
            f"{', '.join(one.name for one in given)} were not fine-tuned from a common ancestor: between networks that "
            "were trained apart lies a barrier, and their average is good at nothing",
            "Fine-tune them from one: `robustkt train --init GEN`; or add --unrelated to try nevertheless.",
        )


def _origins(registry: Registry, generation: Generation) -> set[str]:
    """The generation and those whose weights it comes from."""
    found, open_ = {generation.id}, [generation]
    while open_:
        for role, identity in open_.pop().parents.items():
            if role.startswith(SAME_WEIGHTS) and identity not in found:
                found.add(identity)
                open_.append(registry.by_id(identity))
    return found
