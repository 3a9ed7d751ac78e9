"""What a step of each objective costs here, against plain training, its arithmetic minimum, and the papers' loops.

    python -m benchmarks.training --runs resnet20:32:128,resnet18:32:64 --methods natural,gaussian,crt,sat,trades,rslad

A run is NETWORK:IMAGE SIZE:BATCH SIZE; all figures of a run come from one process, its steps taken in turn. Each kind
of machine has a record of its own: --record training, training-amx.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from benchmarks.shared import machine
from benchmarks.written import RECORDS
from robustkt import api
from robustkt.provenance import circumstances


def main() -> None:
    """Time every run and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="resnet20:32:128,resnet18:32:64")
    parser.add_argument("--methods", default="natural,gaussian,consistency,smoothmix,crt,sat,trades,ard,rslad")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--record", default="training")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    for run in args.runs.split(","):
        arch, size, batch = run.split(":")
        found = api.bench_train(
            methods=args.methods.split(","), arch=arch, image_size=int(size), batch_size=int(batch),
            repeats=args.repeats, precision=args.precision, compile=args.compile,
        )  # fmt: skip
        runs.append(found)
        print(json.dumps(found["ratios"], indent=1), flush=True)
    told = {
        "command": f"python -m benchmarks.training --runs {args.runs} --methods {args.methods} "
        f"--repeats {args.repeats} --precision {args.precision} --compile {args.compile} --record {args.record}",
        "load_before": load,  # processes that wanted the processors when it began
        "git": circumstances(RECORDS).get("git"),
        "machine": machine(),
        "runs": runs,
    }
    (RECORDS / f"{args.record}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
