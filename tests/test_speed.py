"""What makes training fast leaves what is trained as it was: folding, compiling, data on the device, early stops."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from robustkt import feed, inference, models, objectives
from robustkt.attacked import Attacked, attacked
from robustkt.attacks import ascend
from robustkt.attacks.gradient import ascend_friendly, misclassified
from robustkt.catalog import ARCHITECTURES
from robustkt.core import Batch, ThreatModel
from robustkt.data import Split
from robustkt.engine import Meter, Trainer, shortened
from robustkt.errors import UsageError
from robustkt.feed import Feed
from robustkt.generation import DataSpec, Training
from robustkt.losses import ce
from robustkt.progress import Silent
from robustkt.updates import sgd
from tests.test_engine import Watch, equal, facts

CPU = torch.device("cpu")
DATA = DataSpec(
    name="x", fingerprint="sha256:" + "0" * 64, shape=(3, 16, 16), classes=tuple("abcde"), mean=(0.3, 0.5, 0.4),
    std=(0.2, 0.3, 0.25), held_out=1,
)  # fmt: skip


def student(arch: str = "smallcnn") -> models.Classifier:
    """A network with statistics and weights as training leaves them, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return moved(models.build(arch, DATA)).train()


def moved(network: Any) -> Any:
    """The same network after a step, as it were."""
    rng = torch.Generator().manual_seed(7)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("normalize"):
            tensor.mul_(torch.rand(tensor.shape, generator=rng) * 0.4 + 0.8)
    return network


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *DATA.shape, generator=torch.Generator().manual_seed(2))


def never(told: str) -> None:
    raise AssertionError(told)


def logits_and_slope(model: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    at = x.detach().requires_grad_(True)
    logits = model(at)
    return [logits.detach(), *torch.autograd.grad(ce(logits, torch.arange(len(x)) % 5).sum(), at)]


def assert_exact(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))


def trainer(folder: Path, method: str = "sat", *, network: nn.Module | None = None, **options: Any) -> Trainer:
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (13, *DATA.shape), generator=rng, dtype=torch.uint8)
    needs = objectives.needs(method)
    given: dict[str, Any] = {"sigma": "0.25"} if "sigma" in needs else {"norm": "linf", "eps": "8/255", "steps": 2}
    guide = student().eval().requires_grad_(False) if "teacher" in needs else None
    network = network or student()
    have = {"score": lambda model: 0.0, "progress": Silent(), "meters": {"student": Meter(network)}, **options}
    return Trainer(
        student=network, objective=objectives.build(method, given, guide),
        images=Split(x, torch.arange(13) % 5), folder=folder, device=CPU,
        training=Training(epochs=2, batch_size=4, lr=0.01, schedule="constant", pad=2, flip=True), **have,
    )  # fmt: skip


# -- folding while the student is trained -----------------------------------------------------------------------------

QUICK = ("smallcnn", "resnet8", "wideresnet10_1")  # the last keeps BatchNorm that stands before a convolution
SLOW = [pytest.param(arch, marks=pytest.mark.slow) for arch in ARCHITECTURES.names() if arch not in QUICK]


@pytest.mark.parametrize("arch", [*QUICK, *SLOW])
def test_the_folded_student_is_the_student_after_every_step(arch: str) -> None:
    """In float64, where only rounding is left: the logits, and their gradient on the images."""
    network = student(arch).double()
    twin = attacked(network, DATA.shape, torch.float64, note=never)
    x = images(2).double()
    if twin is None:
        assert arch.startswith("vit"), f"{arch} could be folded"
        return
    assert_exact(logits_and_slope(twin, x), logits_and_slope(copy.deepcopy(network).eval(), x))
    before = twin(x)
    moved(network)
    assert torch.equal(twin(x), before)  # as it was when the step began
    twin.stale = True
    assert not torch.allclose(twin(x), before)
    assert_exact(logits_and_slope(twin, x), logits_and_slope(copy.deepcopy(network).eval(), x))


def test_an_attack_leaves_statistics_gradients_and_modes_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.begin()
    assert isinstance(made.victim, Attacked)
    made.student.train()
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    batch = Batch(images(4), torch.arange(4), 0, torch.Generator().manual_seed(0))
    view = made.objective.perturb(made.victim, batch)
    assert view.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in made.student.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in made.student.parameters())
    assert all(module.training for module in made.student.modules())
    made.victim.stale = False
    plain = made.objective.perturb(made.net, batch._replace(rng=torch.Generator().manual_seed(0)))
    assert (view - plain).abs().max() <= 2 * 8 / 255 + 1e-6
    assert ((view - plain).abs() > 1e-5).float().mean() < 0.01  # but for signs that rounding turned


@pytest.mark.parametrize("method", ["sat", "trades", "rslad"])
def test_training_folded_is_training_unfolded_but_for_rounding(method: str, tmp_path: Path) -> None:
    folded, unfolded = (trainer(tmp_path / str(fold), method, folded=fold).run().history for fold in (True, False))
    assert (folded.folded, unfolded.folded) == (True, False)
    assert folded.cost == unfolded.cost
    for ours, theirs in zip(folded.epochs, unfolded.epochs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


def test_a_network_that_cannot_be_folded_is_attacked_as_it_is(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    made = trainer(tmp_path, network=network)
    made.begin()
    assert made.victim is made.net
    assert made.history.folded is False


@pytest.mark.parametrize("began", [True, False])
def test_a_continued_run_folds_as_it_began(began: bool, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", folded=began).run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "part", folded=began, progress=Watch(stop=("line", 0))).run()
    rest = trainer(tmp_path / "part", folded=not began).run()
    assert rest.history.folded is began
    assert equal(whole.last, rest.last)
    assert facts(whole) == facts(rest)


# -- precision --------------------------------------------------------------------------------------------------------


def test_in_bf16_the_attack_the_losses_and_the_sums_are_fp32(tmp_path: Path) -> None:
    made = trainer(tmp_path, "trades", precision="bf16")
    made.begin()
    assert isinstance(made.victim, Attacked)
    assert {p.dtype for p in made.victim.folded.network.parameters()} == {torch.bfloat16}
    seen: list[Tensor] = []
    made.victim.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    made.net.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    terms = made.step(torch.arange(4), made.images.x[:4], made.images.y[:4], (0, 0), 0.01)
    assert len(seen) == 2 * (1 + 2 + 2)
    assert {tensor.dtype for tensor in (*seen, *terms.values())} == {torch.float32}
    assert {p.dtype for p in made.student.parameters()} == {torch.float32}
    assert {state["momentum_buffer"].dtype for state in made.optimizer.state.values()} == {torch.float32}


def test_tf32_is_for_bf16_on_cuda_and_for_the_step_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for device, precision, wanted in (
        ("cuda", "bf16", "high"),
        ("cuda", "fp32", before[0]),
        ("cpu", "bf16", before[0]),
    ):
        with shortened(torch.device(device), precision):
            assert torch.get_float32_matmul_precision() == wanted
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_the_fused_optimiser_takes_the_steps_of_the_plain_one() -> None:
    ours, theirs = student().to(memory_format=torch.channels_last), student()
    plan = Training(lr=0.1, momentum=0.9, weight_decay=0.01, decay_norm=True)
    fused = sgd(ours, plan)
    assert fused.defaults["fused"]
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    for step in range(3):
        for network, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            for number, parameter in enumerate(network.parameters()):
                parameter.grad = parameter.detach() * (number + step)
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# -- compiling --------------------------------------------------------------------------------------------------------


def test_where_compiling_fails_the_network_runs_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*given: Any, **options: Any) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nbut a long story")

        return run

    whole = trainer(tmp_path / "whole").run()
    monkeypatch.setattr(torch, "compile", broken)
    watch = Watch()
    found = trainer(tmp_path / "broken", compiled=True, progress=watch).run()
    assert watch.calls["note"] == ["torch.compile does not work here, so the network runs as it is: no compiler"]
    assert found.history.compiled is False
    assert equal(found.last, whole.last)
    assert found.history.cost == whole.history.cost


def test_compiled_runs_at_the_first_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def compiler(run: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: (ran.append(len(x)), run(x))[1]

    monkeypatch.setattr(torch, "compile", compiler)
    network = inference.Compiled(student(), never)
    for count in (6, 4, 3, 6, 2, 4):
        network(images(count))
    with torch.no_grad():
        network(images(6))
    assert ran == [6, 4, 6, 4]


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="not in this torch")
def test_every_network_of_a_class_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def backend(graph: fx.GraphModule, example: object) -> Callable[..., Any]:
        return lambda *told: (ran.append(1), graph(*told))[1]

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for count in range(1, 13):
        inference.Compiled(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), never)(torch.zeros(count, 1, 2, 2))
    assert len(ran) == 12


def test_an_error_of_the_network_itself_is_not_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **options: run)
    with pytest.raises(RuntimeError, match="must match"):
        inference.Compiled(student(), never)(torch.zeros(2, 4, 16, 16))


@pytest.mark.slow
@pytest.mark.skipif(not inference.can_compile(CPU), reason="no C++ compiler for torch.compile")
def test_a_compiled_run_counts_and_learns_as_another(tmp_path: Path) -> None:
    plain, fast = (trainer(tmp_path / str(on), compiled=on).run().history for on in (False, True))
    assert fast.compiled
    assert fast.cost == plain.cost
    for ours, theirs in zip(fast.epochs, plain.epochs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)


# -- data on the device -----------------------------------------------------------------------------------------------


def test_batches_brought_ahead_are_those_of_resident_images() -> None:
    x = torch.randint(256, (20, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(x, torch.arange(20))
    order = list(torch.randperm(20, generator=torch.Generator().manual_seed(1)).split(6))
    for resident in (True, False):
        found = list(Feed(split, CPU, resident=resident).batches(order))
        assert len(found) == len(order)
        for (images, labels), picked in zip(found, order, strict=True):
            assert torch.equal(images, x[picked])
            assert torch.equal(labels, picked)
            assert images.dtype == torch.uint8


@pytest.mark.parametrize(("free", "resident"), [(None, True), (4 * 20 * 16, True), (4 * 20 * 16 - 1, False)])
def test_images_stay_on_the_device_where_they_take_a_quarter_of_what_is_free(
    free: int | None, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "free_bytes", lambda device: free)
    split = Split(torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    assert Feed(split, CPU).resident is resident


# -- early stop of solved images --------------------------------------------------------------------------------------


def by_hand(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, steps: int, extra: int) -> Tensor:
    """Algorithm 1 of 2002.11242, image by image."""
    rows = []
    for i in range(len(x)):
        at, left = x[i : i + 1], extra
        for _ in range(steps):
            if misclassified(model(at), y[i : i + 1]).item():
                if left == 0:
                    break
                left -= 1
            at = ascend(
                model, at, ThreatModel("linf", Fraction(1)), lambda z, i=i: ce(z, y[i : i + 1]), steps=1,
                step_size=Fraction(1, 100), start=at,
            )  # fmt: skip
            at = threat.project(at, x[i : i + 1])
        rows.append(at)
    return torch.cat(rows)


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_solved_images_take_no_further_step(extra: int) -> None:
    model, x = student().eval(), images(8)
    with torch.no_grad():
        y = torch.where(torch.arange(8) < 6, model(x).argmax(dim=1), (model(x).argmax(dim=1) + 1) % 5)
    threat, meter = ThreatModel("linf", Fraction(1, 10)), Meter(model)
    found = ascend_friendly(
        model, x, y, threat, lambda z: ce(z, y), steps=6, step_size=Fraction(1, 100), start=x, extra=extra,
        own=lambda z: z,
    )  # fmt: skip
    assert meter.take()["forward"] < 6 * 8  # the batch lost rows
    torch.testing.assert_close(found, by_hand(model, x, y, threat, 6, extra), rtol=0, atol=1e-6)
    if not extra:
        assert torch.equal(found[6:], x[6:])


@pytest.mark.parametrize("method", ["sat", "trades", "mart", "ard", "iad", "rslad", "adaad"])
def test_early_stops_are_a_setting_of_every_attacking_objective(method: str, tmp_path: Path) -> None:
    given = {"norm": "linf", "eps": "8/255", "steps": 3}
    assert "extra_steps" not in objectives.resolve(method, given)  # so that ids from before stay
    settings = objectives.resolve(method, {**given, "extra_steps": "0"})
    assert settings["extra_steps"] == 0
    made = trainer(tmp_path, method)
    made.objective = objectives.build(method, settings, getattr(made.objective, "teacher", None))
    made.begin()
    meter = Meter(made.victim)
    made.step(torch.arange(8), made.images.x[:8], made.images.y[:8], (0, 0), 0.01)
    assert meter.take()["backward"] < 3 * 8


def test_early_stops_are_none_of_n_fgsm_and_never_negative() -> None:
    given = {"eps": "8/255", "inner": "n-fgsm", "extra_steps": "2"}
    assert "extra_steps" not in objectives.resolve("sat", given)
    with pytest.raises(UsageError, match="at least 0"):
        objectives.resolve("sat", {"eps": "8/255", "extra_steps": "-1"})
