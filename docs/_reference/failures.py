"""Errors and exit statuses, from the classes that carry them."""

from __future__ import annotations

import inspect

from docs._reference.markdown import flat, table
from robustkt import errors


def failures() -> str:
    """One row an error: what it is about, what it is a kind of, and the exit status."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.RobustKTError)]
    rows = [
        [f"`{kind.__name__}`", f"`{kind.__mro__[1].__name__}`", str(kind.exit_code), flat(inspect.getdoc(kind))]
        for kind in kinds
    ]
    return table(["error", "a kind of", "exit status", "meaning"], rows)
