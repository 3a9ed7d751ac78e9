"""What a public function tells its reader: what it does, what it takes, and what it raises."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustkt import errors

PACKAGE = Path(errors.__file__).parent
ROOMS = ("api", "objectives", "attacks", "certificates", "data", "models")
OURS = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.RobustKTError)}
FILES = [path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py"))]


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Every public function and method of a file, and whether it is part of a private class."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, False
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner, node.name.startswith("_")


def section(docstring: str, title: str) -> str:
    """The text of a section, or nothing."""
    found = re.search(rf"^{title}:\n(.*?)(?=^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def raised(node: ast.FunctionDef) -> set[str]:
    """Our errors that the function raises in its own body."""
    inner = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.Lambda) and n is not node]
    hidden = {n for i in inner for n in ast.walk(i)}
    calls = [
        n.exc.func
        for n in ast.walk(node)
        if n not in hidden and isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
    ]
    names = {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in calls}
    return names & OURS


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_functions_say_what_they_do_and_raise(path: Path) -> None:
    for name, node, private in functions(path):
        told = ast.get_docstring(node) or ""
        assert told or private, f"{name} has no docstring"
        if told:
            named = {error for error in OURS if error in (section(told, "Raises") or told.splitlines()[0])}
            assert raised(node) <= named, f"{name} raises {raised(node) - named} and does not say so"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_list_of_arguments_is_whole_and_true(path: Path) -> None:
    for name, node, _ in functions(path):
        listed = section(ast.get_docstring(node) or "", "Args")
        if not listed:
            continue
        told = [
            argument.strip()
            for names in re.findall(r"^    (\w[\w, ]*): ", listed, re.MULTILINE)
            for argument in names.split(",")
        ]
        arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
        assert sorted(told) == sorted(arguments), f"{name}: {set(told) ^ set(arguments)}"


def test_every_verb_of_the_api_lists_arguments_results_and_errors() -> None:
    from docs._reference.functions import definition
    from robustkt import api

    for name in api.__all__:
        node = definition(name)
        told = ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef):
            assert told, f"{name} does not say what it is"
            continue
        if re.search(r"are\s+those\s+of\s+`(\w+)`", told):  # another verb's, which this test looks at too
            continue
        if len(node.args.args) + len(node.args.kwonlyargs) > 3:
            assert section(told, "Args"), f"{name} lists no arguments"
            assert section(told, "Returns"), f"{name} does not say what it returns"
        assert section(told, "Raises"), f"{name} names no errors"


@pytest.mark.parametrize("room", ["objectives", "attacks", "certificates"])
def test_every_method_of_a_catalog_names_its_source(room: str) -> None:
    from robustkt.catalog import literal

    source = re.compile(r"\d{4}\.\d{4,5}|openreview|Stevens|CVPR|Clopper|Ville|no attack|plain", re.IGNORECASE)
    for path in sorted((PACKAGE / room).glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        for name in literal(path, "__all__") or ():
            node = next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
            told = (ast.get_docstring(node) or "") + (ast.get_docstring(tree) or "")
            assert source.search(told), f"{name} names no paper"
