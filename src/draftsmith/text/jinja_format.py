"""Chat templates: a prompt format written in Jinja, as tokenizers carry it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from draftsmith.text.formats import EncodedPrompt
from draftsmith.types import Message

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["JinjaFormat"]


class JinjaFormat:
    """A chat template. ``options`` are further variables that the template sees (such as ``enable_thinking``)."""

    def __init__(
        self, tokenizer: Tokenizer, template: str, *, name: str = "chat", options: Mapping[str, Any] | None = None
    ) -> None:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """``chat``, or the name of the template's file."""
        raise NotImplementedError

    @property
    def template(self) -> str:
        """The template's source."""
        raise NotImplementedError

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Empty: such formats end replies with EOS tokens."""
        raise NotImplementedError

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> EncodedPrompt:
        """See PromptFormat.encode."""
        raise NotImplementedError
