"""The command line from its own tree of commands."""

from __future__ import annotations

from typing import Any

from typer.main import get_command

from docs._reference.markdown import flat, table
from robustkt.cli import FAMILIES, application


def commands() -> str:
    """A section a command: what it does, how it is called, its options."""
    tree: Any = get_command(application())
    told = [name for names in FAMILIES.values() for name in names]
    return "\n\n".join(_section(name, tree.commands[name]) for name in told)


def _section(name: str, command: Any, depth: int = 2) -> str:
    pieces = [f"{'#' * depth} {name}", (command.help or "").strip()]
    if hasattr(command, "commands"):
        under = [_section(f"{name} {sub}", command.commands[sub], depth + 1) for sub in sorted(command.commands)]
        return "\n\n".join([*pieces, *under])
    given = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
    pieces.append(f"```text\nrobustkt {' '.join([name, *given, '[OPTIONS]'])}\n```")
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    body = [[_spelled(p), _default(p), flat(p.help)] for p in options]
    return "\n\n".join([*pieces, table(["option", "default", "meaning"], body)])


def _spelled(option: Any) -> str:
    names = ", ".join(f"`{one}`" for one in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    kind = {"str": "TEXT", "path": "PATH", "int": "N", "integer": "N", "float": "X"}.get(option.type.name, "VALUE")
    return f"{names} {option.metavar or kind}" + (", again and again" if option.multiple else "")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    if option.is_flag and option.secondary_opts:
        return f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    return "" if option.is_flag or option.default in (None, "", ()) else f"`{option.default}`"
