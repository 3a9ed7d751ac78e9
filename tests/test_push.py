"""A lineage goes to the Hub and comes back with nothing lost, against a real server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robustkt import api
from robustkt.registry import Registry, verify
from tests.conftest import Ran
from tests.hubs import kept, lineage, names, standing
from tests.hubstandin import HubStandIn

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


def test_what_is_there_is_not_sent_again(hub: HubStandIn, made: Registry) -> None:
    first = api.push("gen0", registry=made)
    assert first["created"]
    assert all(file["sent"] for file in first["files"])
    hub.requests.clear()
    second = api.push("gen0", registry=made)
    assert not second["created"]
    assert second["commit"] == first["commit"]
    assert not any(file["sent"] for file in second["files"])
    assert not any("/commit/" in call or "preupload" in call or "PUT" in call for call in hub.calls())
    told = api.push("gen0", registry=made, dry_run=True)
    assert not any(file["sent"] for file in told["files"])


def test_a_folder_is_pulled_too(made: Registry, registry: Registry, tmp_path: Path) -> None:
    api.push("gen2", to=tmp_path / "out", with_ancestors=True, registry=made)
    api.pull(str(tmp_path / "out"), registry=registry)
    assert kept(registry) == kept(made)
    assert names(registry) == names(made)
