"""The multi-turn Alpaca format: see ``docs/prompt-format.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftsmith.text.formats import EncodedPrompt
from draftsmith.types import Message

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["AlpacaFormat"]


class AlpacaFormat:
    """Blocks headed ``### Instruction:``, ``### Input:`` and ``### Response:``, EOS after each reply."""

    name = "alpaca"

    def __init__(self, tokenizer: Tokenizer) -> None:
        raise NotImplementedError

    @property
    def template(self) -> str:
        """The same format as a Jinja chat template."""
        raise NotImplementedError

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The headers that would begin another block."""
        raise NotImplementedError

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> EncodedPrompt:
        """See PromptFormat.encode."""
        raise NotImplementedError
