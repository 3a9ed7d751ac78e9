"""The verbs as plain functions; the command line and notebooks call the same ones.

Names are looked up when first used, so that listing a registry imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkt.api.auditing import audit_generation
    from robustkt.api.benchcertify import bench_certify
    from robustkt.api.benching import bench_train
    from robustkt.api.certifying import certify
    from robustkt.api.comparing import compare
    from robustkt.api.copying import copy, open_registry, verify_remote
    from robustkt.api.descent import lineage
    from robustkt.api.diagnosing import doctor
    from robustkt.api.evaluating import evaluate
    from robustkt.api.exporting import export
    from robustkt.api.gating import gate
    from robustkt.api.importing import import_generation
    from robustkt.api.keeping import gc, rename, rm, tag, tags, untag, verify
    from robustkt.api.logs import analyze, audit_log
    from robustkt.api.predicting import predict
    from robustkt.api.publishing import push
    from robustkt.api.pulling import pull
    from robustkt.api.quickstarting import quickstart
    from robustkt.api.reporting import report
    from robustkt.api.reproducing import reproduce
    from robustkt.api.results import (
        CertificateSet,
        Comparison,
        CorruptedEvaluation,
        Evaluation,
        GateVerdict,
        SoupPick,
        Sweep,
        certificates,
        evaluations,
    )
    from robustkt.api.shifting import evaluate_corruptions
    from robustkt.api.souping import soup_make
    from robustkt.api.sweeping import soup_pick, soup_sweep
    from robustkt.api.training import distill, train
    from robustkt.api.upkeep import list_generations, show
    from robustkt.api.watching import status

__all__ = [
    "CertificateSet",
    "Comparison",
    "CorruptedEvaluation",
    "Evaluation",
    "GateVerdict",
    "SoupPick",
    "Sweep",
    "analyze",
    "audit_generation",
    "audit_log",
    "bench_certify",
    "bench_train",
    "certificates",
    "certify",
    "compare",
    "copy",
    "distill",
    "doctor",
    "evaluate",
    "evaluate_corruptions",
    "evaluations",
    "export",
    "gate",
    "gc",
    "import_generation",
    "lineage",
    "list_generations",
    "open_registry",
    "predict",
    "pull",
    "push",
    "quickstart",
    "rename",
    "report",
    "reproduce",
    "rm",
    "show",
    "soup_make",
    "soup_pick",
    "soup_sweep",
    "status",
    "tag",
    "tags",
    "train",
    "untag",
    "verify",
    "verify_remote",
]

_HOMES = {
    "CertificateSet": "results",
    "Comparison": "results",
    "CorruptedEvaluation": "results",
    "Evaluation": "results",
    "GateVerdict": "results",
    "SoupPick": "results",
    "Sweep": "results",
    "certificates": "results",
    "evaluations": "results",
    "audit_generation": "auditing",
    "bench_certify": "benchcertify",
    "bench_train": "benching",
    "analyze": "logs",
    "audit_log": "logs",
    "certify": "certifying",
    "compare": "comparing",
    "copy": "copying",
    "distill": "training",
    "doctor": "diagnosing",
    "evaluate": "evaluating",
    "evaluate_corruptions": "shifting",
    "export": "exporting",
    "gc": "keeping",
    "lineage": "descent",
    "gate": "gating",
    "import_generation": "importing",
    "list_generations": "upkeep",
    "open_registry": "copying",
    "predict": "predicting",
    "pull": "pulling",
    "push": "publishing",
    "quickstart": "quickstarting",
    "rename": "keeping",
    "report": "reporting",
    "reproduce": "reproducing",
    "rm": "keeping",
    "show": "upkeep",
    "soup_make": "souping",
    "soup_pick": "sweeping",
    "soup_sweep": "sweeping",
    "status": "watching",
    "tag": "keeping",
    "tags": "keeping",
    "train": "training",
    "untag": "keeping",
    "verify": "keeping",
    "verify_remote": "copying",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'robustkt.api' has no attribute '{name}'")
    return getattr(importlib.import_module(f"robustkt.api.{_HOMES[name]}"), name)
