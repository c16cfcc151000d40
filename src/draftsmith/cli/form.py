"""The options that ask for a reply of a certain form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.types import Grammar

__all__ = ["FormOptions"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FormOptions:
    """At most one of them."""

    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The reply is JSON that the schema in FILE allows.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The reply is a text of the grammar in FILE: Lark, or GBNF.")
    ] = None
    regex: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The reply as a whole matches this regular expression.")
    ] = None

    def for_llm(self) -> Grammar | None:
        """Raises UsageError for two of them, or a file that cannot be read."""
        from draftsmith.types import Grammar

        given = {
            name: value for name in ("json_schema", "grammar", "regex") if (value := getattr(self, name)) is not None
        }
        if len(given) > 1:
            named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{named} contradict each other; give one of them")
        if self.json_schema is not None:
            return Grammar("json_schema", _read(self.json_schema))
        if self.grammar is not None:
            return Grammar("grammar", _read(self.grammar))
        return Grammar("regex", self.regex) if self.regex is not None else None


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{path} cannot be read ({reason}); give a text file") from None
