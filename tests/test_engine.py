"""The training loop: bit-identical resume, what is selected and kept, and every figure of a step by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkt import checkpoint, objectives
from robustkt.catalog import METHODS
from robustkt.core import Batch, InPrecision, attacking
from robustkt.data import Split
from robustkt.engine import Fit, Meter, Trainer, describe
from robustkt.errors import DivergedError, IntegrityError
from robustkt.generation import Training
from robustkt.losses import ce
from robustkt.objectives.adversarial import Natural
from robustkt.progress import Silent
from robustkt.schedules import learning_rate
from robustkt.updates import sgd, warmed_up

COUNT, SIZE, EPOCHS = 26, 8, 4  # three steps an epoch, two images left over
CPU = torch.device("cpu")
NAMES = METHODS.names()
State = dict[str, Tensor]


def images(count: int = COUNT, classes: int = 3) -> Split:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 1, 4, 4), generator=rng, dtype=torch.uint8)
    return Split(x, torch.randint(classes, (count,), generator=rng))


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)
        )


def linear(bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=bias))


def figure(model: nn.Module) -> float:
    """A score that every weight and buffer has a part in."""
    with attacking(model), torch.no_grad():
        return float(model(images().images(slice(None))).softmax(1)[:, 0].std())


@dataclass
class Watch:
    """Progress that remembers, and may be made to fail: as Ctrl-C does, at any moment."""

    stop: tuple[str, int] | None = None  # which method, at which call from 0
    calls: dict[str, list[Any]] = field(default_factory=lambda: {"bar": [], "advance": [], "line": [], "note": []})

    def _called(self, what: str, value: Any) -> None:
        self.calls[what].append(value)
        if self.stop == (what, len(self.calls[what]) - 1):
            raise KeyboardInterrupt

    @contextmanager
    def bar(self, title: str, total: float, done: float = 0) -> Iterator[Watch]:
        self._called("bar", (total, done))
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        self._called("advance", amount)

    def line(self, text: str) -> None:
        self._called("line", text)

    def note(self, text: str) -> None:
        self._called("note", text)


@dataclass(frozen=True)
class Recorder:
    """Natural training that notes what it is shown and the weights before every step."""

    batches: list[Batch] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    def perturb(self, student: Any, batch: Batch) -> Tensor:
        self.batches.append(batch)
        self.states.append({name: value.clone() for name, value in student.module.state_dict().items()})
        return batch.x

    def loss(self, student: Any, batch: Batch, view: Tensor) -> dict[str, Tensor]:
        return {"ce": ce(student(view), batch.y).mean()}


@dataclass(frozen=True)
class Spoilt:
    """Natural training with a second term that a function of (epoch, calls before it) may spoil."""

    spoil: Callable[[int, int], float]
    calls: list[int] = field(default_factory=list)

    def perturb(self, student: Any, batch: Batch) -> Tensor:
        return batch.x

    def loss(self, student: Any, batch: Batch, view: Tensor) -> dict[str, Tensor]:
        z = student(view)
        self.calls.append(batch.epoch)
        return {"ce": ce(z, batch.y).mean(), "kl": z.square().mean() * self.spoil(batch.epoch, len(self.calls) - 1)}


def objective(name: str, **settings: Any) -> Any:
    needs = objectives.needs(name)
    given = {key: value for key, value in {"sigma": "0.25"}.items() if key in needs}
    given |= {"eps": "8/255", "steps": 2} if "threat" in needs else {}
    guide = network(5).eval().requires_grad_(False) if "teacher" in needs else None
    return objectives.build(name, {**given, **settings}, guide)


def trainer(folder: Path, method: Any = None, *, student: nn.Module | None = None, **options: Any) -> Trainer:
    """A trainer of the tiny network; fields of Training go to it, all others to the Trainer."""
    plan = {"epochs": EPOCHS, "batch_size": SIZE, "lr": 0.2, "schedule": "constant"}
    fields = Training.__dataclass_fields__
    plan |= {key: options.pop(key) for key in list(options) if key in fields}
    student = student or network()
    have = {
        "images": images(),
        "score": figure,
        "progress": Silent(),
        "device": CPU,
        "meters": {"student": Meter(student)},
        **options,
    }
    return Trainer(student=student, objective=method or Natural(), training=Training(**plan), folder=folder, **have)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def facts(fit: Fit) -> dict[str, Any]:
    """All of a history that does not depend on the clock."""
    history = {key: value for key, value in vars(fit.history).items() if key not in ("seconds", "epochs")}
    return {**history, "epochs": [{**entry, "images_per_second": None} for entry in fit.history.epochs]}


# -- resuming ---------------------------------------------------------------------------------------------------------

FULL = {"ema": 0.9, "momentum": 0.9, "schedule": "onecycle", "pad": 1, "flip": True, "clip": 1.0}
MOMENTS = [
    ("advance", 1),  # in the first epoch, before there is a checkpoint
    ("score", 0),
    ("line", 0),  # just after a checkpoint
    ("advance", 7),  # in the middle of the third epoch
    ("score", 2),
    ("line", EPOCHS - 1),  # all done but for the answer
]


def interrupted(folder: Path, moment: tuple[str, int], method: str, elsewhere: int, **options: Any) -> Trainer:
    """A new process, as it were: a network, an objective, meters and a global random state of its own."""
    torch.manual_seed(elsewhere)
    scored: list[int] = []

    def score(model: nn.Module) -> float:
        scored.append(1)
        if moment == ("score", len(scored) - 1):
            raise KeyboardInterrupt
        return figure(model)

    return trainer(folder, objective(method), score=score, progress=Watch(stop=moment), **options)


PLANS: dict[str, dict[str, Any]] = {"gaussian": FULL, "sat": {"momentum": 0.9}, "rslad": {"ema": 0.5}}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fit]:
    return {
        method: trainer(tmp_path_factory.mktemp(method), objective(method), **options).run()
        for method, options in PLANS.items()
    }


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: f"{m[0]}-{m[1]}")
@pytest.mark.parametrize("method", PLANS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    method: str, moment: tuple[str, int], uninterrupted: dict[str, Fit], tmp_path: Path
) -> None:
    whole, options = uninterrupted[method], PLANS[method]
    first = interrupted(tmp_path, moment, method, 17, **options)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    watch = Watch()
    torch.manual_seed(99)
    fit = trainer(tmp_path, objective(method), progress=watch, **options).run()
    assert equal(fit.best, whole.best)
    assert equal(fit.last, whole.last)
    assert facts(fit) == facts(whole)
    assert fit.history.seconds > 0
    done = {"advance": moment[1] // 3, "score": moment[1], "line": moment[1] + 1}[moment[0]]
    assert watch.calls["bar"] == [(EPOCHS * 3, done * 3)]
    assert len(watch.calls["advance"]) == (EPOCHS - done) * 3
    assert watch.calls["note"] == ([f"continuing after epoch {done} of {EPOCHS}"] if done else [])


def test_a_run_interrupted_in_every_epoch_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", objective("smoothmix"), **FULL).run()
    for elsewhere in range(EPOCHS):
        run = interrupted(tmp_path / "cut", ("advance", 4 if elsewhere else 1), "smoothmix", elsewhere, **FULL)
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert (checkpoint.load(tmp_path / "cut") is None) == (elsewhere == 0)
    fit = trainer(tmp_path / "cut", objective("smoothmix"), **FULL).run()
    assert equal(fit.best, whole.best)
    assert equal(fit.last, whole.last)
    assert facts(fit) == facts(whole)


def test_the_weights_follow_the_seed_and_nothing_else(tmp_path: Path) -> None:
    def last(name: str, seed: int, elsewhere: int) -> State:
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        fit = trainer(tmp_path / name, objective("gaussian"), seed=seed, **FULL).run()
        assert torch.equal(torch.get_rng_state(), before)  # a caller's own random numbers go on as if nothing had been
        return fit.last

    first = last("a", 3, 1)
    assert equal(first, last("b", 3, 2))
    assert not equal(first, last("c", 4, 1))


@pytest.mark.parametrize("source", ["order", "noise", "dropout", "crops"])
def test_every_source_of_chance_follows_the_seed(source: str, tmp_path: Path) -> None:
    """With all the others switched off, another seed still gives another network."""
    student = network() if source == "dropout" else linear()
    options: dict[str, Any] = {"batch_size": SIZE if source == "order" else COUNT, "epochs": 1, "momentum": 0.0}
    options |= {"pad": 1} if source == "crops" else {}
    method = "gaussian" if source == "noise" else "natural"
    start = {name: value.clone() for name, value in student.state_dict().items()}
    ends = []
    for run, seed in enumerate((0, 0, 1)):
        student.load_state_dict(start)
        fit = trainer(tmp_path / str(run), objective(method), student=student, seed=seed, **options).run()
        ends.append({name: value.double() for name, value in fit.last.items()})
    close = [all((ends[0][name] - end[name]).abs().max() < 1e-5 for name in end) for end in ends]
    assert close == [True, True, False]


def test_the_noise_of_an_epoch_is_its_own(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Draws(Recorder):
        def perturb(self, student: Any, batch: Batch) -> Tensor:
            drawn.append(float(torch.rand((), generator=batch.rng)))
            return batch.x

    drawn: list[float] = []
    trainer(tmp_path, Draws()).run()
    assert len(set(drawn)) == EPOCHS * 3


def test_the_student_is_in_train_mode_at_every_step_whatever_scoring_did(tmp_path: Path) -> None:
    modes: list[bool] = []

    def score(model: nn.Module) -> float:
        model.eval()
        return 0.0

    student = network().eval()
    student.register_forward_hook(
        lambda module, inputs, output: modes.append(module[1].training and module[3].training)
    )
    trainer(tmp_path, student=student, score=score).run()
    assert modes == [True] * EPOCHS * 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "garbage", "in the history"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, progress=Watch(stop=("line", 1))).run()
    path = tmp_path / checkpoint.FILE
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    elif damage == "in the history":
        data[100] ^= 1
    path.write_bytes({"cut": data[:-1], "empty": b"", "garbage": b"no checkpoint\n" * 50}.get(damage, data))
    with pytest.raises(IntegrityError) as caught:
        trainer(tmp_path).run()
    assert "damaged" in str(caught.value)
    assert "--fresh" in str(caught.value)


@pytest.mark.parametrize("change", ["a field of the history", "a layer"])
def test_a_checkpoint_of_another_version_is_refused(change: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, progress=Watch(stop=("line", 1))).run()
    found = checkpoint.load(tmp_path)
    assert found is not None
    tensors, history = found
    if change == "a layer":
        tensors["student"]["6.weight"] = tensors["student"].pop("5.weight")
    else:
        history["mood"] = "good"
    checkpoint.save(tmp_path, tensors, history)
    with pytest.raises(IntegrityError) as caught:
        trainer(tmp_path).run()
    assert "another version" in str(caught.value)


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path: Path) -> None:
    """Another number of threads adds in another order, and the last bits differ."""
    used: list[int] = []

    @dataclass(frozen=True)
    class Threads(Recorder):
        def perturb(self, student: Any, batch: Batch) -> Tensor:
            used.append(torch.get_num_threads())
            return batch.x

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path, Threads(), progress=Watch(stop=("line", 1))).run()
        torch.set_num_threads(1)
        history = trainer(tmp_path, Threads()).run().history
    finally:
        torch.set_num_threads(before)
    assert history.threads == 2
    assert used == [2] * EPOCHS * 3


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    weight = torch.randn(3, 4).t()  # not contiguous
    groups = {"student": {"a.weight": weight, "b.weight": weight, "step": torch.tensor(3)}, "best": {"a/b": weight[:2]}}
    history = {"epoch": 2, "best_score": -math.inf, "epochs": [{"loss": 0.1 + 0.2, "name": "σ\n"}]}
    checkpoint.save(tmp_path, groups, history)
    checkpoint.save(tmp_path, groups, history)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert equal(found[0]["student"], groups["student"])
    assert equal(found[0]["best"], groups["best"])
    assert found[0]["optimizer"] == {}
    assert found[1] == history
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


# -- selection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("cut", [None, 1, 3])
@pytest.mark.parametrize(
    ("scores", "best"), [([0.5, 0.7, 0.7, 0.3], 2), ([0.9, 0.1, 0.2, 0.3], 0), ([0.2, 0.2, 0.2, 0.2], 3)]
)
def test_the_later_of_equal_scores_is_kept_beside_the_last(
    scores: list[float], best: int, cut: int | None, ema: float | None, tmp_path: Path
) -> None:
    seen: list[State] = []

    def score(model: nn.Module) -> float:
        assert isinstance(model, InPrecision)
        seen.append({name: value.clone() for name, value in model.module.state_dict().items()})
        return scores[len(seen) - 1]

    if cut is not None:
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path, score=score, ema=ema, progress=Watch(stop=("line", cut - 1))).run()
    run = trainer(tmp_path, score=score, ema=ema)
    fit = run.run()
    assert (fit.history.best_epoch, fit.history.best_score) == (best, scores[best])
    assert equal(fit.best, seen[best])
    assert equal(fit.last, seen[-1])
    assert equal(fit.best, fit.last) == (best == 3)
    assert [entry["held_out"] for entry in fit.history.epochs] == scores
    assert equal(fit.last, dict(run.student.state_dict())) == (ema is None)  # the average, where there is one


def test_history_tells_rates_terms_and_images(tmp_path: Path) -> None:
    watch = Watch()
    run = trainer(tmp_path, objective("trades", steps=1), schedule="cosine", progress=watch)
    fit = run.run()
    rates = [learning_rate(run.training, 3 * epoch + 2, 3 * EPOCHS) for epoch in range(EPOCHS)]
    assert [entry["lr"] for entry in fit.history.epochs] == rates
    for epoch, entry in enumerate(fit.history.epochs):
        assert entry["epoch"] == epoch
        assert set(entry["terms"]) == {"ce", "kl"}
        assert entry["loss"] == pytest.approx(sum(entry["terms"].values()))
        assert entry["images_per_second"] > 0
    assert fit.history.epoch == EPOCHS
    assert watch.calls["advance"] == [1] * 3 * EPOCHS
    assert watch.calls["line"] == [describe(entry, EPOCHS) for entry in fit.history.epochs]
    assert watch.calls["line"][1].startswith("epoch 2/4  ce ")


def test_terms_are_means_over_the_steps(tmp_path: Path) -> None:
    recorder = Recorder()
    run = trainer(tmp_path, recorder, student=linear(), epochs=1, lr=1e-9)  # the network stands still
    entry = run.run().history.epochs[0]
    losses = [float(ce(run.student(batch.x), batch.y).mean().detach()) for batch in recorder.batches]
    assert entry["terms"]["ce"] == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_a_line_tells_an_epoch() -> None:
    entry = {"epoch": 4, "terms": {"ce": 1.0, "mix": 0.12345}, "held_out": 0.5, "images_per_second": 1234.5}
    assert describe(entry, 30) == "epoch 5/30  ce 1.0000  mix 0.1235  held-out 0.5000  1,234 images/s"


# -- batches ----------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_at_most_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    recorder, numbered = Recorder(), Split(images().x, torch.arange(COUNT) % 3)
    trainer(tmp_path, recorder, images=numbered).run()
    raw = numbered.images(slice(None))
    orders = []
    for epoch in range(EPOCHS):
        shown = recorder.batches[3 * epoch : 3 * epoch + 3]
        assert [len(batch.y) for batch in shown] == [SIZE] * 3
        assert {batch.epoch for batch in shown} == {epoch}
        x, y = torch.cat([batch.x for batch in shown]), torch.cat([batch.y for batch in shown])
        places = [int((raw == image).flatten(1).all(dim=1).nonzero()) for image in x]  # exactly the bytes over 255
        assert len(set(places)) == 3 * SIZE
        assert y.tolist() == [place % 3 for place in places]
        orders.append(places)
    assert len({tuple(order) for order in orders}) == EPOCHS
    assert len({frozenset(order) for order in orders}) > 1  # what is left over differs too
    assert recorder.batches[0].x.dtype == torch.float32


@pytest.mark.parametrize("size", [COUNT, COUNT + 1, 1000])
def test_a_batch_larger_than_the_data_is_all_of_them(size: int, tmp_path: Path) -> None:
    recorder, watch = Recorder(), Watch()
    fit = trainer(tmp_path, recorder, batch_size=size, progress=watch, **FULL).run()
    assert [len(batch.y) for batch in recorder.batches] == [COUNT] * EPOCHS
    assert watch.calls["bar"] == [(EPOCHS, 0)]
    assert len(fit.history.epochs) == EPOCHS


def test_crops_and_flips_change_the_images_only_where_they_are_asked_for(tmp_path: Path) -> None:
    raw = images(1).images(slice(None))[0]
    for name, options in {"pad": {"pad": 1}, "flip": {"flip": True}, "neither": {}}.items():
        recorder = Recorder()
        one = Split(images(1).x.expand(COUNT, -1, -1, -1), images().y)
        trainer(tmp_path / name, recorder, images=one, epochs=1, **options).run()
        shown = torch.cat([batch.x for batch in recorder.batches])
        allowed = {"neither": [raw], "flip": [raw, raw.flip(2)]}.get(name)
        if allowed is None:
            padded = nn.functional.pad(raw, [1] * 4)
            allowed = [padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
        found = {next(k for k, image in enumerate(allowed) if torch.equal(image, x)) for x in shown}
        assert found == {0} if name == "neither" else len(found) > 1


# -- steps by hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay_norm", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_steps_are_those_of_sgd_written_out(
    momentum: float, nesterov: bool, decay_norm: bool, clip: float | None, tmp_path: Path
) -> None:
    recorder, net = Recorder(), linear()
    start = {name: value.double().numpy().copy() for name, value in net.state_dict().items()}
    run = trainer(
        tmp_path, recorder, student=net, epochs=2, lr=0.5, weight_decay=0.1, schedule="onecycle", warmup=0.5,
        momentum=momentum, nesterov=nesterov, decay_norm=decay_norm, clip=clip,
    )  # fmt: skip
    run.run()
    w, b = start["1.weight"], start["1.bias"]
    speed = {"w": np.zeros_like(w), "b": np.zeros_like(b)}
    norms = []
    for step, batch in enumerate(recorder.batches):
        rate = 0.5 * (step / 3 if step < 3 else (6 - step) / 3)
        x, y = batch.x.double().flatten(1).numpy(), batch.y.numpy()
        z = x @ w.T + b
        p = np.exp(z - z.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / len(y)
        grads = {"w": p.T @ x, "b": p.sum(0)}
        norms.append(np.sqrt(sum((g**2).sum() for g in grads.values())))
        shrink = 1.0 if clip is None else min(1.0, clip / (norms[-1] + 1e-6))
        moves = {}
        for name, value, decay in (("w", w, 0.1), ("b", b, 0.1 if decay_norm else 0.0)):
            g = shrink * grads[name] + decay * value
            speed[name] = momentum * speed[name] + g
            moves[name] = g + momentum * speed[name] if nesterov else speed[name]
        w, b = w - rate * moves["w"], b - rate * moves["b"]
    assert len(recorder.batches) == 6
    assert min(norms) > 0.05  # so that the clip, where there is one, is felt
    np.testing.assert_allclose(net[1].weight.detach().numpy(), w, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(net[1].bias.detach().numpy(), b, rtol=1e-4, atol=2e-6)
    assert np.abs(w - start["1.weight"]).max() > 0.01


@pytest.mark.parametrize("decay_norm", [False, True])
def test_weight_decay_spares_norms_and_biases_unless_asked(decay_norm: bool, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Nothing(Recorder):
        def loss(self, student: Any, batch: Batch, view: Tensor) -> dict[str, Tensor]:
            return {"ce": 0 * student(view).sum()}

    net = network()
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    with torch.no_grad():
        start["1.bias"].fill_(1)
        net[1].bias.fill_(1)
    trainer(
        tmp_path, Nothing(), student=net, epochs=1, lr=0.5, momentum=0.0, weight_decay=0.1, decay_norm=decay_norm
    ).run()
    shrunk = {name for name, value in net.named_parameters() if not torch.equal(value, start[name])}
    assert shrunk == (set(start) if decay_norm else {"0.weight", "5.weight"})
    for name in shrunk:
        torch.testing.assert_close(dict(net.named_parameters())[name].detach(), start[name] * 0.95**3)


def test_frozen_parameters_are_left_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    kept = {id(p) for group in sgd(net, Training()).param_groups for p in group["params"]}
    assert kept == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize("decay", [0.3, 0.995])
def test_the_average_follows_its_warmed_up_decay(decay: float, tmp_path: Path) -> None:
    recorder, scored = Recorder(), []

    def score(model: InPrecision) -> float:
        scored.append({name: value.double() for name, value in model.module.state_dict().items()})
        return 0.0

    run = trainer(tmp_path, recorder, score=score, ema=decay)
    fit = run.run()
    after = [*recorder.states[1:], dict(run.student.state_dict())]  # the weights after each of the 12 steps
    average = {name: value.double() for name, value in after[0].items()}
    for t, state in enumerate(after[1:], start=1):
        keep = min(decay, (1 + t) / (10 + t))
        for name, value in state.items():
            average[name] = keep * average[name] + (1 - keep) * value.double()
        if (t + 1) % 3 == 0:
            for name, value in average.items():
                if name != "1.num_batches_tracked":  # a counter is copied
                    torch.testing.assert_close(scored[(t + 1) // 3 - 1][name], value, rtol=1e-5, atol=1e-6)
    assert equal(fit.last, {name: value.to(fit.last[name].dtype) for name, value in scored[-1].items()})
    assert fit.last["1.num_batches_tracked"] == 12
    assert (fit.last["0.weight"] - after[-1]["0.weight"]).abs().max() > 1e-4
    assert not torch.equal(fit.last["1.running_mean"], after[-1]["1.running_mean"])


def test_the_first_update_of_the_average_is_a_copy(tmp_path: Path) -> None:
    run = trainer(tmp_path, epochs=1, batch_size=COUNT, ema=0.9)
    fit = run.run()
    assert equal(fit.last, dict(run.student.state_dict()))


def test_averaging_by_hand() -> None:
    for t, keep in ((0, 0.1), (8, 0.5), (1000, 0.9)):
        kept, counter = torch.tensor([1.0, 3.0]), torch.tensor(4)
        warmed_up(0.9)([kept, counter], [torch.tensor([2.0, 0.0]), torch.tensor(5)], torch.tensor(t))
        torch.testing.assert_close(kept, torch.tensor([keep + 2 * (1 - keep), 3 * keep]))
        assert counter == 5


# -- collapse ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collapsing(Natural):
    """Natural training that says how far a fall of the score is a collapse."""

    collapse: float | None = 0.2


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("cut", [None, ("score", 2), ("line", 1), ("line", 2)])
def test_after_a_collapse_the_state_before_it_goes_on(
    cut: tuple[str, int] | None, ema: float | None, tmp_path: Path
) -> None:
    scores, seen = [0.5, 0.6, 0.3, 0.55], list[State]()  # the third epoch collapses

    def scored(run: Trainer) -> Callable[[Any], float]:
        def score(model: Any) -> float:
            seen.append({name: value.clone() for name, value in model.module.state_dict().items()})
            if cut == ("score", len(seen) - 1):
                raise KeyboardInterrupt
            return scores[run.history.epoch]

        return score

    def make(watch: Any) -> Trainer:
        run = trainer(tmp_path, Collapsing(), ema=ema, momentum=0.9, progress=watch)
        run.score = scored(run)
        return run

    if cut is not None:
        with pytest.raises(KeyboardInterrupt):
            make(Watch(stop=cut if cut[0] == "line" else None)).run()
    cut, watch = None, Watch()
    fit = make(watch).run()
    assert [entry.get("restored", False) for entry in fit.history.epochs] == [False, False, True, False]
    assert [entry["held_out"] for entry in fit.history.epochs] == scores
    assert (fit.history.best_epoch, fit.history.best_score) == (1, 0.6)
    assert equal(fit.last, seen[-1])

    # written out: two epochs, the third dropped, the fourth from the state after the second
    by_hand = trainer(tmp_path / "hand", Natural(), ema=ema, momentum=0.9)

    def remember(model: Any) -> float:
        state = checkpoint.load(tmp_path / "hand")
        if by_hand.history.epoch == 2 and state is not None:
            by_hand._load(state[0])
        return scores[by_hand.history.epoch]

    by_hand.score = remember
    assert equal(by_hand.run().last, fit.last)


def test_without_a_sentinel_nothing_goes_back(tmp_path: Path) -> None:
    scores = iter([0.9, 0.1, 0.2, 0.3])
    fit = trainer(tmp_path, Collapsing(collapse=None), score=lambda model: next(scores)).run()
    assert not any("restored" in entry for entry in fit.history.epochs)


def test_a_fall_within_the_limit_is_no_collapse(tmp_path: Path) -> None:
    scores = iter([0.9, 0.71, 0.75, 0.8])
    watch = Watch()
    fit = trainer(tmp_path, Collapsing(), score=lambda model: next(scores), progress=watch).run()
    assert not any("restored" in entry for entry in fit.history.epochs)
    assert not [note for note in watch.calls["note"] if "collapsed" in note]


# -- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_epoch(bad: float, step: int, tmp_path: Path) -> None:
    kept: list[State] = []

    def score(model: InPrecision) -> float:
        kept.append({name: value.clone() for name, value in model.module.state_dict().items()})
        return figure(model)

    spoilt = Spoilt(lambda epoch, calls: bad if calls == 6 + step else 0.1)
    with pytest.raises(DivergedError) as caught:
        trainer(tmp_path, spoilt, score=score).run()
    said = str(caught.value)
    assert f"epoch 3, step {step + 1}: kl is not a finite number" in said
    assert "the state after epoch 2 is kept" in said
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1]["epoch"] == 2
    assert equal(found[0]["student"], kept[1])
    assert all(torch.isfinite(value).all() for value in found[0]["student"].values())
    whole = trainer(tmp_path / "whole", Spoilt(lambda epoch, calls: 0.1)).run()
    again = trainer(tmp_path, Spoilt(lambda epoch, calls: 0.1)).run()
    assert equal(again.last, whole.last)


def test_a_run_that_fails_in_its_first_epoch_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        trainer(tmp_path, Spoilt(lambda epoch, calls: math.nan)).run()
    assert "epoch 1, step 1" in str(caught.value)
    assert "no epoch was finished" in str(caught.value)
    assert checkpoint.load(tmp_path) is None


def test_weights_that_break_after_the_last_loss_are_not_kept(tmp_path: Path) -> None:
    """The last step of an epoch may break the weights while its own loss was still a number."""

    @dataclass(frozen=True)
    class Cliff(Recorder):
        def loss(self, student: Any, batch: Batch, view: Tensor) -> dict[str, Tensor]:
            z = student(view)
            if len(self.batches) == 6:  # the last step of the second epoch
                z.register_hook(lambda grad: grad * math.inf)
            return {"ce": ce(z, batch.y).mean()}

    with pytest.raises(DivergedError) as caught:
        trainer(tmp_path, Cliff(), ema=0.9).run()
    assert "epoch 2, step 3: a weight is not a finite number; the state after epoch 1 is kept" in str(caught.value)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1]["epoch"] == 1
    assert all(torch.isfinite(value).all() for group in found[0].values() for value in group.values())


# -- precision, cost, every method ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_only_the_forward_pass_runs_in_bf16(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    inside, outside = [], []

    @dataclass(frozen=True)
    class Types(Recorder):
        def loss(self, student: Any, batch: Batch, view: Tensor) -> dict[str, Tensor]:
            z = student(view)
            outside.extend([batch.x.dtype, z.dtype])
            terms = {"ce": ce(z, batch.y).mean()}
            outside.extend(term.dtype for term in terms.values())
            return terms

    def score(model: nn.Module) -> float:
        outside.append(model(images().images(slice(None))).dtype)
        return 0.0

    net = network()
    net[0].register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    start = net[0].weight.detach().clone()
    fit = trainer(tmp_path, Types(), student=net, precision=precision, epochs=1, score=score).run()
    assert set(inside[:-1]) == {dtype}
    assert inside[-1] == torch.float32  # the pass that scores
    assert set(outside) == {torch.float32}
    assert all(value.dtype == torch.float32 for name, value in fit.last.items() if "tracked" not in name)
    assert (fit.last["0.weight"] - start).abs().max() > 1e-3


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    ("method", "settings", "forward", "backward"),
    [
        ("natural", {}, 1, 1),
        ("sat", {"steps": 2}, 3, 3),
        ("trades", {"steps": 2}, 1 + 2 + 2, 2 + 2),  # its clean logits for the inner problem need no gradient
        ("gaussian", {}, 1, 1),
        ("smoothmix", {"draws": 3, "steps": 2}, 3 * (2 + 2), 3 * (2 + 2)),
    ],
)
def test_costs_are_images_through_the_network_in_training(
    method: str, settings: dict[str, Any], forward: int, backward: int, ema: float | None, tmp_path: Path
) -> None:
    fit = trainer(tmp_path, objective(method, **settings), epochs=2, ema=ema).run()
    shown = 2 * 3 * SIZE
    assert fit.history.cost == {"student_forward": forward * shown, "student_backward": backward * shown}


@pytest.mark.parametrize(("method", "passes"), [("crt", 1), ("rslad", 1)])
def test_teachers_are_counted_apart_and_never_run_backwards(method: str, passes: int, tmp_path: Path) -> None:
    run = trainer(tmp_path, objective(method), epochs=2)
    run.meters = {**run.meters, "teacher": Meter(run.objective.teacher)}
    cost = run.run().history.cost
    assert cost["teacher_forward"] == passes * 2 * 3 * SIZE
    assert cost["teacher_backward"] == 0
    assert cost["student_backward"] > 0


@pytest.mark.parametrize("method", NAMES)
def test_every_method_trains(method: str, tmp_path: Path) -> None:
    fit = trainer(tmp_path, objective(method), epochs=2, **{"ema": 0.9, "pad": 1}).run()
    assert all(math.isfinite(value) for entry in fit.history.epochs for value in entry["terms"].values())
    start = network().state_dict()
    assert all(torch.isfinite(value).all() for value in fit.last.values())
    for name in ("0.weight", "1.weight", "5.weight"):
        assert not torch.equal(fit.last[name], start[name])
    assert not any(name.startswith("teacher") for name in fit.last)


def test_training_learns(tmp_path: Path) -> None:
    fit = trainer(tmp_path, student=linear(), epochs=30, lr=0.5, momentum=0.9, weight_decay=0.0).run()
    first, last = fit.history.epochs[0]["loss"], fit.history.epochs[-1]["loss"]
    assert last < 0.5 * first
