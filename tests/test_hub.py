"""What is published is whole, says only what was measured, names no machine, and is read back without running it."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from robustkt import api, certlog, data, hub
from robustkt.api.loading import load_network
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError
from robustkt.generation import read_manifest
from robustkt.numbers import digest
from robustkt.registry import Registry
from tests.conftest import Ran

Cli = Callable[..., Ran]
TINY = {"epochs": 1, "batch_size": 256}
PRIVATE = "a-most-particular-"  # how this machine and its user are called here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """gen0 → gen1 → gen2, the last measured in several ways; adv; own, a network of the user's own."""
    place = tmp_path_factory.mktemp(f"{PRIVATE}folder")
    registry = Registry(place / "registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "node", lambda: f"{PRIVATE}host")
        patch.setattr(socket, "gethostname", lambda: f"{PRIVATE}host")
        patch.setenv("XDG_STATE_HOME", str(place / "state"))
        for name in ("USER", "LOGNAME", "HOSTNAME"):
            patch.setenv(name, f"{PRIVATE}{name}")
        fill(registry, place)
    return registry


def fill(registry: Registry, place: Path) -> None:
    shared: dict[str, Any] = {"registry": registry, "device": "cpu"}
    api.train(
        method="gaussian", arch="smallcnn", data="digits", name="gen0", given={"sigma": "0.25", **TINY},
        **shared,
    )  # fmt: skip
    api.distill(teacher="gen0", arch="smallcnn", name="gen1", given=TINY, **shared)
    api.distill(teacher="gen1", arch="smallcnn", name="gen2", given=TINY, **shared)
    api.train(
        method="sat", arch="smallcnn", data="digits", name="adv", given={"eps": "8/255", "steps": 1, **TINY}, **shared
    )
    few: dict[str, Any] = {"n": 50, "n0": 10, **shared}
    api.certify("gen2", sigma="0.25", max_images=8, **few)
    api.certify("gen2", sigma="0.25", max_images=8, seed=1, **few)
    api.certify("gen2", sigma="0.5", skip=2, max_images=10, **few)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8), (np.arange(300) % 10)[:, None]
    np.savez(place / "other.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    api.certify("gen2", sigma="0.25", max_images=8, data=str(place / "other.npz"), **few)
    api.evaluate("gen2", attacks=["fgsm"], eps="0.1", max_images=20, **shared)
    api.evaluate("adv", attacks=["fgsm", "pgd-sat"], max_images=20, **shared)
    (place / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, channels, classes, image_size):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, classes))\n"
    )
    for folder in ("train", "test"):
        for name in ("cat", "dog"):
            (place / "pictures" / folder / name).mkdir(parents=True)
            for i in range(40):
                shade = (7 * i + 100 * (name == "dog")) % 256
                Image.new("L", (8, 8), shade).save(place / "pictures" / folder / name / f"{i}.png")
    api.train(
        method="natural", arch=f"{place / 'net.py'}:Net", data=str(place / "pictures"), name="own",
        given={**TINY, "batch_size": 32}, **shared,
    )  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def published(made: Registry, tmp_path: Path) -> Path:
    api.push("gen2", to=tmp_path / "published" / "gen2", registry=made)
    return tmp_path / "published" / "gen2"


# -- the folder --------------------------------------------------------------------------------------------------------


def test_what_is_in_the_folder(made: Registry, published: Path) -> None:
    gen2 = made.get("gen2")
    results = [r for r in made.results(gen2.id) if r.content["settings"]["data"] == gen2.recipe.data.fingerprint]
    assert len(made.results(gen2.id)) == 1 + len(results) == 5, "what was measured on other data stays at home"
    expected = {
        "README.md",
        "manifest.json",
        "config.json",
        "record.json",
        "provenance.json",
        "robustkt.json",
        "model.safetensors",
        "certified_accuracy.png",
        *(f"ancestors/{made.get(name).id[7:]}.json" for name in ("gen0", "gen1")),
        *(f"ancestors/{made.get(name).id[7:]}/record.json" for name in ("gen0", "gen1")),
        *(f"{r.kind}s/{r.path.name}" for r in results),
        *(f"{r.kind}s/{made.log_path(r).name}" for r in results),
    }
    files = contents(published)
    assert set(files) == expected
    assert digest(files["model.safetensors"]) == gen2.weights
    assert files["manifest.json"] == made.manifest_path(gen2.id).read_bytes()
    for name in ("gen0", "gen1"):
        identity = made.get(name).id
        assert files[f"ancestors/{identity[7:]}.json"] == made.manifest_path(identity).read_bytes()
        assert digest(files[f"ancestors/{identity[7:]}.json"]) == identity
    for result in results:
        assert files[f"{result.kind}s/{result.path.name}"] == result.path.read_bytes()
        assert digest(files[f"{result.kind}s/{made.log_path(result).name}"]) == result.content["log_hash"]
    Image.open(published / "certified_accuracy.png").verify()
    config = json.loads(files["config.json"])
    assert (config["architecture"], config["input_shape"], config["sigma"]) == ("smallcnn", [1, 8, 8], "0.25")


def test_pushing_twice_gives_the_same_folder(cli: Cli, made: Registry, tmp_path: Path) -> None:
    command = ("push", "gen2", "--to", "out", "--registry", made.root, "--json")
    first = cli(*command)
    assert first.code == 0, first
    before = contents(tmp_path / "out")
    assert cli(*command).json == first.json
    assert contents(tmp_path / "out") == before
    assert [(f["path"], f["size"]) for f in first.json["files"]] == sorted((k, len(v)) for k, v in before.items())
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    api.push("gen1", to=tmp_path / "out", registry=made)
    assert read_manifest((tmp_path / "out" / "manifest.json").read_bytes(), "", "").id == made.get("gen1").id
    assert not (tmp_path / "out" / "certificates").exists(), "nothing of the earlier publication is left"


def test_a_dry_run_writes_nothing(cli: Cli, made: Registry, tmp_path: Path) -> None:
    before = contents(made.root)
    told = cli("push", "gen2", "--to", "out", "--dry-run", "--registry", made.root, "--json").json
    assert (told["dry_run"], told["to"]) == (True, "out")
    assert list(tmp_path.iterdir()) == []
    assert contents(made.root) == before
    api.push("gen2", to=tmp_path / "out", registry=made)
    assert {f["path"]: f["size"] for f in told["files"]} == {k: len(v) for k, v in contents(tmp_path / "out").items()}
    assert told["card"] == (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("notes.txt", "mine"),
        ("manifest.json", '{"name":"a web app","icons":[]}'),
        ("model.safetensors", "another's"),
        (".git/config", "[core]"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(
    cli: Cli, made: Registry, tmp_path: Path, path: str, text: str
) -> None:
    place = tmp_path / "out" / path
    place.parent.mkdir(parents=True)
    place.write_text(text)
    command = ("push", "gen2", "--to", "out", "--registry", made.root)
    ran = cli(*command)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: out holds something that is not a published generation: {path}\n"
        "  → Name a new or empty folder with --to.\n"
    )
    assert contents(tmp_path / "out") == {path: text.encode()}
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("extra", ["notes.txt", "certificates/mine.txt", ".git/config", "ancestors/README.md"])
def test_a_publication_that_somebody_added_to_is_left_alone(made: Registry, published: Path, extra: str) -> None:
    (published / extra).parent.mkdir(exist_ok=True)
    (published / extra).write_text("mine")
    before = contents(published)
    with pytest.raises(RobustKTError, match=f"is not a published generation: {extra}"):
        api.push("gen2", to=published, registry=made)
    assert contents(published) == before


def test_an_empty_folder_is_taken_and_a_file_is_not(made: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    api.push("gen2", to=tmp_path / "empty", registry=made)
    assert (tmp_path / "empty" / "README.md").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RobustKTError, match="is not a published generation: file"):
        api.push("gen2", to=tmp_path / "file", registry=made)
    with pytest.raises(RobustKTError, match="cannot write"):
        api.push("gen2", to=tmp_path / "file" / "below", registry=made)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RobustKTError, match="is not a published generation: link"):
        api.push("gen2", to=tmp_path / "link", registry=made)


def test_a_full_disk_leaves_the_earlier_publication(
    made: Registry, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, refusals = contents(published), 0
    real = os.replace
    for fatal in range(100):
        calls: list[int] = []

        def full(*paths: Any, calls: list[int] = calls, fatal: int = fatal) -> None:
            calls.append(1)
            if len(calls) - 1 == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            refused = None
            try:
                api.push("gen1", to=published, registry=made)
            except RobustKTError as error:
                refused = error.what
        if len(calls) <= fatal:
            break
        assert refused is not None
        assert "No space left on device" in refused
        assert contents(published) == before
        assert {p.name for p in published.parent.iterdir()} == {"gen2"}
        refusals += 1
    assert refusals >= 8
    assert contents(published) != before


def test_what_a_killed_push_left_is_tidied_up(made: Registry, published: Path) -> None:
    from robustkt.hub.folder import _here

    before, parent = contents(published), published.parent
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".gen2-{_here()}-{os.getpid()}-01234567", f".gen2-0a0a0a0a-{dead.pid}-01234567", ".gen2-mine", ".gen20"]
    stale = [f".gen2-{_here()}-{dead.pid}-{'0' * 8}{end}" for end in ("", "-old")]
    for name in (*kept, *stale):
        (parent / name).mkdir()
        (parent / name / "part").write_text("half")
    api.push("gen2", to=published, registry=made)
    assert {p.name for p in parent.iterdir()} == {"gen2", *kept}
    os.replace(published, parent / stale[1])
    api.push("gen2", to=published, registry=made)
    assert contents(published) == before
    assert {p.name for p in parent.iterdir()} == {"gen2", *kept}


def test_damage_is_not_published(made: Registry, tmp_path: Path) -> None:
    shutil.copytree(made.root, tmp_path / "registry")
    registry = Registry(tmp_path / "registry")
    gen2 = registry.get("gen2")
    places = [
        registry.object_path(gen2.weights),
        registry.manifest_path(registry.get("gen0").id),
        registry.record_path(gen2.id),
        registry.results(gen2.id)[-1].path,
        registry.log_path(registry.results(gen2.id)[-1]),
    ]
    for place in places:
        whole = place.read_bytes()
        for damaged in (whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], None):
            place.write_bytes(damaged) if damaged else place.unlink()
            if damaged is None and place in places[2:4]:
                continue  # a record or a measurement that is not there is not claimed either
            with pytest.raises(IntegrityError, match=place.name):
                api.push("gen2", to=tmp_path / "out", registry=registry)
            assert not (tmp_path / "out").exists()
        place.write_bytes(whole)
    api.push("gen2", to=tmp_path / "out", registry=registry)


# -- reading it back ---------------------------------------------------------------------------------------------------


def test_the_network_read_back_gives_the_same_logits(made: Registry, published: Path) -> None:
    x = data.load("digits").test.images(slice(0, 50))
    ours, theirs = load_network(made, made.get("gen2")), hub.read_folder(published)
    assert not theirs.training
    with torch.no_grad():
        logits = theirs(x)
        assert torch.equal(logits, ours(x))
    assert logits.shape == (50, 10)
    assert logits.std() > 0.1


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_folder_that_was_tampered_with_is_refused(published: Path, name: str) -> None:
    path = published / name
    whole = path.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IntegrityError):
            hub.read_folder(published)
    path.write_bytes(whole[:-10])
    with pytest.raises(IntegrityError):
        hub.read_folder(published)
    path.unlink()
    with pytest.raises(NotFoundError, match=f"holds no {name}"):
        hub.read_folder(published)


def test_reading_runs_no_code(made: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.push("own", to=tmp_path / "own", registry=made)
    assert (tmp_path / "own" / "architecture.py.txt").read_bytes().startswith(b"from torch import nn")
    with pytest.raises(RobustKTError, match=r"is code of its author's own, net\.py:Net\nRead architecture\.py\.txt"):
        hub.read_folder(tmp_path / "own")
    gen2 = made.get("gen2")
    evil = replace(gen2, recipe=replace(gen2.recipe, arch="evil.py:Net"))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(evil.manifest())
    (folder / "model.safetensors").write_bytes(made.object(gen2.weights))
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef Net(): ...\n"
    )
    monkeypatch.chdir(folder)
    with pytest.raises(RobustKTError, match=r"is code, evil\.py:Net, and its manifest does not pin it"):
        hub.read_folder(Path("."))
    assert not (tmp_path / "ran").exists()


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gen2", "adv", "own"])
def test_nothing_published_names_a_machine_or_a_person(made: Registry, name: str) -> None:
    files = hub.folder_files(made, made.get(name))
    for path, file in files.items():
        content = file.read()
        for word in (PRIVATE, str(made.root.parent), "pytest-of", "pictures", "/home/"):
            assert word.encode() not in content, f"{word} in {path}"
    assert PRIVATE in made.record_path(made.get("own").id).read_text(), "at home it may be known"
    assert not json.loads(files["record.json"].read()).get("paths")


@pytest.mark.parametrize("name", ["gen0", "gen2", "adv", "own"])
def test_the_cards_front_matter_is_what_the_hub_reads(made: Registry, name: str) -> None:
    card = ModelCard(hub.folder_files(made, made.get(name))["README.md"].read().decode())
    told = card.data.to_dict()
    assert told["library_name"] == "robustkt"
    assert told["pipeline_tag"] == "image-classification"
    assert {"robustkt", "adversarial-robustness", made.get(name).recipe.method} <= set(told["tags"])
    assert ("randomized-smoothing" in told["tags"]) == (name in ("gen0", "gen2"))
    assert ("distillation" in told["tags"]) == (name == "gen2")
    assert card.data.eval_results is None or card.data.model_name
    assert card.text.strip().startswith(f"# {name}\n")
    assert ModelCard(str(card)).data.to_dict() == told


def test_markup_of_anybodys_making_is_text_in_the_card(made: Registry) -> None:
    from markdown_it import MarkdownIt

    from robustkt.card import model_card

    gen2 = made.get("gen2")
    evil = "a](http://e) <script>x</script> | 99 % | ``` **b** \\"
    recipe = replace(
        gen2.recipe, method=evil, arch=f"net.py:{evil}", arch_source=digest(b""),
        data=replace(gen2.recipe.data, name=evil), settings={**gen2.recipe.settings, evil: evil},
    )  # fmt: skip
    (evaluation,) = (r for r in made.results(gen2.id) if r.kind == "evaluation")
    figures = {
        "attacks": {evil if n == "fgsm" else n: a for n, a in evaluation.content["figures"]["attacks"].items()},
        "warnings": [evil],
    }
    result = replace(evaluation, content={**evaluation.content, "figures": figures})
    record = {"seconds": 1.0, "device": evil, "cost": {evil: 1}, "selected": {"epoch": 0, "metric": evil, "score": 0.5}}
    card = ModelCard(model_card(replace(gen2, recipe=recipe), [], record, [result], picture=None))
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    inside = [token for one in shown for token in [one, *(one.children or [])]]
    assert not {"html_block", "html_inline", "link_open", "image"} & {token.type for token in inside}
    texts = [part for one in shown if one.type == "inline" for part in one.children or [] if part.type != "code_inline"]
    plain = "".join(part.content for part in texts)
    assert plain.count(evil) >= 8
    (code,) = (token.content for token in shown if token.type == "fence" and "from_pretrained" in token.content)
    assert "script" not in code


def test_a_name_of_the_hub_is_given_for_data_that_have_one(made: Registry) -> None:
    gen2 = made.get("gen2")
    known = replace(gen2.recipe, data=replace(gen2.recipe.data, name="cifar10"))
    from robustkt.card import model_card

    card = ModelCard(model_card(replace(gen2, recipe=known), [], {}, [], picture=None))
    assert card.data.datasets == ["uoft-cs/cifar10"]
    assert "It took" not in card.text
    assert "## Certificates" not in card.text


def rows(section: str) -> list[list[str]]:
    """The cells of a Markdown table's body."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not set(line) <= set("|- ")][1:]


def test_every_number_in_the_cards_tables_is_in_the_records(made: Registry, published: Path) -> None:
    text = (published / "README.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    chain = [made.get(name) for name in ("gen2", "gen1", "gen0")]
    shown = [[g.id[7:19], g.recipe.method, g.recipe.arch, g.recipe.data.name, f"`{g.id[7:19]}`"] for g in chain]
    assert [row[1:] for row in rows(sections["Lineage"])] == [row[1:] for row in shown]
    gen2 = chain[0]
    certificates = [
        r for r in made.results(gen2.id, "certificate") if f"certificates/{r.path.name}" in contents(published)
    ]
    tables = re.split(r"^σ = ", sections["Certificates"], flags=re.MULTILINE)[1:]
    assert len(tables) == len(certificates) >= 3
    for table, result in zip(tables, certificates, strict=True):
        settings, figures = result.content["settings"], result.content["figures"]
        log = certlog.parse(made.log(result).decode())
        told = [
            f"{settings['sigma']}, {settings['mode']} procedure",
            f"n = {settings['n']}",
            f"α = {settings['alpha']}",
            f"{figures['images']} test images",
            {1: "every one", 2: "every 2nd", 45: "every 45th"}[settings["skip"]],
            f"average certified radius {sum(r.radius * r.correct for r in log) / len(log):.3f}",
            f"abstained on {sum(r.predict == -1 for r in log) / len(log):.1%}",
        ]
        assert [part for part in told if part not in table] == []
        for radius, value, interval in rows(table):
            share = sum(r.correct and r.radius >= float(radius) for r in log) / len(log)
            low, high = figures["intervals"][radius]
            assert value == f"{share:.1%}" == f"{figures['certified_accuracy'][radius]:.1%}"
            assert interval == f"{low:.1%} – {high:.1%}"
            assert low <= share <= high
        assert len(rows(table)) == len(figures["certified_accuracy"])
    (evaluation,) = made.results(gen2.id, "evaluation")
    attacks = evaluation.content["figures"]["attacks"]
    assert {name: value for name, value, _ in rows(sections["Accuracy under attack"])} == {
        name: f"{attack['accuracy']:.1%}" for name, attack in attacks.items()
    }
    assert (
        f"linf eps = 0.1, {evaluation.content['settings']['images']} test images" in sections["Accuracy under attack"]
    )
    record = made.record(gen2.id)
    training = sections["Training"]
    assert "1 epoch, seed 0, fp32; ce_weight 0.0, draws 1, match l2, sigma 0.25, temperature 1.0, views 1." in training
    assert f"({record['selected']['score']:.1%})" in training
    assert f"It took {record['seconds']:.1f} s on cpu" in training
    assert f"teacher forward {record['cost']['teacher_forward']:,}" in training
    assert gen2.recipe.data.fingerprint in training
    assert f"`{gen2.id}`" in sections["Use"]


def test_what_the_card_says_of_an_adversarial_and_of_a_foreign_network(made: Registry) -> None:
    card = hub.folder_files(made, made.get("adv"))["README.md"].read().decode()
    assert "trained against linf perturbations up to eps = 8/255" in card
    assert "not proven" in " ".join(card.split())
    assert "## Certificates" not in card
    warnings = made.results(made.get("adv").id)[0].content["figures"]["warnings"]
    assert card.count("> Warning: ") == len(warnings)
    card = hub.folder_files(made, made.get("own"))["README.md"].read().decode()
    assert "`net.py:Net`" in card
    assert "read it before you run it" in card
    assert "smoothed" not in card
    assert "on an image folder of its author's own (2 classes" in card
    assert "from 0: cat, dog." in card


def test_the_cards_lines_run_for_a_network_of_the_authors_own(
    made: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.push("own", to=tmp_path / "out", registry=made)
    monkeypatch.chdir(tmp_path / "out")
    Path("architecture.py.txt").rename("theirs.py")
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    ran: dict[str, Any] = {}
    exec(code, ran)
    assert ran["model"].classes == ("cat", "dog")
    assert ran["model"](torch.rand(2, 1, 8, 8)).shape == (2, 2)


def test_the_card_says_which_attacks_are_on_the_smoothed_classifier(made: Registry) -> None:
    from robustkt.card import model_card

    gen2 = made.get("gen2")
    (stored,) = (r for r in made.results(gen2.id) if r.kind == "evaluation")
    attacks = stored.content["figures"]["attacks"]
    figures = {**stored.content["figures"], "attacks": {**attacks, "smoothadv": {**attacks["fgsm"], "smoothed": True}}}
    smoothed = replace(stored, content={**stored.content, "figures": figures})
    assert "20 test images; smoothadv: the smoothed classifier:\n" in model_card(gen2, [], {}, [smoothed], picture=None)
    assert "20 test images:\n" in model_card(gen2, [], {}, [stored], picture=None)


def test_a_folder_that_cannot_be_pulled_alone_says_so(cli: Cli, made: Registry, tmp_path: Path) -> None:
    command = ("push", "gen2", "--to", "out", "--registry", made.root)
    assert "without the weights of gen1, gen0: a registry that lacks them cannot pull gen2" in cli(*command).err
    assert "without the weights" not in cli(*command, "--with-ancestors").err
    assert "without the weights" not in cli("push", "gen0", "--to", "first", "--registry", made.root).err
