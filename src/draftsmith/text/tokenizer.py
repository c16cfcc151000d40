"""Tokenizer: text to ids and back, the same ids as the model's original tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

__all__ = ["Tokenizer", "TokenizerKind"]

TokenizerKind = Literal["byte-bpe", "sentencepiece-bpe", "unigram"]


class Tokenizer:
    """Built by one of the ``from_`` constructors; never changes afterwards; safe to share between threads.

    ``vocab_size``: ids run from 0 to vocab_size - 1 (padding entries at the end of a GGUF vocabulary not counted).
    ``eos_ids``: all ids that end a reply. ``add_bos``: whether the original puts BOS before a text.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    chat_template: str | None
    name: str
    kind: TokenizerKind
    strips_leading_space: bool

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Of a Hugging Face folder: tokenizer.json (or else tokenizer.model) and the small JSON files beside it.

        Raises TokenizerError when neither file is there or one is damaged.
        """
        raise NotImplementedError

    @classmethod
    def from_json(cls, data: bytes, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Of a tokenizer.json. ``config`` maps file names without suffix to their parsed contents:

        ``tokenizer_config``, ``special_tokens_map``, ``generation_config``, ``config`` (mappings) and ``chat_template``
        (the text of chat_template.jinja); any may be absent. Raises TokenizerError.
        """
        raise NotImplementedError

    @classmethod
    def from_sentencepiece(cls, data: bytes, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Of a SentencePiece tokenizer.model (BPE or unigram); ``config`` as in from_json. Raises TokenizerError."""
        raise NotImplementedError

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Of the ``tokenizer.*`` keys of a GGUF file (models "gpt2" and "llama"). Raises TokenizerError."""
        raise NotImplementedError

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Ids of ``text``. ``add_bos`` None: as the original does. Unless ``parse_special``, strings of special tokens
        in ``text`` are ordinary characters."""
        raise NotImplementedError

    def encode_piece(self, text: str, *, after: Literal["start", "special", "text"]) -> list[int]:
        """Ids of a piece of a longer text, nothing parsed as special and no BOS.

        ``after`` says what stands before: nothing, a special token, or other text; it decides about the space that
        SentencePiece vocabularies put before the first word.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD, ids without content become nothing."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, as UTF-8 bytes (perhaps a part of a character); empty for padding entries."""
        raise NotImplementedError

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token (BOS, EOS, <|im_start|> ...) rather than text."""
        raise NotImplementedError

    def id_of(self, token: str) -> int | None:
        """The id of a token by its content as text (``"</s>"``, ``" the"``), None when there is none."""
        raise NotImplementedError

    def text_of(self, token_id: int) -> str:
        """A token's content for display; incomplete characters as U+FFFD."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 over id and content of every token: equal for equal vocabularies, whatever file they come from."""
        raise NotImplementedError
