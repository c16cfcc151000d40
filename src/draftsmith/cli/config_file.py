"""A TOML file with the options of a command, under their own names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from draftsmith.errors import UsageError

__all__ = ["read_config"]


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """A typer callback: the file's values become defaults, which the command line overrides.

    Keys are the options' names, with - or _. Raises UsageError for a file that cannot be read and for other keys.
    """
    if path is None:
        return None
    try:
        content = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(f"the configuration {path} cannot be read ({reason}); give a TOML file") from None
    values = {name.replace("-", "_"): _as_typed(value) for name, value in content.items()}
    # A flag like --access-log/--no-access-log has one name, the first; --format's is that of its parameter.
    known = {str(parameter.name): parameter for parameter in context.command.params}
    names = {option.removeprefix("--").replace("-", "_"): name for name, one in known.items() for option in one.opts}
    wrong = next((name for name in values if name not in names or names[name] in ("config", "help")), None)
    if wrong is not None:
        raise UsageError(f"the configuration {path} has {wrong}, which is no option of this command; see its --help")
    context.default_map = {**(context.default_map or {}), **{names[name]: value for name, value in values.items()}}
    return path


def _as_typed(value: Any) -> Any:
    """Numbers as they would be typed, since some options take a number or a word; flags and lists as they are."""
    if isinstance(value, list):
        return [_as_typed(one) for one in value]
    return value if isinstance(value, bool) else str(value)
