"""How much memory and time a push, and a pull, of a large generation take: whole processes against a Hub on loopback.

    python -m benchmarks.pushing --megabytes 500

Writes benchmarks/records/pushing.json: the largest resident set of each process and its seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import huggingface_hub
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from benchmarks.written import RECORDS
from robustkt.generation import DataSpec, Generation, Recipe, Training
from robustkt.numbers import digest
from robustkt.registry import Registry
from tests.hubstandin import HubStandIn

RECORD = RECORDS / "pushing.json"
BLOCK = 2**20


def large(registry: Registry, megabytes: int) -> None:
    """A generation whose weight file holds one tensor of random bytes."""
    size = megabytes * 10**6
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    hashed = hashlib.sha256()
    registry.create()
    place = registry.root / "large"
    with place.open("wb") as file:
        blocks = (os.urandom(min(BLOCK, size - start)) for start in range(0, size, BLOCK))
        for part in (len(header).to_bytes(8, "little") + header, *blocks):
            hashed.update(part)
            file.write(part)
    identity = f"sha256:{hashed.hexdigest()}"
    registry.object_path(identity).parent.mkdir(parents=True)
    place.rename(registry.object_path(identity))
    data = DataSpec(
        name="digits", fingerprint=digest(b""), classes=("0", "1"), shape=(1, 8, 8), mean=(0.3,), std=(0.4,), held_out=9
    )
    recipe = Recipe(method="gaussian", settings={"sigma": "0.25"}, arch="smallcnn", data=data, training=Training())
    registry.add(Generation(name="large", recipe=recipe, weights=identity, last_weights=identity), {"seconds": 1.0})


CHILD = """
import resource, sys
from pathlib import Path
from robustkt.__main__ import main
try:
    main()
finally:
    told = Path("/proc/self/status")
    if told.is_file():  # ru_maxrss would count the process that started this one
        peak = next(int(line.split()[1]) for line in told.read_text().splitlines() if line.startswith("VmHWM"))
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(sys.argv.pop(0)).write_text(str(peak))
"""


def measured(words: list[str], environment: dict[str, str], place: Path) -> dict[str, Any]:
    """Run a command in a process of its own: its seconds and the largest memory that it held."""
    start = time.monotonic()
    code = f"import sys; sys.argv[0] = {str(place / 'peak')!r}\n{CHILD}"
    command = [sys.executable, "-c", code, *words]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    peak = float((place / "peak").read_text()) * 1024
    return {"seconds": round(time.monotonic() - start, 2), "peak_megabytes": round(peak / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = place / "private.pem", place / "public.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        large(Registry(place / "registry"), asked.megabytes)
        ours, first, second = (["--registry", str(place / part)] for part in ("registry", "first", "second"))
        signed, required = ["--sign", f"key:{private}"], ["--require-signature", f"key:{public}"]
        plain = {
            "--version": ["--version"],
            "push": ["push", "large", *ours],
            "push of what is there": ["push", "large", *ours],
            "push --to": ["push", "large", "--to", str(place / "out"), *ours],
            "pull": ["pull", "alice/large", *first],
        }
        safe = {
            "push --sign": ["push", "large", *signed, *ours],
            "pull --require-signature": ["pull", "alice/large", *required, *second],
        }
        for commands in (plain, safe):
            with HubStandIn() as hub:
                environment = {**os.environ, **hub.env(place / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
                environment.pop("HF_HUB_DISABLE_XET", None)
                found |= {title: measured(words, environment, place) for title, words in commands.items()}
    content = {
        "command": f"python -m benchmarks.pushing --megabytes {asked.megabytes}",
        "megabytes": asked.megabytes,
        "measured": found,
        "machine": {"processors": os.cpu_count(), "machine": platform.machine(), "system": platform.system()},
        "versions": {"python": platform.python_version(), "huggingface_hub": huggingface_hub.__version__},
    }
    RECORD.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for title, one in found.items():
        print(f"{title:26} {one['seconds']:6.1f} s {one['peak_megabytes']:6.0f} MB")


if __name__ == "__main__":
    main()
