"""Searches for an image in a threat model that a network gets wrong; a file a family."""

from robustkt.attacks.gradient import ascend

__all__ = ["ascend"]
