"""A user's own network: its source read and checked without running it, then run as a module. No torch at import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from robustkt.catalog import ARCHITECTURES
from robustkt.errors import IntegrityError, NotFoundError, RobustKTError, UsageError, clip
from robustkt.models._toplevel import check_name
from robustkt.numbers import digest

if TYPE_CHECKING:
    from torch import nn

MODULE = "robustkt_user_"  # what a user's file is called in sys.modules, before its hash
SPELLING = "Write path/to/file.py:Callable or package.module:callable."


@dataclass(frozen=True)
class UserSource:
    """The source of a user's network; files that it imports are not part of it, nor of its hash."""

    spec: str  # "net.py:Net" or "package.module:net"
    text: bytes

    @property
    def hash(self) -> str:
        """`sha256:…` of the text."""
        return digest(self.text)


def read_source(arch: str) -> UserSource:
    """The source behind `path/to/file.py:Callable` or `package.module:callable`, read but not run.

    For a dotted module the packages above it are imported, as Python has no other way to find it.

    Raises:
        NotFoundError: no such file.
        UsageError: no such module, not Python, or the callable is not among the top-level names; with the nearest one.
        RobustKTError: a package above the module could not be imported.
    """
    place, _, name = arch.rpartition(":")
    if not place or not name:
        raise UsageError(f"'{arch}' does not name a callable of a file", SPELLING)
    path = Path(place).expanduser() if place.endswith(".py") else _module_file(place, arch)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {place}", f"Give its path from {Path.cwd()}, or the full one.") from None
    except OSError as error:
        raise NotFoundError(f"cannot read {place}: {error.strerror}", "Give a readable Python file.") from None
    check_name(text, place, name)
    return UserSource(arch, text)


def load_callable(source: UserSource) -> Callable[..., nn.Module]:
    """Runs the source as a module and gives its callable.

    A `.py` spec runs the bytes in `source`, whatever the file holds by now; a dotted one is imported, once its file
    still has the hash of `source`.

    Raises:
        IntegrityError: the file of a dotted module has changed.
        UsageError: what the name stands for is not a function or class.
        RobustKTError: the code raised an exception.
    """
    place, _, name = source.spec.rpartition(":")
    if not place.endswith(".py") and (found := read_source(source.spec).hash) != source.hash:
        raise IntegrityError(f"{place} has changed: it is {found}, not {source.hash}", "Restore the file from a copy.")
    with guarded(source.spec), importable(source.spec):
        module = _execute(source, Path(place)) if place.endswith(".py") else importlib.import_module(place)
    return _callable(getattr(module, name, None), source.spec)


@contextmanager
def importable(spec: str) -> Iterator[None]:
    """The folder of a `.py` spec is on `sys.path`, so that the file finds its siblings.

    The siblings leave `sys.modules` afterwards: `v1/net.py` and `v2/net.py` may each have their own `blocks.py`.
    """
    place = spec.rpartition(":")[0]
    if not place.endswith(".py"):
        yield
        return
    folder = Path(place).expanduser().resolve().parent
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the user's code may have changed it
            sys.path.remove(str(folder))
        fresh = {name.partition(".")[0] for name in set(sys.modules) - before} - before
        siblings = {name for name in fresh if not name.startswith(MODULE) and _lies_in(folder, sys.modules.get(name))}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in siblings:
                del sys.modules[name]


@contextmanager
def guarded(arch: str, fix: str = "", when: str = "") -> Iterator[None]:
    """What the code behind `arch` raises becomes one line that names the exception; errors of our own pass.

    `when` is added to it, such as " in training".

    Raises:
        RobustKTError: from the exception, with `fix` or else the place it came from as the next step.
    """
    try:
        yield
    except RobustKTError:
        raise
    except (Exception, SystemExit) as error:
        raise told(error, arch, fix, when) from error


def told(error: BaseException, arch: str, fix: str = "", when: str = "") -> RobustKTError:
    """The error that names what the code behind `arch` raised, with `fix` or else the place as the next step."""
    frames = traceback.extract_tb(error.__traceback__)
    file = Path(arch.rpartition(":")[0]).name
    file = file if file.endswith(".py") else file.rpartition(".")[2] + ".py"
    place = ([frame for frame in frames if Path(frame.filename).name == file] or frames)[-1]
    message = f"{arch} raised {type(error).__name__}{when}" + (f": {clip(str(error))}" if str(error) else "")
    return RobustKTError(message, fix or f"See {place.filename}, line {place.lineno}.")


def _execute(source: UserSource, path: Path) -> types.ModuleType:
    file = str(path.expanduser().resolve())
    module = types.ModuleType(f"{MODULE}{source.hash.partition(':')[2][:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses and inspect look the module up while it runs
    try:
        exec(compile(source.text, file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _module_file(place: str, arch: str) -> Path:
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(f"'{place}' in '{arch}' is neither a .py file nor a module", SPELLING)
    if ARCHITECTURES.has(place):
        raise UsageError(f"{place} has no variant '{arch.rpartition(':')[2]}'", f"Write {place} alone.")
    try:
        with guarded(arch):
            spec = importlib.util.find_spec(place)
    except RobustKTError as error:
        absent = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if absent is None or not f"{place}.".startswith(f"{absent}."):  # a package above it lacks something else
            raise
        spec = None
    if spec is None:
        raise UsageError(f"there is no module {place} for '{arch}'", f"Install it or set PYTHONPATH. {SPELLING}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(f"module {place} of '{arch}' has no Python source", SPELLING)
    return Path(spec.origin)


def _callable(found: Any, spec: str) -> Callable[..., nn.Module]:
    from torch import nn

    if isinstance(found, nn.Module):
        raise UsageError(
            f"{spec} is a network already built; every generation needs fresh weights",
            "Name its class, or a function that returns a new network: def net(channels, classes): ...",
        )
    if not callable(found):
        raise UsageError(f"{spec} is not callable: it is a {type(found).__name__}", "Name a function or a class.")
    return cast("Callable[..., nn.Module]", found)


def _lies_in(folder: Path, module: types.ModuleType | None) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and folder in (Path(file).parent, Path(file).parent.parent)
