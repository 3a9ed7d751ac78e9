"""What is pulled is believed in nothing: damage, forgeries and traps are refused before the registry sees them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from robustkt import api, certlog, data
from robustkt.api.loading import load_network
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.hub import folder_files
from robustkt.models import build
from robustkt.numbers import canonical, digest
from robustkt.registry import Registry, verify
from robustkt.registry.measurements import key_of
from robustkt.registry.seal import sealed
from tests.conftest import Ran
from tests.hubs import FEW, add, contents, kept, lineage, names, standing
from tests.hubstandin import Entry, HubStandIn

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return lineage(Registry(tmp_path_factory.mktemp("made") / "registry"))


@pytest.fixture(scope="module")
def whole(made: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "gen1"
    api.push("gen1", to=folder, with_ancestors=True, registry=made)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "theirs"))


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with standing() as found:
        yield found


def index_of(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "robustkt.json").read_bytes())
    del content["digest"]
    return content


def reindex(folder: Path, **changes: Any) -> None:
    """What somebody who forges a file does next: an index that fits, and no statement that does not."""
    for path in folder.rglob("provenance.json"):
        path.unlink()
    content = index_of(folder)
    files = {path: file for path, file in contents(folder).items() if path != "robustkt.json"}
    content["files"] = {path: {"hash": digest(file), "size": len(file)} for path, file in files.items()}
    (folder / "robustkt.json").write_bytes(sealed({**content, **changes}))


def refused(folder: Path, registry: Registry, what: str, kind: type[RobustKTError] = IntegrityError) -> None:
    with pytest.raises(kind, match=what):
        api.pull(str(folder), registry=registry)
    assert names(registry) == {}
    assert kept(registry) == {}


# -- damage and forgery ------------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_refused(folder: Path, registry: Registry) -> None:
    for path, file in contents(folder).items():
        for place in (0, len(file) // 2, len(file) - 1):
            (folder / path).write_bytes(file[:place] + bytes([file[place] ^ 1]) + file[place + 1 :])
            refused(folder, registry, "damaged|digest|JSON")
        (folder / path).write_bytes(file)
    api.pull(str(folder), registry=registry)


def test_a_missing_or_renamed_file_is_refused(folder: Path, registry: Registry) -> None:
    (old,) = folder.glob("certificates/*.json")
    new = old.with_name("certificate-0000000000000000.json")
    old.rename(new)
    refused(folder, registry, "is missing in")
    reindex(folder)
    refused(folder, registry, "is not under the key of its settings")
    new.rename(folder / "certificates" / "evaluation-00.json")
    reindex(folder)
    refused(folder, registry, "belongs to another generation, or under another name")


def forge(folder: Path, change: Callable[[certlog.Row], certlog.Row], *, figures: bool = True) -> None:
    """Other rows in gen1's certificate, everything that follows from them brought in line."""
    (header,) = folder.glob("certificates/*.json")
    (log,) = folder.glob("certificates/*.tsv")
    content = json.loads(header.read_bytes())
    del content["digest"]
    rows = [change(row) for row in certlog.parse(log.read_text())]
    text = certlog.text(rows).encode()
    log.unlink()
    new = log.with_name(f"{header.stem}-{digest(text)[7:15]}.tsv")
    new.write_bytes(text)
    content |= {"log": new.name, "log_hash": digest(text)}
    if figures:
        from robustkt.numbers import fraction

        radii = [fraction(r) for r in content["figures"]["certified_accuracy"]]
        content["figures"] = certlog.summarise(rows, radii)
    header.write_bytes(sealed(content))
    reindex(folder)


def test_forged_certificates_are_refused(folder: Path, registry: Registry, tmp_path: Path) -> None:
    def right(row: certlog.Row) -> certlog.Row:
        return replace(row, label=row.predict, correct=True) if row.predict >= 0 else row

    untouched = shutil.copytree(folder, tmp_path / "untouched")
    forge(folder, lambda row: row)
    api.pull(str(folder), registry=Registry(tmp_path / "same"))
    for change, figures, what in (
        (lambda row: replace(right(row), predict=row.label, correct=True, radius=0.5), False, "figures of .* are not"),
        (lambda row: replace(row, radius=9.0, predict=row.label, correct=True), True, "what its counts do not give"),
        (lambda row: replace(row, p_low=0.999, predict=row.label, correct=True), True, "what its counts do not give"),
        (lambda row: replace(row, correct=True), True, "what its counts do not give"),
        (lambda row: replace(row, idx=0), True, "is not of the images that its settings name"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(untouched, folder)
        forge(folder, change, figures=figures)
        refused(folder, registry, what)


def rewrite(folder: Path, kind: str, change: Callable[[dict[str, Any], list[list[str]]], Any]) -> None:
    """Another header and another log of gen2's measurement of a kind, sealed and indexed as its forger would."""
    (header,) = folder.glob(f"{kind}s/*.json")
    (log,) = folder.glob(f"{kind}s/*.tsv")
    content = json.loads(header.read_bytes())
    del content["digest"]
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    change(content, rows)
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    log.unlink()
    header.unlink()
    header = header.with_name(f"{kind}-{key_of(content['settings'])}.json")
    log = log.with_name(f"{header.stem}-{digest(text)[7:15]}.tsv")
    log.write_bytes(text)
    header.write_bytes(sealed({**content, "log": log.name, "log_hash": digest(text)}))
    reindex(folder)


def better(content: dict[str, Any], rows: list[list[str]]) -> None:
    content["figures"]["attacks"]["fgsm"]["accuracy"] = 0.999


def called(content: dict[str, Any], rows: list[list[str]], name: str) -> None:
    """The attack under another name, everywhere."""
    content["settings"]["attacks"] = ["clean", name]
    content["figures"]["attacks"][name] = content["figures"]["attacks"].pop("fgsm")
    rows[0][rows[0].index("fgsm")] = name


@pytest.fixture(scope="module")
def attacked(made: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gen2, which was attacked, its files rewritten once without a change, which is no forgery."""
    place = tmp_path_factory.mktemp("attacked")
    api.push("gen2", to=place / "gen2", with_ancestors=True, registry=made)
    rewrite(place / "gen2", "evaluation", lambda content, rows: None)
    api.pull(str(place / "gen2"), registry=Registry(place / "registry"))
    return place / "gen2"


EVALUATIONS: list[tuple[Callable[[dict[str, Any], list[list[str]]], Any], str]] = [
    (better, "figures of .* are not those of its log: attacks"),
    (lambda c, rows: c["figures"]["worst"].update(accuracy=0.9), "not those of its log: worst"),
    (lambda c, rows: c["figures"]["attacks"]["fgsm"].update(eps="8/255"), "not those of its log: attacks"),
    (lambda c, rows: c["settings"].update(images=9), "is not of the images"),
    (lambda c, rows: c["settings"].update(skip=1), "is not of the images"),
    (lambda c, rows: rows.pop(), "is not of the images|not those of its log"),
    (lambda c, rows: rows[1].__setitem__(1, "77"), "labels of no class"),
    (lambda c, rows: rows[1].__setitem__(2, "7"), "verdicts that are none|not those of its log"),
    (lambda c, rows: rows[1].append("1"), "cannot be read"),
    (lambda c, rows: rows[0].__setitem__(3, "pgd"), "cannot be read"),
    (lambda c, rows: c["settings"].update(attacks=["clean"]), "cannot be read"),
    (lambda c, rows: c["settings"].update(eps="lots"), "eps 'lots' is not a number"),
    (lambda c, rows: c["settings"].update(eps="0.10"), "is not in its one spelling"),
    (lambda c, rows: c["settings"].update(norm="\x1b[2J"), "settings.norm has unprintable characters"),
    (lambda c, rows: c["settings"].update(norm="l7"), "unknown norm 'l7'"),
    (lambda c, rows: c["settings"].update(domain="clean"), "measures something else than gen2"),
    (lambda c, rows: called(c, rows, "\x1b]0;owned\x07"), "attacks has unprintable characters"),
    (lambda c, rows: called(c, rows, "a" * 5_000), "attacks is too long"),
    (lambda c, rows: c["figures"].update(warnings=["fine\r\n# not"]), "warnings has unprintable characters"),
]


@pytest.mark.parametrize(("change", "what"), EVALUATIONS, ids=[str(i) for i in range(len(EVALUATIONS))])
def test_forged_evaluations_are_refused(
    attacked: Path, tmp_path: Path, registry: Registry, change: Callable[..., Any], what: str
) -> None:
    folder = Path(shutil.copytree(attacked, tmp_path / "theirs"))
    rewrite(folder, "evaluation", change)
    refused(folder, registry, what)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"alpha": 0.01}, "what its counts do not give"),
    ({"alpha_image": 0.4}, "cannot be read"),
    ({"n": 40}, "what its counts do not give"),
    ({"n": 10**12}, "cannot be read"),
    ({"n0": 11}, "what its counts do not give"),
    ({"mode": "adaptive"}, "what its counts do not give"),
    ({"mode": "unheard-of"}, "cannot be read"),
    ({"norm": "l1"}, "cannot be read"),
    ({"noise": "laplace", "norm": "l1"}, "what its counts do not give|figures of"),
    ({"skip": 2}, "is not of the images"),
    ({"domain": "clean"}, "measures something else than gen1"),
    ({"domain": "beta=0.4"}, "measures something else than gen1"),
    ({"corruption": "contrast:2"}, "measures something else than gen1"),
    ({"radii": ["-5"]}, "the radius -5 is below 0"),
    ({"precision": "fp32\n| fake | 100% |"}, "settings.precision has unprintable characters"),
    ({"precision": "](http://e) <script>"}, "the precision .* is none that is known"),
    ({"sigma": "0.25\r"}, "settings.sigma has unprintable characters"),
    ({"sigma": "\u0660.\u0662\u0665"}, "is not in its one spelling"),
]


@pytest.mark.parametrize(("settings", "what"), SETTINGS, ids=[str(s) for s, _ in SETTINGS])
def test_settings_that_are_not_the_logs_are_refused(
    folder: Path, registry: Registry, settings: dict[str, Any], what: str
) -> None:
    rewrite(folder, "certificate", lambda content, rows: content["settings"].update(settings))
    refused(folder, registry, what)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "is about other files than these"),
        (lambda s: s["subject"].pop(), "is about other files than these"),
        (lambda s: s["predicate"]["buildDefinition"]["externalParameters"]["recipe"].update(seed=7), "buildDefinition"),
        (lambda s: s["predicate"]["buildDefinition"]["resolvedDependencies"].pop(0), "buildDefinition"),
        (lambda s: s["predicate"]["runDetails"]["metadata"].update(startedOn="2020-01-01T00:00:00Z"), "runDetails"),
        (lambda s: s["predicate"]["runDetails"]["byproducts"].pop(), "runDetails"),
        (lambda s: s.update(predicateType="other"), "is no provenance statement"),
        (lambda s: s.update(predicate=[]), "does not agree"),
    ],
)
def test_a_statement_of_something_else_is_refused(
    folder: Path, registry: Registry, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    statement = json.loads((folder / "provenance.json").read_bytes())
    inside = folder / f"ancestors/{next(iter(index_of(folder)['ancestors']))[7:]}/provenance.json"
    for path in (folder / "provenance.json", inside):
        whole = path.read_bytes()
        statement = json.loads(whole)
        change(statement)
        path.write_bytes(canonical(statement))
        content = index_of(folder)
        name = path.relative_to(folder).as_posix()
        content["files"][name] = {"hash": digest(path.read_bytes()), "size": path.stat().st_size}
        before = (folder / "robustkt.json").read_bytes()
        (folder / "robustkt.json").write_bytes(sealed(content))
        if not (path == inside and what == "buildDefinition" and whole.count(b"teacher/") == 0):
            refused(folder, registry, what)
        path.write_bytes(whole)
        (folder / "robustkt.json").write_bytes(before)


def test_the_statement_tells_where_it_comes_from(folder: Path, made: Registry) -> None:
    statement = json.loads((folder / "provenance.json").read_bytes())
    gen0, gen1 = made.get("gen0"), made.get("gen1")
    files = contents(folder)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {one["name"]: f"sha256:{one['digest']['sha256']}" for one in statement["subject"]} == {
        name: digest(files[name]) for name in ("model.safetensors", "last.safetensors", "manifest.json")
    }
    definition, run = (statement["predicate"][part] for part in ("buildDefinition", "runDetails"))
    assert definition["externalParameters"]["recipe"] == json.loads(gen1.manifest())["recipe"]
    dependencies = {one["name"]: one["digest"] for one in definition["resolvedDependencies"]}
    assert dependencies["teacher/manifest.json"] == {"sha256": gen0.id[7:]}
    assert dependencies["teacher/model.safetensors"] == {"sha256": gen0.weights[7:]}
    assert dependencies["data/digits"] == {"sha256": gen1.recipe.data.fingerprint[7:]}
    assert run["metadata"] == {"startedOn": "2026-01-01T00:00:00Z", "robustkt_seconds": 1.5}
    assert {one["name"] for one in run["byproducts"]} == {
        path for path in files if path == "record.json" or path.startswith("certificates/")
    }


def test_what_is_forged_from_the_votes_on_is_caught_by_audit(folder: Path, registry: Registry) -> None:
    from robustkt.certificates import Ball, lower_bound
    from robustkt.noises import named
    from robustkt.numbers import noise_level

    ball = Ball(named("gaussian", noise_level("0.25")), "l2", (1, 8, 8))

    def unanimous(row: certlog.Row) -> certlog.Row:
        bound = lower_bound(50, 50, 0.001)
        return replace(row, predict=row.label, correct=True, successes=50, trials=50, drawn=60, p_low=bound,
                       radius=ball.radius(bound))  # fmt: skip

    forge(folder, unanimous)
    api.pull(str(folder), registry=registry)
    told = api.audit_generation("gen1", registry=registry, n=200, device="cpu", seed=1)
    assert told["problems"]
    assert api.show("gen1", registry)["certificates"][0]["claimed"], "it stays a claim"


def test_forged_labels_are_caught_by_audit(folder: Path, registry: Registry, made: Registry) -> None:
    """Accuracies follow from the labels of the log; only the data tell that they are not theirs."""
    truth = certlog.parse(made.log(made.results(made.get("gen1").id)[0]).decode())[0].label
    forge(folder, lambda row: replace(row, label=(truth + 1) % 10, correct=False) if row.idx == 0 else row)
    api.pull(str(folder), registry=registry)
    told = api.audit_generation("gen1", registry=registry, n=200, device="cpu", seed=1)
    assert told["problems"] == ["the log gives another label than the data to image 0"]
    assert api.show("gen1", registry)["certificates"][0]["claimed"], "it stays a claim"


def test_a_file_of_somebody_else_is_refused(folder: Path, registry: Registry, made: Registry) -> None:
    gen0 = made.get("gen0")
    (folder / "model.safetensors").write_bytes(made.object(gen0.weights))
    reindex(folder)
    refused(folder, registry, "model.safetensors is not what the manifest of gen1 names")
    (folder / "manifest.json").write_bytes(gen0.manifest())
    reindex(folder)
    refused(folder, registry, "is not the one that its id names")


def test_the_ancestry_must_connect(folder: Path, registry: Registry, made: Registry) -> None:
    index = index_of(folder)
    stranger = made.get("gen2")
    reindex(folder, ancestors={})
    refused(folder, registry, "the ancestor .* of gen1 is missing")
    (folder / f"ancestors/{stranger.id[7:]}.json").write_bytes(stranger.manifest())
    reindex(folder, ancestors={**index["ancestors"], stranger.id: {"names": ["gen2"], "repo": None}})
    refused(folder, registry, "no ancestors of gen1")


# -- traps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["../evil", "/tmp/evil", "certificates/../../evil.json", "a.pkl", "ancestors/x.json", ".git/config", "net.py"],
)
def test_an_index_cannot_name_any_place(folder: Path, registry: Registry, path: str) -> None:
    content = index_of(folder)
    content["files"][path] = {"hash": digest(b""), "size": 0}
    (folder / "robustkt.json").write_bytes(sealed(content))
    refused(folder, registry, "is not the index of a publication")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"format": 3}, "format 3"),
        ({"format": True}, "format True"),
        ({"generation": "../x"}, "is not the index"),
        ({"names": ["../x"]}, "is not the index"),
        ({"names": "gen1"}, "is not the index"),
        ({"names": ["latest"]}, "is not the index"),
        ({"files": []}, "is not the index"),
        ({"files": {"manifest.json": {"hash": "sha256:" + "0" * 64, "size": 10**9}}}, "is not the index"),
        ({"ancestors": {"x": {}}}, "is not the index"),
        ({"license": 5}, "is not the index"),
    ],
)
def test_an_index_that_is_none(folder: Path, registry: Registry, changes: dict[str, Any], what: str) -> None:
    (folder / "robustkt.json").write_bytes(sealed({**index_of(folder), **changes}))
    refused(folder, registry, what)


def test_huge_and_deep_json_is_refused(folder: Path, registry: Registry) -> None:
    path = folder / "robustkt.json"
    path.write_bytes(b" " * (16 * 2**20 + 1))
    refused(folder, registry, "larger than any index")
    deep = b'{"x":' + b"[" * 100_000 + b"]" * 100_000
    path.write_bytes(deep + b',"digest":"' + digest(deep + b"}").encode() + b'"}')
    refused(folder, registry, "not the JSON")


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04pickle",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        pickle.dumps({"w": 1}),
        *(
            len(header).to_bytes(8, "little") + header + bytes(8)
            for header in (
                b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
                b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,8]}}',
                b'{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,8]}}',
                b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                b"{}",
            )
        ),
    ],
)
def test_lying_headers_are_refused(made: Registry, folder: Path, registry: Registry, weights: bytes) -> None:
    evil = replace(made.get("gen0"), weights=digest(weights), last_weights=digest(weights))
    for path in contents(folder):
        (folder / path).unlink()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "manifest.json").write_bytes(evil.manifest())
    (folder / "record.json").write_bytes(sealed({"format": 1, "name": "x"}))
    index = {"format": 1, "generation": evil.id, "names": ["evil"], "license": None, "ancestors": {}, "files": {}}
    (folder / "robustkt.json").write_bytes(sealed(index))
    reindex(folder)
    refused(folder, registry, "is no safetensors file|holds no tensors")


def test_links_are_not_followed(folder: Path, registry: Registry) -> None:
    (folder / "record.json").rename(folder.parent / "record.json")
    os.symlink(folder.parent / "record.json", folder / "record.json")
    refused(folder, registry, r"record\.json in .* is a link")
    (folder / "record.json").unlink()
    (folder.parent / "record.json").rename(folder / "record.json")
    for name in ("certificates", "robustkt.json"):
        (folder / name).rename(folder.parent / name)
        os.symlink(folder.parent / name, folder / name)
        refused(folder, registry, rf"{name} in .* is a link")
        (folder / name).unlink()
        (folder.parent / name).rename(folder / name)
    api.pull(str(folder), registry=registry)


def test_a_folder_that_is_refused_leaves_no_copy(folder: Path, registry: Registry) -> None:
    (folder / "record.json").write_bytes(b"{}")
    reindex(folder)
    with pytest.raises(IntegrityError):
        api.pull(str(folder), registry=registry)
    jobs = registry.job_path("pull", "x").parent
    assert not [path for path in jobs.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_folder_that_is_written_as_a_repository(
    cli: Cli, folder: Path, registry: Registry, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "a").mkdir()
    shutil.copytree(folder, folder.parent / "a" / "b")
    for name in ("theirs", "a/b"):
        ran = cli("pull", name, "--registry", registry.root)
        assert ran.code in (1, 2)
        assert f"→ For the folder that is here: robustkt pull ./{name}" in ran.err
    assert "ORG/NAME" in cli("pull", "nowhere", "--registry", registry.root).err
    assert cli("pull", "./a/b", "--registry", registry.root).code == 0


def test_a_second_pull_says_what_is_still_claimed(cli: Cli, folder: Path, registry: Registry) -> None:
    for told in ("1 new: 1 measurement to be", "0 new, 1 still claimed: 1 measurement to be"):
        ran = cli("pull", folder, "--registry", registry.root)
        assert told in ran.out, ran.out + ran.err
    api.certify("gen1", sigma="0.25", mode="fixed", registry=registry, **FEW)
    again = api.pull(str(folder), registry=registry)
    assert (again["claimed"], again["still_claimed"]) == ([], [])


def test_what_is_none_of_a_publication_is_left(cli: Cli, hub: HubStandIn, made: Registry, tmp_path: Path) -> None:
    api.push("gen0", registry=made)
    repo = hub.repos["model", "alice/gen0"]
    tree = dict(repo.commits[repo.branches["main"]].tree)
    for name in ("evil.py", "pytorch_model.bin", "../../up", "adapter.pkl"):
        tree[name] = Entry(hub.put_git(b"import os"), 9)
    hub.add_commit(repo, "main", tree, "more", "", "alice")
    hub.requests.clear()
    ran = cli("pull", "alice/gen0", "--registry", tmp_path / "r")
    assert ran.code == 0, ran.err
    assert "4 files that no publication has, left out, as" in ran.err
    assert not [call for call in hub.calls() if "evil" in call or "pickle" in call or "pkl" in call or "/up" in call]
    assert verify(Registry(tmp_path / "r")) == []


def test_a_hub_that_sends_other_bytes_is_noticed(hub: HubStandIn, made: Registry, tmp_path: Path) -> None:
    told = api.push("gen0", registry=made)
    tree = hub.repos["model", "alice/gen0"].commits[told["commit"]].tree
    places = [hub.lfs_path(tree["model.safetensors"].sha256 or ""), hub.root / "git" / tree["manifest.json"].oid]
    for number, place in enumerate(places):
        registry = Registry(tmp_path / str(number))
        data = place.read_bytes()
        place.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        with pytest.raises(IntegrityError, match=r"damaged|is not what its index names"):
            api.pull("alice/gen0", registry=registry)
        assert names(registry) == {}
        place.write_bytes(data)
    api.pull("alice/gen0", registry=registry)


def test_code_is_kept_and_not_run(registry: Registry, tmp_path: Path, made: Registry) -> None:
    gen0, theirs = made.get("gen0"), Registry(tmp_path / "theirs")
    source = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\ndef Net(channels, classes): ...\n"
    recipe = replace(gen0.recipe, arch="net.py:Net", arch_source=theirs.put_object(source.encode()))
    for identity in (gen0.weights, gen0.last_weights):
        theirs.put_object(made.object(identity))
    theirs.add(replace(gen0, name="own", recipe=recipe), {})
    api.push("own", to=tmp_path / "out", registry=theirs)
    assert 'arch="theirs.py:Net"' in (tmp_path / "out" / "README.md").read_text()
    api.pull(str(tmp_path / "out"), registry=registry)
    own = registry.get("own")
    assert registry.object(own.recipe.arch_source or "") == source.encode()
    with pytest.raises(UsageError, match=r"is code, .*, that you have not run here"):
        load_network(registry, own)
    from robustkt import RobustModel
    from robustkt.models import build

    with pytest.raises(RobustKTError, match=r"code of its author's own[^\0]*arch='FILE.py:NAME'"):
        RobustModel.from_pretrained(tmp_path / "out")
    network = build("smallcnn", recipe.data).network
    model = RobustModel.from_pretrained(tmp_path / "out", arch=network)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert not (tmp_path / "ran").exists()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_figures_are_claims_until_they_are_made_again(cli: Cli, folder: Path, registry: Registry) -> None:
    told = api.pull(str(folder), registry=registry)
    assert [name.partition("-")[0] for name in told["claimed"]] == ["certificate"]
    shown = api.show("gen1", registry)
    assert shown["certificates"][0]["claimed"].startswith("folder/theirs@")
    assert shown["pulled"]["repo"] == "folder/theirs"
    assert "claimed by folder/theirs@" in " ".join(cli("show", "gen1", "--registry", registry.root).out.split())
    listed = cli("list", "--registry", registry.root).out
    assert "†" in listed
    assert "claimed by who published it" in listed
    api.push("gen1", to=folder.parent / "again", registry=registry)
    card = (folder.parent / "again" / "README.md").read_text()
    assert "**Claimed** by folder/theirs@" in card
    assert "model-index" not in card
    before = kept(registry)
    assert not api.certify("gen1", sigma="0.25", mode="fixed", registry=registry, **FEW)["reused"]
    assert api.show("gen1", registry)["certificates"][0]["claimed"] is None
    assert set(kept(registry)) == set(before)
    assert "†" in cli("list", "--registry", registry.root).out, "gen0's is a claim still"
    api.pull(str(folder), registry=registry)
    assert api.show("gen1", registry)["certificates"][0]["claimed"] is None, "a pull does not undo a measurement"
    assert verify(registry) == []


def test_a_claim_passes_no_gate(folder: Path, registry: Registry, made: Registry) -> None:
    from robustkt.api.pairing import common

    api.pull(str(folder), registry=registry)
    assert common(made, made.get("gen0"), made.get("gen1")).shared
    assert not common(registry, registry.get("gen0"), registry.get("gen1")).shared


def test_audit_settles_a_claim(folder: Path, registry: Registry) -> None:
    api.pull(str(folder), registry=registry)
    assert not api.audit_generation("gen1", registry=registry, n=200, device="cpu", seed=1)["problems"]
    rows = certlog.parse(registry.log(registry.results(registry.get("gen1").id)[0]).decode())
    tested = any(row.predict >= 0 for row in rows)
    assert (api.show("gen1", registry)["certificates"][0]["claimed"] is None) == tested


def test_names_tags_and_revisions(cli: Cli, hub: HubStandIn, made: Registry, registry: Registry) -> None:
    first = api.push("gen0", repo="alice/x", tag="v1", registry=made)["commit"]
    add(registry, "gen0", 99)
    mine = names(registry)
    with pytest.raises(RobustKTError, match="the name gen0 belongs to another generation"):
        api.pull("alice/x", registry=registry)
    assert names(registry) == mine
    told = api.pull("alice/x@v1", name="theirs", registry=registry)
    assert (told["generation"], told["commit"], told["revision"]) == ("theirs", first, "v1")
    assert api.pull("alice/x@v1", name="theirs", registry=registry)["new"] is False
    second = api.push("gen1", repo="alice/x", registry=made)["commit"]
    repo = hub.repos["model", "alice/x"]
    repo.tags["v1"] = second
    ran = cli("pull", "alice/x@v1", "--registry", registry.root)
    assert ran.code == 1
    assert f"alice/x@v1 has moved since it was pulled here from {first[:12]}" in ran.err
    assert f"robustkt pull alice/x@{second}" in ran.err
    assert api.pull(f"alice/x@{first}", name="theirs", registry=registry)["commit"] == first
    del repo.commits[first]
    with pytest.raises(NotFoundError, match="is not there, or no longer"):
        api.pull(f"alice/x@{first}", name="theirs", registry=registry)


@pytest.mark.parametrize("asked", ["gen0", None])
def test_the_name_that_was_asked_for_goes_to_nobody_else(folder: Path, registry: Registry, asked: str | None) -> None:
    index = index_of(folder)
    (teacher,) = index["ancestors"]
    if asked is None:  # an ancestor that says it is called as the generation itself
        index["ancestors"][teacher]["names"] = ["gen1", "older"]
        (folder / "robustkt.json").write_bytes(sealed(index))
    told = api.pull(str(folder), name=asked, registry=registry)
    assert told["generation"] == (asked or "gen1")
    assert names(registry) == {told["generation"]: told["id"], **({} if asked else {"older": teacher})}
    assert told["nameless"] == [told["generation"]]
    assert registry.get(told["generation"]).parents == {"teacher": teacher}
    assert told["new"] is True


@pytest.mark.parametrize("name", ["latest", "../x", "a b", ""])
def test_names_that_nothing_can_have(folder: Path, registry: Registry, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a generation's name"):
        api.pull(str(folder), name=name, registry=registry)
    assert not registry.exists


def test_ancestors_that_are_nowhere(hub: HubStandIn, made: Registry, registry: Registry) -> None:
    api.push("gen1", registry=made)
    with pytest.raises(NotFoundError, match=r"the weights of gen0, an ancestor, are not in .*\nPull it first"):
        api.pull("alice/gen1", registry=registry)
    assert names(registry) == {}
    api.push("gen0", repo="alice/base", registry=made)
    api.pull("alice/base", registry=registry)
    api.pull("alice/gen1", registry=registry)
    assert list(names(registry)) == ["gen0", "gen1"]


# -- licences and metadata ---------------------------------------------------------------------------------------------


def test_a_teachers_licence_binds_its_students(hub: HubStandIn, tmp_path: Path, registry: Registry) -> None:
    theirs = lineage(Registry(tmp_path / "nc"), license="CC-BY-NC-SA-4.0")
    with pytest.raises(RobustKTError, match=r"gen0 is under cc-by-nc-sa-4.0, which does not allow gen2"):
        api.push("gen2", license="mit", registry=theirs)
    assert hub.repos == {}
    told = api.push("gen2", with_ancestors=True, registry=theirs)
    assert "\nlicense: cc-by-nc-sa-4.0\n" in told["card"]
    api.pull("alice/gen2", registry=registry)
    student = add(registry, "gen3", 7, registry.get("gen2"))
    with pytest.raises(RobustKTError, match="does not allow gen3"):
        api.push(student.name, license="apache-2.0", registry=registry)


def test_an_imported_ancestors_licence_binds_its_students(hub: HubStandIn, tmp_path: Path, registry: Registry) -> None:
    """Its licence is in its manifest, so that no run record, claim or index can take it away."""
    theirs = Registry(tmp_path / "theirs")
    checkpoint = tmp_path / "weights.pt"
    torch.manual_seed(0)
    torch.save(build("smallcnn", data.load("digits").spec).network.state_dict(), checkpoint)
    api.import_generation(
        str(checkpoint), arch="smallcnn", data="digits", sigma="0.25", normalization="data",
        license="CC BY-NC 4.0", name="base", device="cpu", registry=theirs,
    )  # fmt: skip
    student = add(theirs, "student", 1, theirs.get("base"))
    add(theirs, "grandchild", 2, student)
    for name in ("base", "student", "grandchild"):
        with pytest.raises(RobustKTError, match=rf"base is under cc-by-nc-4\.0, which does not allow {name}"):
            api.push(name, license="apache-2.0", registry=theirs)
    assert hub.repos == {}
    told = api.push("base", registry=theirs)
    assert "whose weights were imported from `file` by robustkt" in told["card"]
    assert "trained by" not in told["card"]
    told = api.push("student", with_ancestors=True, registry=theirs)
    assert "\nlicense: cc-by-nc-4.0\n" in told["card"]
    place = tmp_path / "out"
    api.push("student", with_ancestors=True, to=place, registry=theirs)
    reindex(place, license="mit")
    api.pull(str(place), registry=registry)
    with pytest.raises(RobustKTError, match=r"base is under cc-by-nc-4\.0, .* student"):
        api.push("student", license="mit", registry=registry)
    assert "\nlicense: cc-by-nc-4.0\n" in api.push("student", dry_run=True, registry=registry)["card"]


def test_what_an_earlier_version_wrote_is_read(folder: Path, registry: Registry) -> None:
    content = index_of(folder)
    content["licence"] = "cc-by-nc-4.0"
    del content["license"]
    (folder / "robustkt.json").write_bytes(sealed(content))
    api.pull(str(folder), registry=registry)
    (path, *_) = sorted((registry.root / "claims").glob("*.json"))
    told = json.loads(path.read_bytes())
    assert told["license"] == "cc-by-nc-4.0"
    assert "licence" not in told
    for one in (registry.root / "claims").glob("*.json"):
        content = json.loads(one.read_bytes())
        older = {key: value for key, value in content.items() if key not in ("digest", "license")}
        one.write_bytes(sealed({**older, "licence": "cc-by-nc-4.0"}))
    with pytest.raises(RobustKTError, match=r"is under cc-by-nc-4\.0"):
        api.push("gen1", license="mit", to=folder.parent / "out", registry=registry)


def test_the_card_validates_and_says_what_the_records_say(hub: HubStandIn, made: Registry) -> None:
    from huggingface_hub import EvalResult, ModelCard

    for name in ("gen0", "gen1"):
        api.push(name, registry=made)
    told = api.push("gen2", license="apache-2.0", registry=made)
    card = ModelCard(told["card"])
    found = card.data
    assert found.base_model == ["alice/gen1"] or found.base_model == "alice/gen1"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert (found.license, found.library_name, found.pipeline_tag) == ("apache-2.0", "robustkt", "image-classification")
    assert "[gen1](https://huggingface.co/alice/gen1)" in card.text
    assert '"alice/gen2"' in card.text
    gen2 = made.get("gen2")
    (certificate,), (evaluation,) = made.results(gen2.id, "certificate"), made.results(gen2.id, "evaluation")
    expected = {
        f"Certified accuracy @ r={r} (l2, σ=0.25)": value
        for r, value in certificate.content["figures"]["certified_accuracy"].items()
    }
    attacks = evaluation.content["figures"]["attacks"]
    expected |= {
        "Accuracy": attacks["clean"]["accuracy"],
        "Robust accuracy, fgsm, linf eps 0.1": attacks["fgsm"]["accuracy"],
    }
    assert found.model_name == "gen2"
    assert all(isinstance(result, EvalResult) for result in found.eval_results)
    assert {result.metric_name: result.metric_value for result in found.eval_results} == expected
    assert any("validate-yaml" in call and "200" in call for call in hub.calls())


def test_a_damaged_claim_is_damage(folder: Path, registry: Registry) -> None:
    api.pull(str(folder), registry=registry)
    (path, _) = sorted((registry.root / "claims").glob("*.json"))
    path.write_bytes(canonical({"format": 1}))
    assert [f.path for f in verify(registry) if f.damage and f.path == path]


# -- from Python -------------------------------------------------------------------------------------------------------


def test_published_networks_are_ready_modules(hub: HubStandIn, made: Registry, tmp_path: Path) -> None:
    from robustkt import RobustModel, SmoothedClassifier

    first = api.push("gen0", registry=made)["commit"]
    x = data.load("digits").test.images(slice(0, 4))
    cache = tmp_path / "cache"
    for name in ("alice/gen0", f"alice/gen0@{first}"):
        model = RobustModel.from_pretrained(name, cache_dir=cache)
        assert not model.training
        assert model.classes == made.get("gen0").recipe.data.classes
        with torch.no_grad():
            assert torch.equal(model(x), load_network(made, made.get("gen0"))(x))
    offline = RobustModel.from_pretrained("alice/gen0", cache_dir=cache, local_files_only=True, revision=first)
    assert set(offline.state_dict()) == set(load_network(made, made.get("gen0")).state_dict())
    with pytest.raises(NotFoundError, match="is not in the cache"):
        RobustModel.from_pretrained("alice/gen9", cache_dir=cache, local_files_only=True, revision=first)
    with pytest.raises(NotFoundError, match="there is no repository alice/gen9"):
        RobustModel.from_pretrained("alice/gen9", cache_dir=cache)
    classifier = SmoothedClassifier.from_pretrained("alice/gen0", cache_dir=cache, device="cpu", n=200)
    answers = [classifier.predict(image) for image in x]
    assert [a.label for a in answers] == [classifier.predict(image).label for image in x]
    assert all(a.label is None or 0 <= a.label < 10 for a in answers)
    assert all(a.radius == 0 for a in answers if a.label is None)
    for wrong in (x, x[0] * 255, (x[0] * 255).to(torch.uint8), x[0, :, :4]):
        with pytest.raises(UsageError, match="predict takes one image"):
            classifier.predict(wrong)


def test_a_damaged_cache_of_this_disk_is_not_the_publishers_fault(
    hub: HubStandIn, made: Registry, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from robustkt import RobustModel

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = api.push("gen0", registry=made)["commit"]
    for path in index_of_files(made):
        hub_client().hf_hub_download("alice/gen0", path, revision=commit)
    for blob in cache.rglob("blobs/*"):
        whole = blob.read_bytes()
        blob.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    with pytest.raises(IntegrityError, match=r"force_download=True"):
        RobustModel.from_pretrained("alice/gen0")
    api.pull("alice/gen0", registry=registry)
    assert kept(registry).keys() <= kept(made).keys()
    assert all(data == kept(made)[path] for path, data in kept(registry).items())
    fresh = RobustModel.from_pretrained("alice/gen0", force_download=True)
    assert set(fresh.state_dict()) == set(RobustModel.from_pretrained("alice/gen0").state_dict())


def index_of_files(made: Registry) -> list[str]:
    return [*folder_files(made, made.get("gen0")), "robustkt.json"]


def hub_client() -> HfApi:
    return HfApi(endpoint=os.environ["HF_ENDPOINT"], token=os.environ["HF_TOKEN"])


def test_what_is_damaged_on_the_hub_is_fetched_twice_and_then_refused(
    hub: HubStandIn, made: Registry, registry: Registry
) -> None:
    api.push("gen0", registry=made)
    repo = hub.repos["model", "alice/gen0"]
    tree = dict(repo.commits[repo.branches["main"]].tree)
    (record,) = (path for path in tree if path == "record.json")
    size = tree[record].size
    hub.add_commit(repo, "main", {**tree, record: Entry(hub.put_git(b" " * size), size)}, "other", "", "alice")
    with pytest.raises(IntegrityError, match=r"record\.json in .* is damaged: .*\nDo not trust it"):
        api.pull("alice/gen0", registry=registry)
    assert sum("GET" in call and "record.json" in call for call in hub.calls()) == 2
    assert kept(registry) == {}


def test_a_folder_that_is_not_there_is_no_repository(tmp_path: Path) -> None:
    from robustkt import RobustModel

    for name in (f"{tmp_path}/nope", "./nope", "~/nope"):
        with pytest.raises(NotFoundError, match=r"there is no folder .*nope\nGive a published folder, or ORG/NAME"):
            RobustModel.from_pretrained(name)
    with pytest.raises(NotFoundError, match=r"holds no manifest\.json\nName the folder of a published generation"):
        RobustModel.from_pretrained(tmp_path)
