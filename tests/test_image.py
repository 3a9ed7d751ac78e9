"""The container image: its files agree with each other, and with a docker client it is built, run and compared.

The second half is opt-in: `make image-test`, or ROBUSTKT_DOCKER=docker with `-m slow`; it needs a client, some minutes
and some 30 GB for the layers of a build.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from robustkt import provenance
from robustkt.numbers import digest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = {
    name: (ROOT / name).read_text()
    for name in ("requirements.lock", "requirements-runtime.lock", "requirements-build.lock")
}
CLIENT = os.environ.get("ROBUSTKT_DOCKER", "")
PAGES = (ROOT / "README.md", ROOT / "docs" / "containers.md")
ELSEWHERE = (
    "--gpus",
    "docker compose",
    "HF_TOKEN",
    "docker pull",
    "RepoDigests",
)  # a GPU, a plug-in, the Hub, a registry


def pinned(lock: str) -> set[str]:
    return set(re.findall(r"^([\w.-]+==\S+) ", lock, re.MULTILINE))


def instructions(word: str) -> list[list[str]]:
    """The arguments of every instruction of that name, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [line.split()[1:] for line in joined.splitlines() if line.split()[:1] == [word]]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "containers" / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def arguments() -> dict[str, str]:
    return dict((word[0].split("=", 1) if "=" in word[0] else (word[0], "")) for word in reversed(instructions("ARG")))


def test_everything_that_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words[:-1] for words in instructions("COPY") if not words[0].startswith("--from")]
    sources = {source.replace("${LOCK}", arguments()["LOCK"]) for words in copied for source in words}
    assert {"robustkt", "requirements-runtime.lock", "containers/trim.py"} <= {s.removeprefix("./") for s in sources}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source.removeprefix("./"), pattern) for pattern in allowed), f"{source} is ignored"
    assert ".dockerignore" not in allowed
    assert not any(fnmatch.fnmatch(secret, pattern) for secret in (".env", ".git", "registry") for pattern in allowed)


def test_the_base_is_an_argument_and_every_dependency_has_its_hash() -> None:
    assert {words[0] for words in instructions("FROM")} <= {"${BASE}", "dependencies"}
    installs = re.findall(r"pip \S* ?\S* ?install [^\n\\]*", DOCKERFILE)
    assert len(installs) == 3
    assert all("--require-hashes" in one or "--no-index --no-deps" in one for one in installs)


def test_the_locks_of_the_image_are_parts_of_the_whole_one() -> None:
    whole = pinned(LOCKS["requirements.lock"])
    for name in ("requirements-runtime.lock", "requirements-build.lock"):
        assert pinned(LOCKS[name]) <= whole, f"{name} is stale: make lock"
        assert not re.search(r"://|--index-url|--find-links|file:", LOCKS[name])
    names = {one.split("==")[0] for one in pinned(LOCKS["requirements-runtime.lock"])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {re.split(r"[<>=\[; ]", one)[0] for one in project["project"]["dependencies"]}
    assert needed <= names, f"requirements-runtime.lock lacks {needed - names}: make lock"
    assert not names & {"pytest", "ruff", "mypy", "hatchling", "moto", "onnx", "timm", "s3fs"}
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


def test_the_services_fit_the_image() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert {name: service["build"]["args"]["VARIANT"] for name, service in compose["services"].items()} == {
        "cpu": "cpu", "gpu": "cuda",
    }  # fmt: skip
    volumes = json.loads(" ".join(instructions("VOLUME")[0]))
    for service in compose["services"].values():
        assert set(service["build"]["args"]) <= set(arguments())
        assert set(volumes) | {"/work"} == {volume.rpartition(":")[2] for volume in service["volumes"]}
        assert (service["read_only"], service["cap_drop"], service["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    default = compose["services"]["cpu"]["build"]["args"]["BASE"]
    assert default == "${BASE:-" + arguments()["BASE"] + "}"


def test_no_secret_has_a_place_in_the_image() -> None:
    told = [word for name in ("ARG", "ENV", "LABEL") for words in instructions(name) for word in words]
    assert told
    assert not [word for word in told if re.search("token|secret|password", word, re.IGNORECASE)]


def test_what_an_image_tells_of_itself_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements-runtime.lock"
    lock.write_text("torch==2")
    told = [str(tmp_path / "venv"), str(lock), "variant=cpu", "base=python:3-slim", "revision="]
    monkeypatch.setattr(sys, "argv", ["describe.py", *told])
    (tmp_path / "venv").mkdir()
    module("describe").main()
    monkeypatch.setattr(provenance, "BUILT", tmp_path / "venv" / "robustkt" / "image.json")
    lock.write_text("another, in the working folder")
    found = provenance.circumstances(tmp_path)
    assert found["lock"] == {"file": lock.name, "hash": digest(b"torch==2")}
    assert found["image"] == {"variant": "cpu", "base": "python:3-slim"}


def test_what_torch_does_not_load_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trim = module("trim")
    loaded = trim.loaded()
    assert any(path.name.startswith("libtorch_cpu") for path in loaded)
    assert all(path.is_absolute() for path in loaded)
    used, unused = tmp_path / "cublas" / "lib" / "used.so", tmp_path / "cudnn" / "lib" / "unused.so"
    for path in (used, unused):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    spec = importlib.util.spec_from_loader("nvidia", None)
    assert spec
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(trim.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(trim, "loaded", lambda: {used})
    monkeypatch.setattr(trim.subprocess, "run", lambda *arguments, **options: None)  # torch is not under test here
    trim.main()
    assert (used.exists(), unused.exists()) == (True, False)
    monkeypatch.setattr(trim.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="brings no CUDA"):
        trim.main()


def commands() -> list[str]:
    """The lines of the pages that are docker's, as they stand there."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
            found += [
                line.partition("  #")[0].strip() for line in block.splitlines() if "docker " in line or "mkdir" in line
            ]
    return list(dict.fromkeys(found))


def test_the_pages_say_how_to_build_run_and_lock_down() -> None:
    told = "\n".join(commands())
    for needed in ("docker build", "quickstart", "--gpus all", "--read-only", "--network none", "docker compose run"):
        assert needed in told, needed
    options = set(re.findall(r"--build-arg (\w+)=", told))
    assert options <= set(arguments())


opt_in = [pytest.mark.slow, pytest.mark.skipif(not CLIENT, reason="opt-in: make image-test")]
REFUSED = re.compile("^(error: |Usage: )", re.MULTILINE)  # podman's service loses the exit status of a run with --rm
SHORT = shlex.split("train -m gaussian -a smallcnn -d digits --sigma 0.25 --epochs 2")
LOCKED_DOWN = shlex.split("--read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --network none")


def docker(*words: str | Path) -> str:
    ran = subprocess.run([CLIENT, *map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{words}: {ran.stderr[-3000:]}"
    assert not REFUSED.search(ran.stderr), f"{words}: {ran.stderr[-3000:]}"
    return ran.stdout.strip()


def made(registry: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and the run record of the only generation in a registry, read by whoever runs the test."""
    (manifest,), (record,) = registry.glob("generations/*.json"), registry.glob("records/*.json")
    return json.loads(manifest.read_text()), json.loads(record.read_text())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working copy's files, so that the commands of the pages write nowhere else."""
    place = tmp_path_factory.mktemp("image") / "robustkt"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    return place


@pytest.fixture(scope="module")
def printed(checkout: Path) -> dict[str, str]:
    """The pages' literal commands in their order, and what each printed."""
    told: dict[str, str] = {}
    for command in commands():
        if any(word in command for word in ELSEWHERE):
            continue
        typed = re.sub(r"\bdocker (?=build|run|inspect)", f"{CLIENT} ", command)
        ran = subprocess.run(["bash", "-c", typed], cwd=checkout, capture_output=True, text=True, check=False)
        told_wrong = ran.returncode or REFUSED.search(ran.stderr)
        assert not told_wrong, f"{command}\n{ran.stdout[-1500:]}\n{ran.stderr[-3000:]}"
        told[command] = ran.stdout
    return told


@pytest.fixture(scope="module", params=["robustkt", "robustkt:cpu"])
def image(request: pytest.FixtureRequest, printed: dict[str, str]) -> str:
    """Each variant, as the pages have built it."""
    return str(request.param)


class TestTheImage:
    pytestmark = opt_in

    def test_the_commands_of_the_pages_do_what_they_say(self, printed: dict[str, str], checkout: Path) -> None:
        told = {word: out for command, out in printed.items() for word in command.split()}
        assert "gen2" in told["quickstart"]
        assert "gen0" in told["list"]
        assert "identical, bit by bit" in told["reproduce"]
        (certificate,) = (checkout / "runs" / "registry").glob("results/*/certificate-*.json")
        assert json.loads(certificate.read_text())["figures"]["images"] == 10
        assert len(printed) >= 8

    def test_nobody_is_root_and_nothing_compiles_or_installs(self, image: str) -> None:
        assert docker("run", "--rm", "--entrypoint", "id", image, "-u") == "1000"
        look = (
            "for tool in gcc g++ cc c++ clang ld as make; do command -v $tool; done; ls /opt/venv/bin | grep ^pip; true"
        )
        assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", look) == ""
        packages = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
        installed = docker("run", "--rm", "--entrypoint", "python", image, "-c", packages).lower().split()
        assert {"robustkt", "torch"} <= set(installed)
        assert not {"pytest", "hatchling", "ruff", "pip"} & set(installed)
        assert ("triton" in installed) == (image == "robustkt")

    def test_a_locked_down_run_gives_the_bits_of_the_host(self, image: str, tmp_path: Path) -> None:
        for name in ("host", "root", "nobody"):
            (tmp_path / name).mkdir()
        (tmp_path / "nobody").chmod(0o777)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        here = [sys.executable, "-m", "robustkt", *SHORT, "--device", "cpu", "--registry", str(tmp_path / "host")]
        subprocess.run(here, env=environment, cwd=tmp_path, check=True, capture_output=True)
        there = ["run", "--rm", *LOCKED_DOWN, "-e", "OMP_NUM_THREADS=1"]
        named = f"robustkt@{docker('inspect', '--format', '{{.Id}}', image)}"
        for name, user in (("root", f"{os.getuid()}:{os.getgid()}"), ("nobody", "12345:54321")):
            volume = f"{tmp_path / name}:/registry"
            docker(
                *there, "-e", f"ROBUSTKT_IMAGE={named}", "--user", user, "-v", volume, image, *SHORT, "--device", "cpu"
            )
        manifest, _ = made(tmp_path / "host")
        for name in ("root", "nobody"):
            other, record = made(tmp_path / name)
            assert other == manifest, "the same recipe, the same weights, the same id"
            assert record["threads"] == 1
            lock = (ROOT / "requirements-runtime.lock").read_bytes()
            assert record["lock"] == {"file": "requirements-runtime.lock", "hash": digest(lock)}
            assert record["image"] == {
                "variant": "cuda" if image == "robustkt" else "cpu", "base": arguments()["BASE"], "digest": named,
            }  # fmt: skip
            assert "git" not in record

    def test_the_default_user_owns_a_named_volume(self, image: str) -> None:
        volume = f"robustkt-test-{os.getpid()}"
        docker("volume", "create", volume)
        try:
            docker("run", "--rm", "-v", f"{volume}:/registry", image, *SHORT, "--device", "cpu")
            assert "gen0" in docker("run", "--rm", "-v", f"{volume}:/registry", image, "list")
        finally:
            docker("volume", "rm", volume)

    def test_a_wrong_image_name_or_variant_is_refused_in_a_line(self, image: str, checkout: Path) -> None:
        name = f"robustkt-test-{os.getpid()}"
        words = ["run", "--name", name, "-e", "ROBUSTKT_IMAGE=robustkt:latest", image, *SHORT]
        ran = subprocess.run([CLIENT, *words], capture_output=True, text=True, check=False)
        docker("rm", name)
        assert ran.returncode == 2
        assert "must be an image's digest" in ran.stderr
        words = ["build", "--build-arg", "VARIANT=rocm", str(checkout)]
        ran = subprocess.run([CLIENT, *words], capture_output=True, text=True, check=False)
        assert ran.returncode != 0
        assert "VARIANT is cuda or cpu, not rocm" in ran.stdout + ran.stderr
