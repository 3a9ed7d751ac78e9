"""What a person types and what comes back: answers, JSON, refusals in two lines, interruptions that continue."""

from __future__ import annotations

import errno
import functools
import io
import math
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

import robustkt.objectives
from robustkt import api, certlog, checkpoint, data, engine
from robustkt.api import evaluating
from robustkt.attacks import autoattack, named
from robustkt.attacks.square import Square
from robustkt.catalog import METHODS
from robustkt.cli import FAMILIES, application, early
from robustkt.cli.output import Output
from robustkt.errors import IntegrityError
from robustkt.progress import Silent
from robustkt.registry import Registry, heartbeats, verify
from robustkt.registry.files import write_atomic
from robustkt.registry.locks import locked
from robustkt.votes import Votes
from tests.conftest import Ran

Cli = Callable[..., Ran]
TINY = {"epochs": 1, "batch_size": 128}
FEW = ("--n", "50", "--n0", "10", "--max-images", "8", "--mode", "fixed")
TREE: dict[str, Any] = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
COMMANDS = [  # of a family each command
    " ".join((name, *own))
    for name, command in sorted(TREE.items())
    for own in ([(one,) for one in sorted(command.commands)] if hasattr(command, "commands") else [()])
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_command_is_found_in_the_family_that_is_read_in_for_it(family: str) -> None:
    for first in FAMILIES[family]:
        assert set(typer.main.get_command(application(first)).commands) == set(FAMILIES[family])  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [None, "--help", "lsit", "--version"])
def test_all_families_are_read_in_for_the_help_and_for_what_is_no_command(first: str | None) -> None:
    everything = {command for commands in FAMILIES.values() for command in commands}
    assert set(typer.main.get_command(application(first)).commands) == everything  # type: ignore[attr-defined]


NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, channels, classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, classes))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry: plain, adv (adversarial), gen0 → gen1 → gen2 (noise), the last with a certificate and attacks."""
    registry = Registry(tmp_path_factory.mktemp("made") / "registry")
    tiny: dict[str, Any] = {"arch": "smallcnn", "registry": registry, "device": "cpu"}
    api.train(method="natural", data="digits", name="plain", given=TINY, **tiny)
    api.train(method="sat", data="digits", name="adv", given={"eps": "0.1", "steps": 1, **TINY}, **tiny)
    api.train(method="gaussian", data="digits", name="gen0", given={"sigma": "0.25", **TINY, "epochs": 3}, **tiny)
    api.distill(teacher="gen0", name="gen1", given=TINY, **tiny)
    api.distill(teacher="gen1", name="gen2", given=TINY, **tiny)
    api.certify("gen2", sigma="0.25", n=50, n0=10, max_images=8, mode="fixed", registry=registry, device="cpu")
    api.evaluate("gen2", attacks=["fgsm"], eps="0.1", max_images=20, registry=registry, device="cpu")
    return registry.root


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without accelerators and with one thread, wherever the tests run."""
    monkeypatch.setattr(torch.cuda, "is_available", functools.cache(lambda: False))
    monkeypatch.setattr(torch.backends.mps, "is_available", functools.cache(lambda: False))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Registry:
    """A copy of the registry in the folder that the command line runs in."""
    shutil.copytree(made, tmp_path / "registry")
    return Registry(tmp_path / "registry")


@pytest.fixture
def frozen(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry itself, which must be afterwards what it was before."""
    before = stored(made)
    monkeypatch.setenv("ROBUSTKT_REGISTRY", str(made))
    yield Registry(made)
    assert stored(made) == before
    shutil.rmtree(made / "jobs", ignore_errors=True)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A user's own network, the fastest there is."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


LATE = """
from torch import nn
class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.head = nn.Linear(64 * channels, classes)
    def forward(self, x):
        if len(x) > 2:
            raise ValueError(f"a batch of {len(x)}")
        return self.head(x.flatten(1))
"""


def stored(root: Path) -> dict[str, bytes]:
    """What the registry holds, without locks and unfinished jobs."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name not in ("lock", "lock.owner"))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files if "jobs" not in p.relative_to(root).parts}


def refused(ran: Ran, code: int, what: str, fix: str = "") -> None:
    """One line of what, one of what to do, on stderr; nothing on stdout and no traceback."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    *_, said, advice = ran.err.splitlines()
    assert said.startswith("error: "), ran.err
    assert what in said
    assert advice.startswith("  → "), ran.err
    assert len(advice) > len("  → Do it.")
    assert fix in advice
    assert ran.err.count("error: ") == 1


def plain(ran: Ran) -> Ran:
    """A command that went well and wrote to a pipe."""
    assert ran.code == 0, ran
    assert "\x1b" not in ran.out + ran.err
    return ran


def one_json(ran: Ran, keys: str, code: int = 0) -> dict[str, Any]:
    """Exactly one JSON object on stdout, with at least these keys."""
    assert ran.code == code, ran
    assert ran.out.startswith("{")
    assert ran.out.endswith("}\n")
    assert ran.out.count("\n") == 1
    assert set(keys.split()) <= set(ran.json)
    return ran.json


def interrupts(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int = 0) -> None:
    """Ctrl-C comes right after the call number `after` of `place.name` (from 1), or instead of the first (0)."""
    real, calls = getattr(place, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs) if after else None
        calls.append(1)
        if len(calls) >= after:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(place, name, call)


# -- help and answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(cli: Cli, command: str) -> None:
    ran = plain(cli(*command.split(), "--help"))
    text = " ".join(ran.out.split())
    assert re.search(rf"Examples?: .*robustkt {command}\b", text)
    assert "--json" in text
    assert ("--registry" in text) == (command not in ("analyze", "bench train"))  # which need none


def test_help_and_version(cli: Cli) -> None:
    ran = plain(cli("--help"))
    assert all(re.search(rf"^\W*{command.split()[0]} ", ran.out, re.MULTILINE) for command in COMMANDS)
    assert "quickstart" in ran.out
    assert re.fullmatch(r"robustkt \d+\.\d+\.\d+\S*\n", plain(cli("--version")).out)
    assert cli().code == 2
    assert cli("-h").out == ran.out


def test_list(cli: Cli, frozen: Registry) -> None:
    keys = "generation id method arch data guarantee teacher created seconds certified robust"
    found = one_json(cli("list", "--json"), "registry generations")
    assert [row["generation"] for row in found["generations"]] == ["plain", "adv", "gen0", "gen1", "gen2"]
    assert all(set(keys.split()) <= set(row) for row in found["generations"])
    header, *lines = plain(cli("list")).out.splitlines()
    assert header.split() == ["name", "method", "arch", "teacher", "certified", "n", "attacked", "by", "of"]
    assert lines[0].split() == ["plain", "natural", "smallcnn", *"––––––"]
    assert lines[1].split() == ["adv", "sat", "smallcnn", *"––––––"]
    assert lines[3].split() == ["gen1", "crt", "smallcnn", "gen0", *"–––––"]
    assert re.fullmatch(r"gen2 +crt +smallcnn +gen1 +\S+% @0\.25 +50 +\S+%\* @0\.1 +fgsm +20", lines[4])
    assert lines[5] == "data: digits"
    assert lines[-1].startswith("* of the base network")


def test_the_score_listed_is_the_worst_case_of_the_strongest_attacks(cli: Cli, here: Registry) -> None:
    """Whatever the order in which they were measured, and not the one of the most images."""
    gen2 = here.get("gen2")
    (first,) = here.results(gen2.id, "evaluation")

    def measure(key: str, images: int, worst: float, smoothed: tuple[str, ...] = (), **attacks: float) -> None:
        settings = {**first.content["settings"], "attacks": [*attacks], "images": images}
        figures = {
            name: {"accuracy": value, "interval": [0.0, 1.0], "norm": "linf", "eps": "0.1"}
            for name, value in attacks.items()
        }
        for name in smoothed:
            figures[name]["smoothed"] = True
        told = {"attacks": figures, "warnings": [], "worst": {"accuracy": worst, "interval": [0.0, 1.0]}}
        here.put_result(gen2.id, "evaluation", key, {"settings": settings, "figures": told}, b"log")

    def listed() -> tuple[str, str, str]:
        line = next(line for line in plain(cli("list")).out.splitlines() if line.startswith("gen2"))
        return tuple(line.split()[-4:-3] + line.split()[-2:])  # type: ignore[return-value]

    assert listed()[1:] == ("fgsm", "20")
    measure("b", 10, 0.5, autoattack=0.52, cw=0.6)
    assert listed() == ("50.0%*", "autoattack", "10"), "the worst case over both attacks"
    measure("a", 360, 0.9, cw=0.9)
    assert listed() == ("50.0%*", "autoattack", "10"), "a weaker attack on more images"
    measure("c", 40, 0.4, autoattack=0.45, cw=0.5)
    assert listed() == ("40.0%*", "autoattack", "40")
    measure("d", 40, 0.4, autoattack=0.45, cw=0.5)
    assert listed() == ("40.0%*", "autoattack", "40")
    tree = " ".join(plain(cli("lineage")).out.split())
    assert "autoattack 40.0% @0.1 of 40, base" in tree
    assert "40 images, base network without noise: autoattack 45.0% cw 50.0%" in " ".join(
        cli("show", "gen2").out.split()
    )
    measure("e", 8, 1.0, ("smoothadv",), smoothadv=0.75)
    assert listed() == ("75.0%", "smoothadv", "8"), "the classifier that is used"
    assert one_json(cli("list", "--json"), "generations")["generations"][-1]["robust"]["network"] == "smoothed"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_v(cli: Cli, command: str) -> None:
    assert "--verbose" in plain(cli(*command.split(), "--help")).out


def test_v_tells_times_and_where_an_error_comes_from(cli: Cli, here: Registry) -> None:
    ran = plain(cli("evaluate", "adv", "--attack", "fgsm", "--max-images", "8", "-v"))
    assert re.search(r"^\d+\.\d s  fgsm: \d of 8 images still right$", ran.err, re.MULTILINE)
    assert re.search(r"^\d+\.\d s  done$", ran.err, re.MULTILINE)
    assert one_json(cli("list", "--json", "-v"), "generations")
    ran = cli("show", "gen9", "-v")
    assert (ran.code, ran.out) == (1, "")
    first, *_, said, fix = ran.err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert said.startswith("error: unknown generation 'gen9'")
    assert fix.startswith("  → Known: ")


def test_list_of_nothing(cli: Cli, tmp_path: Path) -> None:
    ran = plain(cli("list"))
    assert "no generations in " in ran.out
    assert "robustkt quickstart" in ran.out
    assert one_json(cli("list", "--json"), "generations")["generations"] == []
    assert not (tmp_path / "registry").exists()


def test_show(cli: Cli, frozen: Registry) -> None:
    keys = "generation id names manifest parents record epochs certificates evaluations"
    found = one_json(cli("show", "gen2", "--json"), keys)
    gen1, gen2 = frozen.get("gen1"), frozen.get("gen2")
    assert found["id"] == gen2.id
    assert found["parents"] == {"teacher": {"name": "gen1", "id": gen1.id}}
    assert found["manifest"]["recipe"]["settings"] == CRT
    assert [e["epoch"] for e in found["epochs"]] == [0]
    assert len(found["certificates"]) == len(found["evaluations"]) == 1
    assert found == one_json(cli("show", "--json"), keys), "@latest"
    text = plain(cli("show", gen2.id[7:19])).out
    for part in (
        "gen2",
        gen2.id,
        "crt (ce_weight 0.0, draws 1, match l2, sigma 0.25, temperature 1.0, views 1)",
        "smallcnn, 65,834 parameters",
        "teacher gen1",
        "certificate",
    ):
        assert part in text
    assert "parents       none" in plain(cli("show", "gen2~2")).out


@pytest.mark.parametrize(("inner", "there", "unused"), [
    ("pgd", ["steps 1", "step_size None"], ["sentinel"]),
    ("n-fgsm", ["sentinel 0.2"], ["step_size", "steps"]),
])  # fmt: skip
def test_show_leaves_out_what_the_inner_maximisation_does_not_use(
    cli: Cli, here: Registry, inner: str, there: list[str], unused: list[str]
) -> None:
    words = ["--eps", "0.1", "--epochs", "1", "--batch-size", "256", "--set", "steps=1", "--set", f"inner={inner}"]
    plain(cli("train", "-m", "sat", "-a", "smallcnn", "-d", "digits", *words, "--name", "new"))
    (line,) = [line for line in plain(cli("show", "new")).out.splitlines() if line.startswith("method")]
    assert all(told in line for told in there), line
    assert not any(told in line for told in unused), line
    found = one_json(cli("show", "new", "--json"), "unused manifest")
    assert found["unused"] == unused
    assert set(unused) < set(found["manifest"]["recipe"]["settings"])


def test_lineage(cli: Cli, frozen: Registry) -> None:
    found = one_json(cli("lineage", "--json"), "generations focus")
    told = [(row["generation"], row["depth"]) for row in found["generations"]]
    assert told == [("plain", 0), ("adv", 0), ("gen0", 0), ("gen1", 1), ("gen2", 2)]
    assert found["generations"][4]["parents"] == {"teacher": found["generations"][3]["id"]}
    found = one_json(cli("lineage", "gen1", "--json"), "generations focus")
    assert ([row["generation"] for row in found["generations"]], found["focus"]) == (["gen0", "gen1", "gen2"], "gen1")
    lines = plain(cli("lineage", "gen1")).out.splitlines()
    assert [line.split("gen")[1][0] for line in lines] == ["0", "1", "2"]
    assert lines[1].startswith("└── gen1 ←  crt smallcnn, ")
    assert lines[2].startswith("    └── gen2  crt smallcnn, ")
    assert "certified" in lines[2]


def test_verify(cli: Cli, here: Registry) -> None:
    assert plain(cli("verify")).out.endswith("registry: 5 generations, sound\n")
    assert one_json(cli("verify", "--json"), "ok problems registry generations notes")["problems"] == []
    path = here.object_path(here.get("gen1").weights)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    ran = cli("verify")
    assert ran.code == 3
    assert f"damaged  an object whose SHA-256 is not its name: {path.relative_to(here.root)}" in ran.out
    assert ran.out.endswith("registry: 5 generations, 1 problem\n")
    found = one_json(cli("verify", "--json"), "ok problems", code=3)
    assert found["problems"] == [
        {"what": "an object whose SHA-256 is not its name", "path": str(path.relative_to(here.root))}
    ]
    assert found["ok"] is False


def test_what_looks_like_markup_is_text(cli: Cli, here: Registry, tmp_path: Path) -> None:
    first = here.get("gen0")
    pin = here.put_object(b"def Net(): ...")
    recipe = replace(first.recipe, arch="[bold]net[/x].py:Net", arch_source=pin, method="[/red]")
    here.add(replace(first, name="odd", recipe=recipe), {})
    where = tmp_path / "[red]"
    shutil.move(here.root, where)
    for command in ("list", "lineage", "show"):
        assert "[bold]net[/x].py:Net" in plain(cli(command, "--registry", where)).out
        assert "[/red]" in plain(cli(command, "--registry", where)).out
    assert f"{where}: 6 generations, sound" in plain(cli("verify", "--registry", where)).out
    assert f"no generations in {where}/x" in plain(cli("list", "--registry", where / "x")).out


# -- making generations ------------------------------------------------------------------------------------------------


def test_train_then_the_same_again(cli: Cli, tmp_path: Path) -> None:
    command = ("train", "-m", "gaussian", "-a", "smallcnn", "-d", "digits", "--sigma", "0.25", "--epochs", "1")
    first = plain(cli(*command))
    assert f"made a registry in {tmp_path / 'registry'}" in first.err
    assert "generation  gen0\n" in first.out
    before = stored(tmp_path / "registry")
    again = plain(cli(*command))
    assert "gen0 is this very recipe, trained already; nothing to do" in again.err
    assert "gen0 (was there already)" in again.out
    assert "made a registry" not in again.err
    assert stored(tmp_path / "registry") == before
    keys = "generation id method arch wall_seconds selected cost parents"
    found = one_json(cli(*command, "--name", "best", "--json"), keys)
    assert (found["generation"], found["created"]) == ("best", False)
    assert Registry(tmp_path / "registry").refs()["names"] == {"gen0": found["id"], "best": found["id"]}
    assert not list((tmp_path / "registry" / "jobs").glob("*/*"))


def test_the_same_recipe_has_the_same_id_anywhere(cli: Cli, net: Path) -> None:
    command = (
        "train",
        "-m",
        "gaussian",
        "-a",
        "net.py:Net",
        "-d",
        "digits",
        "--sigma",
        "1/4",
        "--epochs",
        "2",
        "--json",
    )
    first = one_json(cli(*command, "--registry", "a"), "id")
    second = one_json(cli(*command, "--registry", "b", "--name", "other"), "id")
    assert first["id"] == second["id"]
    assert one_json(cli(*command, "--registry", "a", "--seed", "1"), "id")["id"] != first["id"]
    assert first["cost"] == second["cost"]


def test_quiet_says_nothing_and_json_keeps_stdout_clean(cli: Cli, net: Path) -> None:
    command = ("train", "-m", "natural", "-a", "net.py:Net", "-d", "digits", "--epochs", "1")
    ran = cli(*command, "-q", "--json")
    one_json(ran, "generation id method arch wall_seconds selected cost")
    assert ran.err == ""
    assert "epoch 1/1  ce " in cli(*command, "--seed", "1").err


def test_the_promised_distil_command_with_an_epoch(cli: Cli, here: Registry) -> None:
    keys = "generation id method arch wall_seconds selected cost parents"
    found = one_json(cli("distill", "--from", "gen2", "--to", "smallcnn", "--epochs", "1", "--json"), keys)
    assert found["generation"] == "gen3"
    assert found["parents"] == {"teacher": here.get("gen2").id}
    recipe = here.get("gen3").recipe
    assert (recipe.method, recipe.settings, recipe.data) == ("crt", CRT, here.get("gen2").recipe.data)
    images = len(data.load("digits").train)
    assert found["cost"]["teacher_forward"] == images >= found["cost"]["student_forward"] > 1000


def test_the_promised_distil_command_reaches_training(
    cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts(monkeypatch, engine.Trainer, "_epoch")
    ran = cli("distill", "--from", "gen2", "--to", "resnet18")
    refused(ran, 130, "interrupted; what is done is kept", "type: robustkt distill --from gen2 --to resnet18")
    assert "crt of resnet18 on digits, " in ran.err
    assert [g.name for g in here.all()] == ["plain", "adv", "gen0", "gen1", "gen2"]


def test_what_keeps_nothing_promises_nothing(cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts(monkeypatch, api, "report")
    refused(cli("report"), 130, "interrupted before it was done", "To start over, type: robustkt report")


def test_a_network_that_fails_in_training_is_told_in_two_lines(cli: Cli, here: Registry, tmp_path: Path) -> None:
    place = tmp_path / "late.py"
    place.write_text(LATE)
    command = ("train", "-m", "gaussian", "-a", f"{place}:Net", "-d", "digits", "--sigma", "0.25", "--epochs", "1")
    refused(cli(*command), 1, f"{place}:Net raised ValueError: a batch of ", f"See {place}, line 9.")
    assert "Traceback" in cli(*command, "--verbose").err
    assert "gen3" not in here.refs()["names"]


def test_without_an_attack_nothing_is_attacked(cli: Cli, here: Registry) -> None:
    ran = plain(cli("evaluate", "plain", "--attack", "clean", "--max-images", "10"))
    assert "evaluating plain without an attack" in ran.err
    assert "attacking" not in ran.err


def test_the_size_of_images_is_shown(cli: Cli, here: Registry) -> None:
    assert "digits, 10 classes, 8x8 grey, sha256:" in plain(cli("show", "plain")).out


def test_the_promised_certify_command_reaches_the_sampling(
    cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts(monkeypatch, Output, "bar")
    ran = cli("certify", "--sigma", "0.25")
    refused(ran, 130, "interrupted; what is done is kept", "type: robustkt certify --sigma 0.25")
    assert "@latest is gen2" in ran.err
    assert len(here.results(here.get("gen2").id, "certificate")) == 1


def test_the_promised_push_command(cli: Cli, here: Registry, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    ran = plain(cli("push", "--dry-run"))
    assert "@latest is gen2" in ran.err
    assert "# gen2" in ran.out
    assert "model.safetensors" in ran.out
    assert sorted(p for p in tmp_path.rglob("*") if "home" not in p.parts) == before
    found = one_json(cli("push", "--dry-run", "--json", "--repo", "me/mine"), "repo url commit files")
    assert (found["repo"], found["to"], found["dry_run"]) == ("me/mine", None, True)


# -- what a student takes from its teacher -----------------------------------------------------------------------------


def test_an_adversarial_teacher_hands_down_its_threat(cli: Cli, here: Registry) -> None:
    ran = cli("distill", "--from", "adv", "--to", "smallcnn", "--epochs", "1", "--set", "steps=1", "--json")
    found = one_json(ran, "method parents")
    assert found["method"] == "rslad"
    settings = here.get(found["generation"]).recipe.settings
    assert {key: settings[key] for key in ("norm", "eps", "steps")} == {"norm": "linf", "eps": "0.1", "steps": 1}


@pytest.mark.parametrize(("method", "late", "told"), [
    ("iad", "begin_epoch=0", ""),
    ("iad", "begin_epoch=1", "in 1 epoch begin_epoch 1 is never reached; --set changes it"),
    ("iad", "begin_epoch=-1", "begin_epoch must be at least 0, not -1"),
    ("smoothmix", "warmup_epochs=1", ""),
    ("smoothmix", "warmup_epochs=2", "in 1 epoch the warm-up of 2 epochs (warmup_epochs) is not finished; --set"),
])  # fmt: skip
def test_what_the_run_is_too_short_for_is_told(cli: Cli, here: Registry, method: str, late: str, told: str) -> None:
    tiny = ["--epochs", "1", "--batch-size", "256", "--set", "steps=1", "--set", late]
    if method == "iad":
        ran = cli("distill", "--from", "adv", "--to", "smallcnn", "-m", "iad", *tiny)
    else:
        ran = cli("train", "-m", method, "-a", "smallcnn", "-d", "digits", "--sigma", "0.25", *tiny)
    assert told in ran.err
    assert ran.code == (2 if "=-1" in late else 0)
    assert ("is never reached" in ran.err or "is not finished" in ran.err) == told.startswith("in 1")
    assert ran.code or "\ntraining 1 epoch\n" in ran.err


def test_what_is_given_goes_before_what_is_inherited(cli: Cli, here: Registry) -> None:
    ran = cli("distill", "--from", "gen2", "--to", "smallcnn", "--epochs", "1", "--sigma", "1/8", "--json")
    assert here.get(one_json(ran, "generation")["generation"]).recipe.settings == {**CRT, "sigma": "0.125"}


def archive(path: Path, side: int, classes: int = 10, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (260, side, side), dtype=np.uint8)
    y = (np.arange(260) % classes).astype(np.int64)[:, None]
    np.savez(path, train_images=x[:200], train_labels=y[:200], test_images=x[200:], test_labels=y[200:])
    return path


def test_data_and_image_size_come_from_the_teacher(cli: Cli, net: Path, tmp_path: Path) -> None:
    archive(tmp_path / "own.npz", 12)
    tiny = ("--epochs", "1", "--json")
    train = ("train", "-m", "gaussian", "-a", "net.py:Net", "-d", "own.npz", "--sigma", "0.25", "--image-size", "10")
    one_json(cli(*train, *tiny), "id")
    one_json(cli("distill", "--from", "gen0", "--to", "net.py:Net", *tiny), "id")
    registry = Registry(tmp_path / "registry")
    teacher, student = registry.get("gen0").recipe, registry.get("gen1").recipe
    assert student.data == teacher.data
    assert (student.data.shape, student.data.image_size) == ((1, 10, 10), 10)
    archive(tmp_path / "own.npz", 12, seed=1)
    ran = cli("distill", "--from", "gen0", "--to", "net.py:Net", "--seed", "1")
    refused(ran, 1, "has changed since the teacher gen0 was made", f"say so: --data {tmp_path / 'own.npz'}")
    (tmp_path / "own.npz").unlink()
    refused(cli("certify", "gen0", *FEW), 1, f"the data of gen0 lay at {tmp_path / 'own.npz'}", "--data PATH")
    shutil.rmtree(tmp_path / "registry" / "records")
    refused(cli("certify", "gen0", *FEW), 2, "where the data of gen0 lie is not recorded here", "--data PATH")


def test_other_data_are_brought_to_the_teachers_size(cli: Cli, here: Registry, tmp_path: Path) -> None:
    archive(tmp_path / "large.npz", 16)
    ran = cli("distill", "--from", "gen2", "--to", "smallcnn", "--data", "large.npz", "--epochs", "1", "--json")
    recipe = here.get(one_json(ran, "generation")["generation"]).recipe
    assert (recipe.data.shape, recipe.data.image_size) == ((1, 8, 8), 8)
    found = one_json(cli("certify", "gen2", "--data", "large.npz", *FEW, "--json"), "images")
    assert found["images"] == 8


def test_a_method_is_one_file(cli: Cli, tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "squared.py").write_text(
        '''"""Squared error."""
from dataclasses import dataclass

import torch

__all__ = ["Squared"]


@dataclass(frozen=True, kw_only=True)
class Squared:
    """Squared distance to the one-hot label."""

    scale: float = 1.0

    def perturb(self, student, batch):
        return batch.x

    def loss(self, student, batch, view):
        target = torch.nn.functional.one_hot(batch.y, 10).float()
        return {"squared": self.scale * (student(view) - target).square().sum(1).mean()}
'''
    )
    monkeypatch.setattr(robustkt.objectives, "__path__", [*robustkt.objectives.__path__, str(folder)])
    spec = robustkt.objectives.__spec__
    monkeypatch.setattr(spec, "submodule_search_locations", [*spec.submodule_search_locations, str(folder)])
    assert "squared" in METHODS.names()
    command = (
        "train",
        "-m",
        "squared",
        "-a",
        "net.py:Net",
        "-d",
        "digits",
        "--epochs",
        "1",
        "--set",
        "scale=2",
        "--lr",
        "0.001",
    )
    one_json(cli(*command, "--json"), "id")
    sys.modules.pop("robustkt.objectives.squared")
    assert Registry(tmp_path / "registry").get("gen0").recipe.settings == {"scale": 2.0}


# -- refusals ----------------------------------------------------------------------------------------------------------

TRAIN = "train -a smallcnn -d digits --epochs 1 "
CRT = {"sigma": "0.25", "match": "l2", "temperature": 1.0, "draws": 1, "ce_weight": 0.0, "views": 1}
GAUSSIAN = TRAIN + "-m gaussian --sigma 0.25 "
REFUSALS: list[tuple[str, int, str, str]] = [
    # names
    (TRAIN + "-m gausian", 2, "unknown method 'gausian': did you mean 'gaussian'?", "Known: "),
    ("train -m natural -a resnet21 -d digits", 2, "unknown architecture 'resnet21': did you mean 'resnet20'?", "Known"),
    ("train -m natural -a smallcnn -d digit", 2, "unknown data set 'digit': did you mean 'digits'?", "Known: "),
    (
        GAUSSIAN + "--preset gaussian-icml18",
        2,
        "unknown preset of gaussian 'gaussian-icml18': did you mean 'gaussian-icml19'?",
        "gaussian has these: gaussian-icml19.",
    ),
    (GAUSSIAN + "--preset trades-icml18", 2, "unknown preset of gaussian 'trades-icml18'", "these: gaussian-icml19."),
    (
        GAUSSIAN + "--preset trades-icml19",
        2,
        "the preset trades-icml19 is one of trades, not of gaussian",
        "gaussian has these: gaussian-icml19.",
    ),
    (TRAIN + "-m natural --preset trades-icml19", 2, "is one of trades, not of natural", "natural has none"),
    (GAUSSIAN + "--device cdua", 2, "unknown device 'cdua': did you mean 'cuda'?", "auto, cpu, cuda, mps"),
    (GAUSSIAN + "--device cuda:x", 2, "unknown device 'cuda:x'", "auto, cpu, cuda, mps"),
    (GAUSSIAN + "--precision fp23", 2, "unknown precision 'fp23': did you mean 'fp32'?", "auto, fp32, bf16"),
    ("certify --mode fixd", 2, "unknown mode 'fixd': did you mean 'fixed'?", "fixed"),
    ("certify --noise gausian", 2, "unknown noise 'gausian': did you mean 'gaussian'?", "gaussian"),
    ("certify --norm l1", 2, "unknown norm for certificates under gaussian noise 'l1'", "l2, linf, l4"),
    ("certify --norm lq", 2, "unknown norm for certificates under gaussian noise 'lq'", "l4 stands for any order"),
    ("certify --norm l2 --noise laplace", 2, "unknown norm for certificates under laplace noise 'l2'", "l1"),
    ("certify --noise ablation", 2, "ablation noise needs its keep", "ablation:keep=VALUE"),
    ("certify --noise ablation:keep=3 --sigma 1", 2, "ablation has no σ", "alone"),
    ("certify --compile maybe", 2, "unknown value of --compile 'maybe'", "auto, on, off"),
    ("evaluate --attack clean,pgd_sta", 2, "unknown attack 'pgd_sta': did you mean 'pgd-sat'?", "pgd-trades"),
    ("evaluate --norm l2", 2, "an eps in linf means something else in l2", "--norm l2 --eps EPS"),
    ("evaluate --norm l3 --eps 0.1", 2, "unknown norm 'l3'", "linf, l2"),
    ("show gen9", 1, "unknown generation 'gen9': did you mean 'gen", "@latest"),
    *(
        (
            command,
            1,
            "unknown generation 'gen22': did you mean 'gen2'?",
            "Known: plain, adv, gen0, gen1, gen2, @latest.",
        )
        for command in (
            "show gen22",
            "lineage gen22",
            "push gen22 --dry-run",
            "evaluate gen22",
            "certify gen22 --sigma 0.25",
            "predict gen22 picture.png",
            "distill --from gen22 --to smallcnn",
        )
    ),
    ("lineage nobody", 1, "unknown generation 'nobody'", "gen0"),
    ("certify gen9 --sigma 0.25", 1, "unknown generation 'gen9'", "gen0"),
    ("evaluate gen9", 1, "unknown generation 'gen9'", "gen0"),
    ("push gen9 --dry-run", 1, "unknown generation 'gen9'", "gen0"),
    ("distill --from gen9 --to smallcnn", 1, "unknown generation 'gen9'", "gen0"),
    ("distill --from gen2~3 --to smallcnn", 1, "gen0 has no teacher", "robustkt lineage gen0"),
    ("distill --from gen2~x --to smallcnn", 2, "'gen2~x' names no generation", "GEN~1"),
    ("distill --from gen2 --to smalcnn", 2, "unknown architecture 'smalcnn': did you mean 'smallcnn'?", "wideresnet"),
    ("distill --from gen2 --to torchvision:resnet19", 2, "did you mean 'resnet1", "resnet18"),
    # settings
    (
        GAUSSIAN + "--set unknown=1",
        2,
        "unknown setting for gaussian 'unknown'",
        "Known: sigma, draws, epochs, batch_size",
    ),
    (GAUSSIAN + "--set momentun=0.8", 2, "unknown setting for gaussian 'momentun': did you mean 'momentum'?", "Known"),
    (GAUSSIAN + "--set steps", 2, "--set takes key=value, not 'steps'", "--set steps=10"),
    (GAUSSIAN + "--set =3", 2, "--set takes key=value, not '=3'", "--set steps=10"),
    (GAUSSIAN + "--set epochs=3", 2, "epochs is given twice", "once"),
    (GAUSSIAN + "--set momentum=1", 2, "momentum must lie in [0, 1), not 1.0", "usual"),
    (GAUSSIAN + "--set schedule=cosin", 2, "schedule 'cosin'", "cosine"),
    (GAUSSIAN + "--set nesterov=maybe", 2, "nesterov must be true or false, not maybe", "nesterov=true"),
    (GAUSSIAN + "--lr 0", 2, "lr must be above 0, not 0.0", "default"),
    (GAUSSIAN + "--lr fast", 2, "lr 'fast' is not a number", "0.25"),
    (GAUSSIAN + "--lr 1e400", 2, "lr '1e400' is too large or too small", "0.25"),
    (GAUSSIAN + "--batch-size -3", 2, "batch_size must be above 0, not -3", "default"),
    (GAUSSIAN + "--batch-size 1.5", 2, "batch_size must be a whole number, not 1.5", "10"),
    (GAUSSIAN + "--lr 1e30", 1, "training diverged in epoch 1, step ", "Try a lower --lr"),
    (GAUSSIAN + "--image-size 2", 2, "image size 2 is too small", "32"),
    ("train -m natural -a smallcnn -d digits --epochs 0", 2, "epochs must be above 0, not 0", "default"),
    ("train -m natural -a smallcnn -d digits --epochs ten", 2, "epochs must be a whole number, not ten", "10"),
    # noise and threat
    (TRAIN + "-m gaussian", 2, "gaussian trains under Gaussian noise and needs its σ", "--sigma 0.25"),
    (TRAIN + "-m gaussian --sigma 0", 2, "sigma must be above 0, not 0", "0.25"),
    (TRAIN + "-m gaussian --sigma -1", 2, "sigma must be above 0, not -1", "0.25"),
    (TRAIN + "-m gaussian --sigma abc", 2, "sigma 'abc' is not a number", "0.25"),
    (TRAIN + "-m gaussian --sigma nan", 2, "sigma 'nan' is not a number", "0.25"),
    (TRAIN + "-m gaussian --sigma 1e999999999", 2, "sigma '1e999999999' is too large", "0.25"),
    (TRAIN + "-m natural --sigma 0.25", 2, "natural has no sigma", "epochs"),
    (GAUSSIAN + "--eps 8/255", 2, "gaussian has no eps", "sigma"),
    (TRAIN + "-m sat", 2, "sat trains against an attack and needs its eps", "--eps 8/255"),
    (TRAIN + "-m sat --eps 2", 2, "eps 2 is over 1, the whole range of a pixel", "--eps 2/255"),
    (TRAIN + "-m sat --eps 0", 2, "eps must be above 0, not 0", "8/255"),
    (TRAIN + "-m sat --eps 8/0", 2, "eps '8/0' is not a number", "8/255"),
    (TRAIN + "-m sat --eps 0.1 --norm l1", 2, "unknown norm 'l1'", "linf, l2"),
    (TRAIN + "-m sat --eps 0.1 --set steps=0", 2, "steps must be above 0, not 0", "default"),
    ("evaluate --eps 2", 2, "eps 2 is over 1, the whole range of a pixel", "--eps 2/255"),
    ("evaluate --eps some", 2, "eps 'some' is not a number", "8/255"),
    ("certify --sigma 0", 2, "sigma must be above 0, not 0", "0.25"),
    ("certify --sigma -1", 2, "sigma must be above 0, not -1", "0.25"),
    ("certify --sigma abc", 2, "sigma 'abc' is not a number", "0.25"),
    ("certify plain", 2, "plain was not trained under noise, so it has no σ of its own", "--sigma 0.25"),
    # teachers
    (
        "distill --from plain --to smallcnn",
        2,
        "plain was trained by natural and has no robustness",
        "--method smoothmix",
    ),
    ("distill --from gen2 --to smallcnn -m gaussian", 2, "gaussian learns from no teacher", "robustkt train"),
    ("distill --from plain --to smallcnn -m crt", 2, "crt trains under Gaussian noise and needs its σ", "--sigma 0.25"),
    ("distill --from adv --to smallcnn -m crt", 2, "crt trains under Gaussian noise and needs its σ", "--sigma 0.25"),
    ("distill --from gen2 --to smallcnn -m rslad", 2, "rslad trains against an attack and needs its eps", "--eps"),
    (TRAIN + "-m crt --sigma 0.25", 2, "crt learns from a teacher", "robustkt distill --from GEN --method crt"),
    # the generation's name
    (GAUSSIAN + "--name gen1", 1, "the name gen1 belongs to another generation", "--name"),
    (GAUSSIAN + "--name ../x", 2, "'../x' cannot be a generation's name", "letters"),
    # counts
    ("certify --n 0", 2, "--n must be at least 1, not 0", "Leave --n out"),
    ("certify --n0 -5", 2, "--n0 must be at least 1, not -5", "Leave --n0 out"),
    ("certify --skip 0", 2, "--skip must be at least 1, not 0", "Leave --skip out"),
    ("certify --max-images 0", 2, "--max-images must be at least 1, not 0", "out"),
    ("certify --batch-size 0", 2, "--batch-size must be at least 1, not 0", "out"),
    ("certify --alpha 0", 2, "--alpha must lie between 0 and ½, not 0.0", "0.001"),
    ("certify --alpha 0.5", 2, "--alpha must lie between 0 and ½, not 0.5", "0.001"),
    ("certify --alpha few", 2, "--alpha 'few' is not a number", "0.25"),
    ("certify --radii 0,far", 2, "a radius 'far' is not a number", "0.25"),
    ("certify --radii 0,-1", 2, "--radii must be numbers from 0 up", "--radii 0,0.25,0.5"),
    ("evaluate --max-images 0", 2, "--max-images must be at least 1, not 0", "1,000"),
    # files
    ("train -m natural -a smallcnn -d nowhere.npz", 1, "there is no file or folder nowhere.npz", "digits"),
    ("train -m natural -a smallcnn -d sub/folder", 1, "there is no file or folder sub/folder", "digits"),
    ("train -m natural -a nowhere.py:Net -d digits", 1, "there is no file nowhere.py", "Give its path"),
    ("certify --data nowhere.npz", 1, "there is no file or folder nowhere.npz", "digits"),
    ("predict nowhere.png", 1, "there is no image file nowhere.png", "path"),
    ("predict nowhere.png elsewhere.png", 1, "there is no image file nowhere.png", "path"),
    ("predict gen1 nowhere.png", 1, "there is no image file nowhere.png", "path"),
    ("predict gen1", 2, "gen1 is no picture, and none is named after it", "robustkt predict gen1 IMAGE"),
    ("predict plain nowhere.png", 2, "plain was not trained under noise", "--sigma 0.25"),
    ("push", 1, "there is no token for the Hugging Face Hub", "hf auth login"),
    ("pull nonsense", 2, "'nonsense' names no repository", "ORG/NAME"),
    ("pull ./nowhere", 1, "nowhere holds no robustkt.json", "robustkt push --to"),
]


@pytest.mark.parametrize(("command", "code", "what", "fix"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_a_refusal_says_what_and_what_to_do(
    cli: Cli, frozen: Registry, command: str, code: int, what: str, fix: str
) -> None:
    refused(cli(*command.split()), code, what, fix)


EARLY = [
    "train -m gausian -a smallcnn -d digits",
    GAUSSIAN + "--preset trades-icml19",
    GAUSSIAN + "--device cdua",
    GAUSSIAN + "--precision fp23",
    GAUSSIAN + "--lr fast",
    GAUSSIAN + "--set momentum=1",
    GAUSSIAN + "--set schedule=cosin",
    TRAIN + "-m gaussian --sigma abc",
    TRAIN + "-m sat --eps 2",
    "distill --from gen9 --to smallcnn",
    "distill --from gen2 --to smallcnn --preset rslad-fast",
    "certify gen9 --sigma 0.25",
    "certify --mode fixd",
    "certify --sigma -1",
    "certify --alpha 0.5",
    "certify --n0 -5",
    "evaluate gen9",
    "evaluate --attack clean,pgd_sta",
    "evaluate --norm l3 --eps 0.1",
    "evaluate --eps some",
    "predict gen9 picture.png",
    "predict picture.png --sigma 0",
    "bench certify --arch resnet21",
    "bench train --arch resnet21",
]


def test_what_can_be_refused_without_torch_is(frozen: Registry) -> None:
    code = (
        "import sys; from robustkt.cli import application; app = application()\n"
        f"for command in {EARLY!r}:\n"
        "    code = app(command.split(), standalone_mode=False)\n"
        "    assert code in (1, 2), (command, code)\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("error: ") == len(EARLY)
    assert set(early.PRECISIONS) == set(engine.PRECISIONS)


@pytest.mark.parametrize("number", range(0, len(REFUSALS), 12))
def test_a_refusal_as_json(cli: Cli, frozen: Registry, number: int) -> None:
    command, code, what, fix = REFUSALS[number]
    ran = cli(*command.split(), "--json")
    found = one_json(ran, "error fix", code)
    assert what in found["error"]
    assert fix in found["fix"]
    assert ran.err.endswith(f"error: {found['error']}\n  → {found['fix']}\n")


@pytest.mark.parametrize("word", ["a\nb\n\nc", "x" * 3000, "[bold]x[/y]", "\x1b[31mred"])
def test_a_refusal_stays_two_lines_whatever_was_typed(cli: Cli, frozen: Registry, word: str) -> None:
    refused(cli("show", word), 1, "unknown generation")
    refused(cli("train", "-m", word, "-a", "smallcnn", "-d", "digits"), 2, "unknown method")


@pytest.mark.parametrize("command", ["train", "distill --from gen0", "certify --sigmaa 1", "nothing", "list --json=1"])
def test_usage_is_exit_status_2(cli: Cli, frozen: Registry, command: str) -> None:
    ran = cli(*command.split())
    assert (ran.code, ran.out) == (2, "")
    assert "Error" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", [GAUSSIAN, "distill --from gen2 --to smallcnn", "certify", "evaluate"])
def test_cuda_where_there_is_none(cli: Cli, frozen: Registry, command: str) -> None:
    ran = cli(*command.split(), "--device", "cuda")
    refused(ran, 2, "this machine has no cuda device that torch can use", "--device cpu")


def test_there_is_no_registry_to_verify(cli: Cli, tmp_path: Path) -> None:
    refused(cli("verify"), 1, f"there is no registry in {tmp_path / 'registry'}", "--registry DIR")
    refused(cli("show"), 1, f"there is no generation in {tmp_path / 'registry'}", "robustkt quickstart")
    refused(cli("certify", "--sigma", "0.25"), 1, "there is no generation in", "robustkt train")
    refused(cli("lineage"), 1, "there is no generation in", "robustkt quickstart")
    refused(cli("push", "--dry-run"), 1, "there is no generation in", "robustkt quickstart")
    assert not (tmp_path / "registry").exists()


def test_data_that_do_not_fit_the_teacher(cli: Cli, frozen: Registry, tmp_path: Path) -> None:
    archive(tmp_path / "few.npz", 8, classes=3)
    for command in ("distill --from gen2 --to smallcnn", "certify gen2", "evaluate gen2"):
        ran = cli(*command.split(), "--data", "few.npz")
        who = "the teacher gen2" if command.startswith("distill") else "gen2"
        refused(ran, 2, f"{who} tells 10 classes of digits apart; npz has 3", "classes of digits")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    y = (np.arange(200) % 10)[:, None]
    np.savez(tmp_path / "rgb.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    ran = cli("distill", "--from", "gen2", "--to", "smallcnn", "--data", "rgb.npz")
    refused(ran, 2, "the teacher gen2 takes 8x8 images with 1 channels; npz has 8x8 with 3", "digits")


def test_data_folders_without_images_or_with_unreadable_ones(cli: Cli, tmp_path: Path) -> None:
    command = ("train", "-m", "natural", "-a", "smallcnn", "-d", "pictures")
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
    refused(cli(*command), 1, "pictures")
    for folder in (tmp_path / "pictures").glob("*/*"):
        for i in range(12):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "pictures" / "train" / "dog" / "3.png").write_bytes(b"not a picture")
    refused(cli(*command), 1, "dog/3.png")
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "svhn"])
def test_missing_data_without_a_network(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    ran = cli("train", "-m", "natural", "-a", "smallcnn", "-d", name, "--data-dir", tmp_path / "data")
    refused(ran, 1, f"{name} is not in {tmp_path / 'data'} and could not be downloaded", "--data digits")
    assert "Network is unreachable" in ran.err
    assert not (tmp_path / "registry").exists()


# -- networks of the user's own ----------------------------------------------------------------------------------------

BROKEN = {
    "no such name": ("class Network: ...", 2, "Net", "Network"),
    "raising": (
        "def Net(channels, classes):\n    raise ValueError('no weights today')",
        1,
        "raised ValueError: no w",
        "",
    ),
    "raising at import": ("import nothing_like_this\ndef Net(): ...", 1, "raised ModuleNotFoundError", "line 1"),
    "not Python": ("def Net(:", 2, "net.py", ""),
    "wrong shape": (
        "from torch import nn\ndef Net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))",
        2,
        "returned shape (2, 7), not (2, 10)",
        "10",
    ),
    "no module": ("def Net():\n    return 3", 2, "returned a int", "torch.nn.Module"),
    "asks for more": ("def Net(channels, classes, depth): ...", 2, "requires depth", "default"),
    "exits": ("raise SystemExit(0)\ndef Net(): ...", 1, "raised SystemExit", "line 1"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_network_that_cannot_be_used(cli: Cli, net: Path, tmp_path: Path, kind: str) -> None:
    text, code, what, fix = BROKEN[kind]
    net.write_text(text)
    refused(cli("train", "-m", "natural", "-a", "net.py:Net", "-d", "digits"), code, what, fix)
    assert not (tmp_path / "registry").exists()


def test_a_network_of_ones_own_trains_certifies_and_reloads(cli: Cli, net: Path, tmp_path: Path) -> None:
    command = ("train", "-m", "gaussian", "-a", "net.py:Net", "-d", "digits", "--sigma", "0.25", "--epochs", "2")
    made = one_json(cli(*command, "--json"), "id arch")
    assert made["arch"] == "net.py:Net"
    net.write_text("raise RuntimeError('edited since')")
    first = one_json(cli("certify", *FEW, "--json"), "acr")
    assert first["images"] == 8
    net.unlink()
    assert one_json(cli("certify", *FEW, "--fresh", "--json"), "acr")["acr"] == first["acr"]
    assert one_json(cli("distill", "--from", "gen0", "--to", "smallcnn", "--epochs", "1", "--json"), "parents")
    assert str(tmp_path) not in Registry(tmp_path / "registry").get("gen0").manifest().decode()


def test_code_that_the_user_has_not_run_is_not_run(
    cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    net.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n{NET}")
    command = ("train", "-m", "gaussian", "-a", "net.py:Net", "-d", "digits", "--sigma", "0.25", "--epochs", "1")
    plain(cli(*command))
    assert mark.exists()
    mark.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    before = stored(tmp_path / "registry")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for attempt in ("certify", "evaluate", "predict a.png", "distill --from gen0 --to smallcnn"):
        refused(cli(*attempt.split()), 2, "is code, ", "Read it, then train once with `--arch FILE.py:NAME`")
        assert not mark.exists()
    plain(cli("push", "gen0", "--to", "published"))
    plain(cli("show"))
    assert not mark.exists()
    assert stored(tmp_path / "registry") == before
    plain(cli(*command))  # named on the command line: the user means it
    plain(cli("certify", *FEW))
    assert mark.exists()


def test_code_that_no_hash_pins_is_not_run(cli: Cli, here: Registry, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{NET}")
    first = here.get("gen0")
    evil = replace(first, name="evil", recipe=replace(first.recipe, arch="evil.py:Net"))
    told = "is code, evil.py:Net, and its manifest does not pin it"
    with pytest.raises(IntegrityError, match=told):
        here.add(evil, {})
    write_atomic(here.manifest_path(evil.id), evil.manifest())  # as somebody who means harm would
    write_atomic(here.record_path(evil.id), here.record_path(first.id).read_bytes())
    with here.changing() as refs:
        refs["names"]["evil"] = evil.id
    for attempt in (
        "certify evil", "evaluate evil", "distill --from evil --to smallcnn", "reproduce evil",
        "export evil --format pt2", "predict evil a.png", "soup make evil gen0 --unrelated",
        "train -m gaussian -a smallcnn -d digits --sigma 0.25 --init evil",
    ):  # fmt: skip
        refused(cli(*attempt.split()), 1, told)
    assert not (tmp_path / "ran").exists()


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["typer", "robustkt.cli.inventory"])
def test_interrupted_while_the_program_is_read_in(module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == '{module}': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from robustkt.__main__ import main\n"
        "main()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted before anything was begun\n")


THREE = ["train", "-m", "gaussian", "-a", "net.py:Net", "-d", "digits", "--sigma", "0.25", "--batch-size", "256"]
THREE += ["--epochs", "3"]


@pytest.mark.parametrize(("place", "name", "after"), [
    (engine.Trainer, "_epoch", 0),
    (engine.Trainer, "step", 5),
    (checkpoint, "save", 1),
    (checkpoint, "save", 2),
    (engine.Trainer, "_select", 3),
    (checkpoint, "save", 3),
    (Registry, "put_object", 1),
    (Registry, "put_object", 3),
    (Registry, "add", 0),
    (Registry, "add", 1),
])  # fmt: skip
def test_training_interrupted_anywhere_ends_with_the_same_id(
    cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int
) -> None:
    wanted = one_json(cli(*THREE, "--registry", "whole", "--json"), "id")
    with monkeypatch.context() as patch:
        interrupts(patch, place, name, after)
        ran = cli(*THREE)
    refused(ran, 130, "interrupted; what is done is kept", f"To continue, type: robustkt {' '.join(THREE)}")
    registry = Registry(tmp_path / "registry")
    committed = (name, after) == ("add", 1)
    assert len(registry.all()) == committed
    ran = cli(*THREE, "--json")
    found = one_json(ran, "id generation cost")
    assert (found["id"], found["generation"]) == (wanted["id"], "gen0")
    assert found["cost"] == wanted["cost"]
    assert len(registry.all()) == 1
    assert verify(registry) == []
    epochs = {"_epoch": 0, "step": 1, "save": after, "_select": 2, "put_object": 3, "add": 3}[name]
    assert (f"continuing after epoch {epochs} of 3" in ran.err) == (epochs > 0 and not committed)


def test_fresh_starts_over_and_its_interruption_continues(cli: Cli, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupts(patch, checkpoint, "save", 2)
            ran = cli(*THREE, "--fresh")
        assert "continuing after" not in ran.err
        refused(ran, 130, "interrupted", "robustkt train")
        assert "--fresh" not in ran.err, "which would throw away what is kept"
    assert "continuing after epoch 2 of 3" in plain(cli(*THREE)).err


def test_an_interruption_as_json(cli: Cli, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts(monkeypatch, checkpoint, "save", 1)
    found = one_json(cli(*THREE, "--json", "--name", "a"), "error fix", 130)
    assert found["fix"].endswith("--epochs 3 --json --name a")


def test_a_command_line_that_needs_quotes_is_told_with_them(cli: Cli, tmp_path: Path) -> None:
    place = tmp_path / "my nets"
    place.mkdir()
    (place / "net.py").write_text("raise KeyboardInterrupt\n" + NET)
    ran = cli("train", "-m", "natural", "-a", f"{place}/net.py:Net", "-d", "digits")
    refused(ran, 130, "interrupted", f"type: robustkt train -m natural -a '{place}/net.py:Net' -d digits")


@pytest.mark.slow
def test_a_module_that_is_interrupted_is_told_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "stop here.py").write_text("raise KeyboardInterrupt\n" + NET)
    words = ["train", "-m", "natural", "-a", "stop here.py:Net", "-d", "digits"]
    command = [sys.executable, "-m", "robustkt", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    again = "To continue, type: python -m robustkt train -m natural -a 'stop here.py:Net' -d digits"
    refused(Ran(ran.returncode, ran.stdout, ran.stderr), 130, "interrupted", again)


def test_a_damaged_checkpoint_is_refused(cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupts(patch, checkpoint, "save", 2)
        cli(*THREE)
    (kept,) = (tmp_path / "registry" / "jobs").glob("train-*/checkpoint.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    refused(cli(*THREE), 1, f"the checkpoint {kept} is damaged", "--fresh")
    plain(cli(*THREE, "--fresh"))


def test_the_same_training_twice_at_once(cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupts(patch, checkpoint, "save", 1)
        cli(*THREE)
    (job,) = (tmp_path / "registry" / "jobs").iterdir()
    with locked(job.with_suffix(".lock"), "it"):
        refused(cli(*THREE), 1, f"this very training is held by process {os.getpid()} on ", "Wait until it has ended")
    plain(cli(*THREE))
    assert list((tmp_path / "registry" / "jobs").iterdir()) == []


# -- disks and damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_during_training(
    cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    command = [*THREE[:-1], "1"]
    wanted = one_json(cli(*command, "--registry", "whole", "--json"), "id")["id"]
    registry, refusals = Registry(tmp_path / "registry"), 0
    real = getattr(os, call)
    for fatal in range(0, 100, 1 if call == "replace" else 3):
        calls = []

        def full(*args: Any, calls: list[int] = calls, fatal: int = fatal) -> Any:
            if Path(str(args[-1])).name == heartbeats.FILE:  # is left out where it cannot be written
                return real(*args)
            calls.append(1)
            if len(calls) - 1 == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            ran = cli(*command)
        if len(calls) <= fatal:
            break
        refused(ran, 1, "No space left on device", "Free some space and type the same command again: it continues.")
        assert "cannot write " in ran.err
        assert [g.id for g in registry.all()] in ([], [wanted])
        assert not registry.exists or not [f for f in verify(registry) if f.damage]
        assert one_json(cli(*command, "--json"), "id")["id"] == wanted
        assert len(registry.all()) == 1
        assert verify(registry) == []
        shutil.rmtree(registry.root)
        refusals += 1
    assert refusals >= 6


def test_a_full_disk_during_certification(cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = stored(here.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = cli("certify", "gen0", *FEW)
    refused(ran, 1, "No space left on device", "it continues")
    assert stored(here.root) == before
    plain(cli("certify", "gen0", *FEW))


def test_a_registry_that_cannot_be_written(
    cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").write_text("a file")
    refused(cli(*THREE), 1, f"cannot write {tmp_path / 'registry' / 'registry.json'}: ", "--registry DIR")
    (tmp_path / "registry").unlink()

    def read_only(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    trained = False

    def train(*args: Any) -> Any:
        nonlocal trained
        trained = True

    with monkeypatch.context() as patch:
        plain(cli("list"))
        patch.setattr(os, "replace", read_only)
        patch.setattr(engine.Trainer, "_epoch", train)
        refused(cli(*THREE), 1, "Read-only file system", "Make it writable, or name another place with --registry DIR")
    assert not trained, "it is refused before hours of work"
    assert "gen0" in plain(cli(*THREE)).out


def test_a_registry_that_cannot_be_read(cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_bytes
    path = here.root / "refs.json"

    def forbidden(self: Path) -> bytes:
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    for command in ("list", "show gen0", "certify", "distill --from gen2 --to smallcnn"):
        refused(cli(*command.split()), 1, f"cannot use {path}: Permission denied", "yours to read")


def test_damaged_weights_are_refused_named_and_made_again(cli: Cli, here: Registry, tmp_path: Path) -> None:
    gen1 = here.get("gen1")
    path = here.object_path(gen1.weights)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    before = stored(here.root)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for command in (
        "certify gen1 --sigma 0.25",
        "evaluate gen1",
        "predict gen1 a.png",
        "push gen1 --to published",
        "distill --from gen1 --to resnet8",
    ):
        refused(cli(*command.split()), 1, f"the weight file {path} is damaged", "Restore it from a copy, or run")
        assert stored(here.root) == before
    assert not (tmp_path / "published").exists()
    ran = cli("verify")
    assert ran.code == 3
    assert str(path.relative_to(here.root)) in ran.out
    command = "distill --from gen0 --to smallcnn --epochs 1 --batch-size 128"
    found = one_json(cli(*command.split(), "--json"), "id generation")
    assert (found["id"], found["generation"]) == (gen1.id, "gen1")
    assert here.refs()["names"]["gen1"] == gen1.id
    assert path.read_bytes() == whole
    assert verify(here) == []
    path.unlink()
    refused(cli("certify", "gen1"), 1, f"the weight file {path} is missing", "run the command that made")
    assert "making gen1 again" in plain(cli(*command.split())).err
    assert verify(here) == []


def test_weights_that_do_not_fit_are_refused(cli: Cli, here: Registry) -> None:
    first = here.get("gen0")
    here.add(replace(first, name="odd", weights=here.put_object(b"no safetensors")), {})
    here.add(replace(first, name="other", recipe=replace(first.recipe, arch="resnet8")), {})
    refused(cli("certify", "odd"), 1, "the weights of odd do not fit smallcnn", "robustkt verify")
    refused(cli("certify", "other"), 1, "the weights of other do not fit resnet8", "robustkt verify")


@pytest.mark.parametrize("name", ["refs.json", "registry.json"])
def test_damaged_pointers_are_refused_and_named(cli: Cli, here: Registry, net: Path, name: str) -> None:
    path = here.root / name
    path.write_bytes(path.read_bytes()[:-3])
    before = stored(here.root)
    for command in (["list"], ["show", "gen0"], ["certify"], ["distill", "--from", "gen0", "--to", "smallcnn"], THREE):
        refused(cli(*command), 1, f"{path} is not the JSON it should be", "robustkt verify")
    assert stored(here.root) == before
    ran = cli("verify")
    assert ran.code == 3
    assert name in ran.out


def test_a_damaged_manifest_hides_no_other_generation(cli: Cli, here: Registry) -> None:
    path = here.manifest_path(here.get("adv").id)
    path.write_bytes(path.read_bytes().replace(b"smallcnn", b"resnet20"))
    ran = plain(cli("list"))
    assert "damaged  adv: `robustkt verify` says what is wrong" in ran.out
    assert one_json(cli("list", "--json"), "unreadable")["unreadable"] == ["adv"]
    refused(cli("show", "adv"), 1, f"the manifest {path} of adv is damaged", "Restore it from a copy")
    plain(cli("show", "gen2"))
    assert "gen2" in plain(cli("lineage")).out
    assert cli("verify").code == 3


# -- certificates ------------------------------------------------------------------------------------------------------


def timeless(log: str) -> list[list[str]]:
    rows = [line.split("\t") for line in log.splitlines()]
    time = rows[0].index("time")
    return [row[:time] + row[time + 1 :] for row in rows]


KEYS = "generation sigma alpha mode n images abstain_rate acr certified_accuracy samples_per_image seconds log"


def test_certify_then_again(cli: Cli, here: Registry, tmp_path: Path) -> None:
    first = one_json(cli("certify", "gen1", *FEW, "--json"), KEYS)
    assert (first["generation"], first["sigma"], first["mode"], first["n"]) == ("gen1", 0.25, "fixed", 50)
    assert (first["images"], first["samples_per_image"], first["reused"]) == (8, 60, False)
    log = Path(first["log"]).read_text()
    rows = certlog.parse(log)
    assert [row.idx for row in rows] == [45 * i for i in range(8)]
    assert first["acr"] == pytest.approx(sum(row.radius * row.correct for row in rows) / 8)
    assert first["certified_accuracy"]["0.25"] == sum(row.correct and row.radius >= 0.25 for row in rows) / 8
    before = stored(here.root)
    ran = cli("certify", "gen1", *FEW, "--json")
    again = one_json(ran, KEYS)
    assert "gen1 has this very certificate already; --fresh measures it again" in ran.err
    assert again == {**first, "reused": True}
    assert stored(here.root) == before
    fresh = one_json(cli("certify", "gen1", *FEW, "--fresh", "--json"), KEYS)
    assert not fresh["reused"]
    assert timeless(Path(fresh["log"]).read_text()) == timeless(log)
    text = plain(cli("certify", "gen1", *FEW)).out
    assert "gen1  σ = 0.25, n = 50, α = 0.001, 8 test images" in text
    assert "measured earlier" in text
    other = one_json(cli("certify", "gen1", *FEW, "--sigma", "0.5", "--radii", "0,1/8,8/255", "--json"), KEYS)
    assert list(other["certified_accuracy"]) == ["0", "0.125", "8/255"]
    assert not other["reused"]
    assert verify(here) == [] or {f.what for f in verify(here)} == {"a log that no result names"}


TORN = b"315\t0\t1\t50\t9,41"
FORGED = b"315\t0\t1\t64\t0,64,0,0,0,0,0,0,0,0\t0.100000\t00000000\n"


@pytest.mark.parametrize("tail", [b"", TORN, FORGED, b"\xff\xfe\x00", b"\n" * 9])
def test_certify_interrupted_and_continued_gives_the_same_log(
    cli: Cli, here: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    shutil.copytree(here.root, tmp_path / "whole")
    command = ("certify", "gen1", *FEW, "--batch-size", "64", "--json")
    whole = one_json(cli(*command, "--registry", "whole"), KEYS)
    with monkeypatch.context() as patch:
        interrupts(patch, Votes, "add", 5)
        one_json(cli(*command), "error fix", 130)
    assert not here.results(here.get("gen1").id)
    (votes,) = (here.root / "jobs").glob("certify-*/votes-0.tsv")
    data = votes.read_bytes()
    votes.write_bytes(data[:9] + bytes([data[9] ^ 1]) + data[10:] + tail)
    ran = cli(*command)
    found = one_json(ran, KEYS)
    assert re.search("continuing: [1-8] of 8 images have votes already", ran.err)
    mine, theirs = Path(found["log"]).read_text(), Path(whole["log"]).read_text()
    assert timeless(mine) == timeless(theirs)
    varying = ("seconds", "log")
    assert {k: v for k, v in found.items() if k not in varying} == {k: v for k, v in whole.items() if k not in varying}
    assert verify(here) == []


def test_an_interrupted_fresh_certification_continues(
    cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("certify", "gen2", *FEW, "--batch-size", "64")
    with monkeypatch.context() as patch:
        interrupts(patch, Votes, "add", 5)
        ran = cli(*command, "--fresh")
    refused(ran, 130, "interrupted", "type: robustkt certify gen2 --n 50")
    assert "--fresh" not in ran.err
    assert "of 8 images have votes already" in plain(cli(*command)).err
    assert "already" in plain(cli(*command)).err


@pytest.mark.parametrize("radii", ["8/255", "1/30000,1/7", "1e-30"])
def test_radii_without_a_short_decimal_are_stored_and_read(cli: Cli, here: Registry, radii: str) -> None:
    found = one_json(cli("certify", "gen1", *FEW, "--radii", radii, "--json"), KEYS)
    for again in ("certify gen1 --n 50 --n0 10 --max-images 8", "show gen1", "list", "lineage --metrics", "verify"):
        assert cli(*again.split()).code == 0, again
    assert len(found["certified_accuracy"]) == len(radii.split(","))


@pytest.mark.parametrize("option", ["--n", "--n0", "--batch-size"])
def test_numbers_that_no_machine_draws_are_refused(cli: Cli, here: Registry, option: str) -> None:
    refused(cli("certify", "gen1", option, "9" * 20), 2, f"{option} must be at most", f"Leave {option} out")


def test_out_destroys_nothing(cli: Cli, here: Registry, tmp_path: Path) -> None:
    command = ("certify", "gen1", *FEW, "--out")
    (tmp_path / "package.json").write_text("{}")
    refused(cli(*command, "package"), 2, "package.json is there and would be lost", "Name another file")
    (tmp_path / "notes.tsv").write_text("idx\tlabelled by hand\n")
    refused(cli(*command, "notes.tsv"), 2, "notes.tsv is there and no certification log", "Name another file")
    os.mkfifo(tmp_path / "pipe")
    refused(cli(*command, "pipe"), 2, "pipe is there and no certification log", "Name another file")
    (tmp_path / "odd.tsv.json").mkdir()
    refused(cli(*command, "odd.tsv"), 2, "odd.tsv.json is there and no header", "Name another file")
    assert cli(*command, "log.tsv").code == 0
    (tmp_path / "link.tsv").symlink_to("log.tsv")
    assert cli(*command, "link.tsv").code == 0
    assert (tmp_path / "link.tsv").is_symlink()
    assert cli(*command, "log.tsv").code == 0


def test_last_takes_the_last_weights(cli: Cli, here: Registry) -> None:
    gen0, gen1 = here.get("gen0"), here.get("gen1")
    here.add(replace(gen0, name="two", weights=gen0.weights, last_weights=gen1.weights), {})
    figures = {}
    for name, option in {"gen0": (), "gen1": (), "two": (), "two last": ("--last",)}.items():
        ran = cli("certify", name.split()[0], *FEW, "--n", "100", "--max-images", "20", *option, "--json")
        figures[name] = timeless(Path(one_json(ran, KEYS)["log"]).read_text())
    assert figures["two"] == figures["gen0"]
    assert figures["two last"] == figures["gen1"]
    assert figures["gen0"] != figures["gen1"]
    attacked = ("--attack", "clean", "--max-images", "90", "--json")
    last, gen1s, first = (cli("evaluate", *which, *attacked).json for which in (("two", "--last"), ("gen1",), ("two",)))
    assert last["clean_accuracy"] == gen1s["clean_accuracy"] != first["clean_accuracy"]


def test_out_writes_the_log_there_too(cli: Cli, here: Registry, tmp_path: Path) -> None:
    found = one_json(cli("certify", "gen1", *FEW, "--out", "logs/new/gen1.tsv", "--json"), KEYS)
    assert found["log"] == "logs/new/gen1.tsv"
    (result,) = here.results(here.get("gen1").id, "certificate")
    assert (tmp_path / found["log"]).read_bytes() == here.log(result)
    (tmp_path / "folder").mkdir()
    refused(cli("certify", "gen1", *FEW, "--out", "folder"), 2, "cannot write folder: Is a directory", "--out")
    (tmp_path / "README.md").write_text("# mine")
    refused(
        cli("certify", "gen1", *FEW, "--out", "README.md"), 2, "README.md is there and no certification log", "--out"
    )
    assert (tmp_path / "README.md").read_text() == "# mine"
    one_json(cli("certify", "gen1", *FEW, "--out", "again.tsv", "--json"), KEYS)
    assert (tmp_path / "again.tsv").read_bytes() == here.log(result)


def test_a_damaged_log_is_refused_and_measured_again(cli: Cli, here: Registry) -> None:
    (result,) = here.results(here.get("gen2").id, "certificate")
    path = here.log_path(result)
    path.write_bytes(path.read_bytes().replace(b"\t1\t", b"\t0\t", 1))
    refused(cli("certify", "gen2", *FEW), 1, f"the log {path} is damaged", "measure again with --fresh")
    refused(cli("push", "--dry-run"), 1, f"the log {path} is damaged", "--fresh")
    assert cli("verify").code == 3
    plain(cli("certify", "gen2", *FEW, "--fresh"))
    assert cli("verify").code == 0
    result.path.write_bytes(result.path.read_bytes().replace(b'"acr":0.', b'"acr":9.'))
    refused(cli("show"), 1, f"{result.path} is damaged", "--fresh")
    refused(cli("certify", "gen2", *FEW), 1, f"{result.path} is damaged", "--fresh")
    assert cli("verify").code == 3
    plain(cli("certify", "gen2", *FEW, "--fresh"))
    assert cli("verify").code == 0


def test_a_network_that_knows_no_noise_gets_a_warning(cli: Cli, here: Registry) -> None:
    ran = plain(cli("certify", "plain", "--sigma", "0.25", *FEW))
    assert "plain was not trained under noise: expect abstentions and small radii" in ran.err


# -- attacks and pictures ----------------------------------------------------------------------------------------------


def test_evaluate_then_again(cli: Cli, here: Registry) -> None:
    command = ("evaluate", "adv", "--attack", "clean,FGSM,pgd_sat", "--max-images", "50", "--json")
    found = one_json(cli(*command), "generation images clean_accuracy attacks worst warnings")
    assert list(found["attacks"]) == ["clean", "fgsm", "pgd-sat"]
    assert found["attacks"]["fgsm"]["eps"] == "0.1"
    assert found["attacks"]["fgsm"]["norm"] == "linf"
    assert found["attacks"]["clean"]["accuracy"] == found["clean_accuracy"]
    assert found["images"] == 45, "every 8th of 360"
    ran = cli(*command)
    assert one_json(ran, "attacks") == {**found, "reused": True}
    assert "adv has this very evaluation already" in ran.err
    other = one_json(cli("evaluate", "gen0", "--attack", "fgsm", "--max-images", "50", "--json"), "attacks")
    assert other["attacks"]["fgsm"]["eps"] == "8/255"
    text = plain(cli("evaluate", "gen0", "--attack", "fgsm", "--max-images", "50")).out
    assert re.search(r"^fgsm .*% +linf +8/255$", text, re.MULTILINE)
    assert "base network, without noise" in text


def test_evaluate_in_a_pipe_tells_each_attack_as_it_ends(cli: Cli, here: Registry) -> None:
    ran = plain(cli("evaluate", "adv", "--attack", "fgsm,apgd-t:steps=2:targets=2", "--max-images", "12"))
    told = [line for line in ran.err.splitlines() if line.endswith(" of 12 images still right")]
    names = ["clean", "fgsm", *(f"apgd-t:steps=2:targets=2{stage}" for stage in (", apgd-t 1", ", apgd-t 2", ""))]
    assert [line.rpartition(": ")[0] for line in told] == names, ran.err
    assert "still right" not in cli("evaluate", "adv", "--attack", "fgsm", "--max-images", "12", "-q").err


FAST = "fgsm,pgd:steps=3,apgd-t:steps=3:targets=2,square:queries=20"


def test_an_interrupted_evaluation_continues_where_it_stopped(here: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by the bar after some verdicts, with a torn last line in what was kept."""
    from torch import nn

    passes, left = 0, 10**9

    class Stopping(Silent):
        @contextmanager
        def bar(self, title: str, total: float, done: float = 0) -> Iterator[Silent]:
            yield self

        def advance(self, amount: float, text: str = "") -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            notes.append(text)

    notes: list[str] = []
    load = evaluating.load_network

    def counted(*arguments: Any, **options: Any) -> nn.Module:
        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        model = load(*arguments, **options)
        model.register_forward_pre_hook(count)
        return model

    monkeypatch.setattr(evaluating, "load_network", counted)
    ask: dict[str, Any] = {
        "attacks": FAST.split(","), "max_images": 40, "registry": here, "device": "cpu", "progress": Stopping()
    }  # fmt: skip
    whole = api.evaluate("adv", fresh=True, **ask)
    undisturbed, passes = passes, 0
    left = 12
    with pytest.raises(KeyboardInterrupt):
        api.evaluate("adv", fresh=True, **ask)
    (kept,) = (here.root / "jobs").rglob("decided.tsv")
    with kept.open("a") as file:
        file.write("square:queries=20/squ")
    passes, left = 0, 10**9
    monkeypatch.setattr(here, "result", lambda *_: None)
    monkeypatch.setattr(here, "results", lambda *_: [])
    with monkeypatch.context() as other:
        other.setattr(evaluating, "ALGORITHM", evaluating.ALGORITHM + 1)
        api.evaluate("adv", **ask)
        assert passes == undisturbed, "verdicts of another version are not mixed in"
    assert kept.exists()
    assert not any(note.startswith("continuing") for note in notes)
    passes = 0
    again = api.evaluate("adv", **ask)
    assert passes < undisturbed
    (told,) = [note for note in notes if note.startswith("continuing an interrupted evaluation of 40 images; ")]
    assert re.search(r"attacked so far: fgsm \d+, apgd-t:steps=3:targets=2 \d+ at apgd-t \d$", told), told
    assert {k: again[k] for k in ("attacks", "worst", "warnings")} == {
        k: whole[k] for k in ("attacks", "worst", "warnings")
    }
    assert not kept.exists()


def test_what_an_interrupted_evaluation_has_decided_is_counted(tmp_path: Path) -> None:
    kept = evaluating.Kept(tmp_path / "decided.tsv", 100)
    kept.tell("pgd:step_size=1/255/", [0, 1, 2], [True, False, False])
    kept.known("autoattack/square")
    for stage in ("apgd-ce", "apgd-t 1"):
        kept.tell(f"autoattack/{stage}", [1, 2] if stage == "apgd-ce" else [2], [False] * (1 + (stage == "apgd-ce")))
    for label in (-1, 3):
        kept.tell(f"smoothadv/answer {label}", [label + 1], [True])
    again = evaluating.Kept(tmp_path / "decided.tsv", 100)
    assert again.told() == kept.told() == "pgd:step_size=1/255 3, autoattack 1 at apgd-t 1, smoothadv 2"


def test_the_worst_case_is_what_no_attack_broke(cli: Cli, here: Registry) -> None:
    found = one_json(cli("evaluate", "adv", "--attack", FAST, "--max-images", "40", "--json"), "attacks worst")
    names = list(found["attacks"])
    assert names[0] == "clean"
    assert set(names) == {"clean", *(named(text).name for text in FAST.split(","))}
    assert found["worst"]["accuracy"] <= min(a["accuracy"] for a in found["attacks"].values())
    made = [
        r for r in here.results(here.get("adv").id, "evaluation") if set(r.content["figures"]["attacks"]) == set(names)
    ]
    rows = [line.split("\t")[2:] for line in here.log(made[-1]).decode().splitlines()[1:]]
    alive = [all(mark == "1" for mark in row) for row in rows]
    assert found["worst"]["accuracy"] == pytest.approx(sum(alive) / len(alive))
    text = plain(cli("evaluate", "adv", "--attack", FAST, "--max-images", "40")).out
    assert re.search(r"^worst case .*%", text, re.MULTILINE)
    assert "left after each: apgd-t" in text


def test_an_attack_more_does_not_repeat_the_others(here: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    ask: dict[str, Any] = {"max_images": 30, "registry": here, "device": "cpu", "seed": 3}
    names = FAST.split(",")
    whole = api.evaluate("adv", attacks=names, fresh=True, **ask)
    for name in (names[0], names[2]):
        api.evaluate("adv", attacks=[name], fresh=True, **ask)
    ran: list[str] = []
    original = evaluating.attacked

    def attacked(*arguments: Any, **options: Any) -> Any:
        ran.extend(arguments[3])
        return original(*arguments, **options)

    monkeypatch.setattr(evaluating, "attacked", attacked)
    stored = here.result

    def without(identity: str, kind: str, key: str) -> Any:
        made = stored(identity, kind, key)
        return None if made and len(made.content["settings"]["attacks"]) == 5 else made

    monkeypatch.setattr(here, "result", without)
    results = here.results
    monkeypatch.setattr(
        here, "results", lambda *a: [r for r in results(*a) if len(r.content["settings"]["attacks"]) != 5]
    )
    again = api.evaluate("adv", attacks=names, **ask)
    assert ran == ["clean", "pgd:steps=3", "square:queries=20"]
    assert {k: again[k] for k in ("attacks", "worst", "warnings")} == {
        k: whole[k] for k in ("attacks", "worst", "warnings")
    }
    ran.clear()
    monkeypatch.setattr("robustkt.api.verdicts.ALGORITHM", 99)
    api.evaluate("adv", attacks=names, **ask)
    assert set(ran) == {"clean", *(name for name in again["attacks"])}, "another version's verdicts are not mixed in"


def test_an_attack_on_the_network_joins_one_on_the_smoothed_classifier(here: Registry) -> None:
    ask: dict[str, Any] = {"max_images": 5, "registry": here, "device": "cpu", "norm": "l2", "eps": "0.25", "seed": 4}
    smooth = "smoothadv:draws=2:steps=2"
    alone = api.evaluate("gen0", attacks=[smooth], **ask)
    both = api.evaluate("gen0", attacks=[smooth, "fgsm"], **ask)
    assert both["attacks"][smooth] == alone["attacks"][smooth]
    assert alone["worst"]["smoothed"]
    assert not both["worst"]["smoothed"]
    assert both["worst"]["accuracy"] == both["attacks"]["fgsm"]["accuracy"]


def test_autoattack_scores_the_base_network_only_when_asked(
    cli: Cli, here: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(autoattack.VERSIONS, "standard", lambda classes: [Square(10)])
    ran = cli("evaluate", "gen0", "--attack", "autoattack", "--max-images", "10")
    assert ran.code == 2
    assert "gen0 is used smoothed; autoattack can score only its base network" in " ".join(ran.err.split())
    assert "--base scores the base network" in " ".join(ran.err.split())
    for member in ("apgd-ce", "apgd-dlr:steps=5", "apgd-t", "fab-t", "square"):
        ran = cli("evaluate", "gen0", "--attack", f"clean,{member}", "--max-images", "10")
        assert ran.code == 2, member
        assert f"{member} can score only its base network" in " ".join(ran.err.split())
    ran = cli("evaluate", "gen0", "--attack", "autoattack", "--max-images", "10", "--base")
    assert ran.code == 0
    assert "base network, without noise" in ran.out


def test_the_smoothed_classifier_is_attacked_and_said_to_be(cli: Cli, here: Registry) -> None:
    ask = ("evaluate", "gen0", "--attack", "smoothadv:draws=2:steps=2", "--norm", "l2", "--eps", "0.25")
    found = one_json(cli(*ask, "--max-images", "5", "--json"), "attacks worst")
    (attack,) = (a for name, a in found["attacks"].items() if name != "clean")
    assert attack["smoothed"] is True
    assert attack["accuracy"] + attack["wrong"] + attack["abstained"] == pytest.approx(1)
    assert found["worst"] == {"accuracy": attack["accuracy"], "interval": attack["interval"], "smoothed": True}
    text = plain(cli(*ask, "--max-images", "5")).out
    assert ": the smoothed classifier;" in text
    assert re.search(r"the smoothed classifier: wrong .*%, abstained .*%", text)
    (stored,) = (r for r in here.results(found["id"]) if r.content["figures"].get("worst", {}).get("smoothed"))
    worse = {**stored.content["figures"], "worst": {"accuracy": 1.0, "interval": [0.5, 1.0]}}
    content = {k: v for k, v in stored.content.items() if k not in ("format", "kind", "generation", "log", "log_hash")}
    here.put_result(found["id"], "evaluation", stored.key, {**content, "figures": worse}, here.log(stored))
    again = one_json(cli(*ask, "--max-images", "5", "--json"), "worst reused")
    assert not again["reused"], "an earlier version gave the base network's clean accuracy as the worst case"
    assert again["worst"] == found["worst"]
    ran = cli("evaluate", "plain", *ask[2:], "--max-images", "5")
    assert ran.code == 2
    assert "needs its σ" in ran.err


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A digit as it is, one larger and in colour, one as a JPEG of another shape."""
    split = data.load("digits").test
    paths = [tmp_path / name for name in ("same.png", "large.png", "wide.jpg")]
    images = [Image.fromarray(split.x[i, 0].numpy()) for i in range(3)]
    images[0].save(paths[0])
    images[1].resize((40, 40)).convert("RGB").save(paths[1])
    images[2].resize((50, 24)).save(paths[2])
    return paths


def test_predict(cli: Cli, here: Registry, pictures: list[Path]) -> None:
    names = [path.name for path in pictures]
    ran = cli("predict", "gen0", *names, "--n", "200", "--json")
    found = one_json(ran, "predictions generation sigma alpha n")
    assert [p["file"] for p in found["predictions"]] == names
    for p in found["predictions"]:
        assert set(p) >= {"file", "class", "label", "radius", "abstained"}
        assert p["abstained"] == (p["label"] is None) == (p["class"] is None) == (p["radius"] == 0)
        assert p["abstained"] or p["class"] == str(p["label"])
    assert not found["predictions"][0]["abstained"]
    assert found["predictions"] == one_json(cli("predict", "gen0", *names, "--n", "200", "--json"), "n")["predictions"]
    (alone,) = one_json(cli("predict", "gen0", names[1], "--n", "200", "--json"), "predictions")["predictions"]
    assert alone == found["predictions"][1], "an answer does not depend on its neighbours"
    ran = plain(cli("predict", *names, "--n", "200"))
    assert "@latest is gen2" in ran.err
    assert all(name in ran.out for name in names)
    assert "smoothed gen2, σ = 0.25" in ran.out
    assert one_json(cli("predict", "plain", names[0], "--sigma", "0.1", "--n", "50", "--json"), "sigma")["sigma"] == 0.1


def test_predict_on_what_is_no_picture(cli: Cli, frozen: Registry, pictures: list[Path], tmp_path: Path) -> None:
    whole = pictures[0].read_bytes()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for name in ("text.png", "half.png", "empty.png"):
        refused(cli("predict", "gen0", "same.png", name), 1, f"{name} cannot be read: ", "Give a picture")
        refused(cli("predict", name), 1, f"{name} cannot be read: ", "Give a picture")
    refused(cli("predict", "gen0", "folder.png"), 1, "there is no image file folder.png")
    refused(cli("predict", "gen9", "same.png"), 1, "unknown generation 'gen9'")
    refused(cli("predict", "same.png", "--n", "0"), 2, "--n must be at least 1, not 0")
    refused(cli("predict", "same.png", "--sigma", "0"), 2, "sigma must be above 0, not 0")
    assert cli("predict").code == 2


# -- the installed script ----------------------------------------------------------------------------------------------

SCRIPT = Path(sys.executable).with_name("robustkt")


def in_a_terminal(command: list[Any], place: Path) -> tuple[int, str]:
    """Exit status and all that a terminal of 120 columns is shown."""
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "_TYPER_FORCE_DISABLE_TERMINAL")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    parent, child = pty.openpty()
    process = subprocess.Popen(command, cwd=place, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = b""
    while select.select([parent], [], [], 60)[0]:
        try:
            part = os.read(parent, 65536)
        except OSError:  # Linux: the other side has gone
            break
        if not part:
            break
        shown += part
    os.close(parent)
    return process.wait(30), shown.decode()


@pytest.mark.slow
def test_sigterm_in_a_pipe_then_on_in_a_terminal(
    cli: Cli, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.write_text(
        NET + "\n    def forward(self, x):\n        time.sleep(float(os.environ.get('SLOW', 0)))\n"
        "        return super().forward(x)\n\n\nimport os\nimport time\n"
    )
    command = [*THREE, "--set", "ema=0.9"]
    command[command.index("--epochs") + 1] = "10"
    wanted = one_json(cli(*command, "--registry", "whole", "--json"), "id")["id"]
    monkeypatch.setenv("SLOW", "0.01")
    process = subprocess.Popen(
        [SCRIPT, *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("epoch 2/10"):
            process.send_signal(signal.SIGTERM)
            break
    out, rest = process.communicate(timeout=60)
    err = "".join(seen) + rest
    refused(
        Ran(process.returncode, out, err),
        130,
        "interrupted; what is done is kept",
        "robustkt train -m gaussian -a net.py:Net -d digits",
    )
    assert "\x1b" not in err
    assert "━" not in err
    assert "\ntraining 10 epochs\nepoch 1/10  ce " in err
    registry = Registry(tmp_path / "registry")
    assert registry.all() == []
    code, shown = in_a_terminal([SCRIPT, *command], tmp_path)
    assert code == 0, shown
    assert registry.get("gen0").id == wanted
    assert verify(registry) == []
    assert re.search(r"continuing after epoch [2-9] of 10", shown)
    assert "\x1b[" in shown
    assert "━" in shown
    assert re.search(r"training 10 epochs .*\d+%", shown)
    assert re.search(r"\d:\d\d:\d\d", shown), "the time left"
    assert "epoch 10/10" not in shown, "the bar stands for the lines"


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("robustkt show ge", {"gen0", "gen1", "gen2"}),
        ("robustkt show @", {"@latest"}),
        ("robustkt train --arch resnet1", {"resnet18", "resnet18_gn", "resnet18_ln", "resnet110"}),
        ("robustkt evaluate --attack clean,pgd", {"clean,pgd", "clean,pgd-sat", "clean,pgd-trades"}),
    ],
)
def test_completion(frozen: Registry, monkeypatch: pytest.MonkeyPatch, words: str, completions: set[str]) -> None:
    monkeypatch.setenv("_ROBUSTKT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    ran = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    assert set(ran.stdout.split()) == completions, ran


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_has_had_enough_is_no_error(made: Path, option: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [SCRIPT, "list", "--registry", made, *option]
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_predict_takes_names_from_stdin_and_tells_grey_levels(
    cli: Cli, here: Registry, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name for path in pictures]
    asked = one_json(cli("predict", "gen0", *names, "--n", "200", "--json"), "predictions mode norm noise")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(names) + "\n\n"))
    assert one_json(cli("predict", "gen0", "-", "--n", "200", "--json"), "predictions") == asked
    for p in asked["predictions"]:
        length = math.sqrt(64) / 255  # of one level in every pixel of a digit
        assert p["levels"] * length <= p["radius"] < (p["levels"] + 1) * length
        assert p["drawn"] <= 300
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    refused(cli("predict", "gen0", "-"), 2, "no image is named on stdin", "one file name a line")
    fixed = one_json(cli("predict", "gen0", names[0], "--n", "200", "--mode", "fixed", "--json"), "predictions")
    assert fixed["predictions"][0]["drawn"] == 300
    pixels = one_json(cli("predict", "gen0", names[0], "--noise", "ablation:keep=60", "--n", "200", "--json"), "norm")
    assert (pixels["norm"], pixels["predictions"][0]["levels"]) == ("l0", None)
    text = plain(cli("predict", "gen0", names[0], "--n", "200", "--norm", "linf")).out
    assert "L∞ radius" in text


@pytest.mark.parametrize("line", ["apgd-ce/apgd-ce\t999999\t1\n", "square\t3\t7\n", "smoothadv/answer x\t1\t1\n"])
def test_kept_verdicts_that_are_none_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "decided.tsv").write_bytes(b"square\t1\t1\nsmoothadv/answer -1\t2\t1\n" + line.encode())
    with pytest.raises(IntegrityError, match="verdict that is none"):
        evaluating.Kept(tmp_path / "decided.tsv", 100)
    (tmp_path / "decided.tsv").write_bytes(b"square\t1\t1\nsmoothadv/answer -1\t2\t1\n\xff\xfe\tsquare\t1")
    assert set(evaluating.Kept(tmp_path / "decided.tsv", 100).stages) == {"square", "smoothadv/answer -1"}
