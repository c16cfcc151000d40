"""What a prompt format is, and which one a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from draftsmith.errors import UsageError
from draftsmith.types import Message

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["EncodedPrompt", "PromptFormat", "choose_format"]


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Messages as a model reads them.

    ``token_ids`` [n] with BOS where the format has one. ``loss_mask`` [n] is True exactly for the tokens of the
    assistant's replies and the EOS that ends each; it is empty when a generation prompt was asked of a template that
    rewrites earlier turns (see JinjaFormat). ``text`` is what the ids stand for, special tokens written out.
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    text: str


class PromptFormat(Protocol):
    """Turns messages into ids and a loss mask by construction. The same object serves training and generation."""

    @property
    def name(self) -> str:
        """A short name for people: ``alpaca``, ``chat`` or the template's file name."""
        ...

    @property
    def template(self) -> str:
        """A Jinja chat template that says the same; it is saved with the tokenizer."""
        ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends a reply, besides the EOS tokens."""
        ...

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> EncodedPrompt:
        """Ids, loss mask and text of a conversation; ``add_generation_prompt`` asks for the assistant's next turn.

        Strings of special tokens in the messages are ordinary text. Raises TemplateError when the format cannot say
        these messages.
        """
        ...


def choose_format(tokenizer: Tokenizer, override: str | None = None) -> PromptFormat:
    """The prompt format for a model.

    ``None`` or ``"chat"``: the tokenizer's own chat template; without one, ``None`` gives Alpaca and ``"chat"`` is an
    error. ``"alpaca"``: the multi-turn Alpaca format. Anything else is the path of a Jinja template file.
    Raises UsageError for a name that is none of these, TemplateError for a template that cannot be parsed.
    """
    from draftsmith.text.alpaca import AlpacaFormat
    from draftsmith.text.jinja_format import JinjaFormat

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
