"""Which prompt format a model gets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from draftsmith.errors import UsageError
from draftsmith.text.alpaca import AlpacaFormat
from draftsmith.text.formats import PromptFormat
from draftsmith.text.jinja_format import JinjaFormat

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["choose_format"]


def choose_format(tokenizer: Tokenizer, override: str | None = None) -> PromptFormat:
    """The prompt format for a model.

    ``None`` or ``"chat"``: the tokenizer's own chat template; without one, ``None`` gives Alpaca and ``"chat"`` is an
    error. ``"alpaca"``: the multi-turn Alpaca format. Anything else is the path of a Jinja template file.
    Raises UsageError for a name that is none of these, TemplateError for a template that cannot be parsed.
    """
    if override == "alpaca" or (override is None and tokenizer.chat_template is None):
        return AlpacaFormat(tokenizer)
    if override in (None, "chat"):
        if tokenizer.chat_template is None:
            raise UsageError("this model has no chat template; use the format alpaca or give the path of a .jinja file")
        return JinjaFormat(tokenizer, tokenizer.chat_template)
    path = Path(str(override))
    if not path.is_file():
        raise UsageError(f"prompt format {override!r} is unknown; give alpaca, chat or the path of a .jinja file")
    try:
        return JinjaFormat(tokenizer, path.read_text(encoding="utf-8"), name=path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {path} cannot be read ({error}); give a UTF-8 text file") from error
