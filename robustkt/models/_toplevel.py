"""Which names a Python file binds at its top level, read without running it. No torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from robustkt.catalog import unknown
from robustkt.errors import UsageError

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)


def check_name(text: bytes, place: str, name: str) -> None:
    """Checks that the source `text` of `place` binds `name`; a star import or a module `__getattr__` may bind any.

    Raises:
        UsageError: not Python, or no such name; the message gives the nearest function, class or variable.
    """
    try:
        tree = ast.parse(text, place)
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UsageError(f"{place} is not valid Python: {reason}{line}", "Mend the file.") from None
    names = {bound: node for node in _own_scope(tree) if (bound := _bound(node))}
    if name in names or "*" in names or "__getattr__" in names:
        return
    own = sorted(bound for bound, node in names.items() if not isinstance(node, ast.alias) and bound[0] != "_")
    absent = unknown("callable", name, own)
    raise UsageError(f"{place}: {absent.what}", absent.fix if own else "The file defines none.")


def _own_scope(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run in the module's own scope: in `if`, `try` and loops, but not in functions and classes."""
    waiting = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            yield child
            if not isinstance(child, SCOPES):
                waiting.append(child)


def _bound(node: ast.AST) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.alias):
        return node.asname or node.name.partition(".")[0]
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
