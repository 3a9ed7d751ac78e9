"""Architectures: their published sizes, what they accept, and what is said when they cannot be built."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from robustkt import catalog
from robustkt.catalog import ARCHITECTURES
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError
from robustkt.generation import DataSpec
from robustkt.models import (
    Classifier,
    Normalize,
    UserSource,
    _outside,
    blamed,
    build,
    check_training,
    is_user_arch,
    known,
    library_version,
    load_callable,
    read_source,
)
from robustkt.models._norms import Norm, group_norm, layer_norm

NET = """
from torch import nn

def small(channels, classes):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


def spec(*shape: int, classes: int = 10) -> DataSpec:
    channels = shape[0]
    return DataSpec(
        name="digits",
        fingerprint="0" * 64,
        classes=tuple(str(label) for label in range(classes)),
        shape=shape,
        mean=(0.25, 0.5, 0.75)[:channels],
        std=(0.5, 0.25, 0.125)[:channels],
        held_out=0,
    )


DIGITS = spec(1, 8, 8)
TRANSFORMERS = [arch for arch in ARCHITECTURES.names() if arch.startswith("vit")]
CONVOLUTIONAL = [arch for arch in ARCHITECTURES.names() if arch not in TRANSFORMERS]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks spend more on starting threads than on sums, above all when tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def sketch(arch: str, *shape: int) -> Classifier:
    """The architecture without its numbers, for shapes and counts; build sends one image of `shape` through."""
    with torch.device("meta"):
        return build(arch, spec(*shape))


def write(folder: Path, text: str, name: str = "net.py") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def message(arch: str, data: DataSpec = DIGITS) -> str:
    with pytest.raises(RobustKTError) as caught:
        build(arch, data)
    assert caught.value.fix, "an error the user can mend says how"
    return str(caught.value)


# Sizes and shapes


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet20", 272_474),  # 0.27 M in arXiv:1512.03385, table 6, plus the projections of option B
        ("resnet56", 855_770),  # 0.85 M
        ("resnet110", 1_730_714),  # 1.7 M
        ("resnet18", 11_173_962),
        ("mobilenetv2", 2_296_922),
        ("wideresnet28_10", 36_479_194),  # 36.5 M in arXiv:1605.07146
        ("wideresnet34_10", 46_160_474),
        ("wideresnet16_4", 2_748_890),  # 2.7 M
        ("preactresnet18", 11_172_170),
        ("dmpreactresnet18", 12_548_426),
        ("dmwideresnet28_10", 36_479_194),
        ("resnet20_gn", 272_474),  # a scale and an offset a channel, as batch norm
        ("resnet20_ln", 272_474),
        ("vit_tiny", 459_562),
        ("vit_ti4", 5_362_762),  # 5.7 M of DeiT-Ti, arXiv:2012.12877, less what 16x16 patches and 1000 classes take
        ("vit_s4", 21_342_346),  # 22 M of DeiT-S
    ],
)
def test_parameters_are_as_many_as_published(arch: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in sketch(arch, 3, 32, 32).parameters()) == parameters


@pytest.mark.parametrize("shapes", [[(1, 8, 8), (1, 28, 28)], [(3, 32, 32), (3, 9, 13), (3, 96, 96)]])
@pytest.mark.parametrize("arch", CONVOLUTIONAL)
def test_every_architecture_takes_every_shape(arch: str, shapes: list[tuple[int, ...]]) -> None:
    network = sketch(arch, *shapes[0])
    assert all(module.training for module in network.modules())
    for shape in shapes[1:]:
        assert network(torch.zeros(3, *shape, device="meta")).shape == (3, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 12, 32), (3, 96, 96)])
@pytest.mark.parametrize("arch", TRANSFORMERS)
def test_a_transformer_is_built_for_one_size(arch: str, shape: tuple[int, ...]) -> None:
    network = sketch(arch, *shape)
    assert network(torch.zeros(3, *shape, device="meta")).shape == (3, 10)
    patches = shape[1] // 4 * (shape[2] // 4)
    assert network.network.get_parameter("pos_embed").shape[:2] == (1, 1 + patches)
    assert network.network.get_parameter("cls_token").shape == (1, 1, network.network.get_submodule("head").in_features)


@pytest.mark.parametrize(("shape", "side"), [((3, 9, 13), 16), ((3, 30, 32), 32), ((1, 28, 30), 32)])
def test_patches_that_do_not_divide_the_image_are_not_padded_in_silence(shape: tuple[int, ...], side: int) -> None:
    said = message("vit_tiny", spec(*shape))
    assert said == (f"patches of 4x4 do not divide images of {shape[2]}x{shape[1]}\nResize them: --image-size {side}.")


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_a_vit_is_timms_with_a_mean_of_the_patches(global_pool: str) -> None:
    vits = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    ours = build("vit_tiny", spec(3, 32, 24)).network.eval()
    for parameter in ours.parameters():
        parameter.data.normal_(std=0.1)
    theirs = vits.VisionTransformer(
        (32, 24), 4, 3, 10, global_pool=global_pool, embed_dim=96, depth=4, num_heads=3, fc_norm=True
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 3, 32, 24)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5) is (global_pool == "avg")
    assert vars(theirs)["num_prefix_tokens"] == 1


def test_the_class_token_conditions_the_patches_and_is_not_read() -> None:
    torch.manual_seed(0)
    network = build("vit_tiny", spec(3, 32, 32)).network.eval()
    x = torch.rand(2, 3, 32, 32)
    before = network(x)
    network.get_parameter("cls_token").data.normal_()
    assert (network(x) - before).abs().max() > 1e-3
    before = network(x)
    network.get_submodule("blocks.3").register_forward_hook(lambda block, given, out: out * keep)
    keep = torch.ones(1, 65, 1)
    keep[:, 0] = 0
    assert torch.equal(network(x), before), "what the last block leaves in the class token goes nowhere"


@pytest.mark.parametrize(("kind", "groups"), [("gn", {16: 8, 32: 16, 64: 32}), ("ln", {16: 1, 32: 1, 64: 1})])
def test_norms_of_a_resnet_are_of_one_kind(kind: str, groups: dict[int, int]) -> None:
    network = sketch(f"resnet20_{kind}", 3, 32, 32)
    norms = [module for module in network.modules() if "Norm" in type(module).__name__]
    assert {type(norm) for norm in norms} == {Normalize, nn.GroupNorm}
    assert {norm.num_channels: norm.num_groups for norm in norms if isinstance(norm, nn.GroupNorm)} == groups
    assert [name for name, _ in network.named_buffers()] == ["normalize.mean", "normalize.std"]


@pytest.mark.parametrize(("norm", "kind"), [(nn.BatchNorm2d, ""), (group_norm, "_gn"), (layer_norm, "_ln")])
def test_a_resnet_is_torchvisions_behind_another_stem(norm: Norm, kind: str) -> None:
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as Theirs

    torch.manual_seed(0)
    ours = build(f"resnet18{kind}", spec(3, 32, 32)).network.eval()
    theirs = Theirs(BasicBlock, [2, 2, 2, 2], num_classes=10, norm_layer=norm)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for parameter in theirs.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    ours.load_state_dict({ours.foreign(name): value for name, value in theirs.state_dict().items()}, strict=True)  # type: ignore[operator]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gn", "ln"])
def test_without_batch_norm_an_image_does_not_see_its_neighbours(kind: str) -> None:
    torch.manual_seed(0)
    network = build(f"resnet8_{kind}", spec(3, 16, 16))
    x = torch.rand(6, 3, 16, 16)
    assert network.training
    torch.testing.assert_close(network(x)[:2], network(x[:2]), rtol=1e-4, atol=1e-5)
    norm = group_norm(16) if kind == "gn" else layer_norm(16)
    maps = torch.randn(2, 16, 5, 5) * 3 + 1
    grouped = maps.reshape(2, norm.num_groups, -1)
    scaled = (grouped - grouped.mean(2, keepdim=True)) / grouped.std(2, correction=0, keepdim=True)
    torch.testing.assert_close(norm(maps), scaled.view_as(maps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arch",
    ["resnet8", "resnet8_gn", "resnet8_ln", "resnet20", "smallcnn", "mobilenetv2", "wideresnet10_1", "vit_tiny"],
)
def test_logits_depend_on_the_image_and_every_weight_gets_a_gradient(arch: str) -> None:
    torch.manual_seed(0)
    network = build(arch, spec(3, 12, 12))
    logits = network(torch.rand(4, 3, 12, 12))
    assert logits.std(dim=0).min() > 1e-4
    logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_shortcuts_carry_what_the_papers_say() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)

    def silenced(arch: str, block: str, last: str) -> nn.Module:
        found = build(arch, spec(3, 8, 8)).network.get_submodule(block)
        nn.init.zeros_(found.get_parameter(last))  # only the shortcut still speaks
        return found.eval()

    same = silenced("wideresnet10_1", "blocks.0", "conv2.weight")
    assert torch.equal(same(x), x)
    wider = silenced("wideresnet10_2", "blocks.0", "conv2.weight")
    active = wider.get_submodule("bn1")(x).relu()
    assert torch.equal(wider(x), wider.get_submodule("shortcut")(active))
    narrow = silenced("mobilenetv2", "blocks.2", "body.7.weight")
    x = torch.randn(2, 24, 8, 8)
    assert torch.equal(narrow(x), x)
    strided = silenced("mobilenetv2", "blocks.3", "body.7.weight")
    assert strided(x).abs().max() == 0


def test_convolutions_start_with_the_variance_of_he() -> None:
    torch.manual_seed(0)
    network = build("mobilenetv2", spec(3, 8, 8)).network
    pointwise, depthwise = network.get_parameter("head.0.weight"), network.get_parameter("blocks.15.body.3.weight")
    assert pointwise.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.01)
    assert depthwise.shape == (960, 1, 3, 3)
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)


# Classifier


def test_normalisation_is_exact_and_first() -> None:
    classifier = Classifier(Normalize((0.25, 0.5), (0.5, 0.25)), nn.Identity())
    x = torch.tensor([0.25, 1.0]).view(1, 2, 1, 1)
    assert classifier(x).flatten().tolist() == [0.0, 2.0]


def test_normalisation_is_saved_with_the_weights() -> None:
    torch.manual_seed(0)
    first, second = build("smallcnn", spec(3, 8, 8)), build("smallcnn", spec(3, 8, 8))
    first.normalize.mean.fill_(0.1)
    second.load_state_dict(load(save(first.state_dict())), strict=True)
    assert second.normalize.mean.shape == (3, 1, 1)
    assert second.state_dict()["normalize.mean"].unique().tolist() == [pytest.approx(0.1)]
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(first.eval()(x), second.eval()(x))


def test_a_constant_channel_is_refused() -> None:
    with pytest.raises(UsageError, match="digits needs a mean and a deviation above 0 for each of 1 channels"):
        dataclasses.replace(DIGITS, std=(0.0,))


@pytest.mark.parametrize("arch", ["resnet8", "wideresnet10_1", "vit_tiny", "torchvision:squeezenet1_1"])
def test_the_seed_decides_the_weights(arch: str) -> None:
    def drawn(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.cat([p.flatten() for p in build(arch, spec(3, 32, 32)).parameters()])

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys; from robustkt.models import read_source, is_user_arch; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_absent_attribute_is_an_attribute_error() -> None:
    import robustkt.models

    with pytest.raises(AttributeError, match="bulid"):
        robustkt.models.bulid  # noqa: B018


# Names


@pytest.mark.parametrize(
    "arch", ["resnet20", "WideResNet34-10", "wideresnet10_1", "torchvision:vit_b_16", "json:loads"]
)
def test_known_checks_a_name_without_building(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(nn.Module, "__init__", never)
    known(arch)


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("resnet2O", "unknown architecture 'resnet2O': did you mean 'resnet20'?\nKnown: dmpreactresnet18,"),
        ("", "unknown architecture ''"),
        ("torchvision", "unknown architecture 'torchvision'"),
        ("torchvision:resnet1", "unknown torchvision architecture 'resnet1': did you mean 'resnet18'?\nNear: resnet18"),
        ("torchvision:fcn_resnet50", "unknown torchvision architecture 'fcn_resnet50'"),  # gives a map, not logits
        ("torchvision:", "unknown torchvision architecture ''"),
        (
            "wideresnet29_10",
            "wideresnet29_10: the depth of a wide ResNet is 6n + 4, not 29\nTake wideresnet28_10 or wid",
        ),
        (
            "wideresnet4_10",
            "wideresnet4_10: the depth of a wide ResNet is 6n + 4, not 4\nTake wideresnet10_10.",
        ),
        ("wideresnet28_0", "unknown architecture 'wideresnet28_0': did you mean 'wideresnet28_10'?"),
        ("resnet20:gn", "resnet20 has no variant 'gn'\nWrite resnet20 alone."),
        ("wideresnet16_4:gn", "there is no module wideresnet16_4 for 'wideresnet16_4:gn'"),
        ("no.such.module:net", "there is no module no.such.module for 'no.such.module:net'"),
        ("json.decoder.deeper:net", "there is no module json.decoder.deeper for"),
        ("nets/net:Net", "'nets/net' in 'nets/net:Net' is neither a .py file nor a module"),
        ("math:sqrt", "module math of 'math:sqrt' has no Python source"),
        ("json:lods", "json: unknown callable 'lods': did you mean 'loads'?"),
        (":Net", "':Net' does not name a callable of a file"),
        ("net.py:", "'net.py:' does not name a callable of a file"),
    ],
)
def test_names_that_mean_nothing(arch: str, said: str) -> None:
    assert said in message(arch)
    with pytest.raises(UsageError) as caught:
        known(arch)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "user"),
    [
        ("net.py:Net", True),
        ("a/b/net.py:Net", True),
        ("package.module:net", True),
        ("resnet20", False),
        ("resnet20:gn", False),
        ("torchvision:resnet18", False),
        ("timm:resnet18", False),
    ],
)
def test_is_user_arch(arch: str, user: bool) -> None:
    assert is_user_arch(arch) is user


def test_the_prefixes_of_libraries_are_those_that_are_no_modules() -> None:
    assert set(catalog.OUTSIDE) == set(_outside.LIBRARIES)


# torchvision and timm


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("shufflenet_v2_x0_5", (1, 8, 8)),
        ("squeezenet1_1", (3, 32, 32)),
        ("squeezenet1_1", (1, 28, 28)),
        ("googlenet", (3, 32, 32)),
        ("inception_v3", (1, 96, 96)),
        ("vit_b_32", (1, 96, 96)),
    ],
)
def test_torchvision_gives_logits_in_both_modes(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build(f"torchvision:{name}", spec(*shape, classes=7))
        assert network(torch.zeros(4, *shape)).shape == (4, 7)  # training mode, where the aux ones give tuples


def test_a_grey_image_is_seen_three_times() -> None:
    torch.manual_seed(0)
    network = build("torchvision:squeezenet1_1", spec(1, 32, 32)).eval()
    x = torch.rand(2, 1, 32, 32)
    inner = network.network.get_submodule("network")
    assert torch.equal(network(x), inner(network.normalize(x).repeat(1, 3, 1, 1)))


def test_too_deep_for_small_images() -> None:
    said = message("torchvision:squeezenet1_1")
    assert said.startswith("torchvision:squeezenet1_1 raised RuntimeError: ")
    assert said.endswith("It may need larger images than 1x8x8: pass --image-size, or take a catalog architecture.")
    assert "raised AssertionError: Input shape indivisible by patch size!" in message("torchvision:vit_b_16")


def test_torchvision_takes_one_or_three_channels() -> None:
    data = dataclasses.replace(spec(2, 32, 32), name="pairs")
    assert message("torchvision:resnet18", data).startswith("torchvision:resnet18 takes 1 or 3 channels, not 2")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit_relpos"])
def test_timm(name: str, channels: int) -> None:
    pytest.importorskip("timm")
    network = build(f"timm:{name}", spec(channels, 32, 32, classes=7))
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


def test_timm_names() -> None:
    pytest.importorskip("timm")
    assert message("timm:resnet19").startswith("unknown timm architecture 'resnet19': did you mean 'resnet")
    assert message("timm:resnet18.a1_in1k").startswith("unknown timm architecture")
    assert message("timm:hf-hub:someone/model").startswith("unknown timm architecture")


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert message("timm:resnet18") == "timm:resnet18 needs timm\nRun pip install 'robustkt[timm]'."


def test_a_recipe_tells_the_version_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"timm": "1.0.31", "torchvision": "0.29.2+cu132"}.__getitem__)
    assert library_version("timm:vit_tiny_patch16_224") == "timm 1.0.31"
    assert library_version("torchvision:resnet18") == "torchvision 0.29.2"  # the same networks for every device
    assert [library_version(arch) for arch in ("vit_tiny", "timm", "net.py:Net")] == [None, None, None]


# The user's own


@pytest.mark.parametrize(
    "signature",
    [
        "channels, classes",
        "*, num_classes, in_channels=3",
        "in_chans, num_classes, width=4",
        "classes, img_size, image_size=None",
        "**settings",
        "num_classes, *rest, **settings",
    ],
)
def test_a_users_callable_names_what_it_takes(tmp_path: Path, signature: str) -> None:
    file = write(
        tmp_path,
        f"""
from torch import nn

def net({signature}):
    given = dict(locals())
    if "settings" in given:
        given.update(given["settings"])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10))
    network.given = given
    return network
""",
    )
    given = vars(build(f"{file}:net", DIGITS).network)["given"]
    values = {"classes": 10, "num_classes": 10, "channels": 1, "in_channels": 1, "in_chans": 1}
    values |= {"image_size": 8, "img_size": 8}
    ours = {name: value for name, value in given.items() if name in values}
    assert ours == {name: values[name] for name in ours}
    assert ours.keys() & {"classes", "num_classes"}


IN_TRAINING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.fc = nn.Linear(64 * channels, classes)
        self.norm = nn.BatchNorm1d(64 * channels)

    def forward(self, x):
        x = self.norm(x.flatten(1))
        if not self.training:
            return self.fc(x)
        {body}
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('not yet')", "net.py:Net raised ValueError in training: not yet\nSee {}, line 15."),
        ("return self.fc(x), x", "net.py:Net, in training, returned a tuple, not a tensor: logits for the 10"),
        ("return self.fc(x)[:, 1:]", "net.py:Net, in training, returned shape (2, 9), not (2, 10)"),
        ("y = self.fc(x).exp(); y += 1; return y", "net.py:Net raised RuntimeError in training: one of the variables"),
    ],
)
def test_what_fails_in_training_only_is_told_before_it(tmp_path: Path, body: str, said: str) -> None:
    file = write(tmp_path, IN_TRAINING.replace("{body}", body))
    network = build(f"{file}:Net", DIGITS)
    with pytest.raises(RobustKTError) as caught:
        check_training(network, DIGITS)
    assert said.format(file) in str(caught.value)


def test_the_trial_of_training_leaves_no_trace(tmp_path: Path) -> None:
    network = build(
        f"{write(tmp_path, IN_TRAINING.replace('{body}', 'return self.fc(x) + torch.rand(1)'))}:Net", DIGITS
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    check_training(network, DIGITS)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_error_is_laid_to_the_network_that_it_came_out_of(tmp_path: Path) -> None:
    body = "if len(x) > 2: raise ValueError('too many'); return self.fc(x)"
    network = build(
        f"{write(tmp_path, IN_TRAINING.replace('{body}', body.replace('; ', chr(10) + ' ' * 8)))}:Net", DIGITS
    )
    check_training(network, DIGITS)
    with pytest.raises(ValueError, match="too many") as caught:
        network(torch.zeros(3, *DIGITS.shape))
    told = blamed(caught.value)
    assert told is not None
    assert told.what.endswith("net.py:Net raised ValueError: too many")
    assert "net.py, line " in told.fix
    with pytest.raises(RuntimeError) as ours:
        build("smallcnn", DIGITS)(torch.zeros(3, 7, 8, 8))
    assert blamed(ours.value) is None
    assert blamed(ValueError("elsewhere")) is None


def test_a_users_class_and_its_siblings(tmp_path: Path) -> None:
    net = """
from torch import nn
from blocks import WIDTH

class Net(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        from late import SLOPE
        self.conv = nn.Conv2d(channels, WIDTH, 3)
        self.fc = nn.Linear(WIDTH, classes)
        self.slope = SLOPE

    def forward(self, x):
        return self.fc(nn.functional.leaky_relu(self.conv(x), self.slope).mean((2, 3)))
"""
    files = [write(tmp_path / version, net) for version in ("v1", "v2")]
    for file, width in zip(files, (4, 6), strict=True):
        write(file.parent, f"WIDTH = {width}\n", "blocks.py")
        write(file.parent, "SLOPE = 0.1\n", "late.py")
    path = list(sys.path)
    widths = [build(f"{file}:Net", DIGITS).network.get_submodule("conv").out_channels for file in files]
    assert widths == [4, 6], "each version sees its own blocks.py"
    assert sys.path == path
    assert "blocks" not in sys.modules


def test_the_source_of_the_recipe_is_run_not_the_file_as_it_is_now(tmp_path: Path) -> None:
    file = write(tmp_path, NET)
    source = read_source(f"{file}:small")
    assert source == UserSource(f"{file}:small", NET.encode())
    file.write_text("small = None")
    assert isinstance(build(source.spec, DIGITS, source=source), Classifier)
    file.unlink()
    assert load_callable(source)(channels=1, classes=2)(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert load_callable(source).__module__ in sys.modules
    assert source.hash == UserSource("elsewhere.py:small", NET.encode()).hash
    assert source.hash.startswith("sha256:")


def test_nothing_of_a_users_file_runs_before_the_checks(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"
    file = write(tmp_path, f"open({str(sentinel)!r}, 'w').close()\n{NET}")
    assert "unknown callable 'smal': did you mean 'small'?\nKnown: small." in message(f"{file}:smal")
    known(f"{file}:small")
    read_source(f"{file}:small")
    assert not sentinel.exists()
    build(f"{file}:small", DIGITS)
    assert sentinel.exists()


def test_a_dotted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    write(tmp_path / "mine", "", "__init__.py")
    file = write(tmp_path / "mine", NET)
    source = read_source("mine.net:small")
    assert "mine.net" not in sys.modules
    assert source.text == NET.encode()
    assert isinstance(build("mine.net:small", DIGITS, source=source), Classifier)
    file.write_text(NET + "\n")
    with pytest.raises(IntegrityError, match=r"^mine\.net has changed: it is sha256:"):
        build("mine.net:small", DIGITS, source=source)


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "broken", "import not_installed_here", "__init__.py")
    said = message("broken.net:small")
    assert said.startswith("broken.net:small raised ModuleNotFoundError: No module named 'not_installed_here'")


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=r"^there is no file net\.py\n"):
        known("net.py:Net")
    (tmp_path / "net.py").mkdir()
    with pytest.raises(NotFoundError, match=r"^cannot read net\.py: Is a directory\n"):
        known("net.py:Net")


@pytest.mark.parametrize("statement", ["if True:\n    {}", "try:\n    {}\nexcept ImportError:\n    pass", "{}"])
@pytest.mark.parametrize(
    "binding", ["def net(): ...", "class net: ...", "net = print", "other, net = 1, 2", "from x import y as net"]
)
def test_a_name_bound_at_top_level_is_found(tmp_path: Path, statement: str, binding: str) -> None:
    read_source(f"{write(tmp_path, statement.format(binding))}:net")


@pytest.mark.parametrize(
    "text", ["def f():\n    net = 1", "class A:\n    net = 1", "[net for net in ()]", "import os.net", "net", ""]
)
def test_a_name_bound_elsewhere_is_not(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="unknown callable 'net'"):
        read_source(f"{write(tmp_path, text)}:net")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def net(classes, depth, *, heads): ...", "net.py:net requires depth, heads; it is called with channels and"),
        ("def net(classes, /): ...", "net.py:net requires classes;"),
        (
            "from torch import nn\nnet = nn.Linear(4, 10)",
            "net.py:net is a network already built; every generation needs",
        ),
        ("net = 3", "net.py:net is not callable: it is a int\nName a function or a class."),
        ("def net(classes): return 3", "net.py:net returned a int\nIt must return a torch.nn.Module."),
        ("def net(classes):\n    raise ValueError('boom\\nbang')", "net.py:net raised ValueError: boom bang\nSee "),
        ("import absent_module\nnet = print", "net.py:net raised ModuleNotFoundError: No module named 'absent_module'"),
        ("import sys\nsys.exit(3)\nnet = print", "net.py:net raised SystemExit: 3"),
        ("assert False\nnet = print", "net.py:net raised AssertionError\nSee "),
        ("def net(:", "net.py is not valid Python: invalid syntax (line 1)"),
        ("net = '\0'", "net.py is not valid Python: source code string cannot contain null bytes"),
    ],
)
def test_what_a_users_file_may_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(write(tmp_path, text).parent)
    assert said in message("net.py:net")


def test_an_error_says_where_and_keeps_its_cause(tmp_path: Path) -> None:
    file = write(tmp_path, "import torch\n\ndef net(classes):\n    torch.zeros(2) @ torch.zeros(3)\n")
    with pytest.raises(RobustKTError, match=rf"\nSee {file}, line 4\.$") as caught:
        build(f"{file}:net", DIGITS)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (
            "torch.zeros(2, 7)",
            "net.py:Net returned shape (2, 7), not (2, 10): logits for the 10 classes of digits\nLet",
        ),
        (
            "(torch.zeros(2, 10), None)",
            "net.py:Net returned a tuple, not a tensor: logits for the 10 classes of digits",
        ),
        ("torch.zeros(2, 10).long()", "net.py:Net returned torch.int64, not floating point: logits for the 10 classes"),
        ("torch.full((2, 10), float('nan'))", "net.py:Net returned NaN or infinity for a black image"),
        ("x @ torch.zeros(3, 3)", "net.py:Net raised RuntimeError: "),
    ],
)
def test_what_a_users_network_may_not_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, said: str
) -> None:
    text = f"""
import torch

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()

    def forward(self, x):
        return {result}
"""
    monkeypatch.chdir(write(tmp_path, text).parent)
    assert message("net.py:Net").startswith(said)
