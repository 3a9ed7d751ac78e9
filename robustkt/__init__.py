"""Carry the robustness of image classifiers from each generation to the next."""

__version__ = "0.1.0"
