"""Modes travel: published, pulled, exported, made again; a foreign or forged adapter is named and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from robustkt import RobustModel, SmoothedClassifier, api, data, exports
from robustkt.adapters.stored import read_adapter
from robustkt.api.loading import load_network
from robustkt.api.modes import adapter_bytes
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import Generation, mixed_of, read_manifest
from robustkt.numbers import canonical, digest, wilson
from robustkt.registry import Registry, verify
from robustkt.registry.measurements import key_of
from robustkt.registry.seal import sealed, unsealed
from tests.conftest import Ran
from tests.hubs import contents, kept, names, standing
from tests.stores import adapter, damage, modal

Cli = Callable[..., Ran]
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def kitchen(cooked: Registry) -> Registry:
    """With two soups, and measurements."""
    api.soup_make(["two"], adapters="beta=0.7", name="third", registry=cooked, device="cpu")
    api.soup_make(["one", "other"], name="pair", registry=cooked, device="cpu")
    few: dict[str, Any] = {"max_images": 40, "registry": cooked, "device": "cpu"}
    for mode in ("two", "two@clean", "two@beta=0.5"):
        api.evaluate(mode, attacks=["fgsm"], **few)
    for mode in ("noisy", "noisy@sigma0.12"):
        api.certify(mode, mode="fixed", n=100, n0=10, **{**few, "max_images": 6})
    return cooked


@pytest.fixture(scope="module")
def whole(kitchen: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "two"
    api.push("two", to=folder, registry=kitchen)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "theirs"))


def reindex(folder: Path, **changes: Any) -> None:
    """What somebody who forges a file does next: an index that fits, and no statement that does not."""
    for path in folder.rglob("provenance.json"):
        path.unlink()
    content = json.loads((folder / "robustkt.json").read_bytes())
    del content["digest"]
    files = {path: file for path, file in contents(folder).items() if path != "robustkt.json"}
    content["files"] = {path: {"hash": digest(file), "size": len(file)} for path, file in files.items()}
    (folder / "robustkt.json").write_bytes(sealed({**content, **changes}))


def refused(folder: Path, registry: Registry, what: str) -> None:
    with pytest.raises(IntegrityError, match=what):
        api.pull(str(folder), registry=registry)
    assert names(registry) == {}
    assert kept(registry) == {}


# -- published and pulled ----------------------------------------------------------------------------------------------


def test_what_is_published(kitchen: Registry, whole: Path) -> None:
    two, files = kitchen.get("two"), contents(whole)
    for domain in ("clean", "robust"):
        assert digest(files[f"adapters/{domain}/{ADAPTER}"]) == two.adapters[domain]
        told = json.loads(files[f"adapters/{domain}/{CONFIG}"])
        assert told == {"base": two.weights, "domain": domain, "kind": "dualparams", "library_name": "robustkt"}
        last = files.get(f"adapters/{domain}/last.safetensors")
        assert (digest(last) if last else two.adapters[domain]) == two.last_adapters[domain]
    index = json.loads(files["robustkt.json"])
    assert index["format"] == 2
    assert set(index["files"]) == set(files) - {"robustkt.json"}
    config = json.loads(files["config.json"])
    assert (config["modes"], config["default_mode"]) == (["clean", "robust"], "robust")
    subjects = {one["name"]: one["digest"]["sha256"] for one in json.loads(files["provenance.json"])["subject"]}
    assert subjects[f"adapters/clean/{ADAPTER}"] == two.adapters["clean"][7:]
    assert len(list(whole.glob("evaluations/*.json"))) == 3, "of every mode"


@pytest.mark.parametrize("name", ["retro", "pair", "third", "noisy"])
def test_a_lineage_comes_back_byte_for_byte(kitchen: Registry, registry: Registry, tmp_path: Path, name: str) -> None:
    api.push(name, to=tmp_path / name, with_ancestors=True, registry=kitchen)
    told = api.pull(str(tmp_path / name), registry=registry)
    family = [kitchen.get(name), *kitchen.ancestors(kitchen.get(name))]
    wanted = kept(kitchen)
    assert all(wanted[path] == data for path, data in kept(registry).items())
    assert {registry.by_id(one.id).id for one in family} == set(registry.stored())
    assert {identity for one in family for identity in one.objects} == {
        f"sha256:{path.name}" for path in (registry.root / "objects").glob("*/*")
    }
    assert damage(registry) == []
    assert len(told["claimed"]) == len(kitchen.results(family[0].id))
    assert api.lineage(name, registry=registry)["generations"]


def test_over_the_hub_and_ready_in_any_mode(kitchen: Registry, registry: Registry, tmp_path: Path) -> None:
    x = data.load("digits").test.images(slice(0, 8))
    with standing() as hub:
        for name, relation in (("two", None), ("one", "finetune"), ("third", "merge")):
            card = ModelCard(api.push(name, registry=kitchen)["card"]).data.to_dict()
            assert card.get("base_model_relation") == relation
        assert card["base_model"] in ("alice/two", ["alice/two"])
        assert "merge" in card["tags"]
        for name in ("one", "third"):
            api.pull(f"alice/{name}", registry=registry)
        assert all(kept(kitchen)[path] == file for path, file in kept(registry).items())
        assert {"one", "two", "third"} <= set(names(registry))
        options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
        before = len(hub.calls())
        for domain in ("clean", None, "beta=0.25", "robust"):
            model = RobustModel.from_pretrained("alice/two", domain=domain, **options)
            mode = kitchen.mode(f"two@{domain or 'robust'}")
            with torch.no_grad():
                assert torch.equal(model(x), load_network(kitchen, mode)(x))
            assert model.generation.domain == mode.domain
            assert not any("last" in call for call in hub.calls()[before:])
        with pytest.raises(NotFoundError, match=r"has no mode @sigma0\.12"):
            RobustModel.from_pretrained("alice/two", domain="sigma0.12", **options)
        with pytest.raises(NotFoundError, match="has no modes"):
            RobustModel.from_pretrained("alice/one", domain="clean", **options)


def test_a_folder_is_read_in_any_mode(kitchen: Registry, folder: Path, tmp_path: Path) -> None:
    x = data.load("digits").test.images(slice(0, 8))
    model = RobustModel.from_pretrained(folder, domain="clean")
    with torch.no_grad():
        assert torch.equal(model(x), load_network(kitchen, kitchen.mode("two@clean"))(x))
        assert not torch.equal(model(x), RobustModel.from_pretrained(folder)(x))
    api.push("noisy", to=tmp_path / "noisy", registry=kitchen)
    for domain, sigma in ((None, 0.25), ("sigma0.12", 0.12)):
        classifier = SmoothedClassifier.from_pretrained(
            tmp_path / "noisy", domain=domain, mode="fixed", n=100, device="cpu"
        )
        assert float(classifier.noise.sigma) == sigma, "a domain of noise has its own"
        assert classifier.mode == "fixed"
    (folder / "adapters" / "clean" / ADAPTER).write_bytes((folder / "adapters" / "robust" / ADAPTER).read_bytes())
    RobustModel.from_pretrained(folder)
    with pytest.raises(IntegrityError, match="is not what the manifest names"):
        RobustModel.from_pretrained(folder, domain="clean")


def test_one_mode_is_not_published_and_the_way_that_is_told_works(cli: Cli, kitchen: Registry, tmp_path: Path) -> None:
    registry = Registry(Path(shutil.copytree(kitchen.root, tmp_path / "mine")))
    for mode, shares in (("clean", "clean=1"), ("beta=0.4", "beta=0.4")):
        ran = cli("push", f"two@{mode}", "--to", "out", "--registry", registry.root)
        assert ran.code == 2
        assert ran.err.startswith(f"error: two@{mode} is one mode; published is a generation with all of them")
        told = f"robustkt soup make two --adapters {shares} --name NAME"
        assert told in ran.err.replace("\n", " ")
        made = cli(*told.split()[1:-1], "alone", "--registry", registry.root)
        assert made.code == 0, made.err
        assert cli("push", "alone", "--to", "out", "--registry", registry.root).code == 0
        api.rm(["alone"], registry=registry)
    with pytest.raises(NotFoundError, match="has no mode @foggy"):
        api.push("two@foggy", to=tmp_path / "x", registry=registry)


# -- forgeries ---------------------------------------------------------------------------------------------------------


def test_adapters_that_are_moved_missing_or_misdescribed(folder: Path, registry: Registry, tmp_path: Path) -> None:
    clean, robust = (folder / "adapters" / domain / ADAPTER for domain in ("clean", "robust"))
    untouched = Path(shutil.copytree(folder, tmp_path / "untouched"))

    def swap() -> None:
        ours, theirs = clean.read_bytes(), robust.read_bytes()
        clean.write_bytes(theirs)
        robust.write_bytes(ours)

    def tell(**changes: Any) -> None:
        path = clean.with_name(CONFIG)
        path.write_bytes(canonical({**json.loads(path.read_bytes()), **changes}))

    for change, what in (
        (swap, "adapters/(clean|robust)/adapter_model.safetensors is not what the manifest of two names"),
        (lambda: clean.unlink(), "adapters/clean/adapter_model.safetensors is missing"),
        (lambda: clean.with_name(CONFIG).unlink(), "adapters/clean/adapter_config.json is missing"),
        (lambda: clean.parent.rename(clean.parent.with_name("foggy")), "is not what the manifest of two names|missing"),
        (lambda: tell(base="sha256:" + "00" * 32), "does not tell what its adapter is bound to"),
        (lambda: tell(domain="robust"), "does not tell what its adapter is bound to"),
        (lambda: clean.with_name(CONFIG).write_text("[]"), "does not tell what its adapter is bound to"),
        (lambda: shutil.copytree(clean.parent, clean.parent.with_name("foggy")), "foggy/adapter_model.* is not what"),
        (lambda: shutil.rmtree(folder / "adapters"), "adapters/(clean|robust)/.* is missing"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(untouched, folder)
        change()
        reindex(folder)
        refused(folder, registry, what)
    shutil.rmtree(folder)
    shutil.copytree(untouched, folder)
    tell(more="what a later version says")
    reindex(folder)
    api.pull(str(folder), registry=registry)


def forged(folder: Path, change: Callable[[Generation], Generation]) -> None:
    """Another manifest, under its own id, with an index that fits and no measurements."""
    found = change(read_manifest((folder / "manifest.json").read_bytes(), "two", "manifest.json"))
    (folder / "manifest.json").write_bytes(found.manifest())
    shutil.rmtree(folder / "evaluations", ignore_errors=True)
    reindex(folder, generation=found.id)


def put(folder: Path, domain: str, file: bytes) -> Callable[[Generation], Generation]:
    """Another adapter in the manifest, and its file in its place."""
    place = folder / "adapters" / domain
    (place / ADAPTER).write_bytes(file)
    (place / "last.safetensors").unlink(missing_ok=True)
    return lambda found: replace(
        found,
        adapters={**found.adapters, domain: digest(file)},
        last_adapters={**found.last_adapters, domain: digest(file)},
    )


def test_adapters_of_another_base_or_domain(folder: Path, kitchen: Registry, registry: Registry) -> None:
    two, retro = kitchen.get("two"), kitchen.get("retro")
    for file, what in (
        (kitchen.object(retro.adapters["clean"]), "the adapter clean of two belongs to another base"),
        (kitchen.object(two.adapters["robust"]), "the adapter clean of two is that of robust"),
        (kitchen.object(two.weights), "the adapter clean of two is not one"),
        (b"x" * 200, "is no safetensors file"),
        (adapter("no hash", "clean", 1), "the adapter clean of two is not one"),
    ):
        forged(folder, put(folder, "clean", file))
        refused(folder, registry, what)


def test_a_foreign_adapter_that_is_here_already(folder: Path, kitchen: Registry, tmp_path: Path) -> None:
    """What the registry has is not copied again; whose it is must be asked nevertheless."""
    registry = Registry(Path(shutil.copytree(kitchen.root, tmp_path / "mine")))
    before = kept(registry)
    forged(folder, put(folder, "clean", kitchen.object(kitchen.get("retro").adapters["clean"])))
    with pytest.raises(IntegrityError, match="belongs to another base"):
        api.pull(str(folder), registry=registry)
    assert kept(registry) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"domain": "clean"},
        {"domain": "beta=0.3"},
        {"domain": "beta=0.50"},
        {"domain": "foggy"},
        {"domain": None},
        {"weights": "sha256:" + "00" * 32},
    ],
    ids=str,
)
def test_a_result_of_another_mode_is_refused(folder: Path, registry: Registry, changes: dict[str, Any]) -> None:
    told = {path: unsealed(path, "") for path in folder.glob("evaluations/*.json")}
    header, content = next((p, c) for p, c in told.items() if c["settings"]["domain"] == "beta=0.5")
    content["settings"] = {k: v for k, v in {**content["settings"], **changes}.items() if v is not None}
    header.unlink()
    (header.parent / f"evaluation-{key_of(content['settings'])}.json").write_bytes(sealed(content))
    reindex(folder)
    refused(folder, registry, "measures something else than two")


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_card_says_what_another_mode_loses(kitchen: Registry, whole: Path) -> None:
    text = (whole / "README.md").read_text()
    results = {r.content["settings"]["domain"]: r.content for r in kitchen.results(kitchen.get("two").id, "evaluation")}
    clean, robust = (results[mode]["figures"]["attacks"] for mode in ("clean", "robust"))
    assert "- `robust`, **the default**" in text
    assert (
        f"the mode `clean` is right on {clean['fgsm']['accuracy']:.1%} where `robust` is on "
        f"{robust['fgsm']['accuracy']:.1%}; without an attack {clean['clean']['accuracy']:.1%} against "
        f"{robust['clean']['accuracy']:.1%}."
    ) in text
    for mode in results:
        assert f"Mode `{mode}`. The network without noise" in text
    assert 'other = RobustModel.from_pretrained(".", domain="clean")' in text
    figures = {one.metric_name: one.metric_value for one in ModelCard(text).data.eval_results}
    assert figures["Accuracy"] == robust["clean"]["accuracy"], "the default mode's alone"


def test_a_card_without_measurements_says_so(kitchen: Registry, tmp_path: Path) -> None:
    card = api.push("retro", to=tmp_path / "retro", registry=kitchen)["card"]
    assert "Accuracy under attack has not been measured in `clean`." in card
    noisy = api.push("noisy", to=tmp_path / "noisy", registry=kitchen)["card"]
    assert "- `sigma0.12`, for noise of σ = 0.12" in noisy
    assert "Mode `sigma0.12`. σ = 0.12" in noisy
    assert 'other = SmoothedClassifier.from_pretrained(".", domain="sigma0.12")' in noisy


def test_the_card_of_a_soup_says_what_it_is_mixed_of(kitchen: Registry, tmp_path: Path) -> None:
    card = api.push("third", to=tmp_path / "third", registry=kitchen)["card"]
    assert "mixed by robustkt: 0.3 · **two@clean** + 0.7 · **two@robust**." in card
    pair = api.push("pair", to=tmp_path / "pair", registry=kitchen)["card"]
    (first, half), (second, other) = mixed_of(
        kitchen.get("pair"), {g.id: g for g in kitchen.ancestors(kitchen.get("pair"))}
    )
    assert (half, other, {first.name, second.name}) == (0.5, 0.5, {"one", "other"}) or half == other
    assert f"0.5 · **{first.name}** + 0.5 · **{second.name}**" in pair
    assert "imported" not in pair
    vague = replace(kitchen.get("third"), recipe=replace(kitchen.get("third").recipe, settings={"shares": "x"}))
    with pytest.raises(IntegrityError, match="what the soup third is mixed of cannot be told"):
        mixed_of(vague, {g.id: g for g in kitchen.ancestors(vague)})


# -- export and import -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem", "format"),
    [
        pytest.param("two@beta=0.4", "two-beta0.4", f, marks=[pytest.mark.slow] if f in ("onnx", "pt2") else [])
        for f in exports.FORMATS
    ]
    + [("third", "third", "safetensors")],
)
def test_a_mode_is_exported(
    kitchen: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stem: str, format: str
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    told = api.export(name, format=format, registry=kitchen)
    assert told["files"][0] == f"{stem}{exports.FORMATS[format].suffix}"
    facts = json.loads(Path(told["files"][1]).read_bytes())
    assert facts.get("domain") == ("beta=0.4" if "@" in name else None)
    read = exports.FORMATS[format].read
    if read is None:
        api.import_generation(
            told["files"][0], arch="smallcnn", data="digits", name="back", registry=Registry(tmp_path / "r"),
            device="cpu",
        )  # fmt: skip
        back = Registry(tmp_path / "r")
        expected, found = load_network(kitchen, kitchen.mode(name)), load_network(back, back.get("back"))
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in expected.state_dict().items())
    else:
        images = data.load("digits").held_out.images(slice(0, 9))
        with torch.no_grad():
            expected_logits = load_network(kitchen, kitchen.mode(name))(images)
            torch.testing.assert_close(read(Path(told["files"][0]))(images), expected_logits, rtol=1e-4, atol=1e-4)


def test_a_domain_of_noise_is_exported_with_its_own(
    kitchen: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = api.export("noisy@sigma0.12", format="torchscript", smoothed=True, registry=kitchen)
    assert (told["sigma"], told["files"][0]) == ("0.12", "noisy-sigma0.12-smoothed.torchscript.pt")
    assert "SIGMA" in Path(told["files"][2]).read_text()
    assert api.export("noisy", format="safetensors", smoothed=True, registry=kitchen)["sigma"] == "0.25"
    odd = api.export("two@beta=1/3", format="safetensors", registry=kitchen)
    assert odd["files"][0] == "two-beta1_3.safetensors"


# -- a registry's upkeep -----------------------------------------------------------------------------------------------


def test_verify_names_foreign_and_damaged_adapters(registry: Registry) -> None:
    two, other = modal(registry, 1, "two"), modal(registry, 5, "fourth")
    assert damage(registry) == []
    swapped = replace(two, name="swapped", adapters={**two.adapters, "clean": other.adapters["clean"]})
    registry.add(swapped, {})
    path = registry.manifest_path(swapped.id)
    (told,) = damage(registry)
    assert told.startswith("the adapter clean of swapped belongs to another base")
    assert told.endswith(path.relative_to(registry.root).as_posix())
    done = api.verify(registry, repair=True)
    assert done["ok"]
    assert set(names(registry)) >= {"two", "fourth"}
    assert "swapped" not in names(registry)
    registry.object(other.adapters["clean"])
    place = registry.object_path(two.adapters["robust"])
    place.write_bytes(place.read_bytes() + b"x")
    assert [f.what for f in verify(registry) if f.damage] == [
        "an object whose SHA-256 is not its name, the adapter robust of two"
    ]
    place.unlink()
    assert [f.what for f in verify(registry) if f.damage] == ["the adapter robust of two is missing"]


def test_adapters_stay_as_long_as_their_generation(registry: Registry) -> None:
    two = modal(registry, 1, "two")
    registry.add(replace(two, name="child", adapters={}, last_adapters={}, mode=None, parents={"init": two.id}), {})
    with pytest.raises(RobustKTError, match="others descend from two"):
        api.rm(["two"], registry=registry)
    assert api.gc(grace="0", registry=registry)["files"] == []
    api.rm(["child", "two"], registry=registry)
    gone = set(api.gc(grace="0", registry=registry)["files"])
    assert {registry.object_path(i).relative_to(registry.root).as_posix() for i in two.adapters.values()} <= gone


def test_list_and_lineage_show_modes(cli: Cli, kitchen: Registry) -> None:
    rows = {row["generation"]: row for row in api.list_generations(kitchen)["generations"]}
    assert (rows["two"]["modes"], rows["two"]["mode"], rows["one"]["modes"]) == (["clean", "robust"], "robust", [])
    evaluation = api.evaluate("two", attacks=["fgsm"], max_images=40, registry=kitchen, device="cpu")
    assert rows["two"]["robust"]["robust_accuracy"] == evaluation["worst"]["accuracy"], "of the default mode"
    ran = cli("list", "--registry", kitchen.root)
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert "  cotraining ×2 " in lines["two"]
    assert "×" not in lines["one"]
    assert "×2: of two modes, with the figures of the default one" in ran.out
    for form in ("tree", "dot", "mermaid"):
        assert "cotraining smallcnn, 2 modes" in cli("lineage", "two", "--format", form, "--registry", kitchen.root).out
    told = cli("lineage", "two", "--format", "json", "--registry", kitchen.root).json
    assert told["generations"][0]["modes"] == ["clean", "robust"]


# -- made again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two", "retro", "noisy", "third", "pair"])
def test_the_same_comes_out_again(kitchen: Registry, name: str) -> None:
    before = kept(kitchen)
    found = api.reproduce(name, registry=kitchen, device="cpu")
    assert (found["verdict"], found["distance"], found["last_distance"]) == ("identical", 0.0, 0.0)
    assert kept(kitchen) == before


def test_another_adapter_is_told(cli: Cli, kitchen: Registry, tmp_path: Path) -> None:
    registry = Registry(Path(shutil.copytree(kitchen.root, tmp_path / "mine")))
    two, retro = registry.get("two"), registry.get("retro")
    third = replace(registry.get("third"), name="false", weights=retro.weights, last_weights=retro.weights)
    registry.add(third, {})
    ran = cli("reproduce", "false", "--registry", registry.root, "--device", "cpu")
    assert ran.code == 3
    assert "false: different" in ran.out
    (clean, _) = two.bound()
    tensors = {key: value + 1 for key, value in read_adapter(registry.object(clean.hash), clean, "two").items()}
    moved = registry.put_object(adapter_bytes(tensors, base=two.weights, kind="dualparams", domain="clean"))
    registry.add(replace(two, name="moved", adapters={**two.adapters, "clean": moved}), registry.record(two.id))
    told = api.reproduce("moved", registry=registry, device="cpu")
    assert (told["verdict"], told["last_distance"]) == ("different", 0.0)
    assert told["distance"] > 0


def test_what_cannot_be_made_again(cli: Cli, kitchen: Registry, tmp_path: Path) -> None:
    api.export("two@clean", format="safetensors", out=tmp_path / "x.safetensors", registry=kitchen)
    registry = Registry(tmp_path / "other")
    api.import_generation(
        str(tmp_path / "x.safetensors"), arch="smallcnn", data="digits", registry=registry, device="cpu"
    )
    ran = cli("reproduce", "gen0", "--registry", registry.root)
    assert ran.code == 1
    assert "error: gen0 was imported: how it was trained is not known, so it cannot be trained again" in ran.err
    with pytest.raises(UsageError, match="names one mode"):
        api.reproduce("two@clean", registry=kitchen)


# -- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_sweep(kitchen: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder with a sweep."""
    place = tmp_path_factory.mktemp("swept")
    registry = Registry(Path(shutil.copytree(kitchen.root, place / "registry")))
    api.soup_sweep("two", betas="0,1", max_images=20, registry=registry, device="cpu")
    api.push("two", to=place / "published", registry=registry)
    return place / "published"


@pytest.fixture
def curve(with_sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_sweep, tmp_path / "swept"))


def test_a_sweep_is_published_and_is_a_claim_elsewhere(curve: Path, registry: Registry) -> None:
    assert len(list(curve.glob("sweeps/*"))) == 2
    told = api.pull(str(curve), registry=registry)
    (result,) = registry.results(registry.get("two").id, "sweep")
    assert f"sweep-{result.key}" in told["claimed"]
    assert result.claimed
    api.soup_sweep("two", betas="0,1", max_images=20, registry=registry, device="cpu")
    (again,) = registry.results(registry.get("two").id, "sweep")
    assert again.claimed is None, "measured here, not taken over"
    assert again.content["figures"] == result.content["figures"]


FITTING = ("not of the images that its settings name", "that only an attack puts right", "has labels of no class")
"""What is forged together with the figures that follow from it."""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c, rows: c["figures"]["points"][1].update(robust_accuracy=1.0), "are not those of its log: points"),
        (lambda c, rows: rows.pop(), "not of the images that its settings name"),
        (lambda c, rows: rows.__setitem__(1, "0\t3\t0\t1\t1\t1"), "that only an attack puts right"),
        (lambda c, rows: rows.__setitem__(1, "0\t77\t1\t1\t1\t1"), "has labels of no class"),
        (lambda c, rows: rows.__setitem__(0, "idx\tlabel\t0|clean\t0|pgd-sat\t1|clean\t1|fgsm"), "cannot be read"),
        (lambda c, rows: c["settings"]["ends"].reverse(), "is about other adapters"),
        (lambda c, rows: c["settings"].update(betas=["1", "0"]), "none that a sweep has"),
        (lambda c, rows: c["settings"].update(split="train"), "there is no split 'train'"),
        (lambda c, rows: c["figures"]["points"].pop(), "of other mixtures than its settings name"),
    ],
)
def test_a_forged_sweep_is_refused(
    curve: Path, registry: Registry, change: Callable[[dict[str, Any], list[str]], Any], what: str
) -> None:
    (header,), (log,) = curve.glob("sweeps/*.json"), curve.glob("sweeps/*.tsv")
    content, rows = unsealed(header, ""), log.read_text().splitlines()
    change(content, rows)
    data = ("\n".join(rows) + "\n").encode()
    if what in FITTING:
        told = [line.split("\t") for line in rows]
        table = dict(zip(told[0], zip(*([int(c) for c in row] for row in told[1:]), strict=True), strict=True))
        for point, beta in zip(content["figures"]["points"], ("0", "1"), strict=True):
            both = [a & b for a, b in zip(table[f"{beta}|clean"], table[f"{beta}|pgd-sat"], strict=True)]
            for kind, kept_ in (("clean", table[f"{beta}|clean"]), ("robust", both)):
                count = sum(kept_)
                point |= {f"{kind}_accuracy": count / len(kept_), f"{kind}_interval": wilson(count, len(kept_))}
    stem = f"sweep-{key_of(content['settings'])}"
    content |= {"log": f"{stem}-{digest(data)[7:15]}.tsv", "log_hash": digest(data)}
    header.unlink()
    log.unlink()
    (curve / "sweeps" / f"{stem}.json").write_bytes(sealed(content))
    (curve / "sweeps" / content["log"]).write_bytes(data)
    reindex(curve)
    refused(curve, registry, what)
