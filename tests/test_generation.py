"""The id is a hash of every decision and of nothing else; a manifest is read back whole or refused by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkt import mixture
from robustkt.catalog import is_user_arch
from robustkt.errors import IntegrityError, UsageError
from robustkt.generation import FORMAT, MODAL, DataSpec, Generation, Recipe, Training, read_manifest
from robustkt.numbers import canonical, digest
from robustkt.shapes import to_json

HASHES = [digest(str(i).encode()) for i in range(8)]

DATA = DataSpec(
    name="digits",
    fingerprint=HASHES[0],
    classes=("zero", "einß", "two"),
    shape=(1, 8, 8),
    mean=(0.30,),
    std=(0.37,),
    held_out=287,
)
RECIPE = Recipe(
    method="smoothmix",
    settings={"sigma": "0.25", "draws": 2, "eta": 5.0, "step_size": None},
    arch="resnet8",
    data=DATA,
    training=Training(milestones=(0.5, 0.75)),
)
GENERATION = Generation(
    name="gen0",
    recipe=RECIPE,
    weights=HASHES[1],
    last_weights=HASHES[2],
    parents={"teacher": HASHES[3], "init": HASHES[4]},
)


def read(data: bytes) -> Generation:
    return read_manifest(data, "gen0", "the manifest")


def changed(**path: Any) -> bytes:
    """The manifest with values replaced, `recipe__seed=1`; ... deletes."""
    content = json.loads(GENERATION.manifest())
    for keys, value in path.items():
        *folders, last = keys.split("__")
        place = content
        for folder in folders:
            place = place[folder]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return canonical(content)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_the_id_is_the_hash_of_the_manifest_and_not_of_the_name() -> None:
    assert GENERATION.id == digest(GENERATION.manifest())
    renamed = dataclasses.replace(GENERATION, name="another")
    assert renamed.id == GENERATION.id
    assert renamed.manifest() == GENERATION.manifest()
    assert b"gen0" not in GENERATION.manifest()


def test_the_id_is_that_of_format_1_for_ever() -> None:
    """Whoever changes this number changes the identity of every generation there is: raise FORMAT instead."""
    assert GENERATION.id == "sha256:aa62c3f84ffce13e29daf8fcfd9c30e7a79405b9d1512beb8568a23a6f2de5be"


def test_the_id_is_independent_of_the_order_of_keys() -> None:
    def backwards(table: Mapping[str, Any]) -> dict[str, Any]:
        return dict(reversed(table.items()))

    other = dataclasses.replace(
        GENERATION,
        recipe=dataclasses.replace(RECIPE, settings=backwards(RECIPE.settings)),
        parents=backwards(GENERATION.parents),
    )
    assert list(other.recipe.settings) != list(RECIPE.settings)
    assert other.id == GENERATION.id


def other_value(value: Any) -> Any:
    """A value of the same type that is another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2
    if isinstance(value, str):
        return HASHES[7] if value.startswith("sha256:") else value + "x"
    if isinstance(value, tuple):
        return (*value, *value) if value else (0.5,)
    if isinstance(value, Mapping):
        return {**value, "further": HASHES[6]}
    raise TypeError(value)


FOR_NONE = {
    "mode": "robust",
    "image_size": 32,
    "arch_source": HASHES[5],
    "ema": 0.5,
    "clip": 1.0,
    "arch_version": "timm 1.0.19",
    "sync_bn": True,
}

LIMITED = {"shape": (1, 9, 8), "mean": (0.5,), "std": (0.5,), "precision": "bf16"}  # not everything is one


def variants(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every way to change one field somewhere below `value`."""
    for field in dataclasses.fields(value):
        found = getattr(value, field.name)
        if path == "generation" and field.name in ("name", "shares", "format"):
            continue
        if dataclasses.is_dataclass(found):
            for name, inner in variants(found, f"{path}.{field.name}"):
                yield name, dataclasses.replace(value, **{field.name: inner})
        else:
            given = FOR_NONE if found is None else LIMITED
            other = given[field.name] if field.name in given else other_value(found)
            yield f"{path}.{field.name}", dataclasses.replace(value, **{field.name: other})


VARIANTS = dict(variants(GENERATION, "generation"))


def test_every_field_has_a_variant() -> None:
    fields = sum(len(dataclasses.fields(kind)) for kind in (Generation, Recipe, DataSpec, Training))
    assert len(VARIANTS) == fields - 6  # name, shares and format, and the three that hold the others


@pytest.mark.parametrize("path", VARIANTS)
def test_every_field_is_part_of_the_id(path: str) -> None:
    assert VARIANTS[path].id != GENERATION.id


def test_no_two_changes_give_one_id() -> None:
    assert len({variant.id for variant in VARIANTS.values()}) == len(VARIANTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sigma", "0.5"), ("draws", 3), ("eta", 5.5), ("step_size", "0.25"), ("eta", 5), ("draws", True)],
)
def test_every_setting_is_part_of_the_id(key: str, value: Any) -> None:
    recipe = dataclasses.replace(RECIPE, settings={**RECIPE.settings, key: value})
    assert dataclasses.replace(GENERATION, recipe=recipe).id != GENERATION.id


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VARIANTS)
def test_a_manifest_is_read_back_as_it_was(path: str) -> None:
    generation = VARIANTS[path]
    if path.removeprefix("generation.") in MODAL:  # one of the three alone
        with pytest.raises(IntegrityError, match="do not agree"):
            read(generation.manifest())
        modes = {"clean": HASHES[5], "robust": HASHES[6]}
        generation = dataclasses.replace(GENERATION, adapters=modes, last_adapters=modes, mode="clean", format=2)
    found = read(generation.manifest())
    assert found == generation
    assert found.id == generation.id
    assert found.name == "gen0"


TEXT = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), max_size=12)
SETTINGS = st.dictionaries(
    TEXT.filter(lambda key: key not in ("sigma", "eps", "norm")),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    max_size=4,
)


@given(
    SETTINGS, st.lists(TEXT, min_size=2, max_size=4), TEXT, st.dictionaries(TEXT, st.sampled_from(HASHES), max_size=3)
)
@settings(max_examples=50)
def test_any_manifest_is_read_back_as_it_was(
    chosen: dict[str, Any], classes: list[str], arch: str, parents: dict[str, str]
) -> None:
    data = dataclasses.replace(DATA, classes=tuple(classes))
    pin = HASHES[5] if is_user_arch(arch) else None
    recipe = dataclasses.replace(RECIPE, settings=chosen, data=data, arch=arch, arch_source=pin)
    generation = dataclasses.replace(GENERATION, recipe=recipe, parents=parents)
    assert read(generation.manifest()) == generation


def test_what_a_recipe_tells() -> None:
    assert str(RECIPE.sigma) == "1/4"
    assert RECIPE.threat is None
    adversarial = dataclasses.replace(RECIPE, settings={"norm": "linf", "eps": "8/255"})
    assert adversarial.sigma is None
    assert str(adversarial.threat) == "('linf', Fraction(8, 255))"
    assert json.loads(dataclasses.replace(GENERATION, recipe=adversarial).manifest())["recipe"]["settings"] == {
        "norm": "linf",
        "eps": "8/255",
    }


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"epochs": 0}, "epochs must be above 0, not 0"),
        ({"batch_size": -1}, "batch_size must be above 0, not -1"),
        ({"lr": 0.0}, "lr must be above 0, not 0.0"),
        ({"lr": float("inf")}, "lr must be above 0, not inf"),
        ({"lr": float("nan")}, "lr must be above 0, not nan"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1.0"),
        ({"ema": 1.5}, r"ema must lie in \[0, 1\), not 1.5"),
        ({"clip": 0.0}, "clip must be above 0, not 0.0"),
        ({"weight_decay": -0.1}, "weight_decay and pad cannot be negative"),
        ({"pad": -1}, "weight_decay and pad cannot be negative"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
        ({"warmup": 1.0}, r"warmup must lie in \(0, 1\), not 1.0"),
    ],
)
def test_a_training_that_makes_no_sense(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=f"^{what}") as error:
        Training(**values)
    assert error.value.fix


# -- manifests of anybody's making -------------------------------------------------------------------------------------

ESCAPE = "\x1b]0;owned\x07"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "not an object": (b"[]", "is not a manifest"),
    "no format": (changed(format=...), "is not a manifest"),
    "format of words": (changed(format="one"), "is not a manifest"),
    "format that is true": (changed(format=True), "is not a manifest"),
    "format 0": (changed(format=0), "is not a manifest"),
    "a newer format": (changed(format=FORMAT + 1), f"has format {FORMAT + 1}; this version reads up to {FORMAT}"),
    "no recipe": (changed(recipe=...), "generation.recipe is missing"),
    "no method": (changed(recipe__method=...), "generation.recipe.method is missing"),
    "no shape": (changed(recipe__data__shape=...), "generation.recipe.data.shape is missing"),
    "no weights": (changed(weights=...), "generation.weights is missing"),
    "no seed": (changed(recipe__seed=...), "canonical JSON"),
    "a recipe of words": (changed(recipe="crt"), "generation.recipe is not a valid Recipe"),
    "no data but null": (changed(recipe__data=None), "generation.recipe.data is not a valid DataSpec"),
    "a number as arch": (changed(recipe__arch=3), "generation.recipe.arch is not a valid str"),
    "a text as seed": (changed(recipe__seed="0"), "generation.recipe.seed is not a valid int"),
    "a float as seed": (changed(recipe__seed=0.0), "generation.recipe.seed is not a valid int"),
    "true as seed": (changed(recipe__seed=True), "generation.recipe.seed is not a valid int"),
    "a text as lr": (changed(recipe__training__lr="0.1"), "generation.recipe.training.lr is not a valid float"),
    "an int as lr": (changed(recipe__training__lr=1), "canonical JSON"),
    "a float in the shape": (changed(recipe__data__shape=[1, 8.0, 8]), r"generation.recipe.data.shape\[1\]"),
    "a text as classes": (changed(recipe__data__classes="012"), "generation.recipe.data.classes is not a valid tuple"),
    "a table as setting": (changed(recipe__settings={"sigma": {}}), "generation.recipe.settings.sigma"),
    "settings in a list": (changed(recipe__settings=[]), "generation.recipe.settings is not a valid Mapping"),
    "parents in a list": (changed(parents=[]), "generation.parents is not a valid Mapping"),
    "no epochs": (changed(recipe__training__epochs=0), "generation.recipe.training: epochs must be above 0"),
    "a field of the reader": (changed(unknown={}), "canonical JSON"),
    "a name": (changed(name="gen7"), "canonical JSON"),
    "spaces": (json.dumps(json.loads(GENERATION.manifest()), sort_keys=True).encode(), "canonical JSON"),
    "a newline": (GENERATION.manifest() + b"\n", "canonical JSON"),
    "a path as weights": (changed(weights="../../etc/passwd"), "generation.weights '../../etc/passwd' is not a SHA"),
    "a path after the prefix": (changed(last_weights="sha256:../x"), "generation.last_weights 'sha256:../x' is not"),
    "an upper-case hash": (changed(weights=HASHES[1].upper()), "generation.weights 'SHA256:"),
    "a hash with a newline": (changed(weights=HASHES[1] + "\n"), "weights has unprintable characters: 'sha256:"),
    "a path as parent": (changed(parents={"teacher": "/x"}), "generation.parents.teacher '/x' is not a SHA-256 hash"),
    "a path as source": (changed(recipe__arch_source="net.py"), "generation.recipe.arch_source 'net.py' is not"),
    "a long hash": (changed(weights="a" * 200), "generation.weights 'a{79}…' is not"),
    "a word as fingerprint": (changed(recipe__data__fingerprint="x"), "generation.recipe.data.fingerprint 'x' is not"),
    "a word as sigma": (changed(recipe__settings={"sigma": "much"}), "generation.recipe.settings: sigma 'much'"),
    "an endless sigma": (changed(recipe__settings={"sigma": "1e999999999"}), "generation.recipe.settings: sigma '1e9"),
    "eps without a norm": (changed(recipe__settings={"eps": "8/255"}), "generation.recipe.settings.norm is missing"),
    "a sigma that is no noise": (changed(recipe__settings={"sigma": "1e99"}), "settings: sigma 1e\\+99 is no noise"),
    "a sigma below 0": (changed(recipe__settings={"sigma": "-1"}), "settings: sigma must be above 0"),
    "a sigma of thousands of digits": (
        changed(recipe__settings={"sigma": "0." + "1" * 4_300}),
        "sigma '0.1{57}…' is too",
    ),
    "a ball that no image has": (changed(recipe__settings={"eps": "1e9", "norm": "l2"}), "settings: eps 1e"),
    "a norm that is none": (changed(recipe__settings={"eps": "1", "norm": "l7"}), "settings: unknown norm 'l7'"),
    "a precision that is none": (changed(recipe__precision="fp32 | x"), "recipe.precision 'fp32 | x' is none that"),
    "an escape for a method": (changed(recipe__method=ESCAPE), r"recipe.method has unprintable characters: '\\x1b"),
    "an escape for an architecture": (changed(recipe__arch=ESCAPE), "recipe.arch has unprintable characters"),
    "an escape among settings": (
        changed(recipe__settings={"match": ESCAPE}),
        "settings: .* has unprintable characters",
    ),
    "an escape for a setting": (changed(recipe__settings={ESCAPE: 1}), "settings has unprintable characters"),
    "an escape for a role": (changed(parents={ESCAPE: HASHES[3]}), "parents has unprintable characters"),
    "a line break in what is not known": (changed(colour="red\n| 99 % |"), "colour has unprintable characters"),
    "an escape for a class": (changed(recipe__data__classes=["a", ESCAPE]), "data: a class or data set is called"),
    "a novel for a method": (changed(recipe__method="m" * 5_000), "recipe.method is too long: 'mmm"),
    "a novel for a class": (changed(recipe__data__classes=["a", "m" * 5_000]), "data: a class or data set is called"),
    "a setting without end": (changed(recipe__settings={"a": "m" * 9_000}), "settings: .* is too long"),
    "images of a billion rows": (changed(recipe__data__shape=[1, 10**9, 8]), "images cannot have the shape '1x10"),
    "images of no rows": (changed(recipe__data__shape=[1, 0, 8]), "images cannot have the shape '1x0x8'"),
    "images of no shape": (changed(recipe__data__shape=[]), "images cannot have the shape ''"),
    "an integer that no float holds": (changed(recipe__data__held_out=10**400), "held_out is not a valid int"),
    "no classes": (changed(recipe__data__classes=[]), "0 classes are too few"),
    "one class": (changed(recipe__data__classes=["0"]), "1 classes are too few"),
    "three means of one channel": (changed(recipe__data__mean=[0.1, 0.2, 0.3]), "needs a mean and a deviation above 0"),
    "no deviation": (changed(recipe__data__std=[0.0]), "needs a mean and a deviation above 0"),
    "an endless number": (GENERATION.manifest().replace(b"0.0005", b"1e999"), "Out of range"),
    "half a surrogate pair": (GENERATION.manifest().replace(b"two", b"\\ud800"), "surrogates not allowed"),
    "a key twice": (GENERATION.manifest().replace(b'"seed":0', b'"seed":0,"seed":0'), "a key stands twice"),
    "half a file": (GENERATION.manifest()[:-40], "is not the JSON it should be"),
    "no file": (b"", "is not the JSON it should be"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_refused_by_field(case: str) -> None:
    data, what = HOSTILE[case]
    with pytest.raises(IntegrityError, match=what) as error:
        read(data)
    assert error.value.what.startswith("the manifest")
    assert error.value.what.isprintable()
    assert len(error.value.what) < 250
    assert error.value.fix


def test_a_mixture_of_thousands_of_digits_is_refused_in_a_line() -> None:
    for digits in (50, 4_300, 100_000):
        with pytest.raises(UsageError, match=r"^beta has [\d,]+ characters: 0\.1{37}…\nFor instance @beta=0\.4\.$"):
            mixture.parse("beta=0." + digits * "1", ("clean", "robust"), "two")
    assert mixture.spelled(mixture.parse("beta=0." + 30 * "1", ("clean", "robust"), "two")).startswith("beta=1111")


def test_keys_of_a_later_version_are_kept_and_part_of_the_id() -> None:
    later = changed(colour="red", recipe__beam={"width": 3}, recipe__training__swa=True)
    found = read(later)
    assert (found.manifest(), found.id) == (later, digest(later))
    assert found.unknown == {"colour": "red", "recipe": {"beam": {"width": 3}, "training": {"swa": True}}}
    assert dataclasses.replace(found, unknown={}) == GENERATION
    assert found.id != GENERATION.id


def test_the_untouched_manifest_is_accepted() -> None:
    assert changed() == GENERATION.manifest()
    assert read(changed(recipe__seed=1)).recipe.seed == 1


@given(st.integers(0, len(GENERATION.manifest()) - 1), st.binary(max_size=3))
@settings(max_examples=300)
def test_a_damaged_manifest_is_refused_or_has_the_id_of_its_bytes(place: int, patch: bytes) -> None:
    data = GENERATION.manifest()[:place] + patch + GENERATION.manifest()[place + 1 :]
    try:
        found = read(data)
    except IntegrityError:
        return
    assert found.id == digest(data)
    assert to_json(found)["name"] == "gen0"
