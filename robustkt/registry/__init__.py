"""The store on disk: content-addressed weights, a manifest a generation, names as pointers. No torch."""

from robustkt.registry.derived import derived
from robustkt.registry.measurements import Result
from robustkt.registry.store import Registry
from robustkt.registry.verify import Finding, verify

__all__ = ["Finding", "Registry", "Result", "derived", "verify"]
