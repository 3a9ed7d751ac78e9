"""Kept logits: the same bits with and without them, nothing of another teacher, and nothing that is damaged."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from robustkt import api, data, objectives, replay
from robustkt.api import replaying
from robustkt.api.loading import load_data
from robustkt.api.recipes import assemble
from robustkt.core import Batch, generator, seed_of
from robustkt.engine import Trainer
from robustkt.errors import IntegrityError, RobustKTError, UsageError
from robustkt.generation import read_manifest
from robustkt.progress import Silent
from robustkt.registry import Registry, replays, verify
from robustkt.registry.files import TEMPORARY, writing
from robustkt.replay import Replay
from robustkt.streams import bits_of, keys_of, normals_of
from tests.conftest import Ran
from tests.stores import damage

CPU = torch.device("cpu")
GIVEN = {"epochs": 3, "batch_size": 32, "views": 2, "ema": None}
COUNT, BLOCKS = 96, 3  # training images, and blocks of them that the teacher answers at once


class Notes(Silent):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a view had many blocks."""
    monkeypatch.setattr(replay, "BLOCK", 40)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits, 120 of them for training, of which 24 are held out."""
    digits, path = data.load("digits"), tmp_path_factory.mktemp("images") / "some.npz"
    parts = {"train": (digits.train, 120), "test": (digits.test, 30)}
    arrays = {f"{part}_images": split.x[:count, 0].numpy() for part, (split, count) in parts.items()}
    labels = {f"{part}_labels": split.y[:count].numpy() for part, (split, count) in parts.items()}
    np.savez(path, **arrays, **labels)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def taught(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Two teachers under noise and one against an attack; nobody has learnt from them."""
    registry = Registry(tmp_path_factory.mktemp("taught") / "registry")
    common: dict[str, Any] = {"arch": "smallcnn", "data": str(images), "registry": registry, "device": "cpu"}
    for name, method, given, seed in (
        ("noisy", "gaussian", {"sigma": "0.25"}, 0),
        ("other", "gaussian", {"sigma": "0.25"}, 1),
        ("robust", "sat", {"eps": "0.1", "steps": 1, "pad": 1}, 0),
    ):
        api.train(method=method, name=name, given={**given, "epochs": 1, "batch_size": 32}, seed=seed, **common)
    return registry


@pytest.fixture
def own(taught: Registry, tmp_path: Path) -> Registry:
    """A copy of that registry."""
    shutil.copytree(taught.root, tmp_path / "registry")
    return Registry(tmp_path / "registry")


def student(registry: Registry, teacher: str = "noisy", **more: Any) -> dict[str, Any]:
    given = {**GIVEN, **more.pop("given", {})}
    return api.distill(
        teacher=teacher, arch=more.pop("arch", "smallcnn"), given=given, registry=registry, device="cpu", **more
    )


def views_of(registry: Registry) -> list[Path]:
    return replays.files(registry.root)


def replayed(
    registry: Registry,
    method: str = "crt",
    teacher: Callable[[Tensor], Tensor] | None = None,
    precision: str = "fp32",
    identity: str = "",
    **given: Any,
) -> Replay:
    """The views of a student on the digits, as `distill` makes them."""
    origin = registry.get("noisy")
    dataset = load_data(registry, origin, None, None)
    chosen = {"views": 2, **({"sigma": "0.25"} if method == "crt" else {"eps": "0.1"}), **given}
    recipe = assemble(
        method=method, arch="smallcnn", arch_source=None, data=dataset, given=chosen, preset=None,
        precision=precision, seed=0,
    )  # fmt: skip
    asked = teacher or replaying.Teacher(registry, origin, recipe, CPU, {})
    objective = objectives.build(method, recipe.settings, asked)
    assert isinstance(objective, objectives.Replayed)
    assert recipe.training is not None
    return Replay(
        registry, teacher=asked, identity=identity or origin.id, objective=objective, views=2, recipe=recipe,
        training=recipe.training, images=dataset.train, device=CPU,
        circumstances=lambda: replaying.circumstances(CPU), progress=Notes(),
    )  # fmt: skip


# -- random numbers by key -------------------------------------------------------------------------------------------


def splitmix(seed: int) -> Iterator[int]:
    """SplitMix64 as its paper writes it, on Python's integers."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        yield z ^ z >> 31


def test_numbers_of_a_key_are_splitmix64s() -> None:
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of seed 1234567, published with its code
    assert [n % 2**64 for n in bits_of(torch.tensor([1234567]), 3)[0].tolist()] == wanted
    for key in (0, -1, 2**63 - 1, -(2**63), 42):
        reference = splitmix(key % 2**64)
        assert [n % 2**64 for n in bits_of(torch.tensor([key]), 50)[0].tolist()] == [next(reference) for _ in range(50)]


def test_normal_numbers_are_the_tables_sums_in_float64() -> None:
    edges = stats.norm.ppf(np.arange(2**16 + 1) / 2**16)
    means = 2**16 * (stats.norm.pdf(edges[:-1]) - stats.norm.pdf(edges[1:]))
    table = means / math.sqrt(2 * np.mean(means**2))
    reference = splitmix(77)
    words = [n >> 16 * part & 0xFFFF for n in (next(reference) for _ in range(8)) for part in range(4)]
    signed = [(word + 2**15) % 2**16 for word in words]  # 16 bits as a signed number, from the table's middle
    wanted = [table[a] + table[b] for a, b in zip(signed[:16], signed[16:], strict=True)]
    found = normals_of(torch.tensor([77]), (3, 5))
    assert found.shape == (1, 3, 5)
    np.testing.assert_allclose(found.flatten().numpy(), wanted[:15], rtol=1e-6)


def test_noise_is_normal_and_independent_between_images_views_and_draws() -> None:
    sigma, images = Fraction(1, 4), torch.arange(64)
    x = torch.zeros(64, 3, 16, 16)
    drawn = {}
    for view in (0, 1):
        keys = keys_of(seed_of("view", "teacher", view), images)
        batch = Batch(x, images, 0, generator("cpu", 0), keys)
        objective = objectives.build("crt", {"sigma": "0.25", "draws": 2}, lambda z: z)
        assert isinstance(objective, objectives.Replayed)
        for draw in (0, 1):
            drawn[view, draw] = objective.seen(batch, draw).flatten(1).double().numpy() / float(sigma)
    every = np.concatenate([rows.ravel() for rows in drawn.values()])
    n = every.size
    assert stats.kstest(every, "norm").pvalue > 0.01
    assert abs(every.mean()) < 4 / math.sqrt(n)
    assert abs(every.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((every**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert (np.abs(every) > 4).mean() == pytest.approx(2 * stats.norm.sf(4), rel=0.5)
    rows = np.concatenate(list(drawn.values()))  # 256 images, views and draws, of 768 values each
    apart = np.corrcoef(rows)[np.triu_indices(len(rows), 1)] * math.sqrt(rows.shape[1])
    assert np.abs(apart).max() < 6  # of 32,640 pairs
    assert stats.kstest(apart, "norm").pvalue > 0.01
    neighbours = np.corrcoef(every[:-1], every[1:])[0, 1]
    assert abs(neighbours) * math.sqrt(n) < 4


def test_crops_and_mirrors_are_those_of_a_loop_and_all_as_likely() -> None:
    x = torch.randint(256, (4_000, 1, 6, 6), dtype=torch.uint8, generator=generator("cpu", 1))
    keys = keys_of(5, torch.arange(4_000))
    found = data.keyed_crop_flip(x, pad=2, flip=True, keys=keys)
    seen = []
    for image, key, window in zip(x[:, 0].numpy(), keys.tolist(), found[:, 0].numpy(), strict=True):
        bits = next(splitmix(key % 2**64))
        down, across = ((bits >> place & 0xFFFFF) * 5 >> 20 for place in (0, 20))
        wanted = np.pad(image, 2)[down : down + 6, across : across + 6]
        mirrored = bits >> 40 & 1
        assert (window == (wanted[:, ::-1] if mirrored else wanted)).all()
        seen.append(down * 10 + across * 2 + mirrored)
    assert stats.chisquare(np.bincount(seen, minlength=50)).pvalue > 0.01


def batch_of(views: Replay, picked: Tensor, epoch: int, rng: torch.Generator) -> Batch:
    return views.batch(picked, views.images.x[picked], views.images.y[picked], epoch, rng)


@pytest.mark.parametrize("method", ["crt", "rslad"])
def test_an_image_is_the_same_in_every_batch(taught: Registry, tmp_path: Path, method: str) -> None:
    shutil.copytree(taught.root, tmp_path / "r")
    views = replayed(Registry(tmp_path / "r"), method, pad=2, flip=True)
    views.open(1)
    rng, order = generator("cpu", 3), torch.randperm(COUNT, generator=generator("cpu", 2))
    whole = batch_of(views, torch.arange(COUNT), 1, rng)
    noisy = views.objective.seen(whole, 0)
    for size in (1, 7, 64):
        picked = order[:size]
        part = batch_of(views, picked, 1, generator("cpu", size))
        assert torch.equal(part.x, whole.x[picked])
        assert torch.equal(views.objective.seen(part, 0), noisy[picked])
        assert part.target is not None
        assert whole.target is not None
        assert torch.equal(part.target, whole.target[picked])
    views.open(0)
    assert not torch.equal(batch_of(views, torch.arange(COUNT), 0, rng).x, whole.x)
    views.open(3)  # 3 mod 2
    assert torch.equal(batch_of(views, torch.arange(COUNT), 3, rng).x, whole.x)


# -- the same bits ---------------------------------------------------------------------------------------------------


def test_ids_do_not_depend_on_what_is_kept(own: Registry, tmp_path: Path) -> None:
    first = student(own, name="first")
    assert (first["replay"], first["cost"]["teacher_forward"]) == ({"views": 2, "reused": 0}, 2 * COUNT)
    assert len(views_of(own)) == 2
    for state, reused in (("full", 2), ("half", 1), ("deleted", 0)):
        shutil.copytree(own.root, tmp_path / state)
        copy = Registry(tmp_path / state)
        gone = {"full": [], "half": views_of(copy)[:1], "deleted": views_of(copy)}[state]
        for path in gone:
            path.unlink()
        again = student(copy, name="again", fresh=True)
        assert again["id"] == first["id"]
        assert again["replay"] == {"views": 2, "reused": reused}
        assert again["cost"]["teacher_forward"] == (2 - reused) * COUNT
        assert len(views_of(copy)) == 2
        assert not damage(copy)


def test_another_student_needs_no_teacher(own: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    student(own)
    monkeypatch.setattr(replaying, "load_network", lambda *a, **k: pytest.fail("the teacher was loaded"))
    notes = Notes()
    given = {"batch_size": 20, "match": "kl", "temperature": 2.0, "ce_weight": 0.3, "lr": 0.05}
    told = student(own, arch="resnet8", seed=5, given=given, progress=notes)
    assert told["replay"] == {"views": 2, "reused": 2}
    assert (told["cost"]["teacher_forward"], told["cost"]["student_forward"]) == (0, 3 * 80)
    assert "re-used 2 of 2 views of noisy's logits, 0 teacher passes" in notes.told


def test_the_order_is_the_recipes(own: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[list[int]] = []
    real = Replay.batch

    def batch(self: Replay, picked: Tensor, *others: Any) -> Batch:
        orders.append(picked.tolist())
        return real(self, picked, *others)

    monkeypatch.setattr(Replay, "batch", batch)
    for seed in (0, 1):
        student(own, seed=seed, given={"epochs": 1, "batch_size": 90})
    assert orders[0] != orders[1]


def test_methods_share_the_clean_views_of_a_teacher(own: Registry) -> None:
    shared: dict[str, Any] = {"teacher": "robust", "given": {"steps": 1, "pad": 1}}
    assert student(own, method="rslad", **shared)["replay"] == {"views": 2, "reused": 0}
    assert student(own, method="ard", **shared)["replay"] == {"views": 2, "reused": 2}
    dual = student(own, method="dualrslad", arch="resnet8", **shared)
    assert (dual["replay"], dual["cost"]["teacher_forward"]) == ({"views": 2, "reused": 2}, 0)
    shared["given"]["begin_epoch"] = 2
    iad = student(own, method="iad", **shared)  # its teacher answers x' too, once its introspection has begun
    assert (iad["replay"], iad["cost"]["teacher_forward"]) == ({"views": 2, "reused": 2}, COUNT)


def test_a_draw_more_is_a_pass_more(own: Registry) -> None:
    student(own)
    told = student(own, given={"draws": 2})
    assert told["replay"] == {"views": 2, "reused": 0}
    assert told["cost"]["teacher_forward"] == 2 * COUNT  # the second draw alone
    assert len(views_of(own)) == 4


def test_kept_logits_are_the_networks_in_float64(own: Registry) -> None:
    views = replayed(own)
    views.open(0)
    batch = batch_of(views, torch.arange(90), 0, generator("cpu", 0))
    network = replaying.load_network(own, own.get("noisy")).double()
    with torch.no_grad():
        wanted = network(views.objective.seen(batch, 0).double())
    assert batch.target is not None
    assert batch.target.dtype == torch.float32
    assert torch.equal(batch.target, batch.target.half().float())
    torch.testing.assert_close(batch.target.double(), wanted, rtol=2**-11 + 1e-5, atol=1e-5)


def test_bf16_logits_lose_nothing(own: Registry) -> None:
    views = replayed(own, precision="bf16")
    views.open(0)
    rows = torch.arange(40)  # the first block, as it was asked
    batch = batch_of(views, rows, 0, generator("cpu", 0))
    with torch.no_grad():
        assert torch.equal(views.teacher(views.objective.seen(batch, 0)), batch.target)


def test_an_interrupted_run_goes_on_with_the_same_bits(
    own: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(own.root, tmp_path / "whole")
    whole = student(Registry(tmp_path / "whole"))
    real, saved = Trainer._save, []

    def save(self: Trainer) -> None:
        real(self)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        student(own)
    views_of(own)[0].unlink()
    assert student(own)["id"] == whole["id"]


def test_reproduce_asks_the_teacher_and_says_so(own: Registry, cli: Callable[..., Ran]) -> None:
    student(own, name="kept")
    for path in views_of(own):
        path.write_bytes(b"not what reproduce believes")
    ran = cli("reproduce", "kept", "--registry", own.root, "--device", "cpu", "--json")
    assert (ran.code, ran.json["verdict"]) == (0, "identical")
    assert "its teacher is asked again" in ran.err


def test_what_was_re_used_is_told(own: Registry, cli: Callable[..., Ran]) -> None:
    student(own)
    words = ("distill", "--from", "noisy", "--to", "smallcnn", "--seed", "1", "--name", "second", "--registry",
             own.root, "--device", "cpu", "--epochs", "2", "--batch-size", "32")  # fmt: skip
    ran = cli(*words)
    assert ran.code == 0
    assert "re-used 2 of 2 views of noisy's logits, 0 teacher passes" in ran.err  # an epoch a view by default
    assert cli(*words, "--json").json["replay"] == {"views": 2, "reused": 2}
    record = cli("show", "second", "--registry", own.root, "--json").json["record"]
    assert record["replay"] == {"views": 2, "reused": 2}
    assert record["cost"]["teacher_forward"] == 0


# -- what is kept apart ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({}, {"identity": "sha256:" + "0" * 64}),
        ({}, {"sigma": "0.5"}),
        ({}, {"pad": 1}),
        ({}, {"flip": True}),
        ({}, {"precision": "bf16"}),
        ({"method": "rslad"}, {}),
    ],
)
def test_other_images_or_teachers_have_another_place(
    taught: Registry, one: dict[str, Any], two: dict[str, Any]
) -> None:
    first, second = replayed(taught, **one), replayed(taught, **two)
    places = [replays.place(taught.root, views.content(copy)) for views in (first, second) for copy in (0, 1)]
    assert len(set(places)) == 4
    second._view = 1
    assert replays.place(taught.root, second.content(0)) not in places


def test_data_threads_and_device_are_part_of_the_place(taught: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    views = replayed(taught)
    content = views.content(0)
    assert content["data"] == taught.get("noisy").recipe.data.fingerprint
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert views.content(0)["made"]["threads"] == 77
    monkeypatch.undo()
    assert {"device", "machine", "system", "torch", "deterministic"} < content["made"].keys()


def test_other_settings_never_hit(own: Registry) -> None:
    student(own)
    assert student(own, teacher="other")["replay"]["reused"] == 0
    assert student(own, given={"sigma": "0.5"})["replay"]["reused"] == 0
    assert student(own, given={"pad": 1})["replay"]["reused"] == 0


def test_a_fresh_view_an_epoch_is_the_recipe_that_it_was(own: Registry) -> None:
    told = student(own, given={"views": None})
    assert told["replay"] is None
    assert not views_of(own)
    found = own.get(told["generation"])
    assert "views" not in found.recipe.settings
    old = read_manifest(found.manifest(), "old", "a manifest from before there were views")
    built = objectives.build("crt", old.recipe.settings, lambda x: x)
    assert isinstance(built, objectives.Replayed)
    assert built.views is None


def test_presets_of_papers_have_fresh_views() -> None:
    digits = data.load("digits")

    def views(preset: str, method: str) -> object:
        given = {"sigma": "0.25"} if method == "crt" else {"eps": "0.1"}
        recipe = assemble(
            method=method, arch="smallcnn", arch_source=None, data=digits, given=given, preset=preset,
            precision="fp32", seed=0,
        )  # fmt: skip
        return recipe.settings.get("views")

    papers = {"crt": "crt-neurips22", "rslad": "rslad-iccv21", "ard": "ard-aaai20", "iad": "iad-iclr22"}
    assert [views(preset, method) for method, preset in papers.items()] == [None] * 4
    assert views("crt-fast", "crt") == views("rslad-fast", "rslad") == 30


def test_views_where_the_student_decides_what_the_teacher_sees(own: Registry) -> None:
    with pytest.raises(UsageError, match="adaad has no views") as refused:
        student(own, teacher="robust", method="adaad")
    assert "Leave views out" in refused.value.fix


# -- damage, death and company ---------------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def exchanged(path: Path) -> None:
    other = next(p for p in path.parent.iterdir() if p != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("harm", [flipped, truncated, emptied, exchanged])
def test_a_damaged_file_is_named_and_made_again(own: Registry, harm: Callable[[Path], None]) -> None:
    first = student(own)
    path = views_of(own)[0]
    whole = path.read_bytes()
    harm(path)
    assert [Path(told.rpartition(": ")[2]).name for told in damage(own)] == [path.name]
    notes = Notes()
    again = student(own, fresh=True, progress=notes)
    assert again["id"] == first["id"]
    assert again["replay"] == {"views": 2, "reused": 1}
    assert sum("damaged" in told for told in notes.told) == 1
    assert path.read_bytes() == whole
    assert not damage(own)


def test_a_file_of_another_size_is_not_read(own: Registry) -> None:
    student(own)
    path = views_of(own)[0]
    kept = replays.checked(path)
    os.truncate(path, 2**34)  # without a byte written
    began = time.monotonic()
    with pytest.raises(IntegrityError, match="damaged"):
        replays.find(own.root, kept.content, kept.size)
    assert time.monotonic() - began < 2, "its hash takes longer"


def test_repair_moves_a_damaged_file_aside(own: Registry, cli: Callable[..., Ran]) -> None:
    student(own)
    path = views_of(own)[0]
    flipped(path)
    assert cli("verify", "--registry", own.root).code == 3
    assert cli("verify", "--repair", "--registry", own.root).code == 0
    assert not path.exists()
    assert len(list(own.root.glob(f"quarantine/*/replay/{path.name}"))) == 1


@pytest.mark.parametrize("block", [1, 3, 5])
def test_a_killed_run_leaves_whole_views_only(own: Registry, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    child = os.fork()
    if child == 0:  # dies within a view, without any cleaning up
        asked, real = [0], replay._asked

        def dying(teacher: Any, x: Tensor) -> Tensor:
            asked[0] += 1
            if asked[0] == block:
                os._exit(9)
            return real(teacher, x)

        replay._asked = dying
        student(own)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(views_of(own)) == (block > BLOCKS)
    assert len(list(own.root.glob(f"replay/{TEMPORARY}*"))) == 1
    assert not damage(own)
    again = student(own)
    assert again["replay"] == {"views": 2, "reused": 0}  # what it finds it has made itself, before it died
    assert again["cost"]["teacher_forward"] == 2 * COUNT
    other = student(own, name="other-run", fresh=True)
    assert other["id"] == again["id"]
    for path in own.root.glob(f"replay/{TEMPORARY}*"):
        os.utime(path, (1, 1))
    api.gc(grace="1d", registry=own)
    assert not list(own.root.glob(f"replay/{TEMPORARY}*"))
    assert len(views_of(own)) == 2


def test_two_processes_fill_and_read_at_once(own: Registry) -> None:
    children = []
    for number, size in enumerate((20, 30)):
        child = os.fork()
        if child == 0:
            try:
                student(own, name=f"student{number}", given={"batch_size": size, "views": 3})
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    ids = [own.get(f"student{number}").id for number in (0, 1)]
    passes = [own.record(identity)["cost"]["teacher_forward"] for identity in ids]
    assert sum(passes) == 3 * COUNT  # each view is made by one of them
    assert len(views_of(own)) == 3
    assert not [f.what for f in verify(own) if f.damage]
    alone = student(own, name="alone", fresh=True, given={"batch_size": 30, "views": 3})
    assert alone["id"] == ids[1]


def test_a_place_that_cannot_be_written_costs_passes_only(own: Registry, tmp_path: Path) -> None:
    shutil.copytree(own.root, tmp_path / "plain")
    wanted = student(Registry(tmp_path / "plain"))
    (own.root / "replay").write_text("no folder can be made here")
    notes = Notes()
    told = student(own, progress=notes)
    assert told["id"] == wanted["id"]
    assert told["cost"]["teacher_forward"] == 3 * COUNT  # in each epoch
    assert sum("are not kept" in line for line in notes.told) == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_in_the_place_of_a_view_costs_no_second_pass(
    own: Registry, cli: Callable[..., Ran], full: bool
) -> None:
    first = student(own)
    (path,) = (file for file in views_of(own) if json.loads(file.read_bytes().split(b"\n")[0])["view"] == 1)
    path.unlink()
    path.mkdir()
    if full:
        (path / "file").write_text("somebody's")
    notes = Notes()
    again = student(own, fresh=True, progress=notes)
    assert again["id"] == first["id"]
    assert again["cost"]["teacher_forward"] == COUNT  # of the view that is not there, in the one epoch that it has
    told = [line for line in notes.told if "are not kept" in line]
    assert (
        told == [f"the teacher's logits are not kept: a folder is where they would lie: {path}. Move it away."] * full
    )
    assert path.is_dir() == full
    assert cli("gc", "--registry", own.root).code == 0
    assert cli("verify", "--registry", own.root).code == 3 * full


def test_a_full_disk_costs_passes_only(own: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(own.root, tmp_path / "plain")
    wanted = student(Registry(tmp_path / "plain"))

    def full(root: Path, content: Any, blocks: Iterator[bytes]) -> None:
        with writing(root):
            next(blocks)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(replays, "put", full)
    notes = Notes()
    assert student(own, progress=notes)["id"] == wanted["id"]
    assert [line for line in notes.told if "No space left" in line]
    assert not views_of(own)


@pytest.mark.parametrize("value", [65_505.0, -1e5, math.inf, math.nan])
def test_logits_that_fp16_cannot_hold_are_refused(own: Registry, value: float) -> None:
    def teacher(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 10).index_fill(1, torch.tensor([3]), value)

    with pytest.raises(RobustKTError, match="largest that is kept") as refused:
        replayed(own, teacher=teacher).open(0)
    assert "--set views=none" in refused.value.fix
    assert not views_of(own)


def test_the_largest_logit_is_kept(own: Registry) -> None:
    views = replayed(own, teacher=lambda x: torch.full((len(x), 10), 65_504.0))
    views.open(0)
    target = batch_of(views, torch.arange(5), 0, generator("cpu", 0)).target
    assert torch.equal(target, torch.full((5, 10), 65_504.0))


def test_a_view_is_mapped_and_not_read_whole(own: Registry) -> None:
    views = replayed(own)
    views.open(0)
    assert all(isinstance(logits, np.memmap) for logits in views._logits)
    assert statistics.mean(path.stat().st_size for path in views_of(own)) < COUNT * 10 * 2 + 1_000


# -- upkeep ----------------------------------------------------------------------------------------------------------


def aged(path: Path) -> None:
    os.utime(path, (1, 1))


def test_gc_takes_what_nobody_has_used(own: Registry) -> None:
    student(own)
    used, unused = views_of(own)
    aged(unused)
    told = api.gc(grace="14d", dry_run=True, registry=own)
    assert told["files"] == [unused.relative_to(own.root).as_posix()]
    assert (told["bytes"], told["spared"]) == (unused.stat().st_size, 0)
    aged(used)
    student(own, seed=1, given={"epochs": 2})  # uses both
    assert api.gc(grace="14d", registry=own)["files"] == []
    aged(unused)
    assert api.gc(grace="14d", registry=own)["files"] == [unused.relative_to(own.root).as_posix()]
    assert views_of(own) == [used]


def test_gc_takes_the_views_of_a_teacher_that_is_gone(own: Registry) -> None:
    student(own, name="pupil")
    student(own, teacher="other", name="else")
    gone = {path for path in views_of(own) if replays.teacher_of(path) == own.get("noisy").id}
    api.rm(["noisy", "pupil"], registry=own)
    assert api.gc(grace="14d", registry=own)["files"] == []  # `rename` can still bring the teacher back
    for path in own.root.glob("generations/*"):
        aged(path)
    told = api.gc(grace="14d", registry=own)["files"]
    assert {own.root / path for path in told if path.startswith("replay/")} == gone
    assert len(views_of(own)) == 2


def test_verify_knows_the_folder(own: Registry) -> None:
    student(own)
    before = verify(own)
    (own.root / "replay" / "stray.txt").write_text("x")
    (own.root / "replay" / f"{TEMPORARY}1").write_bytes(b"x")
    assert {f.what for f in verify(own)} - {f.what for f in before} == {
        "a file that is none of the registry's", "an unfinished write",
    }  # fmt: skip


def test_kept_logits_are_never_copied_or_pushed(own: Registry, tmp_path: Path) -> None:
    made = student(own, name="pupil")
    api.copy(["pupil"], to=str(tmp_path / "there"), registry=own)
    there = Registry(tmp_path / "there")
    assert there.get("pupil").id == made["id"]
    assert not (there.root / "replay").exists()
    api.push("pupil", to=tmp_path / "published", registry=own)
    assert not list((tmp_path / "published").rglob(f"*{replays.SUFFIX}"))
