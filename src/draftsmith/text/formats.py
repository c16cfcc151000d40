"""What a prompt format is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from draftsmith.types import Message

__all__ = ["EncodedPrompt", "PromptFormat"]


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

    @property
    def knows_tools(self) -> bool:
        """Whether messages may have tool calls and results, and ``encode`` takes ``tools``."""
        ...

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> EncodedPrompt:
        """Ids, loss mask and text of a conversation; ``add_generation_prompt`` asks for the assistant's next turn.

        ``tools``: OpenAI's ``{"type": "function", "function": {"name", "description", "parameters"}}``.
        Strings of special tokens in the messages and tools are ordinary text. Raises TemplateError when the format
        cannot say these messages.
        """
        ...
