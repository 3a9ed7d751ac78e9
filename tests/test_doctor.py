"""doctor: what the machine has, by the files that tell it; what is broken or missing; what a slice says of a run."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from robustkt import api, hardware, inference
from robustkt.api import diagnosing, estimating
from robustkt.api.certifyplan import STOPS_AT
from robustkt.api.loading import pick_device, pick_precision
from robustkt.cli import doctor as shown
from robustkt.errors import NotFoundError, RobustKTError, UsageError
from robustkt.registry import Registry
from tests.conftest import Ran, gaussian_digits
from tests.stores import commit

GIB = 2**30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A network under noise on the digits."""
    return gaussian_digits(tmp_path_factory.mktemp("doctor"), epochs=1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Another machine's files: `machine(cgroup="0::/a", **{"a/cpu.max": "150000 100000"})`."""

    def make(cgroup: str = "", cpuinfo: str = "", meminfo: str = "", **files: str) -> None:
        for name, text in {"cgroup": cgroup, "cpuinfo": cpuinfo, "meminfo": meminfo}.items():
            (tmp_path / name).write_text(text)
        for name, text in files.items():
            (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "sys" / name).write_text(text)
        monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(hardware, "CGROUP", tmp_path / "sys")
        monkeypatch.setattr(hardware, "OWN", tmp_path / "cgroup")

    return make


def test_a_processor_tells_its_model_and_what_matters_of_its_features(machine: Callable[..., None]) -> None:
    machine(cpuinfo="processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512f amx_bf16\n\n")
    found = hardware.processor()
    assert found["model"] == "Some CPU @ 2 GHz"
    assert found["features"] == ["AVX2", "AVX-512", "AMX-bf16"]
    assert inference.fastest_precision(torch.device("cpu")) == "bf16"
    machine(cpuinfo="")
    assert hardware.processor()["features"] == []
    assert inference.fastest_precision(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(
    ("files", "cores", "limit"),
    [
        ({"cgroup": "0::/a/b", "a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/memory.max": "max",
          "a/memory.max": str(2 * GIB)}, 1.5, 2 * GIB),
        ({"cgroup": "0::/", "cpu.max": "50000 100000", "memory.max": str(GIB)}, 0.5, GIB),
        ({"cgroup": "4:memory:/x\n3:cpu,cpuacct:/x", "cpu/x/cpu.cfs_quota_us": "200000",
          "cpu/x/cpu.cfs_period_us": "100000", "memory/x/memory.limit_in_bytes": str(3 * GIB)}, 2.0, 3 * GIB),
        ({"cgroup": "4:memory:/x\n3:cpu:/x", "cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000",
          "memory/x/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ({"cgroup": "0::/../../etc", "cpu.max": "garbage"}, None, None),
        ({}, None, None),
    ],
)  # fmt: skip
def test_control_groups_limit_cores_and_memory(
    machine: Callable[..., None], files: dict[str, str], cores: float | None, limit: int | None
) -> None:
    machine(**files)
    assert hardware.cpu_quota() == cores
    assert hardware.memory_limit() == limit
    assert hardware.processor()["usable"] <= (cores if cores is not None else math.inf)


def test_memory_is_told_in_bytes(machine: Callable[..., None]) -> None:
    machine(meminfo="MemTotal:       1048576 kB\nMemFree: 1 kB\nMemAvailable:    524288 kB\n")
    assert hardware.memory() == {"total": GIB, "available": GIB // 2, "limit": None}


def test_an_empty_folder_is_looked_at_and_left_empty(cli: Callable[..., Ran], tmp_path: Path) -> None:
    ran = cli("doctor", "--json")
    assert ran.code == 0
    found = ran.json
    assert found["ok"] is True
    assert found["estimates"] is None
    assert found["uses"]["device"] == str(pick_device("auto"))
    assert found["uses"]["precision_measuring"] == pick_precision("auto", pick_device("auto"))
    assert found["uses"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert not (tmp_path / "registry").exists()
    shown = cli("doctor", "--no-measure").out
    assert shown.startswith("has\n  processor")


def test_no_times_have_a_reason(cli: Callable[..., Ran], registry: Registry) -> None:
    told = cli("doctor", "--registry", registry.root).out
    assert f"no times: there is no generation in {registry.root} yet" in told
    assert "no times" not in cli("doctor", "--no-measure", "--registry", registry.root).out


def test_lines_fit_the_terminal(small: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    told = api.doctor(registry=small, seconds=0.5, device="cpu")
    told["missing"] += [{"what": "something " * 12, "commands": "each of them", "fix": "do this " * 12}]
    console = Console(width=80, force_terminal=True, no_color=True, highlight=False)
    shown._shown(console, told, measure=True)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("  certify ") for line in lines)
    assert max(cell_len(line) for line in lines if " " in line.strip()) <= 80


def test_what_is_missing_says_for_which_command_and_what_to_do(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Ran]
) -> None:
    monkeypatch.setattr(diagnosing.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(diagnosing.shutil, "which", lambda name: None)
    found = {one["what"]: one for one in api.doctor(registry=registry)["missing"]}
    assert found["timm"]["fix"] == "pip install 'robustkt[timm]'"
    assert "export" in found["onnx"]["commands"]
    assert {"git", "docker or podman", "a token for the Hub", diagnosing.NO_COMPILER["what"]} <= found.keys()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ran = cli("doctor", "--json", "-v")
    assert "a token for the Hub" not in {one["what"] for one in ran.json["missing"]}
    assert "hf_secret" not in ran.out + ran.err


def test_every_extra_is_looked_for() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    known = {wanted.what for wanted in diagnosing.WANTED}
    for extra, packages in project["optional-dependencies"].items():
        if extra not in ("dev", "docs"):
            assert any(f"robustkt[{extra}]" in wanted.fix for wanted in diagnosing.WANTED)
            assert {package.split(">")[0] for package in packages} - {"pyopenssl"} <= known


def test_versions_are_compared_with_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = diagnosing._version("numpy")
    text = f"numpy=={here} ; sys_platform == 'linux' \\\n    --hash=sha256:00\n    # via torch==9\ntorch==0.0.1\n"
    text += "scipy==0.0.1 ; python_full_version < '3'\n"  # another Python's
    (tmp_path / "requirements.lock").write_text(text + "no-such-package[extra]==1\n# scipy==0.1\n")
    found = diagnosing._lock()
    assert found is not None
    assert found["packages"] == 3
    assert found["differ"] == {"torch": ["0.0.1", diagnosing._version("torch")]}


@pytest.mark.parametrize("damage", [b'{"format": 99}', b"{"])
def test_a_registry_that_cannot_be_read_is_broken_for_every_command(
    registry: Registry, cli: Callable[..., Ran], damage: bytes
) -> None:
    commit(registry, 0)
    (registry.root / "registry.json").write_bytes(damage)
    ran = cli("doctor", "--json", "--registry", registry.root)
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert all(one["what"] and one["fix"] for one in ran.json["problems"])
    assert ran.json["estimates"] is None


def test_a_damaged_manifest_costs_its_times_only(registry: Registry, cli: Callable[..., Ran]) -> None:
    found = commit(registry, 0)
    registry.manifest_path(found.id).write_text("{")
    for named in ((), (found.name,)):
        ran = cli("doctor", *named, "--json", "--registry", registry.root)
        assert ran.code == 0
        assert ran.json["machine"]["processor"]["cores"] >= 1
        for told in ran.json["estimates"].values():
            assert told["seconds"] is None
            assert told["why"]
            assert told["fix"]


def test_a_file_is_no_registry(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    (tmp_path / "file").write_text("")
    ran = cli("doctor", "--no-measure", "--json", "--registry", tmp_path / "file")
    assert ran.code == 1
    assert [one["what"] for one in ran.json["problems"]] == [f"{tmp_path / 'file'} is no folder"]


def test_a_torch_that_cannot_be_imported_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosing.importlib.import_module

    def refusing(name: str) -> Any:
        if name == "torch":
            raise OSError("libc10.so")
        return real(name)

    monkeypatch.setattr(diagnosing.importlib, "import_module", refusing)
    found = api.doctor(registry=registry)
    assert found["ok"] is False
    assert found["uses"] is None
    assert "libc10.so" in found["problems"][0]["what"]


def test_little_room_is_a_problem_and_no_failure(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "disk", lambda place: {"total": GIB, "free": 5 * 2**20})
    monkeypatch.setattr(hardware, "memory", lambda: {"total": GIB, "available": 2 * GIB, "limit": GIB // 4})
    found = api.doctor(registry=registry)
    assert [one["what"][:8] for one in found["problems"]] == ["only 5 M", "only 256"]
    assert found["ok"] is True


def test_options_that_cannot_be(cli: Callable[..., Ran], registry: Registry) -> None:
    for arguments in (("--seconds", "0"), ("--seconds", "nan"), ("--device", "tpu"), ("--to", "resnet999")):
        assert cli("doctor", *arguments).code == 2
    with pytest.raises(UsageError):
        api.doctor(seconds=1e9, registry=registry)
    commit(registry, 0)
    with pytest.raises(NotFoundError):
        api.doctor("gen7", registry=registry)


def test_estimates_come_of_the_plans_that_the_commands_carry_out(small: Registry) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(small.root.rglob("*")) if path.name != "lock"}
    found = api.doctor(seconds=1.0, to="resnet8", registry=small)["estimates"]
    certify, distill = found["certify"], found["distill"]
    assert (certify["generation"], certify["images"], certify["n"], certify["mode"]) == (
        "gen0",
        360,
        10_000,
        "sequential",
    )
    assert certify["seconds"] == pytest.approx(360 * certify["copies_per_image"] / certify["copies_per_second"])
    assert 100 <= certify["copies_per_image"] <= 10_100
    assert (distill["to"], distill["method"], distill["epochs"], distill["batch_size"]) == ("resnet8", "crt", 30, 32)
    each = distill["steps"] * distill["seconds_per_step"] + distill["seconds_per_selection"]
    assert distill["seconds"] == pytest.approx(30 * each)
    assert distill["passes"] == {"trained": 1, "attacked": 0, "judged": 0, "taught": 1, "taught_attacked": 0}
    assert before == {path: path.stat().st_mtime_ns for path in sorted(small.root.rglob("*")) if path.name != "lock"}


def test_copies_are_counted_by_the_clock(small: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each forward pass moves on by a second."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(estimating.time, "perf_counter", tick)
    found = estimating.estimate_certify("gen0", seconds=4.0, registry=small, device="cpu")
    assert found["copies_per_second"] == pytest.approx(256, rel=0.35)  # a batch a second, the last look aside

    monkeypatch.setattr(estimating, "_drawn", lambda *given: (512.0, 40_000, 12))
    found = estimating.estimate_certify("gen0", seconds=4.0, registry=small, device="cpu")
    assert found["copies_per_image"] == pytest.approx((40_000 + 4 * 10_100 / STOPS_AT) / (12 + 4))
    assert found["seconds"] == pytest.approx(360 * found["copies_per_image"] / 512)
    monkeypatch.setattr(estimating, "_drawn", lambda *given: (1.0, 10**6, 0))
    found = estimating.estimate_certify("gen0", seconds=4.0, registry=small, device="cpu")
    assert found["copies_per_image"] == 10_100  # there are no more


def test_what_certify_or_distill_would_refuse_is_told_instead_of_a_time(
    registry: Registry, cli: Callable[..., Ran], small: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"eps": "0.1", "epochs": 1, "steps": 1}
    api.train(method="sat", arch="smallcnn", data="digits", given=given, registry=registry, device="cpu")
    found = api.doctor(seconds=0.5, registry=registry)["estimates"]
    assert found["certify"]["seconds"] is None
    assert "no σ" in found["certify"]["why"]
    assert found["distill"]["method"] == "rslad"
    ran = cli("doctor", "--seconds", "0.5", "--registry", registry.root)
    assert ran.code == 0
    assert "certify gen0: gen0 was not trained under noise" in ran.out
    assert "distill --from gen0 --to smallcnn: about" in ran.out

    monkeypatch.setattr(estimating.datasets, "present", lambda name, place: False)
    with pytest.raises(RobustKTError, match="are not here"):
        estimating.estimate_certify("gen0", seconds=0.5, registry=small, device="cpu")


def test_a_network_that_fails_in_training_costs_its_time_only(small: Registry, tmp_path: Path) -> None:
    place = tmp_path / "net.py"
    place.write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, channels, classes):\n"
        "        super().__init__()\n"
        "        self.head = nn.LazyLinear(classes)\n"
        "    def forward(self, x):\n"
        "        if self.training: raise ValueError('only in\\n training')\n"
        "        return self.head(x.flatten(1))\n"
    )
    found = api.doctor(seconds=0.5, registry=small, to=f"{place}:Net", device="cpu")["estimates"]
    assert found["certify"]["seconds"] > 0
    assert found["distill"]["seconds"] is None
    assert found["distill"]["why"] == f"{place}:Net raised ValueError in training: only in training"


def test_data_that_would_be_downloaded_are_known(tmp_path: Path) -> None:
    from robustkt.data import present

    assert present("digits", None)
    assert not present("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert not present("cifar10", tmp_path)  # a failed download may have left it
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").touch()
    assert present("cifar10", tmp_path)
    assert not present("svhn", tmp_path)  # is not unpacked anywhere
    for name in ("train", "test"):
        (tmp_path / f"{name}_32x32.mat").touch()
    assert present("svhn", tmp_path)
