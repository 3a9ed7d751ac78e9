"""Data sets: what is read, how it is divided, and what is said when it cannot be used."""

import hashlib
import pickle
import random
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from robustkt import catalog
from robustkt import data as rooms
from robustkt.data import NAMES, check_fits, crop_flip, load, read_image, to_float
from robustkt.data._images import SUFFIXES
from robustkt.data._named import READERS
from robustkt.data._sources import SOURCES
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
fashion_there = pytest.mark.skipif(not (SHARED / "FashionMNIST").is_dir(), reason="no Fashion-MNIST in ../shared/data")


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def rows(*parts):
    return sorted(
        bytes([*image.flatten().tolist(), int(y)]) for part in parts for image, y in zip(part.x, part.y, strict=True)
    )


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_divided_the_same_way_for_ever():
    digits = load("digits")
    assert digits.spec.fingerprint == "sha256:4223b00283fd5f1ecc496bd9b0274f14099da993dd09c1e5cafa862670412f0d"
    assert (len(digits.train), len(digits.held_out), len(digits.test)) == (1150, 287, 360)
    assert digits.spec.held_out == 287
    held_out = hashlib.sha256(digits.held_out.x.numpy()).hexdigest()
    assert held_out == "02d05d0d4f48cff0b2a8e3464dae0a8a8cb0fd1edbe829569d6a1e2c8522247b"
    again = load("DIGITS")
    assert again.spec == digits.spec
    for part in ("train", "held_out", "test"):
        assert torch.equal(getattr(again, part).x, getattr(digits, part).x)
        assert torch.equal(getattr(again, part).y, getattr(digits, part).y)


def test_digits_are_scikit_learns_and_no_image_is_in_two_parts():
    from sklearn.datasets import load_digits

    digits, source = load("digits"), load_digits()
    pairs = zip(source.data, source.target, strict=True)
    expected = [bytes([*(round(v * 255 / 16) for v in x), y]) for x, y in pairs]
    assert rows(digits.train, digits.held_out, digits.test) == sorted(expected)
    assert len(set(expected)) == len(expected)  # so the line above leaves no room for an overlap


def test_digits_test_images_are_stratified():
    digits = load("digits")
    test = digits.test.y.bincount()
    total = test + digits.train.y.bincount() + digits.held_out.y.bincount()
    assert (test - total * 360 / 1797).abs().max() <= 1


def test_digits_spec():
    digits = load("digits")
    assert digits.spec.name == "digits"
    assert digits.spec.shape == (1, 8, 8)
    assert digits.spec.classes == tuple("0123456789")
    assert (digits.source, digits.spec.image_size) == ("digits", None)
    assert (digits.flip, digits.pad) == (False, 0)
    assert digits.train.x.dtype == torch.uint8
    assert digits.train.y.dtype == torch.int64
    x = digits.train.images(slice(None)).double()
    assert digits.spec.mean == (round(float(x.mean()), 6),)
    assert digits.spec.std == (pytest.approx(float(x.std(correction=0)), abs=1e-6),)


def test_digits_can_be_enlarged():
    digits, large = load("digits"), load("digits", image_size=32)
    assert large.spec.shape == (1, 32, 32)
    assert (large.spec.image_size, large.pad) == (32, 4)
    assert large.spec.fingerprint != digits.spec.fingerprint
    assert torch.equal(large.train.y, digits.train.y)
    assert load("digits", image_size=8).spec == digits.spec  # nothing was resized


# --- sets that are downloaded -----------------------------------------------------------------------------------------


def test_names_are_read_without_an_import_and_each_has_a_reader():
    assert catalog.literal(Path(rooms.__file__), "NAMES") == NAMES
    assert set(NAMES) == {"digits", *READERS}
    assert READERS.keys() == SOURCES.keys()


def test_checksums_are_torchvisions():
    for name in ("mnist", "fashion-mnist"):
        resources = getattr(torchvision.datasets, SOURCES[name].kind).resources
        assert [(Path(a).name, c) for a, c in SOURCES[name].archives.items()] == resources
    for name in ("cifar10", "cifar100"):
        kind = getattr(torchvision.datasets, SOURCES[name].kind)
        assert SOURCES[name].archives == {kind.filename: kind.tgz_md5}
        assert SOURCES[name].folder == kind.base_folder
    archives = {file: md5 for part, (_, file, md5) in torchvision.datasets.SVHN.split_list.items() if part != "extra"}
    assert SOURCES["svhn"].archives == archives
    _, md5 = torchvision.datasets.Imagenette._ARCHIVES["160px"]
    assert list(SOURCES["imagenette"].archives.values()) == [md5]


@fashion_there
def test_fashion_mnist_is_read_where_it_lies(offline):
    before = sorted(SHARED.rglob("*"))
    fashion = load("Fashion_MNIST", data_dir=SHARED)
    assert sorted(SHARED.rglob("*")) == before  # nothing was unpacked beside the archives
    assert (len(fashion.train), len(fashion.held_out), len(fashion.test)) == (54_000, 6_000, 10_000)
    assert fashion.spec.name == "fashion-mnist"
    assert fashion.spec.shape == (1, 28, 28)
    assert fashion.spec.classes[9] == "Ankle boot"
    assert fashion.spec.fingerprint == "sha256:0547ee30173247dea0fe230d2eb0d0ae6baf4d83e3c3f9cc2ae179f9f863c77f"
    assert fashion.spec.mean == (0.286024,)
    assert fashion.spec.std == (0.3529,)
    assert (fashion.flip, fashion.pad) == (True, 3)


@fashion_there
def test_fashion_mnist_unpacked_by_torchvision_is_the_same(tmp_path, offline):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (SHARED / "FashionMNIST" / "raw").iterdir():
        shutil.copyfile(file, raw / file.name)
    theirs = torchvision.datasets.FashionMNIST(tmp_path, train=False, download=True)
    for file in raw.glob("*.gz"):
        file.unlink()
    fashion = load("fashion-mnist", data_dir=tmp_path)
    assert torch.equal(fashion.test.x[:, 0], theirs.data)
    assert torch.equal(fashion.test.y, theirs.targets)

    images = raw / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="t10k-images-idx3-ubyte is damaged"):
        load("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_without_a_network_it_says_where_to_put_the_files(name, tmp_path, offline, capsys):
    for place in (tmp_path / "mine", tmp_path):
        with pytest.raises(RobustKTError) as caught:
            load(name, data_dir=place)
        assert caught.value.what.startswith(f"{name} is not in {place} and could not be downloaded: ")
        assert not [*tmp_path.iterdir()]
        assert "no network here" in caught.value.what
        assert "--data-dir" in caught.value.fix
        assert "--data digits" in caught.value.fix
        for archive in SOURCES[name].archives:
            assert Path(archive).name in caught.value.fix
        assert len(caught.value.what.splitlines()) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_a_damaged_archive_is_named(name, tmp_path, offline):
    archive = tmp_path / next(iter(SOURCES[name].archives))
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"half of it")
    with pytest.raises(IntegrityError) as caught:
        load(name, data_dir=tmp_path)
    assert f"{archive} is damaged (wrong checksum)" in caught.value.what


def test_the_data_directory_is_looked_up_in_order(tmp_path, offline, monkeypatch):
    def searched(**options):
        with pytest.raises(RobustKTError) as caught:
            load("svhn", **options)
        return caught.value.what

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBUSTKT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert f" {tmp_path}/home/.cache/robustkt/data " in searched()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert f" {tmp_path}/cache/robustkt/data " in searched()
    monkeypatch.setenv("ROBUSTKT_DATA", str(tmp_path / "mine"))
    assert f" {tmp_path}/mine " in searched()
    assert f" {tmp_path}/told " in searched(data_dir=tmp_path / "told")


def test_what_torchvision_prints_stays_off_stdout(tmp_path, monkeypatch, capsys):
    def noisy(root, **options):
        print("Downloading …")
        raise RuntimeError("gave up")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", noisy)
    with pytest.raises(RobustKTError, match="could not be downloaded: gave up"):
        load("cifar10", data_dir=tmp_path)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Downloading …\n")


def test_cifar_from_torchvisions_folder(tmp_path, monkeypatch, offline):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches, kind = [f"data_batch_{i}" for i in range(1, 6)], torchvision.datasets.CIFAR10
    images = {name: rng.integers(0, 256, (4, 3, 32, 32), np.uint8) for name in [*batches, "test_batch"]}
    stored = {name: {"data": x.reshape(4, -1), "labels": [0, 1, 2, 1]} for name, x in images.items()}
    stored["batches.meta"] = {"label_names": ["plane", "car", "bird"]}
    for name, content in stored.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in stored}
    monkeypatch.setattr(kind, "train_list", [[name, md5[name]] for name in batches])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5["batches.meta"]})

    with pytest.raises(IntegrityError, match="20 training and 4 test images, not 50000 and 10000"):
        load("cifar10", data_dir=tmp_path)
    monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], counts=(20, 4)))
    cifar = load("cifar10", data_dir=tmp_path)
    assert np.array_equal(cifar.test.x, images["test_batch"])
    assert cifar.test.y.tolist() == [0, 1, 2, 1]
    assert cifar.spec.classes == ("plane", "car", "bird")
    assert (len(cifar.train), len(cifar.held_out), cifar.flip, cifar.pad) == (16, 4, True, 4)

    (folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(RobustKTError, match="cifar10 is not whole in") as caught:
        load("cifar10", data_dir=tmp_path)
    assert f"Delete {folder}" in caught.value.fix


def test_svhn_from_torchvisions_files(tmp_path, monkeypatch, offline):
    rng, splits = np.random.default_rng(0), dict(torchvision.datasets.SVHN.split_list)
    images = {part: rng.integers(0, 256, (32, 32, 3, 10), np.uint8) for part in ("train", "test")}
    for part, x in images.items():
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": x, "y": np.arange(1, 11)[:, None]})  # SVHN writes the digit 0 as 10
        splits[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    monkeypatch.setitem(SOURCES, "svhn", replace(SOURCES["svhn"], counts=(10, 10)))
    svhn = load("svhn", data_dir=tmp_path)
    assert np.array_equal(svhn.test.x, images["test"].transpose(3, 2, 0, 1))
    assert svhn.test.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert svhn.flip is False


def test_imagenette_from_torchvisions_folder(tmp_path, monkeypatch, offline):
    for part in ("train", "val"):
        for i, wnid in enumerate(["n01440764", "n02102040"]):
            for k in range(3):
                picture(tmp_path / "imagenette2-160" / part / wnid / f"{wnid}_{k}.JPEG", (200 + 10 * k, 160), 90 * i)
    monkeypatch.setitem(SOURCES, "imagenette", replace(SOURCES["imagenette"], counts=(6, 6)))
    imagenette = load("imagenette", data_dir=tmp_path)
    assert imagenette.spec.classes == ("tench", "English springer")
    assert imagenette.spec.shape == (3, 160, 160)
    assert (imagenette.spec.name, imagenette.spec.image_size, imagenette.source) == ("imagenette", 160, "imagenette")
    assert load("imagenette", data_dir=tmp_path, image_size=64).spec.shape == (3, 64, 64)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="no CIFAR-10 in ../shared/data")
def test_cifar10_npz(tmp_path):
    subprocess.run([sys.executable, SHARED / "unpack.py", tmp_path / "cifar10.npz"], check=True)
    cifar = load(str(tmp_path / "cifar10.npz"))
    assert (len(cifar.train), len(cifar.held_out), len(cifar.test)) == (45_000, 5_000, 10_000)
    assert cifar.spec.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert cifar.spec.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-3)


# --- names and paths --------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="unknown data set 'fashon-mnist': did you mean 'fashion-mnist'"):
        load("fashon-mnist")
    with pytest.raises(UsageError, match="unknown data set ''"):
        load("")


@pytest.mark.parametrize("path", ["not/here", "nothere.npz", "./digits", "x" * 5000 + "/y", "a/\0b"])
def test_a_path_that_is_not_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        load(path)


def test_a_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "digits")
    assert load("digits").spec.name == "digits"
    assert load("./digits").spec.name == "folder"


def test_a_file_of_another_kind_and_a_useless_size(tmp_path):
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(UsageError, match=r"is not an \.npz file"):
        load(str(tmp_path / "data.csv"))
    with pytest.raises(UsageError, match="image size 4 is too small"):
        load("digits", image_size=4)
    with pytest.raises(RobustKTError, match="do not fit into memory"):
        load("digits", image_size=10**9)


# --- image folders ----------------------------------------------------------------------------------------------------


def picture(path, size=(16, 16), level=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    noise = np.random.default_rng(level).integers(0, 200, (height, width, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def folder(root, size=(16, 16), mode="RGB", suffix=".png", counts=(("train", 4), ("test", 2))):
    for part, count in counts:
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                picture(root / part / name / f"{i:03}{suffix}", size, level=100 * label + 10 * count + i, mode=mode)
    return root


def refused(root, kind, match, **options):
    with pytest.raises(kind, match=match) as caught:
        load(str(root), **options)
    assert caught.value.fix
    return caught.value


def test_folder_is_read_in_the_order_of_names(tmp_path):
    folder(tmp_path, size=(16, 12))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    found = load(str(tmp_path))
    assert found.spec.name == "folder"
    assert found.source == str(tmp_path)
    assert found.spec.classes == ("cat", "dog")
    assert found.spec.shape == (3, 12, 16)
    assert found.spec.image_size is None
    assert (found.flip, found.pad) == (True, 0)
    assert (len(found.train), len(found.held_out)) == (7, 1)
    files = sorted((tmp_path / "test").glob("*/*.png"))
    assert found.test.y.tolist() == [0, 0, 1, 1]
    for image, file in zip(found.test.x, files, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), np.asarray(Image.open(file)))


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG"])
def test_folder_takes_the_usual_formats(suffix, tmp_path):
    assert len(load(str(folder(tmp_path, suffix=suffix, mode="L" if suffix == ".pgm" else "RGB"))).test) == 4


def test_the_page_names_every_format_that_is_read():
    page = Path(__file__).parents[1] / "docs" / "howto" / "own-data.md"
    named = re.search(r"by their endings: ([a-z, ]+)\.", page.read_text().replace("\n", " "))
    assert {f".{ending}" for ending in named[1].replace(" and ", ", ").split(", ")} == set(SUFFIXES)


@pytest.mark.parametrize("parts", [("test",), ("",)])
def test_test_images_alone_have_the_classes_and_the_size_of_the_model(parts, tmp_path):
    spec = load(str(folder(tmp_path / "own"))).spec
    other = folder(tmp_path / "other", size=(24, 20), counts=((part, 3) for part in parts))
    found = rooms.tests_alone(str(other), spec)
    assert (found.spec.shape, found.spec.classes) == (spec.shape, spec.classes)
    assert found.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert (len(found.train), len(found.held_out), found.spec.held_out) == (0, 0, 0)
    assert found.spec.fingerprint != spec.fingerprint
    shutil.rmtree(other / parts[0] / "cat")
    assert rooms.tests_alone(str(other), spec).test.y.tolist() == [1, 1, 1]
    (other / parts[0] / "dog").rename(other / parts[0] / "fox")
    with pytest.raises(RobustKTError, match="other classes: fox"):
        rooms.tests_alone(str(other), spec)


def test_training_images_are_not_taken_for_test_images(tmp_path, monkeypatch):
    spec = load(str(folder(tmp_path))).spec
    assert rooms.tests_alone(str(tmp_path), spec) is None  # a whole data set, for `load`
    assert rooms.tests_alone("digits", spec) is None
    with pytest.raises(UsageError, match="holds training images"):
        rooms.tests_alone(str(tmp_path / "train"), spec)
    monkeypatch.chdir(tmp_path / "train")
    with pytest.raises(UsageError, match="holds training images"):
        rooms.tests_alone(".", spec)


def test_folder_is_grey_only_if_every_image_is(tmp_path):
    folder(tmp_path, mode="L")
    picture(tmp_path / "train" / "dog" / "bits.png", mode="1")
    Image.fromarray(np.full((16, 16), 0x8100, np.uint16)).save(tmp_path / "train" / "dog" / "deep.png")
    found = load(str(tmp_path))
    assert found.spec.shape == (1, 16, 16)
    assert 0x81 in found.train.x[-1].unique().tolist() + found.held_out.x[-1].unique().tolist()
    picture(tmp_path / "train" / "dog" / "palette.png", mode="P")
    assert load(str(tmp_path)).spec.shape == (3, 16, 16)


def test_folder_of_mixed_sizes_wants_an_image_size(tmp_path):
    folder(tmp_path)
    picture(tmp_path / "test" / "dog" / "large.png", (30, 20))
    error = refused(tmp_path, UsageError, "has images of 2 sizes: 16x16, 30x20")
    assert "--image-size" in error.fix
    found = load(str(tmp_path), image_size=10)
    assert found.spec.shape == (3, 10, 10)
    assert found.spec.image_size == 10


def test_resizing_is_pillows_and_keeps_the_square_in_the_middle(tmp_path):
    folder(tmp_path)
    with Image.open(picture(tmp_path / "test" / "dog" / "wide.png", (60, 20))) as wide:
        expected = np.array(wide.resize((30, 10), Image.Resampling.BICUBIC).crop((10, 0, 20, 10)))
        wide.transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "test" / "dog" / "zz_tall.png")
    found = load(str(tmp_path), image_size=10)
    for image, across, down in zip(found.test.x[-2:], (2, 1), (1, 2), strict=True):
        assert (image.permute(down, across, 0).int() - torch.from_numpy(expected).int()).abs().max() <= 1


def test_unreadable_images_are_counted_and_named(tmp_path):
    folder(tmp_path)
    whole = (tmp_path / "train" / "cat" / "000.png").read_bytes()
    (tmp_path / "train" / "cat" / "text.png").write_text("no picture")
    (tmp_path / "train" / "dog" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "test" / "dog" / "loop.png").symlink_to("loop.png")
    (tmp_path / "test" / "dog" / "none.png").touch()
    (tmp_path / "test" / "cat" / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n")
    error = refused(tmp_path, IntegrityError, "5 of 17 images cannot be read")
    assert "eps.png" in error.what
    assert error.what.endswith("…")
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"") if not file.is_symlink() else file.unlink()
    refused(tmp_path, IntegrityError, "16 of 16 images cannot be read")


@pytest.mark.parametrize("limit", [100, 200])  # over twice the limit Pillow raises, below that it only warns
def test_decompression_bombs_are_refused(limit, tmp_path, monkeypatch):
    folder(tmp_path, size=(15, 15))
    file = tmp_path / "test" / "cat" / "000.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(tmp_path, IntegrityError, "12 of 12 images cannot be read: .*decompression bomb")
    with pytest.raises(IntegrityError, match="decompression bomb"):
        read_image(file, (3, 8, 8))


def test_symlinked_folders_do_not_loop(tmp_path):
    folder(tmp_path)
    before = load(str(tmp_path)).spec
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train", target_is_directory=True)
    (tmp_path / "train" / "cat" / "loop.png").symlink_to(tmp_path, target_is_directory=True)
    assert load(str(tmp_path)).spec == before


def test_folders_that_are_not_whole(tmp_path):
    refused(tmp_path, NotFoundError, "has no folder train")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    refused(tmp_path, RobustKTError, "train holds no class folders")
    folder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    refused(tmp_path, NotFoundError, "has no folder test")
    (tmp_path / "test").mkdir()
    refused(tmp_path, RobustKTError, "test holds no class folders")
    picture(tmp_path / "test" / "cow" / "0.png")
    refused(tmp_path, RobustKTError, "classes that training does not: cow")
    shutil.rmtree(tmp_path / "test" / "cow")
    picture(tmp_path / "test" / "dog" / "0.png")
    assert load(str(tmp_path)).test.y.tolist() == [1]  # a class without test images is no harm
    (tmp_path / "train" / "cow").mkdir()
    refused(tmp_path, RobustKTError, "cow holds no images")
    shutil.rmtree(tmp_path / "train" / "cow")
    shutil.rmtree(tmp_path / "train" / "cat")
    refused(tmp_path, RobustKTError, "has 4 training images")
    picture(tmp_path / "train" / "dog" / "more.png")
    refused(tmp_path, RobustKTError, "fewer than 2 classes")


def test_folder_with_images_that_are_too_small(tmp_path):
    folder(tmp_path, size=(12, 7))
    refused(tmp_path, RobustKTError, "12x7, 3 channels; the smallest usable is 8x8")
    assert load(str(tmp_path), image_size=8).spec.shape == (3, 8, 8)


def test_folder_with_an_unprintable_class(tmp_path):
    folder(tmp_path)
    try:
        picture(tmp_path / "train" / "c\udcff" / "0.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    refused(tmp_path, RobustKTError, "unprintable name")


# --- npz --------------------------------------------------------------------------------------------------------------


def arrays(count=50, shape=(9, 8, 3), classes=3, parts=("train", "test")):
    rng = np.random.default_rng(count)
    found = {}
    for part in parts:
        found[f"{part}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        found[f"{part}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return found


def npz(path, content):
    np.savez(path, **content)
    return str(path)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3)])
def test_npz_gives_back_what_was_saved(shape, tmp_path):
    content = arrays(shape=shape)
    path = npz(tmp_path / "set.npz", content)
    found = load(path)
    x = content["test_images"].reshape(50, 9, 8, -1)
    assert np.array_equal(found.test.x.permute(0, 2, 3, 1), x)
    assert found.test.y.tolist() == content["test_labels"][:, 0].tolist()
    assert found.spec.shape == (x.shape[-1], 9, 8)
    assert found.spec.classes == ("0", "1", "2")
    assert (found.spec.name, found.source, found.flip, found.pad) == ("npz", path, False, 0)
    assert (len(found.train), len(found.held_out)) == (40, 10)

    parts = {"train": found.train, "val": found.held_out, "test": found.test}
    images = {f"{name}_images": part.x.permute(0, 2, 3, 1).numpy() for name, part in parts.items()}
    labels = {f"{name}_labels": part.y.numpy() for name, part in parts.items()}
    again = load(npz(tmp_path / "again.npz", images | labels))
    for part in ("train", "held_out", "test"):
        assert torch.equal(getattr(again, part).x, getattr(found, part).x)
        assert torch.equal(getattr(again, part).y, getattr(found, part).y)
    assert (again.spec.mean, again.spec.std) == (found.spec.mean, found.spec.std)


def test_npz_held_out_slice_keeps_the_order_and_is_no_head_or_tail(tmp_path):
    content = arrays(count=20_000, shape=(8, 8))
    content["train_images"][:, 0, 0] = np.arange(20_000) // 256
    content["train_images"][:, 0, 1] = np.arange(20_000) % 256
    found = load(npz(tmp_path / "set.npz", content))
    where = [part.x[:, 0, 0, 0].int() * 256 + part.x[:, 0, 0, 1] for part in (found.train, found.held_out)]
    assert [len(w) for w in where] == [18_000, 2_000]
    assert all((w[1:] > w[:-1]).all() for w in where)
    assert sorted(torch.cat(where).tolist()) == list(range(20_000))
    assert abs(where[1].float().mean() - 10_000) < 500


@pytest.mark.parametrize(
    ("count", "held_out"), [(5, 1), (49, 9), (4999, 999), (5000, 1000), (10_000, 1000), (10_010, 1001)]
)
def test_size_of_the_held_out_slice(count, held_out, tmp_path):
    found = load(npz(tmp_path / "set.npz", arrays(count=count, shape=(8, 8), classes=2)))
    assert len(found.held_out) == found.spec.held_out == held_out
    assert len(found.train) == count - held_out


def test_fingerprint_sees_pixels_labels_order_shapes_and_the_given_held_out_slice(tmp_path):
    content = arrays(shape=(12, 8))
    val = {k.replace("train", "val"): v[:7] for k, v in content.items() if "train" in k}
    swapped, pixel, label = (dict(content) for _ in range(3))
    for key in ("train_images", "train_labels"):
        swapped[key] = swapped[key][[1, 0, *range(2, 50)]]
    pixel["test_images"] = pixel["test_images"] ^ np.uint8(1)
    label["test_labels"] = label["test_labels"][::-1]
    reshaped = {k: v.reshape(-1, 8, 12) if "images" in k else v for k, v in content.items()}
    wide = {k: v.astype(">i4") if "labels" in k else v for k, v in content.items()}
    given = [
        npz(tmp_path / f"{i}.npz", c) for i, c in enumerate((content, swapped, pixel, label, reshaped, content | val))
    ]
    prints = [load(path).spec.fingerprint for path in given]
    assert len(set(prints)) == len(prints)
    assert load(npz(tmp_path / "wide.npz", wide)).spec.fingerprint == prints[0]


def test_npz_with_a_gap_in_the_labels_and_a_constant_channel(tmp_path):
    content = arrays(classes=2)
    content["train_labels"] = content["train_labels"] * 3
    content["train_images"][..., 1] = 51
    found = load(npz(tmp_path / "set.npz", content))
    assert found.spec.classes == ("0", "1", "2", "3")
    assert found.spec.mean[1] == 0.2
    assert found.spec.std[1] == 1e-3


def test_npz_is_resized(tmp_path):
    found = load(npz(tmp_path / "set.npz", arrays(shape=(9, 8, 3), parts=("train", "val", "test"))), image_size=16)
    assert found.spec.shape == (3, 16, 16)
    assert found.held_out.x.shape == (50, 3, 16, 16)
    assert found.spec.image_size == 16


BAD = {
    "missing key": ({"test_labels": None}, "has no test_labels"),
    "missing keys": ({"train_images": None, "test_labels": None}, "has no train_images, test_labels"),
    "half a held-out slice": ({"val_images": np.zeros((5, 9, 8, 3), np.uint8)}, "has no val_labels"),
    "float images": ({"train_images": np.zeros((50, 9, 8, 3), np.float32)}, "train_images is float32, not uint8"),
    "two channels": ({"train_images": np.zeros((50, 9, 8, 2), np.uint8)}, r"train_images has shape \(50, 9, 8, 2\)"),
    "flat images": ({"train_images": np.zeros((50, 72), np.uint8)}, r"train_images has shape \(50, 72\)"),
    "no images": ({"test_images": np.zeros((0, 9, 8, 3), np.uint8)}, "test_images is empty"),
    "small images": ({f"{p}_images": np.zeros((50, 7, 9), np.uint8) for p in ("train", "test")}, "9x7, 1 channel;"),
    "other test size": (
        {"test_images": np.zeros((50, 9, 9, 3), np.uint8)},
        "9x9, 3 channels and training images of 8x9",
    ),
    "label count": ({"test_labels": np.zeros(49, np.int64)}, r"test_labels has shape \(49,\) for 50 images"),
    "several labels": (
        {"test_labels": np.zeros((50, 14), np.int64)},
        r"test_labels has shape \(50, 14\) for 50 images",
    ),
    "float labels": ({"test_labels": np.zeros(50)}, "test_labels is float64, not integer"),
    "negative label": ({"train_labels": np.arange(50) - 1}, "train_labels runs from -1 to 48"),
    "absurd label": ({"train_labels": np.full(50, 2**63, np.uint64)}, "train_labels runs from"),
    "too many classes": ({"train_labels": np.arange(50) * 1000}, "train_labels reaches 49000 with 50 images"),
    "one class": ({f"{p}_labels": np.zeros(50, np.int64) for p in ("train", "test")}, "fewer than 2 classes"),
    "unseen class": ({"test_labels": np.arange(50) % 4}, "test labels from 0 to 3; training has 3 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_npz_that_is_not_in_the_layout(case, tmp_path):
    changes, match = BAD[case]
    content = {k: v for k, v in (arrays() | changes).items() if v is not None}
    refused(npz(tmp_path / "set.npz", content), RobustKTError, match)


def test_npz_with_too_few_images(tmp_path):
    refused(npz(tmp_path / "set.npz", arrays(count=4)), RobustKTError, "has 4 training images")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("key", ["train_images", "test_labels", "something_else"])
def test_npz_with_pickled_objects_runs_nothing(key, tmp_path):
    sprung = tmp_path / "sprung"
    path = npz(tmp_path / "set.npz", arrays() | {key: np.array([Trap(str(sprung))] * 50, object)})
    if key == "something_else":
        load(path)  # what does not belong to the layout is not looked at
    else:
        refused(path, IntegrityError, "Object arrays cannot be loaded")
    assert not sprung.exists()
    with np.load(path, allow_pickle=True) as file:  # the trap is a real one
        file[key][0].close()
    assert sprung.exists()


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(pickle.dumps(arrays()))
    refused(path, IntegrityError, "it is not an npz file")
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "plain.npy").rename(path)
    refused(path, IntegrityError, "it is not an npz file")
    with zipfile.ZipFile(path, "w") as file:
        for key in arrays():
            file.writestr(f"{key}.npy", "not an array")
    refused(path, RobustKTError, "train_images is not an array")


def test_npz_that_is_damaged_is_refused_or_read(tmp_path):
    whole = Path(npz(tmp_path / "whole.npz", arrays())).read_bytes()
    expected, path, rng = load(str(tmp_path / "whole.npz")).spec, tmp_path / "set.npz", random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            found = load(str(path)).spec
        except RobustKTError:
            continue
        assert found == expected


# --- one image --------------------------------------------------------------------------------------------------------


def test_read_image_in_the_channels_of_the_network(tmp_path):
    file = picture(tmp_path / "a.png", (12, 10))
    with Image.open(file) as opened:
        assert np.array_equal(read_image(file, (3, 10, 12)).permute(1, 2, 0), np.asarray(opened))
        assert np.array_equal(read_image(file, (1, 10, 12))[0], np.asarray(opened.convert("L")))
    grey = read_image(picture(tmp_path / "b.png", mode="L"), (3, 16, 16))
    assert torch.equal(grey[0], grey[1])
    assert grey.dtype == torch.uint8


def test_read_image_of_every_mode(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        assert read_image(picture(tmp_path / f"{mode}.png", mode=mode), (3, 16, 16)).shape == (3, 16, 16)
    assert read_image(picture(tmp_path / "c.jpg", mode="CMYK"), (3, 16, 16)).shape == (3, 16, 16)
    palette = Image.fromarray(np.zeros((16, 16), np.uint8)).convert("P")
    palette.save(tmp_path / "clear.png", transparency=bytes([0, 128]))
    assert read_image(tmp_path / "clear.png", (3, 16, 16)).max() == 0
    for level, expected in ((0, 0), (255, 0), (256, 1), (65535, 255)):
        Image.fromarray(np.full((16, 16), level, np.uint16)).save(tmp_path / "deep.png")
        assert read_image(tmp_path / "deep.png", (1, 16, 16)).unique().tolist() == [expected]
    Image.fromarray(np.zeros((16, 16), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(IntegrityError, match="floating-point"):
        read_image(tmp_path / "float.tiff", (1, 16, 16))


@pytest.mark.parametrize("size", [(16, 16), (31, 17), (17, 31), (200, 8), (5, 5)])
@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 12, 20)])
def test_read_image_of_another_size_is_centred(size, shape, tmp_path):
    file = picture(tmp_path / "a.png", size)
    image = read_image(file, shape)
    assert image.shape == shape
    with Image.open(file) as opened:
        opened.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    mirrored = read_image(tmp_path / "mirrored.png", shape).flip(2)
    assert (image.int() - mirrored.int()).abs().max() <= 1


def test_read_image_errors(tmp_path):
    with pytest.raises(NotFoundError, match="there is no image file"):
        read_image(tmp_path / "none.png", (3, 8, 8))
    with pytest.raises(NotFoundError, match="there is no image file"):
        read_image(tmp_path, (3, 8, 8))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(IntegrityError, match="it is not BMP, JPEG, PNG, PPM, TIFF or WEBP"):
        read_image(tmp_path / "text.png", (3, 8, 8))
    with pytest.raises(UsageError, match="1 or 3 channels, not 2"):
        read_image(picture(tmp_path / "a.png"), (2, 8, 8))


@pytest.mark.parametrize("kind", ["bmp", "jpg", "png", "ppm", "tiff", "webp"])
def test_damaged_pictures_are_refused_or_read(kind, tmp_path):
    whole, file, rng = picture(tmp_path / f"whole.{kind}").read_bytes(), tmp_path / f"a.{kind}", random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(3):
            data[min(int(rng.expovariate(1 / 60)), len(data) - 1)] = rng.randrange(256)
        file.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            assert read_image(file, (3, 8, 8)).shape == (3, 8, 8)
        except (IntegrityError, UserWarning):  # Pillow warns of damaged metadata, and warnings are errors here
            continue


# --- augmentation -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(8, 12), st.integers(8, 12)),
    st.integers(0, 3),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_crop_flip_gives_windows_of_the_padded_image(shape, pad, flip, seed):
    x = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1)).byte()
    out = crop_flip(x, pad=pad, flip=flip, rng=torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    assert torch.equal(out, crop_flip(x, pad=pad, flip=flip, rng=torch.Generator().manual_seed(seed)))
    padded = F.pad(x, [pad] * 4)
    windows = padded.unfold(2, shape[2], 1).unfold(3, shape[3], 1)  # (B, C, 2 pad + 1, 2 pad + 1, H, W)
    same = (windows == out[:, :, None, None]).all(-1).all(-1).all(1).flatten(1).any(1)
    mirrored = (windows == out.flip(3)[:, :, None, None]).all(-1).all(-1).all(1).flatten(1).any(1)
    assert (same | (mirrored if flip else False)).all()


def test_crop_flip_draws_every_window_and_either_side_alike():
    count, rng = 18_000, torch.Generator().manual_seed(0)
    x = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(count, -1, -1, -1)
    seen = crop_flip(x, pad=1, flip=True, rng=rng)[:, 0, 3:5, 3:5].flatten(1)
    _, times = seen.unique(dim=0, return_counts=True)
    assert len(times) == 2 * 9
    assert ((times - 1000).abs() < 5 * 1000**0.5).all()


def test_crop_flip_without_either_is_the_identity():
    x = torch.randint(0, 256, (4, 3, 8, 8)).byte()
    assert torch.equal(crop_flip(x, pad=0, flip=False, rng=torch.Generator()), x)
    mirrored = crop_flip(x.repeat(50, 1, 1, 1), pad=0, flip=True, rng=torch.Generator().manual_seed(0))
    alike = (mirrored == x.repeat(50, 1, 1, 1)).flatten(1).all(1)
    assert 60 < alike.sum() < 140
    assert torch.equal(mirrored[~alike].flip(3), x.repeat(50, 1, 1, 1)[~alike])


def test_images_are_floats_in_the_unit_interval():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((to_float(levels) * 255).round().byte(), levels)
    assert (to_float(levels).min(), to_float(levels).max()) == (0, 1)
    digits = load("digits")
    assert torch.equal(digits.test.images(slice(3)), digits.test.x[:3] / 255)


# --- whether data fit a model -----------------------------------------------------------------------------------------


def test_check_fits():
    digits = load("digits").spec
    named = replace(digits, name="other", classes=tuple("abcdefghij"))
    check_fits(digits, replace(digits, name="other", fingerprint=""), who="the teacher gen0")
    check_fits(digits, named, who="the teacher gen0")  # numbers are no names
    check_fits(named, digits, who="the teacher gen0")
    with pytest.raises(UsageError, match="the teacher gen0 tells 10 classes of digits apart; npz has 3"):
        check_fits(digits, replace(digits, name="npz", classes=("0", "1", "2")), who="the teacher gen0")
    with pytest.raises(UsageError, match="the teacher gen0 has other classes than other: 'a' where that has 'j'"):
        check_fits(named, replace(named, classes=named.classes[::-1]), who="the teacher gen0")
    with pytest.raises(UsageError, match="takes 8x8 images with 1 channels; svhn has 32x32 with 1") as caught:
        check_fits(digits, replace(digits, name="svhn", shape=(1, 32, 32)), who="the teacher gen0")
    assert caught.value.fix == "Add --image-size 8."
    with pytest.raises(UsageError) as caught:
        check_fits(digits, replace(digits, name="svhn", shape=(3, 8, 8)), who="the teacher gen0")
    assert "--image-size" not in caught.value.fix
