"""Finds what a folder of methods holds, by name, without importing it.

A file of a catalogued package lists its public things in `__all__`; the names are read from the source, so `--help`,
completion and "did you mean" cost no import of torch.
"""

from __future__ import annotations

import ast
import copy
import difflib
import functools
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustkt.errors import UsageError


@dataclass(frozen=True)
class Catalog:
    """The public names in the files of `package`, called `kind` in messages.

    `dashed` shows `pgd_sat` as `pgd-sat`; look-ups take either spelling and any case.
    """

    package: str  # "robustkt.objectives"
    kind: str  # "method"
    dashed: bool = False

    def names(self) -> list[str]:
        """Every name the catalog holds, as it is typed on the command line, sorted."""
        return sorted(self._shown(attribute) for _, attribute in self._entries())

    def get(self, name: str) -> Any:
        """The class or function called `name`.

        Raises:
            UsageError: no such name; the message gives the nearest known one.
        """
        for module, attribute in self._entries():
            if plain(attribute) == plain(name):
                return getattr(importlib.import_module(module), attribute)
        raise unknown(self.kind, name, self.names())

    def spelled(self, name: str) -> str:
        """The one spelling of a name that the catalog has."""
        return next(shown for shown in self.names() if plain(shown) == plain(name))

    def has(self, name: str) -> bool:
        """Whether `name` is in the catalog."""
        return any(plain(attribute) == plain(name) for _, attribute in self._entries())

    def tables(self, constant: str) -> dict[str, dict[str, Any]]:
        """The entries of every literal dictionary called `constant` in the files, merged."""
        merged: dict[str, dict[str, Any]] = {}
        for path in self._files():
            value = literal(path, constant)
            if isinstance(value, dict):
                merged.update(value)
        return merged

    def _shown(self, attribute: str) -> str:
        name = attribute.lower()
        return name.replace("_", "-") if self.dashed else name

    def _entries(self) -> list[tuple[str, str]]:
        return [
            (f"{self.package}.{path.stem}", attribute)
            for path in self._files()
            for attribute in literal(path, "__all__") or ()
        ]

    def _files(self) -> list[Path]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            return []
        folders = [Path(place) for place in spec.submodule_search_locations]
        return sorted(p for folder in folders for p in folder.glob("*.py") if not p.stem.startswith("_"))


def is_user_arch(arch: str) -> bool:
    """Whether `arch` names a user's own callable; a catalog name before the colon stays reserved for variants of it."""
    place, colon, _ = arch.rpartition(":")
    return bool(colon) and arch.partition(":")[0] not in OUTSIDE and not ARCHITECTURES.has(place)


def literal(path: Path, name: str) -> Any:
    """The value of the top-level assignment `name = <literal>` in a source file, or None."""
    now = path.stat()
    return copy.deepcopy(_literal(path, name, now.st_mtime_ns, now.st_size))


@functools.lru_cache(maxsize=1_000)
def _literal(path: Path, name: str, changed: int, size: int) -> Any:
    """The same, parsed once for as long as the file stays what it is."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return None


def unused(settings: Mapping[str, Any]) -> list[str]:
    """The settings of a recipe that its inner maximisation has no use for, in order."""
    if "inner" not in settings:
        return []
    spec = importlib.util.find_spec(METHODS.package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    uses = literal(folder / "_inner.py", "USES")
    return sorted(key for inner, keys in uses.items() if inner != settings["inner"] for key in keys if key in settings)


def plain(name: str) -> str:
    """A name with case and the difference between `-` and `_` removed."""
    return name.lower().replace("-", "_")


def preset(name: str | None, method: str) -> dict[str, Any]:
    """The settings of a method's preset; none for no name.

    Raises:
        UsageError: the method has no such preset; the message names its own.
    """
    if name is None:
        return {}
    tables = METHODS.tables("PRESETS")
    own = sorted(n for n, table in tables.items() if table["method"] == method)
    if name not in own:
        if name in tables:
            what = f"the preset {name} is one of {tables[name]['method']}, not of {method}"
        else:
            what = unknown(f"preset of {method}", name, own).what
        raise UsageError(what, f"{method} has these: {', '.join(own)}." if own else f"{method} has none: leave it out.")
    return {key: value for key, value in tables[name].items() if key != "method"}


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not known, with the nearest one that is."""
    known = list(known)
    near = difflib.get_close_matches(plain(name), [plain(k) for k in known], n=1, cutoff=0.5)
    match = next((k for k in known if near and plain(k) == near[0]), None)
    what = f"unknown {kind} '{name}'" + (f": did you mean '{match}'?" if match else "")
    return UsageError(what, f"Known: {', '.join(known)}.")


METHODS = Catalog("robustkt.objectives", "method")
ATTACKS = Catalog("robustkt.attacks", "attack", dashed=True)
ADAPTERS = Catalog("robustkt.adapters", "adapter")
ARCHITECTURES = Catalog("robustkt.models", "architecture")
OUTSIDE = ("torchvision", "timm")  # prefixes of an architecture that name a library, not a user's module
CERTIFIERS = Catalog("robustkt.certificates", "mode")
NOISES = Catalog("robustkt.noises", "noise")
CORRUPTIONS = Catalog("robustkt.corruptions", "corruption", dashed=True)
