"""Token ids to text, one at a time, for streaming."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """Turns a stream of token ids into text that never ends inside a character.

    By default the ids continue a prompt, and the pieces together are what they add to it: ``decode(prompt + ids)``
    without ``decode(prompt)``. With ``at_start`` the ids are the whole text, and the pieces together equal
    ``tokenizer.decode(ids)``: a SentencePiece vocabulary then loses the space that it puts before the first word.
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = False, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = at_start and tokenizer.strips_leading_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is certain once this token is added; empty while a character is incomplete."""
        if self._skip_special and self._tokenizer.is_special(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip_space and data:
            data = data.removeprefix(b" ")
            self._strip_space = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The text has ended: bytes that never became a character come out as U+FFFD."""
        return self._decoder.decode(b"", final=True)
