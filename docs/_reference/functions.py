"""The functions of `robustkt.api` from their sources, without importing them."""

from __future__ import annotations

import ast
from pathlib import Path

from docs._reference.markdown import docstring
from robustkt import api

FOLDER = Path(api.__file__).parent
WIDTH = 100


def functions() -> str:
    """A section a function: signature and docstring."""
    return "\n\n".join(_section(name) for name in api.__all__)


def definition(name: str) -> ast.FunctionDef | ast.ClassDef:
    """The definition of a public function or class of the api."""
    source = (FOLDER / f"{api._HOMES[name]}.py").read_text(encoding="utf-8")
    named = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return next(node for node in named if node.name == name)


def _section(name: str) -> str:
    node = definition(name)
    body = docstring(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return f"## {name}\n\n```py\n{_signature(node)}\n```\n\n{body}"
    methods = [one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    told = [f"`.{one.name}()`: {docstring(ast.get_docstring(one) or '')}" for one in methods]
    return "\n\n".join([f"## {name}", body, *told])


def _signature(node: ast.FunctionDef) -> str:
    given, returns = _parameters(node.args), ast.unparse(node.returns) if node.returns else "None"
    line = f"{node.name}({', '.join(given)}) -> {returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{node.name}(", *(f"    {one}," for one in given), f") -> {returns}"])


def _parameters(arguments: ast.arguments) -> list[str]:
    plain: list[ast.expr | None] = [None] * (len(arguments.args) - len(arguments.defaults))
    first = [_parameter(*pair) for pair in zip(arguments.args, [*plain, *arguments.defaults], strict=True)]
    named = [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*first, *(["*"] if named else []), *named]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = ast.unparse(argument.annotation) if argument.annotation else "Any"
    return f"{argument.arg}: {kind}" + (f" = {ast.unparse(default)}" if default else "")
