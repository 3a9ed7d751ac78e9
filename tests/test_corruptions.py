"""Common corruptions: their formulas, their chance, and that no result of corrupted images is taken for a clean one."""

from __future__ import annotations

import colorsys
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from robustkt import api, corruptions, data
from robustkt.api.gateconfig import Gate
from robustkt.catalog import CORRUPTIONS
from robustkt.corruptions import Corruption, one, parse
from robustkt.corruptions.blur import disk
from robustkt.data import corrupt, load
from robustkt.errors import IntegrityError, UsageError
from robustkt.numbers import wilson
from robustkt.registry import Registry
from robustkt.registry.measurements import checked
from robustkt.streams import philox
from tests.conftest import Ran, gaussian_digits

NAMES = CORRUPTIONS.names()
COLOURS, GREY, LARGE = (3, 32, 32), (1, 28, 28), (3, 64, 48)


def pictures(*shape: int, count: int = 6) -> Tensor:
    """Smooth shapes with edges, as photographs have them: uint8 (count, C, H, W)."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((count, *shape)), (0, 0, 3, 3))
    smooth = (noise - noise.min()) / (noise.max() - noise.min())
    smooth[..., 6:18, 8:20] = 0.9 * (smooth[..., 6:18, 8:20] > 0.5) + 0.05
    return torch.from_numpy((smooth * 255).astype(np.uint8))


def floats(x: Tensor) -> np.ndarray:
    return x.numpy() / 255


# What all of them do


@pytest.mark.parametrize("shape", [COLOURS, GREY, LARGE, (1, 8, 8)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_each_changes_the_images_more_the_more_severe_it_is(name: str, shape: tuple[int, ...]) -> None:
    x = load("digits").test.x[:40] if shape == (1, 8, 8) else pictures(*shape)
    kept = x.clone()
    made = [corrupt(x, name, severity) for severity in corruptions.SEVERITIES]
    assert torch.equal(x, kept)
    assert all(m.shape == x.shape and m.dtype == torch.uint8 for m in made)
    far = [float((m.double() - x.double()).square().mean().sqrt()) for m in made]
    assert far[0] > 0.05
    if name != "pixelate":  # where the larger boxes fall counts as much as their size
        assert all(b >= 0.999 * a for a, b in pairwise(far)), far
    assert far[4] > 1.3 * far[0]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_the_seed_and_its_index_and_not_on_its_neighbours(name: str) -> None:
    x = pictures(*COLOURS)
    whole = corrupt(x, name, 3)
    assert torch.equal(whole, corrupt(x, name.replace("-", "_").upper(), 3))
    assert torch.equal(whole[[4, 1]], corrupt(x[[4, 1]], name, 3, indices=[4, 1]))
    chance = name.endswith("noise") or name == "motion-blur"
    assert torch.equal(whole, corrupt(x, name, 3, seed=1)) is not chance
    same = x[:1].expand(2, -1, -1, -1)
    assert torch.equal(*corrupt(same, name, 3)) is not chance


def test_floats_are_the_same_images() -> None:
    x = pictures(*GREY)
    made = corrupt(x.float() / 255, "shot-noise", 2)
    assert made.dtype == torch.float32
    assert torch.equal(made, corrupt(x, "shot-noise", 2).float() / 255)
    assert corrupt(x[:0], "contrast", 1).shape == (0, *GREY)


def test_the_random_numbers_are_those_of_the_key() -> None:
    """Whoever changes them changes the data of results that are kept: count ALGORITHM up."""
    assert (corruptions.ALGORITHM, corruptions.SEED) == (1, 0)
    x = pictures(*COLOURS, count=2)
    noise = philox("0 gaussian-noise", 7).standard_normal(COLOURS)
    expected = ((floats(x[1]) + 0.08 * noise).clip(0, 1) * 255).round()
    assert np.array_equal(corrupt(x, "gaussian-noise", 3, indices=[3, 7])[1].numpy(), expected)


# Against formulas of their own


@pytest.mark.parametrize(("severity", "sigma"), [*enumerate((0.04, 0.06, 0.08, 0.09, 0.1), 1)])
def test_gaussian_noise_has_its_deviation(severity: int, sigma: float) -> None:
    x = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    noise = floats(corrupt(x, "gaussian-noise", severity)) - 128 / 255
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean()) < 4 * sigma / noise.size**0.5


@pytest.mark.parametrize(("severity", "most"), [*enumerate((500, 250, 100, 75, 50), 1)])
def test_shot_noise_has_the_variance_of_counts(severity: int, most: int) -> None:
    for level in (51, 102):
        x = torch.full((8, 1, 96, 96), level, dtype=torch.uint8)
        counts = np.arange(most + 1)
        odds = stats.poisson.pmf(counts, level / 255 * most)
        seen = (counts / most * 255).round() / 255  # a count is seen in 8 bits
        made = floats(corrupt(x, "shot-noise", severity))
        assert made.mean() == pytest.approx(odds @ seen, abs=4 * made.std() / made.size**0.5)
        assert made.var() == pytest.approx(odds @ seen**2 - (odds @ seen) ** 2, rel=0.02)
    assert not corrupt(torch.zeros(1, 1, 9, 9, dtype=torch.uint8), "shot-noise", severity).any()


@pytest.mark.parametrize(("severity", "share"), [*enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1)])
def test_impulses_are_salt_and_pepper_of_their_share(severity: int, share: float) -> None:
    x = torch.full((8, 3, 64, 64), 77, dtype=torch.uint8)
    made = corrupt(x, "impulse-noise", severity)
    assert set(made.unique().tolist()) == {0, 77, 255}
    assert float((made != 77).double().mean()) == pytest.approx(share, rel=0.05)
    assert float((made == 255).sum() / (made != 77).sum()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("shape", [COLOURS, GREY])
@pytest.mark.parametrize(("severity", "raised"), [*enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1)])
def test_brightness_raises_the_value_of_hsv(severity: int, raised: float, shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    x[0, :, :4] = 0  # black has no hue
    three = floats(x.expand(-1, 3, -1, -1)).transpose(0, 2, 3, 1)
    hue, saturation, value = np.vectorize(colorsys.rgb_to_hsv)(*np.moveaxis(three, -1, 0))
    raised_rgb = np.vectorize(colorsys.hsv_to_rgb)(hue, saturation, (value + raised).clip(0, 1))
    expected = np.stack(raised_rgb, axis=-1).transpose(0, 3, 1, 2)[:, : shape[0]]
    np.testing.assert_allclose(floats(corrupt(x, "brightness", severity)), expected, atol=0.5 / 255 + 1e-9)


@pytest.mark.parametrize(("severity", "kept"), [*enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1)])
def test_contrast_shrinks_towards_the_mean_of_a_channel(severity: int, kept: float) -> None:
    x = pictures(*COLOURS)
    mean = floats(x).mean((2, 3), keepdims=True)
    expected = kept * floats(x) + (1 - kept) * mean
    np.testing.assert_allclose(floats(corrupt(x, "contrast", severity)), expected, atol=0.5 / 255 + 1e-9)


@pytest.mark.parametrize(("severity", "sigma"), [*enumerate((0.4, 0.6, 0.7, 0.8, 1.0), 1)])
@pytest.mark.parametrize("times", [1, 2])
def test_gaussian_blur_of_a_point_is_a_gaussian(severity: int, sigma: float, times: int) -> None:
    x = torch.zeros(1, 1, 32 * times, 32 * times, dtype=torch.uint8)
    x[0, 0, 16, 16] = 255
    places = np.arange(32 * times) - 16
    line = np.exp(-0.5 * (places / (sigma * times)) ** 2)
    expected = np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(floats(corrupt(x, "gaussian-blur", severity))[0, 0], expected, atol=0.6 / 255)


def test_a_disk_out_of_focus_keeps_the_light() -> None:
    # of 1.5 pixels: the 3x3 places within, all alike, as a rim this hard keeps to its pixel
    np.testing.assert_allclose(disk(1.5, 0.1)[1:-1, 1:-1], np.full((3, 3), 1 / 9), atol=1e-12)
    # of less than a pixel only the rim is left: OpenCV's 3x3 Gaussian kernel
    rim = np.exp(-0.5 * (np.arange(-1, 2) / 0.5) ** 2)
    np.testing.assert_allclose(disk(0.4, 0.5), np.outer(rim, rim) / rim.sum() ** 2, atol=1e-12)
    assert disk(10.5, 0.1).shape == (25, 25)
    assert all(disk(r, s).sum() == pytest.approx(1) for r, s in ((0.3, 0.4), (1.0, 0.2), (7.5, 0.5), (10.5, 0.5)))
    x = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.equal(corrupt(x, "defocus-blur", 5), x)


def test_motion_draws_a_point_along_a_line() -> None:
    x = torch.zeros(12, 1, 65, 65, dtype=torch.uint8)
    x[:, 0, 32, 32] = 255
    angles = []
    for image in corrupt(x, "motion-blur", 5)[:, 0].double():
        rows, columns = image.nonzero(as_tuple=True)
        assert int(columns.max()) <= 32, "it moves to one side"
        assert float(image.sum()) == pytest.approx(255, abs=6)
        weights = image[rows, columns]
        down, across = (float(((places - 32) * weights).sum()) for places in (rows, columns))
        angles.append(np.degrees(np.arctan2(down, across if across else -1e-9)))
        assert 32 - int(columns.min()) <= 18
    turned = [(angle + 180 + 90) % 180 - 90 for angle in angles]
    assert all(-47 < angle < 47 for angle in turned)
    assert np.ptp(turned) > 30
    flat = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, "motion-blur", 5), flat)


@pytest.mark.parametrize(("severity", "quality"), [*enumerate((80, 65, 58, 50, 40), 1)])
def test_jpeg_is_pillows(severity: int, quality: int) -> None:
    for shape, mode in ((COLOURS, "RGB"), (GREY, "L")):
        x = pictures(*shape, count=2)
        for image, made in zip(x, corrupt(x, "jpeg-compression", severity), strict=True):
            file = io.BytesIO()
            array = image.permute(1, 2, 0).numpy() if mode == "RGB" else image[0].numpy()
            Image.fromarray(array).save(file, "JPEG", quality=quality)
            read = np.asarray(Image.open(file).convert(mode))
            assert np.array_equal(made.permute(1, 2, 0).numpy().squeeze(), read)


@pytest.mark.parametrize(("severity", "side"), [*enumerate((30, 28, 27, 24, 20), 1)])
def test_fewer_pixels_are_fewer(severity: int, side: int) -> None:
    x = torch.arange(32, dtype=torch.uint8).mul(8).expand(1, 1, 32, 32).contiguous()
    made = corrupt(x, "pixelate", severity)
    assert torch.equal(made, made[:, :, :1].expand_as(made))
    small = Image.fromarray(x[0, 0].numpy()).resize((side, side), Image.Resampling.BOX)
    assert np.array_equal(made[0, 0], np.asarray(small.resize((32, 32), Image.Resampling.BOX)))


# Names, and what cannot be


def test_what_a_corruption_is_called() -> None:
    assert parse("gaussian_noise:3") == [Corruption("gaussian-noise", 3)]
    assert [str(shift) for shift in parse("contrast, JPEG-compression:2,contrast:3")] == [
        *(f"contrast:{severity}" for severity in range(1, 6)), "jpeg-compression:2"
    ]  # fmt: skip
    assert len(parse("all")) == 5 * len(NAMES) == len({*parse("all")})
    assert one("pixelate:5") == Corruption("pixelate", 5)
    pins = {corruptions.fingerprint(clean, shift) for clean in ("sha256:a", "sha256:b") for shift in parse("all")}
    assert len(pins) == 2 * len(parse("all"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gausian-noise:3", "unknown corruption 'gausian-noise': did you mean 'gaussian-noise'?"),
        ("fog:3", "unknown corruption 'fog'\nKnown: brightness, contrast,"),
        ("", "unknown corruption ''"),
        ("contrast:6", "a severity is 1, 2, 3, 4 or 5, not '6'\nWrite NAME:SEVERITY"),
        ("contrast:", "a severity is 1, 2, 3, 4 or 5, not ''"),
        ("contrast:03", "a severity is 1, 2, 3, 4 or 5, not '03'"),
        ("contrast", "'contrast' is 5 corruptions; this takes one at one severity\nFor instance contrast:1."),
        ("all:3", f"'all:3' is {len(NAMES)} corruptions"),
    ],
)
def test_what_is_no_corruption(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        one(text)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("images", "severity", "indices", "said"),
    [
        (torch.zeros(1, 1, 8, 8), 6, None, "a severity is 1, 2, 3, 4 or 5, not 6"),
        (torch.zeros(1, 8, 8), 1, None, r"images are \(N, C, H, W\), uint8 or floats, not \(1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), 1, None, "uint8 or floats, not .* torch.int64"),
        (torch.full((1, 1, 8, 8), 1.1), 1, None, "floating-point images lie in"),
        (torch.full((1, 1, 8, 8), float("nan")), 1, None, "floating-point images lie in"),
        (torch.zeros(2, 1, 8, 8), 1, [0], "there are 1 indices for 2 images"),
        (torch.zeros(2, 2, 8, 8), 1, None, "a picture has 1 or 3 channels, not 2"),
    ],
)
def test_images_that_cannot_be_corrupted(images: Tensor, severity: int, indices: list[int] | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        corrupt(images, "pixelate", severity, indices=indices)


def test_names_cost_no_torch() -> None:
    code = "import sys; from robustkt.corruptions import parse; parse('all'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Measuring under them


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return gaussian_digits(tmp_path_factory.mktemp("made"), "first", "second", epochs=1)


def test_a_corrupted_set_is_one_of_its_own() -> None:
    clean = load("digits")
    shift = Corruption("contrast", 4)
    found = data.corrupted(clean, shift, [3, 8])
    assert found.spec.name == "digits+contrast:4"
    assert found.spec.fingerprint not in (clean.spec.fingerprint, corruptions.fingerprint("sha256:x", shift))
    assert torch.equal(found.test.x[[3, 8]], corrupt(clean.test.x, "contrast", 4)[[3, 8]])
    assert not found.test.x[4].any(), "what was not asked for is not there, rather than clean"
    assert found.train is clean.train
    assert found.test.y is clean.test.y


def test_an_evaluation_under_a_corruption_is_kept_apart(made: Registry) -> None:
    given = {"attacks": ["fgsm"], "max_images": 120, "registry": made, "device": "cpu"}
    clean = api.evaluate("first", **given)  # type: ignore[arg-type]
    shifted = api.evaluate("first", corruption="Motion_blur:5", **given)  # type: ignore[arg-type]
    assert (clean["corruption"], shifted["corruption"]) == (None, "motion-blur:5")
    assert shifted["clean_accuracy"] < clean["clean_accuracy"]
    assert not shifted["reused"]
    assert api.evaluate("first", corruption="motion-blur:5", **given)["reused"]  # type: ignore[arg-type]
    assert api.evaluate("first", **given)["clean_accuracy"] == clean["clean_accuracy"]  # type: ignore[arg-type]
    (row,) = [r for r in api.list_generations(registry=made)["generations"] if r["generation"] == "first"]
    assert row["robust"]["robust_accuracy"] == clean["worst"]["accuracy"], "list tells clean images only"

    split = data.corrupted(load("digits"), Corruption("motion-blur", 5), range(360)).test
    from robustkt.api.loading import load_network

    network = load_network(made, made.get("first"))
    with torch.no_grad():
        right = (network(split.images(slice(None, None, 3))).argmax(1) == split.y[::3]).double().mean()
    assert shifted["clean_accuracy"] == pytest.approx(float(right))


def test_compare_pairs_what_is_under_one_corruption(made: Registry, cli: Callable[..., Ran]) -> None:
    given = {"attacks": ["clean"], "max_images": 60, "registry": made, "device": "cpu"}
    for name, shift in (("first", None), ("second", None), ("first", "contrast:3"), ("second", "contrast:4")):
        api.evaluate(name, corruption=shift, **given)  # type: ignore[arg-type]
    told = api.compare("first", "second", registry=made)
    of = [c["settings"].get("corruption") for c in told["comparisons"] if c["images"] == 60]
    assert of == [None], "clean images alone are common to both"
    lacking = {m["command"] for m in told["missing"] if "contrast" in m["command"]}
    assert lacking == {
        "robustkt evaluate second --attack clean --max-images 60 --corruption contrast:3",
        "robustkt evaluate first --attack clean --max-images 60 --corruption contrast:4",
    }
    for command in sorted(lacking):
        assert cli(*command.split()[1:], "--registry", str(made.root), "--device", "cpu").code == 0
    told = api.compare("first", "second", registry=made)
    whats = [c["what"] for c in told["comparisons"] if c["images"] == 60]
    assert whats[0] == "clean, 60 images"
    assert sorted(whats[1:]) == ["clean under contrast:3, 60 images", "clean under contrast:4, 60 images"]
    notes = api.gate("second", config=Gate(against="first", min_images=10), registry=made)["notes"]
    assert any("2 measurements of corrupted images not used" in note for note in notes)


def test_a_certificate_under_a_corruption_is_audited_on_those_images(made: Registry, cli: Callable[..., Ran]) -> None:
    given = {"n": 150, "n0": 30, "max_images": 12, "registry": made, "device": "cpu", "compile": "off"}
    told = api.certify("second", corruption="contrast:2", mode="fixed", **given)  # type: ignore[arg-type]
    assert told["corruption"] == "contrast:2"
    clean = api.certify("second", mode="fixed", **given)  # type: ignore[arg-type]
    assert clean["acr"] != told["acr"]
    audit = api.audit_generation("second", n=200, seed=1, registry=made, device="cpu")
    assert sorted(str(one["corruption"]) for one in audit["audits"]) == ["None", "contrast:2"]
    assert audit["problems"] == []
    out = cli("show", "second", "--registry", str(made.root)).out
    assert "12 images under contrast:2:\n" in out


def test_a_table_of_corruptions(made: Registry, cli: Callable[..., Ran]) -> None:
    place = ("--registry", str(made.root), "--device", "cpu", "--max-images", "30")
    ran = cli("evaluate", "first", "--corruption", "contrast:2,contrast:5,impulse-noise:5", *place, "--json")
    told = json.loads(ran.out)
    contrast = told["corruptions"]["contrast"]
    accuracies = [contrast["severities"][severity]["accuracy"] for severity in ("2", "5")]
    assert contrast["mean"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert list(told["corruptions"]["impulse-noise"]["severities"]) == ["5"]
    impulse = told["corruptions"]["impulse-noise"]["mean"]["accuracy"]
    assert told["mean"]["accuracy"] == pytest.approx((sum(accuracies) + impulse) / 3)
    assert told["mean"]["interval"] == pytest.approx(wilson(told["mean"]["accuracy"] * 30, 30))
    assert (told["attacks"], told["eps"], told["reused"]) == (["clean"], None, 0)
    again = cli("evaluate", "first", "--corruption", "contrast", *place)
    assert max(map(len, again.out.splitlines())) <= 80
    assert json.loads(cli("evaluate", "first", "--corruption", "contrast", *place, "--json").out)["reused"] == 5
    shown = cli("show", "first", "--registry", str(made.root)).out
    assert "corrupted  30 images, no attack" in shown
    given = {"attacks": ["fgsm"], "max_images": 30, "registry": made, "device": "cpu"}
    attacked = api.evaluate_corruptions("first", corruption="contrast:1,contrast:2", **given)  # type: ignore[arg-type]
    alone = api.evaluate("first", corruption="contrast:2", **given)  # type: ignore[arg-type]
    assert alone["reused"]
    figure = attacked["corruptions"]["contrast"]["severities"]["2"]
    assert figure["accuracy"] == alone["worst"]["accuracy"] <= alone["clean_accuracy"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["evaluate", "first", "--corruption", "fogg"], "unknown corruption 'fogg'"),
        (["evaluate", "first", "--corruption", "contrast:1", "--transfer"], "--transfer is measured on images as they"),
        (["certify", "first", "--corruption", "all"], "'all' is 50 corruptions; this takes one at one severity"),
    ],
)
def test_options_that_mean_nothing(options: list[str], said: str, made: Registry, cli: Callable[..., Ran]) -> None:
    ran = cli(*options, "--registry", str(made.root))
    assert ran.code == 2
    assert said in ran.err


def test_a_result_that_names_no_corruption_is_refused(made: Registry) -> None:
    api.evaluate("first", corruption="contrast:1", attacks=["clean"], max_images=20, registry=made, device="cpu")
    found = [r for r in made.results(made.get("first").id, "evaluation") if "corruption" in r.content["settings"]]
    assert checked(found[0]) is found[0]
    hostile = {**found[0].content, "settings": {**found[0].content["settings"], "corruption": "haze:2"}}
    with pytest.raises(IntegrityError, match="unknown corruption 'haze'"):
        checked(replace(found[0], content=hostile))
