"""The store on disk: content-addressed weights, a manifest a generation, names as pointers. No torch."""

from robustkt.registry.measurements import Result
from robustkt.registry.store import Registry
from robustkt.registry.verify import Finding, verify

__all__ = ["Finding", "Registry", "Result", "verify"]
