"""Two-mode generations from training to soups: modes measured apart, mixtures stored, choices off the test set."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustkt import api, objectives, soup
from robustkt import data as datasets
from robustkt.adapters.stored import read_adapter
from robustkt.api import judging, sweeping
from robustkt.api.loading import load_network
from robustkt.api.modes import state_of
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import Adapter
from robustkt.progress import Silent
from robustkt.registry import Registry
from tests.conftest import Ran
from tests.kitchens import SHORT
from tests.stores import damage

Cli = Callable[..., Ran]


@pytest.fixture(scope="module")
def kitchen(cooked: Registry) -> Registry:
    return cooked


def test_what_is_stored(kitchen: Registry) -> None:
    two = kitchen.get("two")
    assert (two.format, two.mode, set(two.adapters)) == (2, "robust", {"clean", "robust"})
    assert damage(kitchen) == []
    base = state_of(kitchen, kitchen.mode("two@clean"))
    network = load_network(kitchen, kitchen.mode("two@robust"))
    assert base.keys() == network.state_dict().keys()
    record = kitchen.record(two.id)
    assert 0 < record["adapter_parameters"] < record["parameters"] / 20
    assert set(two.objects) >= set(two.adapters.values())
    assert api.gc(grace="0", registry=kitchen)["files"] == []
    assert kitchen.get("one").format == 1


def test_a_generation_without_adapters_has_the_manifest_it_always_had(kitchen: Registry) -> None:
    assert not {"adapters", "last_adapters", "mode", "shares"} & set(kitchen.get("one").content())


def test_retrofitting_keeps_the_base(kitchen: Registry) -> None:
    one, retro = kitchen.get("one"), kitchen.get("retro")
    assert retro.weights == retro.last_weights == one.weights, "the very same object"
    assert retro.parents == {"init": one.id}
    clean, robust = (state_of(kitchen, kitchen.mode(f"retro@{mode}")) for mode in ("clean", "robust"))
    old = state_of(kitchen, one)
    changed = {key for key in old if not torch.equal(clean[key], robust[key])}
    assert changed
    assert all(".bn" in key or "norm" in key or key.split(".")[-1] in ("weight", "bias") for key in changed)
    assert {key for key in old if not torch.equal(old[key], robust[key])} <= changed | {
        key for key in old if not torch.equal(old[key], clean[key])
    }
    with pytest.raises(UsageError, match="only adapters are trained, on a network that is there"):
        api.train(
            method="cotraining", arch="smallcnn", data="digits", given={**SHORT, "frozen": True}, registry=kitchen
        )
    with pytest.raises(UsageError, match="do not fit resnet8"):
        api.train(method="sat", arch="resnet8", data="digits", given=SHORT, init="one", registry=kitchen)


def test_swapped_and_foreign_adapters_are_refused(kitchen: Registry) -> None:
    two, retro = kitchen.get("two"), kitchen.get("retro")
    swapped = kitchen.object(two.adapters["clean"])
    with pytest.raises(IntegrityError, match="belongs to another base"):
        read_adapter(swapped, Adapter("clean", two.adapters["clean"], retro.weights), "retro")
    with pytest.raises(IntegrityError, match="is that of clean"):
        read_adapter(swapped, Adapter("robust", two.adapters["clean"], two.weights), "two")


def test_each_mode_has_measurements_of_its_own(kitchen: Registry) -> None:
    common: dict[str, Any] = {"attacks": ["pgd-sat"], "max_images": 40, "registry": kitchen, "device": "cpu"}
    default, robust = (api.evaluate(name, **common) for name in ("two", "two@robust"))
    assert robust["reused"], "the default mode is the robust one"
    clean = api.evaluate("two@clean", **common)
    assert not clean["reused"]
    assert clean["generation"] == "two@clean"
    same = api.evaluate("two@beta=0", **common)
    assert same["reused"], "one spelling, one measurement"
    assert same["attacks"] == clean["attacks"]
    keys = {r.content["settings"]["domain"]: r.key for r in kitchen.results(kitchen.get("two").id, "evaluation")}
    assert set(keys) == {"robust", "clean"}
    told = api.compare("two@clean", "two@robust", registry=kitchen)
    assert told["comparisons"], "measured alike: the mode decides neither images nor attack"
    assert default["attacks"]["pgd-sat"]["accuracy"] == next(
        f["second"] for c in told["comparisons"] for f in c["figures"] if c["kind"] == "pgd-sat"
    )


def test_a_certificate_belongs_to_its_mode(kitchen: Registry) -> None:
    common: dict[str, Any] = {"n": 100, "n0": 10, "max_images": 10, "registry": kitchen, "device": "cpu"}
    told = api.certify("noisy", mode="fixed", **common)
    assert told["sigma"] == 0.25
    other = api.certify("noisy@sigma0.12", mode="fixed", **common)
    assert other["sigma"] == 0.12, "of a domain of noise its own σ"
    assert api.audit_generation("noisy", images=4, n=50, seed=0, registry=kitchen, device="cpu")["problems"] == []
    assert api.list_generations(kitchen)["generations"][-1]["certified"]["sigma"] == "0.25"


def test_a_mode_is_called_by_a_short_sigma_and_recipes_have_one_spelling(kitchen: Registry) -> None:
    noise: dict[str, Any] = {"sigma": "64/255", "sigmas": "0.12,64/255", "epochs": 1}
    with pytest.raises(UsageError, match="no short decimal"):
        api.train(method="sigmaadapters", arch="smallcnn", data="digits", given=noise, registry=kitchen)
    settings = objectives.resolve("sigmaadapters", {"sigma": "1/4", "sigmas": "0.250, 3/25", "adapter": "DualParams"})
    assert (settings["sigmas"], settings["adapter"]) == ("0.12,0.25", "dualparams")


def test_nothing_unreadable_is_stored(kitchen: Registry) -> None:
    two = kitchen.get("two")
    forged = dataclasses.replace(two, name="forged", adapters={"a/b": two.adapters["clean"]})
    with pytest.raises(IntegrityError, match="do not agree"):
        kitchen.add(forged, {})
    assert "forged" not in kitchen.refs()["names"]


def test_a_soup_of_noise_has_the_noise_of_its_mode(kitchen: Registry) -> None:
    alone = api.soup_make(["noisy"], adapters="sigma0.12", registry=kitchen, device="cpu")
    assert str(kitchen.get(alone["generation"]).recipe.sigma) == "3/25"
    mixed = api.soup_make(["noisy"], adapters="sigma0.12=.5,sigma0.25=.5", registry=kitchen, device="cpu")
    assert kitchen.get(mixed["generation"]).recipe.sigma is None, "of two there is no one"
    assert kitchen.record(mixed["id"])["parameters"] == kitchen.record(kitchen.get("one").id)["parameters"]


def test_an_audit_of_one_mode(kitchen: Registry) -> None:
    common: dict[str, Any] = {"n": 60, "n0": 10, "mode": "fixed", "max_images": 5, "registry": kitchen, "device": "cpu"}
    api.certify("noisy@sigma0.12", **common)
    told = api.audit_generation("noisy@sigma0.12", images=2, n=20, seed=0, registry=kitchen, device="cpu")
    assert {audit["sigma"] for audit in told["audits"]} == {"0.12"}


def test_advprop_serves_its_clean_mode(registry: Registry) -> None:
    made = api.train(
        method="cotraining", preset="advprop-cvpr20", arch="smallcnn", data="digits", registry=registry, device="cpu",
        given={"epochs": 1, "batch_size": 128, "steps": 1},
    )  # fmt: skip
    assert made["selected"]["metric"] == "clean accuracy"
    assert registry.get(made["generation"]).mode == "clean"


def test_modes_where_a_whole_generation_is_meant(kitchen: Registry) -> None:
    for act in (lambda: kitchen.get("two@clean"), lambda: api.rm(["two@clean"], registry=kitchen)):
        with pytest.raises(UsageError, match="names one mode; here a generation is meant"):
            act()
    with pytest.raises(NotFoundError, match="one has no modes"):
        kitchen.mode("one@clean")
    assert kitchen.mode("@latest").name == kitchen.get("@latest").name
    assert kitchen.mode("noisy~0@sigma0.12").name == "noisy@sigma0.12"


# -- soups -------------------------------------------------------------------------------------------------------------


def test_the_ends_of_the_curve_are_the_adapters(kitchen: Registry) -> None:
    for beta, mode in ((0, "clean"), (1, "robust")):
        made = api.soup_make(["two"], adapters=f"beta={beta}", registry=kitchen, device="cpu")
        found, expected = (
            state_of(kitchen, one) for one in (kitchen.get(made["generation"]), kitchen.mode(f"two@{mode}"))
        )
        assert all(found[key].numpy().tobytes() == expected[key].numpy().tobytes() for key in expected)


def test_an_adapter_soup_is_a_generation(kitchen: Registry) -> None:
    made = api.soup_make(["two"], adapters="clean=.3,robust=.7", name="third", registry=kitchen, device="cpu")
    third, two = kitchen.get("third"), kitchen.get("two")
    assert third.parents == {"soup.0": two.id, "soup.1": two.id}
    assert third.recipe.threat == two.recipe.threat
    assert made["created"]
    assert not api.soup_make(["two"], adapters="beta=.7", registry=kitchen, device="cpu")["created"], "the same soup"
    mixed, clean, robust = (state_of(kitchen, kitchen.mode(one)) for one in ("third", "two@clean", "two@robust"))
    for key, value in mixed.items():
        if value.is_floating_point():
            expected = 0.3 * clean[key].double() + 0.7 * robust[key].double()
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-6)
    rows = {row["generation"] for row in api.lineage("two", registry=kitchen)["generations"]}
    assert "third" in rows
    assert damage(kitchen) == []


@pytest.mark.slow
def test_a_soup_does_not_depend_on_order_or_hash_seed(kitchen: Registry, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from robustkt import api; from robustkt.registry import Registry\n"
        "import torch; torch.set_num_threads(1)\n"
        "registry = Registry(Path(sys.argv[1]))\n"
        "made = api.soup_make(sys.argv[2:], registry=registry, device='cpu')\n"
        "print(made['id'], made['created'])\n"
    )
    here = api.soup_make(["one", "other"], registry=kitchen, device="cpu")["id"]
    elsewhere = tmp_path / "registry"  # or the soup would be found
    shutil.copytree(kitchen.root, elsewhere)
    api.rm([kitchen.names_of(here)[0]], registry=Registry(elsewhere))
    api.gc(grace="0", registry=Registry(elsewhere))
    other_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(elsewhere), "other", "one"],
        env={**os.environ, "PYTHONHASHSEED": other_seed}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [here, "True"]


def test_a_soup_does_not_depend_on_order(kitchen: Registry, tmp_path: Path) -> None:
    here = api.soup_make(["one", "other"], registry=kitchen, device="cpu")["id"]
    elsewhere = tmp_path / "registry"  # or the soup would be found
    shutil.copytree(kitchen.root, elsewhere)
    api.rm([kitchen.names_of(here)[0]], registry=Registry(elsewhere))
    api.gc(grace="0", registry=Registry(elsewhere))
    again = api.soup_make(["other", "one"], registry=Registry(elsewhere), device="cpu")
    assert (again["id"], again["created"]) == (here, True)


def test_statistics_are_those_of_the_averaged_network(kitchen: Registry) -> None:
    """A float64 check of the estimation: the mean over batches of each channel's mean and unbiased variance."""
    network = load_network(kitchen, kitchen.get("one"))
    images = datasets.load("digits").train
    used = soup.reestimate(network, images, views=lambda n, x, y, rng: x, seed=0, device=torch.device("cpu"))
    assert used == len(images) // 128 * 128
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0].double()))
    for start in range(0, used, 128):
        network(images.x[start : start + 128].float() / 255)
    handle.remove()
    mean = torch.stack([x.mean((0, 2, 3)) for x in before]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in before]).mean(0)
    torch.testing.assert_close(first.running_mean.double(), mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.running_var.double(), variance, atol=1e-5, rtol=1e-4)
    assert not network.training


def test_statistics_are_taken_of_attacked_images_and_without_dropout(kitchen: Registry) -> None:
    images = datasets.load("digits").train
    seen: list[torch.Tensor] = []
    threat = ("linf", Fraction(1, 10))

    def view(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        seen.append(judging.seen(None, threat)(network, x, y, rng) - x)
        return x + seen[-1]

    states = []
    for _ in range(2):
        dropped = torch.nn.Sequential(torch.nn.Dropout(0.5), load_network(kitchen, kitchen.get("one")))
        soup.reestimate(dropped, images, views=view, seed=0, device=torch.device("cpu"))
        states.append({key: value.clone() for key, value in dropped.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert max(float(delta.abs().max()) for delta in seen) == pytest.approx(0.1, abs=1e-5)


def test_strangers_are_not_mixed(kitchen: Registry) -> None:
    with pytest.raises(RobustKTError, match="not fine-tuned from a common ancestor") as error:
        api.soup_make(["one", "noisy"], registry=kitchen, device="cpu")
    assert "--init" in error.value.fix
    assert "--unrelated" in error.value.fix
    told, progress = [], Silent()
    progress.note = told.append  # type: ignore[method-assign]
    common: dict[str, Any] = {"registry": kitchen, "device": "cpu", "progress": progress}
    made = api.soup_make(["one", "noisy"], unrelated=True, name="odd", **common)
    assert made["reestimated"] > 0
    assert told == ["they were made for different noise, threats or data; what one was made for decides"]
    api.soup_make(["one", "other"], **common)
    assert len(told) == 1, "those were made alike"
    with pytest.raises(UsageError, match="named twice"):
        api.soup_make(["one", "one"], registry=kitchen)
    for shares in ("1,0", ".5,.6", "1"):
        with pytest.raises(UsageError, match="add up to 1"):
            api.soup_make(["one", "other"], shares=shares, registry=kitchen)
    with pytest.raises(UsageError, match="what the soup is made of"):
        api.soup_make(["two"], registry=kitchen)


def test_greedy_keeps_only_what_helps(kitchen: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.5, 0.7, 0.6, 0.8, 0.75])  # alone: three; then with the next best, then with the last
    monkeypatch.setattr("robustkt.api.souping.judge", lambda *a: ("it", lambda network: next(told)))
    made = api.soup_make(["one", "other", "two"], greedy=True, registry=kitchen, device="cpu", max_images=10)
    assert [part["share"] for part in made["ingredients"]] == ["0.5", "0.5"]
    order = sorted((kitchen.mode(n) for n in ("one", "other", "two")), key=lambda g: g.network())
    assert {part["generation"] for part in made["ingredients"]} == {order[1].name, order[2].name}


def test_a_sweep_attacks_each_mixture_through_itself(kitchen: Registry, tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    common: dict[str, Any] = {"registry": kitchen, "device": "cpu", "max_images": 60}
    told = api.soup_sweep("two", betas="0:1:0.5", split="test", out=picture, **common)
    assert [point["beta"] for point in told["points"]] == [0, 0.5, 1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for point, mode in zip(told["points"], ("two@clean", "two@beta=0.5", "two@robust"), strict=True):
        same = api.evaluate(mode, attacks=["pgd-sat"], **common)
        assert point["clean_accuracy"] == same["clean_accuracy"]
        assert point["robust_accuracy"] == same["worst"]["accuracy"]
        low, high = point["robust_interval"]
        assert low <= point["robust_accuracy"] <= high


def test_an_interrupted_sweep_continues(kitchen: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {"betas": "0,0.25,1", "max_images": 30, "seed": 7, "registry": kitchen, "device": "cpu"}
    real, calls = sweeping.Curve._point, []

    def point(self: sweeping.Curve, beta: Fraction, *rest: Any) -> dict[str, Any]:
        calls.append(beta)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, beta, *rest)

    monkeypatch.setattr(sweeping.Curve, "_point", point)
    with pytest.raises(KeyboardInterrupt):
        api.soup_sweep("two", **common)
    told = api.soup_sweep("two", **common)
    assert calls == [0, Fraction(1, 4), Fraction(1, 4), 1]
    assert told["points"] == api.soup_sweep("two", **common)["points"]


def test_a_sweep_survives_two_crashes(kitchen: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tears a line, the second comes after more were written; a point that is none has a way out."""
    common: dict[str, Any] = {"max_images": 10, "seed": 8, "registry": kitchen, "device": "cpu"}
    real, calls = sweeping.Curve._point, []

    def point(self: sweeping.Curve, beta: Fraction, *rest: Any) -> dict[str, Any]:
        calls.append(beta)
        if len(calls) in (3, 5):
            raise KeyboardInterrupt
        return real(self, beta, *rest)

    monkeypatch.setattr(sweeping.Curve, "_point", point)
    with pytest.raises(KeyboardInterrupt):
        api.soup_sweep("two", betas="0,0.25,1", **common)
    (path,) = kitchen.root.glob("jobs/soup-*/points.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(KeyboardInterrupt):
        api.soup_sweep("two", betas="0,0.25,1", **common)
    told = api.soup_sweep("two", betas="0,0.25,1", **common)
    assert calls == [0, Fraction(1, 4), 1, Fraction(1, 4), 1, 1]
    assert told["points"] == api.soup_sweep("two", betas="0,0.25,1", fresh=True, **common)["points"]

    calls[:] = [0] * 4  # the next is the fifth
    with pytest.raises(KeyboardInterrupt):
        api.soup_sweep("two", betas="0.5", **common)
    for line in (b'["0.5",{"clean":[1]}]\n', b'["0.5",{"cle\n', b"\xff\n"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(line)
        with pytest.raises(IntegrityError, match="holds a point that is none"):
            api.soup_sweep("two", betas="0.5", **common)
    assert len(api.soup_sweep("two", betas="0.5", fresh=True, **common)["points"]) == 1


def test_data_that_have_moved_are_named(registry: Registry, cli: Callable[..., Ran], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("mine", "other"):
        x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
        np.savez(tmp_path / f"{name}.npz", train_images=x, train_labels=y, test_images=x, test_labels=y)
    given = {**SHORT, "epochs": 1, "steps": 1}
    common: dict[str, Any] = {"arch": "smallcnn", "registry": registry, "device": "cpu"}
    api.train(method="cotraining", name="two", given=given, data=str(tmp_path / "mine.npz"), **common)
    told = api.train(method="sat", name="one", given=given, data=str(tmp_path / "mine.npz"), init="two", **common)
    assert told["data"] == "mine.npz"  # as `list` has it
    (tmp_path / "mine.npz").rename(tmp_path / "moved.npz")
    where, moved = ("--registry", registry.root), ("--data", tmp_path / "moved.npz")
    (tmp_path / "tests" / "0").mkdir(parents=True)
    for command in (
        ("soup", "sweep", "two", "--beta", "0,1", "--attack", "fgsm"),
        ("soup", "pick", "two", "--beta", "0,1", "--attack", "fgsm", "--max-robust"),
        ("soup", "make", "one", "two", "--unrelated", "--name", "soup"),
    ):
        assert "are not there" in cli(*command, *where).err
        assert "holds other images than" in cli(*command, *where, "--data", tmp_path / "other.npz").err
        assert "holds no training images" in cli(*command, *where, "--data", tmp_path / "tests").err
        assert cli(*command, *where, *moved).code == 0
    assert registry.record(registry.get("soup").id)["paths"] == {"data": str(tmp_path / "moved.npz")}
    timed = ("doctor", "two", "--seconds", "0.5", *where)
    assert "are not there" in cli(*timed).out
    assert "distill --from two --to smallcnn: about" in cli(*timed, *moved).out


def test_a_choice_is_made_off_the_test_set(kitchen: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[datasets.Split] = []
    real = sweeping.Curve.points
    monkeypatch.setattr(
        sweeping.Curve, "points", lambda self, *a, **k: (seen.append(self.images), real(self, *a, **k))[1]
    )
    picked = api.soup_pick(
        "two", max_robust=True, betas="0:1:0.5", max_images=50, name="served", registry=kitchen, device="cpu"
    )
    held_out = {row.tobytes() for row in datasets.load("digits").held_out.x.numpy()}
    assert all(row.tobytes() in held_out for row in seen[0].x.numpy())
    assert picked["made"] == "served"
    assert (
        picked["mode"] == f"two@{'clean' if picked['beta'] == 0 else 'robust' if picked['beta'] == 1 else 'beta=0.5'}"
    )
    best = max(point["robust_accuracy"] for point in picked["points"])
    assert next(p for p in picked["points"] if p["beta"] == picked["beta"])["robust_accuracy"] == best


@pytest.mark.parametrize("way", [{"max_robust": True}, {"min_clean": 0.5}])
def test_a_robust_choice_wants_an_attack(kitchen: Registry, way: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="choose by the accuracy under attack, and there is none"):
        api.soup_pick("two", attacks=["clean"], registry=kitchen, device="cpu", **way)


def test_what_cannot_work_is_refused_before_anything_is_measured(
    kitchen: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("loading", "sweeping"):
        monkeypatch.setattr(f"robustkt.api.{module}.load_data", lambda *a, **k: pytest.fail("data were loaded"))
    common: dict[str, Any] = {"registry": kitchen, "device": "cpu"}
    for count in (0, -3):
        for ask in (
            lambda n: api.soup_make(["one", "other"], greedy=True, max_images=n, **common),
            lambda n: api.soup_pick("two", for_shift=str(tmp_path), max_images=n, **common),
            lambda n: api.soup_sweep("two", max_images=n, **common),
            lambda n: api.evaluate("two", max_images=n, **common),
        ):
            with pytest.raises(UsageError, match=f"--max-images must be at least 1, not {count}"):
                ask(count)
    with pytest.raises(RobustKTError, match="the name one belongs to another generation"):
        api.soup_pick("two", max_robust=True, name="one", **common)
    with pytest.raises(RobustKTError, match="the name two belongs to another generation"):
        api.soup_make(["one", "other"], greedy=True, name="two", **common)
    with pytest.raises(UsageError, match="do not fit resnet8") as error:
        api.train(method="sat", arch="resnet8", data="digits", given=SHORT, init="one", registry=kitchen)
    assert len(error.value.what) < 250


def test_choosing() -> None:
    points = [
        {"beta": 0.0, "clean_accuracy": 0.99, "robust_accuracy": 0.1},
        {"beta": 0.5, "clean_accuracy": 0.95, "robust_accuracy": 0.6},
        {"beta": 0.7, "clean_accuracy": 0.94, "robust_accuracy": 0.6},
        {"beta": 1.0, "clean_accuracy": 0.8, "robust_accuracy": 0.7},
    ]
    assert soup.chosen(points, "robust_accuracy")["beta"] == 1
    assert soup.chosen(points, "robust_accuracy", min_clean=0.9)["beta"] == 0.5
    assert soup.chosen(points, "clean_accuracy")["beta"] == 0
    with pytest.raises(RobustKTError, match=r"no mixture has a clean accuracy of 99\.5%; the highest is 99\.0%"):
        soup.chosen(points, "robust_accuracy", min_clean=0.995)


def test_a_shift_chooses_by_a_few_labelled_images(kitchen: Registry, tmp_path: Path) -> None:
    digits = datasets.load("digits")
    x, y = digits.test.x[:120].numpy(), digits.test.y[:120].numpy()
    path = tmp_path / "shifted.npz"
    np.savez(path, train_images=255 - x[:80, 0], train_labels=y[:80], test_images=255 - x[80:, 0], test_labels=y[80:])
    picked = api.soup_pick("two", for_shift=str(path), betas="0,1", max_images=40, registry=kitchen, device="cpu")
    assert picked["chosen_on"] == f"40 images of {path}"
    assert "robust_accuracy" not in picked["points"][0]
    accuracy = {point["beta"]: point["clean_accuracy"] for point in picked["points"]}
    assert accuracy[picked["beta"]] == max(accuracy.values())


def test_a_shift_is_a_folder_of_a_class_each(kitchen: Registry, tmp_path: Path, cli: Cli) -> None:
    digits = datasets.load("digits")
    rows = [int(i) for label in range(3) for i in torch.where(digits.test.y == label)[0][:4]]
    for row in rows:
        folder = tmp_path / "photos" / str(int(digits.test.y[row]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - digits.test.x[row, 0].numpy()).resize((16, 16), 0).save(folder / f"{row:04}.png")
    few, _ = datasets.labelled(str(tmp_path / "photos"), digits.spec) or pytest.fail("a folder of classes")
    order = sorted(rows, key=lambda row: (int(digits.test.y[row]), row))
    assert few.y.tolist() == [int(digits.test.y[row]) for row in order]
    assert (few.x.int() - (255 - digits.test.x[order].int())).abs().float().mean() < 40, "resized to the network's 8x8"
    where = ("--registry", kitchen.root, "--beta", "0,1", "--max-images", "20", "--device", "cpu")
    ran = cli("soup", "pick", "two", "--for-shift", tmp_path / "photos", *where)
    assert ran.code == 0, ran.err
    assert "the labelled images are of 3 of the 10 classes" in ran.err
    assert f"has the highest accuracy on 12 images of {tmp_path / 'photos'}" in ran.out.replace("\n", " ").replace(
        "  ", " "
    )
    assert "on 20 test images of digits: clean" in ran.out

    shutil.copytree(tmp_path / "photos", tmp_path / "only" / "test")
    again, _ = datasets.labelled(str(tmp_path / "only"), digits.spec) or pytest.fail("a folder of test images")
    assert torch.equal(again.x, few.x)

    (tmp_path / "photos" / "zero").mkdir()
    shutil.copy(tmp_path / "photos" / "0" / f"{order[0]:04}.png", tmp_path / "photos" / "zero" / "a.png")
    with pytest.raises(RobustKTError, match="has folders of other classes: zero"):
        datasets.labelled(str(tmp_path / "photos"), digits.spec)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "0" / "a.png")
    shutil.rmtree(tmp_path / "photos" / "zero")
    with pytest.raises(UsageError, match="has pictures in colours"):
        datasets.labelled(str(tmp_path / "photos"), digits.spec)
    (tmp_path / "photos" / "0" / "a.png").write_text("no picture")
    with pytest.raises(IntegrityError, match="1 of 13 images cannot be read"):
        datasets.labelled(str(tmp_path / "photos"), digits.spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RobustKTError, match="holds no class folders"):
        datasets.labelled(str(tmp_path / "empty"), digits.spec)
    for other in ("digits", str(tmp_path / "nowhere")):
        assert datasets.labelled(other, digits.spec) is None, "what `load` knows, or complains of"


def test_a_corruption_chooses_on_held_out_images(kitchen: Registry) -> None:
    common: dict[str, Any] = {"max_images": 60, "registry": kitchen, "device": "cpu"}
    picked = api.soup_pick("two", corruption="gaussian-noise:5", betas="0,1", **common)
    assert picked["chosen_on"].endswith("held-out images under gaussian-noise:5")
    assert picked["test"]["of"] == "digits under gaussian-noise:5"
    same = api.evaluate(picked["mode"], attacks=["pgd-sat"], corruption="gaussian-noise:5", **common)
    assert same["reused"]
    assert picked["test"]["clean_accuracy"] == same["clean_accuracy"]


def test_a_choice_is_the_mixture_that_was_measured(kitchen: Registry) -> None:
    common: dict[str, Any] = {"max_images": 30, "registry": kitchen, "device": "cpu"}
    assert api.soup_pick("two", max_robust=True, betas="1/3", **common)["mode"] == "two@beta=1/3"
    with pytest.raises(UsageError, match="is what two was trained on"):
        api.soup_pick("two", for_shift="digits", **common)


@pytest.mark.parametrize("text", ["0:1", "0:1:0", "1:0:.1", "0:2:.5", "-1,0", "0:1:0.001", "x"])
def test_betas_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        sweeping.read_betas(text)


def test_betas() -> None:
    assert sweeping.read_betas("0:1:0.1") == [Fraction(k, 10) for k in range(11)]
    assert sweeping.read_betas("0:1:0.3") == [*(Fraction(3 * k, 10) for k in range(4)), 1]
    assert sweeping.read_betas("0:.5:2") == [0, Fraction(1, 2)]
    assert sweeping.read_betas("1:1:1") == [1]
    assert sweeping.read_betas("1,0.3,0.3") == [Fraction(3, 10), 1]


# -- the command line --------------------------------------------------------------------------------------------------


def test_commands(cli: Cli, kitchen: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--registry", kitchen.root)
    ran = cli("soup", "sweep", "two", "--beta", "0,1", "--max-images", "20", *where)
    assert ran.code == 0, ran.err
    assert "20 held-out images" in ran.out
    ran = cli("soup", "sweep", "two", "--beta", "0,1", "--max-images", "20", "--json", *where)
    assert [point["beta"] for point in json.loads(ran.out)["points"]] == [0, 1]
    ran = cli("soup", "make", "two", "--adapters", "clean=.2,robust=.8", "--name", "typed", *where)
    assert ran.out.startswith("typed = 0.2 · two@clean + 0.8 · two@robust")
    ran = cli("soup", "pick", "two", "--min-clean", "0", "--beta", "0,1", "--max-images", "20", *where)
    assert "has the highest robust accuracy with a clean accuracy of at least 0.0% on 20 held-out images" in ran.out
    ran = cli("soup", "pick", "two", *where)
    assert (ran.code, ran.err.splitlines()[0]) == (
        2, "error: soup pick takes one of --min-clean, --max-robust, --for-shift and --corruption",
    )  # fmt: skip
    ran = cli("soup", "sweep", "one", *where)
    assert ran.err.startswith("error: one has one mode: β mixes adapters called clean and robust")
    ran = cli("show", "two", *where)
    assert "modes" in ran.out
    assert "robust (default, " in ran.out
    monkeypatch.chdir(tmp_path)
    ran = cli("export", "two@clean", "--format", "safetensors", *where)
    assert ran.code == 0, ran.err


# -- stored sweeps -----------------------------------------------------------------------------------------------------

SWEPT: dict[str, Any] = {"betas": "0,0.5,1", "max_images": 40, "seed": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def swept(kitchen: Registry) -> Registry:
    api.soup_sweep("two", attacks=["clean", "fgsm", "pgd-sat"], registry=kitchen, **SWEPT)
    return kitchen


def test_a_sweep_is_stored_and_a_pick_after_it_measures_nothing(
    swept: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = ["clean", "fgsm", "pgd-sat"]
    monkeypatch.setattr(sweeping.Curve, "_point", lambda *a: pytest.fail("it was measured again"))
    told = api.soup_sweep("two", attacks=attacks, registry=swept, **SWEPT)
    some = api.soup_sweep("two", attacks=attacks, registry=swept, **{**SWEPT, "betas": "0.5"})
    assert some["points"] == [told["points"][1]]
    assert api.soup_pick("two", max_robust=True, attacks=attacks, registry=swept, **SWEPT)["points"] == told["points"]
    (result,) = [r for r in swept.results(swept.get("two").id, "sweep") if r.content["settings"]["seed"] == 3]
    assert result.content["figures"]["points"] == told["points"]
    head, *rows = swept.log(result).decode().splitlines()
    assert (len(rows), len(head.split("\t"))) == (told["images"], 2 + 3 * 3)
    assert rows[1].split("\t")[0] == str(result.content["settings"]["skip"])
    assert damage(swept) == []
    assert api.show("two", registry=swept)["sweeps"]


def test_only_what_is_new_is_measured(swept: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = sweeping.Curve._point, []
    monkeypatch.setattr(sweeping.Curve, "_point", lambda self, beta, *r: (calls.append(beta), real(self, beta, *r))[1])
    attacks = ["clean", "fgsm", "pgd-sat"]
    api.soup_sweep("two", attacks=attacks, registry=swept, **{**SWEPT, "betas": "0,0.25,1"})
    assert calls == [Fraction(1, 4)]
    api.soup_sweep("two", attacks=attacks, registry=swept, **{**SWEPT, "betas": "1"}, fresh=True)
    assert calls == [Fraction(1, 4), 1]


def test_a_damaged_sweep_is_found_and_made_again(swept: Registry) -> None:
    found = [r for r in swept.results(swept.get("two").id, "sweep") if r.content["settings"]["seed"] == 3]
    result = next(r for r in found if r.content["settings"]["betas"] == ["0", "0.5", "1"])
    place = swept.log_path(result)
    whole = place.read_bytes()
    place.write_bytes(whole.replace(b"\t1\t", b"\t0\t", 1))
    assert [str(place) in f"{f}" for f in damage(swept)] == [True]
    again = {key: value for key, value in SWEPT.items() if key != "betas"}
    betas = ",".join(result.content["settings"]["betas"])
    told = api.soup_sweep("two", attacks=["clean", "fgsm", "pgd-sat"], betas=betas, registry=swept, **again)
    assert told["points"] == result.content["figures"]["points"]
    assert place.read_bytes() == whole
    assert damage(swept) == []


def test_show_has_the_sweep(swept: Registry, cli: Cli) -> None:
    ran = cli("show", "two", "--registry", str(swept.root))
    assert "sweep" in ran.out
    assert "clean/robust by β" in ran.out
