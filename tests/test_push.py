"""A lineage goes to the Hub and comes back with nothing lost, against a real server on loopback."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustkt import api
from robustkt.cli.hubtables import short
from robustkt.errors import RobustKTError
from robustkt.numbers import digest
from robustkt.registry import Registry, verify
from tests.conftest import Ran
from tests.hubs import contents, kept, lineage, names, standing
from tests.hubstandin import Entry, HubStandIn

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return lineage(Registry(tmp_path_factory.mktemp("made") / "registry"))


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with standing() as found:
        yield found


def push_all(made: Registry) -> None:
    for name in ("gen0", "gen1", "gen2"):
        api.push(name, registry=made)


def test_a_lineage_of_three_comes_back_byte_for_byte(hub: HubStandIn, made: Registry, registry: Registry) -> None:
    push_all(made)
    for name in ("gen0", "gen1", "gen2"):
        api.pull(f"alice/{name}", registry=registry)
    assert kept(registry) == kept(made)
    assert list(names(registry).items()) == list(names(made).items())
    assert verify(registry) == []


def test_the_last_one_brings_its_ancestors_along(hub: HubStandIn, made: Registry, registry: Registry) -> None:
    push_all(made)
    told = api.pull("alice/gen2", registry=registry)
    assert told["ancestors"] == ["gen0", "gen1"]
    assert kept(registry) == kept(made)
    assert list(names(registry).items()) == list(names(made).items())
    assert verify(registry) == []


def test_one_repository_with_ancestors_is_enough(cli: Cli, hub: HubStandIn, made: Registry, registry: Registry) -> None:
    ran = cli("push", "gen2", "--with-ancestors", "--registry", made.root)
    assert ran.code == 0, ran.err
    ran = cli("pull", "alice/gen2", "--registry", registry.root)
    assert ran.code == 0, ran.err
    assert "claimed" in ran.out
    assert kept(registry) == kept(made)
    assert list(names(registry).items()) == list(names(made).items())
    assert verify(registry) == []
    assert len(hub.repos["model", "alice/gen2"].commits) == 2, "the initial one and ours"


@pytest.mark.parametrize(
    ("options", "call"), [({"part_size": 40_000}, "/part/2"), ({"cdn": True}, "/_cdn/")], ids=["parts", "cdn"]
)
def test_other_ways_for_large_files(
    cli: Cli, made: Registry, registry: Registry, options: dict[str, Any], call: str
) -> None:
    with standing(**options) as hub:
        for command in (f"push gen0 --registry {made.root}", f"pull alice/gen0 --registry {registry.root} --json"):
            ran = cli(*command.split())
            assert ran.code == 0, ran.err
            assert hub.token not in ran.out + ran.err
        arrived(hub, call, made, registry)


def arrived(hub: HubStandIn, call: str, made: Registry, registry: Registry) -> None:
    """The other way was gone, by nobody with a token for the Hub, and the file came back."""
    assert call in " ".join(hub.calls())
    assert not [r for r in hub.requests if r["path"].startswith("/_cdn") and r["auth"]], "a token for a stranger"
    gen0 = registry.get("gen0")
    assert registry.object(gen0.weights) == made.object(gen0.weights)
    assert verify(registry) == []


def test_xet_for_large_files(made: Registry, registry: Registry, tmp_path: Path) -> None:
    """In a process of its own: the Hub's client is told of Xet when it is imported."""
    with HubStandIn(xet=True) as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home"), "HF_HUB_DISABLE_XET": "0"}
        commands = [["push", "gen0", "--registry", str(made.root)]]
        commands += [["pull", "alice/gen0", "--registry", str(registry.root), "--json"]]
        code = (
            "from robustkt.cli import application\n"
            f"for words in {commands!r}:\n"
            "    assert not application(words[0])(words, standalone_mode=False), words\n"
        )
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert hub.token not in ran.stdout + ran.stderr
        arrived(hub, "xet-write-token", made, registry)


def test_what_is_there_is_not_sent_again(hub: HubStandIn, made: Registry) -> None:
    first = api.push("gen0", registry=made)
    assert first["created"]
    assert all(file["sent"] for file in first["files"])
    hub.requests.clear()
    second = api.push("gen0", registry=made)
    assert not second["created"]
    assert second["commit"] == first["commit"]
    assert not any(file["sent"] for file in second["files"])
    assert [c for c in hub.calls() if "/commit/" in c or "preupload" in c or "PUT" in c] == []
    told = api.push("gen0", registry=made, dry_run=True)
    assert not any(file["sent"] for file in told["files"])


def test_a_folder_is_pulled_too(made: Registry, registry: Registry, tmp_path: Path) -> None:
    api.push("gen2", to=tmp_path / "out", with_ancestors=True, registry=made)
    api.pull(str(tmp_path / "out"), registry=registry)
    assert kept(registry) == kept(made)
    assert names(registry) == names(made)


# -- where it goes, and what is refused --------------------------------------------------------------------------------


def test_branch_tag_message_and_collection(hub: HubStandIn, made: Registry) -> None:
    told = api.push("gen0", revision="next", tag="v3", message="Third", collection="Digits", registry=made)
    repo = hub.repos["model", "alice/gen0"]
    assert repo.branches["next"] == told["commit"] == repo.tags["v3"]
    assert repo.commits[told["commit"]].title == "Third"
    assert set(repo.commits[repo.branches["main"]].tree) == {".gitattributes"}
    assert [item["id"] for item in hub.collections[told["collection"]]["items"]] == ["alice/gen0"]
    again = api.push("gen0", revision="next", tag="v3", collection="Digits", registry=made)
    assert (again["commit"], again["created"]) == (told["commit"], False)
    api.push("gen1", revision="next", repo="alice/gen0", registry=made)
    with pytest.raises(RobustKTError, match="the tag v3 of alice/gen0 is at another commit"):
        api.push("gen1", revision="next", repo="alice/gen0", tag="v3", registry=made)


def test_private_and_proposed(hub: HubStandIn, made: Registry) -> None:
    api.push("gen0", private=True, registry=made)
    assert hub.repos["model", "alice/gen0"].private
    api.push("gen1", registry=made)
    with pytest.raises(RobustKTError, match="for everybody to see"):
        api.push("gen1", private=True, registry=made)
    hub.create("model", "bob/theirs", private=False, author="bob")
    with pytest.raises(RobustKTError, match=r"you may not do that with bob/theirs.*\n.*write access"):
        api.push("gen1", repo="bob/theirs", registry=made)
    told = api.push("gen1", repo="bob/theirs", create_pr=True, registry=made)
    assert told["pr"].endswith("/bob/theirs/discussions/1")
    repo = hub.repos["model", "bob/theirs"]
    assert set(repo.commits[repo.branches["main"]].tree) == {".gitattributes"}
    assert "robustkt.json" in repo.commits[repo.branches["refs/pr/1"]].tree


def test_an_earlier_publication_is_replaced_and_something_else_is_not(hub: HubStandIn, made: Registry) -> None:
    api.push("gen2", repo="alice/x", with_ancestors=True, registry=made)
    told = api.push("gen0", repo="alice/x", registry=made)
    assert len(told["removed"]) > 10
    tree = hub.repos["model", "alice/x"].commits[told["commit"]].tree
    assert set(tree) == {".gitattributes", *(file["path"] for file in told["files"])}
    theirs = hub.create("model", "alice/y", private=False, author="alice")
    hub.add_commit(theirs, "main", {"notes.txt": Entry(hub.put_git(b"mine"), 4)}, "notes", "", "alice")
    with pytest.raises(RobustKTError, match=r"alice/y is taken: .*: notes.txt\n"):
        api.push("gen0", repo="alice/y", registry=made)
    assert set(theirs.commits[theirs.branches["main"]].tree) == {"notes.txt"}


REFUSED = [
    ("/api/whoami-v2", 401, {}, "the Hub does not accept the token", "hf auth login"),
    ("/api/repos/create", 403, {}, "you may not do that with alice/gen0", "write access"),
    (
        "/commit/",
        403,
        {"X-Error-Message": "Storage limit reached"},
        "the Hub has no room left for alice/gen0",
        "storage",
    ),
    ("/commit/", 413, {}, "the Hub has no room left for alice/gen0", "storage"),
    ("/commit/", 412, {}, "somebody else has changed alice/gen0", "push again|type the command again"),
    ("/commit/", 500, {}, "the Hub has trouble (HTTP 500)", "same command again"),
    ("/commit/", 429, {"Retry-After": "7"}, "the Hub asks for fewer requests (HTTP 429)", "same command again"),
    ("/api/models", 0, {}, "no connection to the Hub", "Check the network"),
    ("/api/models/alice/gen0", 418, {}, "the Hub refuses alice/gen0 (HTTP 418)", "its page"),
]


@pytest.mark.parametrize(("path", "status", "headers", "what", "fix"), REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED])
def test_what_the_hub_refuses_is_told_in_two_lines(
    cli: Cli, made: Registry, path: str, status: int, headers: dict[str, str], what: str, fix: str
) -> None:
    with standing() as hub:
        hub.fail(path, status, times=1000, headers=headers, body=f"no, {hub.token}".encode())
        ran = cli("push", "gen0", "--registry", made.root)
        assert ran.code == 1
        error = ran.err[ran.err.index("error: ") :].splitlines()
        assert len(error) == 2, ran.err
        assert what in error[0]
        assert re.search(fix, error[1])
        assert hub.token not in ran.out + ran.err
        assert "robustkt.json" not in str([c.tree for r in hub.repos.values() for c in r.commits.values()])


def test_nothing_listens(cli: Cli, made: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://me:p@ss@127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for command in (("push", "gen0"), ("pull", "alice/gen0")):
        ran = cli(*command, "--registry", made.root)
        assert (ran.code, ran.out) == (1, "")
        assert "error: no connection to the Hub at http://127.0.0.1:9" in ran.err
        assert "hf_secret" not in ran.err
        assert "me:p" not in ran.err
    ran = cli("import", "hf:alice/gen0/x.pt", "--arch", "smallcnn", "--data", "digits", "--registry", made.root)
    assert "error: hf:alice/gen0 could not be reached" in ran.err
    assert "me:p" not in ran.err


def test_a_token_that_no_header_can_carry(cli: Cli, made: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for token in ("hf_sécret", "hf_a b"):
        monkeypatch.setenv("HF_TOKEN", token)
        for command in (("push", "gen0"), ("pull", "alice/gen0")):
            ran = cli(*command, "--registry", made.root)
            assert (ran.code, ran.out) == (2, "")
            assert ran.err.startswith("error: the token for the Hub has characters that no token has\n  → Copy it")
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    for command, what in (
        (("import", "hf:alice/gen0/x.pt", "--arch", "smallcnn", "--data", "digits"), "the token for the Hub has"),
        (("list", "--registry", "hf://datasets/alice/team"), "finds no credentials that it knows"),
    ):
        ran = cli(*command)
        assert ran.code in (1, 2)
        assert f"{what}" in ran.err
        assert "Traceback" not in ran.err


def test_gated_missing_and_foreign_repositories(cli: Cli, hub: HubStandIn, made: Registry, tmp_path: Path) -> None:
    api.push("gen0", registry=made)
    hub.create("model", "alice/empty", private=False, author="alice")
    hub.repos["model", "alice/gen0"].gated = True
    hub.token, token = "", hub.token
    told = {
        "alice/nothing": "there is no repository alice/nothing on the Hub, or you may not see it",
        "alice/gen0@v9": "alice/gen0@v9 is not there, or no longer",
        "alice/empty": "alice/empty holds no generation that robustkt has published",
    }
    for name, what in told.items():
        ran = cli("pull", name, "--registry", tmp_path / "r")
        assert (ran.code, ran.out) == (1, "")
        assert what in ran.err
        assert token not in ran.err
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN")
        ran = cli("pull", "alice/gen0", "--registry", tmp_path / "r")
        assert "alice/gen0 is gated" in ran.err
        assert "hf auth login" in ran.err


def test_a_folder_takes_no_options_of_the_hub(cli: Cli, made: Registry, tmp_path: Path) -> None:
    for options in (("--tag", "v1"), ("--revision", "x"), ("--create-pr",), ("--collection", "C"), ("--private",)):
        ran = cli("push", "gen0", "--to", "out", *options, "--registry", made.root)
        assert (ran.code, ran.out) == (2, "")
        assert f"error: --to writes a folder, which has no {options[0]}\n" in ran.err
    assert not (tmp_path / "out").exists()


def test_no_publication_goes_into_another(cli: Cli, made: Registry, tmp_path: Path) -> None:
    assert cli("push", "gen0", "--to", "out", "--registry", made.root).code == 0
    before = contents(tmp_path / "out")
    for place in ("out/gen1", "out/a/gen1"):
        ran = cli("push", "gen1", "--to", place, "--registry", made.root)
        assert ran.code == 2
        assert f"error: {place} lies in another publication, {tmp_path / 'out'}\n" in ran.err
    assert contents(tmp_path / "out") == before


def test_the_list_of_files_fits_eighty_columns(cli: Cli, made: Registry, tmp_path: Path) -> None:
    command = ("push", "gen2", "--to", "out", "--with-ancestors", "--registry", made.root)
    ran = cli(*command)
    table = ran.out[: ran.out.index("gen2: ")].splitlines()
    assert len(table) == len(contents(tmp_path / "out")) + 1
    assert max(map(len, table)) <= 80
    assert len(set(table)) == len(table), "each row is one file's"
    told = json.loads(cli(*command, "--json").out)
    assert {file["path"] for file in told["files"]} == set(contents(tmp_path / "out"))
    long = f"ancestors/{'ab' * 32}/certificates/certificate-{'0' * 16}-01234567.tsv"
    assert short(long, 80) == "ancestors/abababab…/certificates/certificate-00000000…-01234567.tsv"
    assert short(long, 21) == "ancestors/…234567.tsv"
    assert short("manifest.json", 21) == "manifest.json"


def test_a_second_writer_is_not_overwritten(hub: HubStandIn, made: Registry) -> None:
    api.push("gen0", repo="alice/x", registry=made)
    repo = hub.repos["model", "alice/x"]

    def meanwhile(number: int) -> None:
        if hub.requests and "preupload" in hub.requests[-1]["path"] and len(repo.commits) == 2:
            head = repo.commits[repo.branches["main"]]
            hub.add_commit(repo, "main", dict(head.tree), "theirs", "", "alice")

    hub.before = meanwhile
    with pytest.raises(RobustKTError, match="somebody else has changed alice/x"):
        api.push("gen1", repo="alice/x", registry=made)
    assert repo.commits[repo.branches["main"]].title == "theirs"


@pytest.mark.parametrize("kind", [0, -2, 500], ids=["dropped", "answer lost", "500"])
def test_one_pull_request_whatever_fails(made: Registry, kind: int) -> None:
    with standing() as hub:
        hub.create("model", "bob/theirs", private=False, author="bob")
        hub.fail("/commit/", kind)
        first = api.push("gen0", repo="bob/theirs", create_pr=True, registry=made)
        repo = hub.repos["model", "bob/theirs"]
        assert [name for name in repo.branches if name.startswith("refs/pr/")] == ["refs/pr/1"]
        assert first["commit"] == repo.branches["refs/pr/1"]
        again = api.push("gen0", repo="bob/theirs", create_pr=True, registry=made)
        assert (again["pr"], again["commit"], again["created"]) == (first["pr"], first["commit"], False)
        assert first["pr"].endswith("/bob/theirs/discussions/1")
        api.push("gen1", repo="bob/theirs", create_pr=True, registry=made)
        assert "refs/pr/2" in repo.branches, "other files are another proposal"


# -- interruptions -----------------------------------------------------------------------------------------------------


def complete(hub: HubStandIn, repo: str) -> bool:
    """Whether a repository looks complete; then it must be."""
    found = hub.repos.get(("model", repo))
    if found is None:
        return False
    tree = found.commits[found.branches["main"]].tree
    if "robustkt.json" not in tree:
        assert set(tree) == {".gitattributes"}, "half a publication"
        return False
    listed = json.loads(hub.read(tree["robustkt.json"]))["files"]
    for path, told in listed.items():
        assert digest(hub.read(tree[path])) == told["hash"], path
    assert set(tree) == {".gitattributes", "robustkt.json", *listed}
    return True


@pytest.mark.parametrize("kind", [0, -2, 500], ids=["dropped", "answer lost", "500"])
def test_any_one_request_may_fail(made: Registry, tmp_path: Path, kind: int) -> None:
    with standing() as hub:
        api.push("gen0", registry=made)
        requests = hub.count
    assert requests >= 10
    for point in range(requests):
        with standing() as hub:

            def fault(number: int, hub: HubStandIn = hub, point: int = point) -> None:
                if number == point:
                    hub.fail(".", kind)

            hub.before = fault
            try:
                told = api.push("gen0", registry=made)
            except RobustKTError:
                complete(hub, "alice/gen0")
                told = api.push("gen0", registry=made)
            assert complete(hub, "alice/gen0")
            repo = hub.repos["model", "alice/gen0"]
            assert told["commit"] == repo.branches["main"]
            assert len(repo.commits) == 2, "one commit, whatever happened on the way"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(0, id="dropped"),
        pytest.param(-1, id="cut off", marks=pytest.mark.slow),
        pytest.param(500, id="500", marks=pytest.mark.slow),
    ],
)
def test_a_pull_goes_on_after_any_failed_request(made: Registry, tmp_path: Path, kind: int) -> None:
    with standing() as hub:
        api.push("gen1", with_ancestors=True, registry=made)
        before = hub.count
        api.pull("alice/gen1", registry=Registry(tmp_path / "first"))
        requests = hub.count - before
        wanted = kept(Registry(tmp_path / "first"))
        for point in range(0, requests, 3):
            registry, start = Registry(tmp_path / f"{kind} {point}"), hub.count

            def fault(number: int, at: int = start + point) -> None:
                if number == at:
                    hub.fail(".", kind)

            hub.before = fault
            try:
                api.pull("alice/gen1", registry=registry)
            except RobustKTError:
                assert names(registry) == {}
                api.pull("alice/gen1", registry=registry)
            assert kept(registry) == wanted
            assert [f.what for f in verify(registry)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kills", [100])
def test_killed_at_random_moments(made: Registry, tmp_path: Path, kills: int) -> None:
    """Whatever a SIGKILL cuts short, what is on the Hub is whole or not there, and the same command ends it."""
    words = [sys.executable, "-m", "robustkt", "push", "gen1", "--with-ancestors", "--registry", str(made.root)]
    with HubStandIn() as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        subprocess.run(words, env=environment, capture_output=True, check=True)
        requests = hub.count
    chance, cut = random.Random(0), 0
    for _ in range(kills):
        with HubStandIn() as hub:
            environment = {**os.environ, **hub.env(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
            process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            after = chance.randrange(requests)

            def strike(number: int, process: subprocess.Popen[bytes] = process, after: int = after) -> None:
                if number >= after and process.poll() is None:
                    time.sleep(chance.random() / 100)
                    process.kill()

            hub.before = strike
            cut += process.wait() == -9
            hub.before = lambda number: None
            complete(hub, "alice/gen1")
            ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
            assert complete(hub, "alice/gen1")
            assert len(hub.repos["model", "alice/gen1"].commits) == 2
    assert cut >= kills * 0.9
