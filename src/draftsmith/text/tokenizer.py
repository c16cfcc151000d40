"""Tokenizer: text to ids and back, the same ids as the model's original tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from draftsmith.text.parts import Parts, TokenizerKind
from draftsmith.text.splitting import AddedToken, After, Splitter

__all__ = ["Tokenizer", "TokenizerKind"]

_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """Built by one of the ``from_`` constructors; never changes afterwards; safe to share between threads.

    ``vocab_size``: ids run from 0 to vocab_size - 1 (padding entries at the end of a vocabulary are not counted).
    ``eos_ids``: all ids that end a reply. ``add_bos``: whether the original puts BOS before a text.
    ``strips_leading_space``: decoding a whole text drops the space that encoding put before it.
    """

    def __init__(self, parts: Parts) -> None:
        self._vocabulary = parts.vocabulary
        self._encoder = parts.encoder
        self._prefix = parts.prefix
        special = [token for token in parts.added if parts.vocabulary.is_special(token.token_id)]
        self._special = Splitter(special)
        self._always = Splitter(token for token in parts.added if token not in special)
        self.kind: TokenizerKind = parts.kind
        self.name: str = parts.name
        self.vocab_size: int = parts.vocabulary.size
        self.bos_id: int | None = parts.bos_id
        self.eos_ids: tuple[int, ...] = parts.eos_ids
        self.pad_id: int | None = parts.pad_id
        self.unk_id: int | None = parts.unk_id
        self.add_bos: bool = parts.add_bos
        self.chat_template: str | None = parts.chat_template
        self.strips_leading_space: bool = parts.strips_leading_space

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Of a Hugging Face folder: tokenizer.json (or else tokenizer.model) and the small JSON files beside it.

        Raises TokenizerError when neither file is there or one is damaged.
        """
        from draftsmith.text.read_folder import read_folder

        return cls(read_folder(folder))

    @classmethod
    def from_json(cls, data: bytes, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Of a tokenizer.json. ``config`` maps file names without suffix to their parsed contents:

        ``tokenizer_config``, ``special_tokens_map``, ``generation_config``, ``config``, ``added_tokens`` (mappings) and
        ``chat_template`` (the text of chat_template.jinja); any may be absent. Raises TokenizerError.
        """
        from draftsmith.text.read_json import read_json

        return cls(read_json(data, config or {}))

    @classmethod
    def from_sentencepiece(cls, data: bytes, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Of a SentencePiece tokenizer.model (BPE or unigram); ``config`` as in from_json. Raises TokenizerError."""
        from draftsmith.text.read_sentencepiece import read_sentencepiece

        return cls(read_sentencepiece(data, config or {}))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Of the ``tokenizer.*`` keys of a GGUF file (models "gpt2" and "llama"). Raises TokenizerError."""
        from draftsmith.text.read_gguf import read_gguf

        return cls(read_gguf(metadata))

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The strings of the special tokens."""
        return self._special.texts

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = False) -> list[int]:
        """Ids of ``text``. ``add_bos`` None: as the original does; True needs a ``bos_id``.

        Unless ``parse_special``, strings of special tokens in ``text`` are ordinary characters. Lone surrogates, which
        are no text, count as U+FFFD.
        """
        ids: list[int] = []
        if self.add_bos if add_bos is None else add_bos:
            if self.bos_id is None:
                raise ValueError("add_bos was asked of a tokenizer that has no BOS token")
            ids.append(self.bos_id)
        if parse_special:
            after: After = "start"
            for run in self.split_special(text):
                ids += [run] if isinstance(run, int) else self.encode_piece(run, after=after)
                after = "special" if isinstance(run, int) else "text"
        else:
            ids += self.encode_piece(text, after="start")
        return ids

    def encode_piece(self, text: str, *, after: After) -> list[int]:
        """Ids of a piece of a longer text, nothing parsed as special and no BOS.

        ``after`` says what stands before: nothing, a special token, or other text; it decides about the space that
        SentencePiece vocabularies put before the first word.
        """
        if self._prefix.whole:
            text, after = self._prefix.apply(text, after), "text"
        ids: list[int] = []
        for run in self._always.split(text):
            if isinstance(run, AddedToken):
                ids.append(run.token_id)
                after = after if self._prefix.whole else "special"
            else:
                ids += self._encode_run(self._prefix.apply(run, after))
                after = "text"
        return ids

    def split_special(self, text: str) -> Iterator[str | int]:
        """``text`` cut at the strings of special tokens: runs of text (never empty) and ids of special tokens."""
        for run in self._special.split(text):
            yield run.token_id if isinstance(run, AddedToken) else run

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD, ids without content become nothing."""
        kept = (i for i in ids if not (skip_special and self._vocabulary.is_special(i)))
        data = b"".join(self._vocabulary.token_bytes(i) for i in kept)
        if self.strips_leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, as UTF-8 bytes (perhaps a part of a character); empty for padding entries."""
        return self._vocabulary.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token (BOS, EOS, <|im_start|> ...) rather than text."""
        return self._vocabulary.is_special(token_id)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its content as text (``"</s>"``, ``" the"``), None when there is none."""
        return self._vocabulary.id_of(token)

    def text_of(self, token_id: int) -> str:
        """A token's content for display; incomplete characters as U+FFFD."""
        return self._vocabulary.token_bytes(token_id).decode("utf-8", "replace")

    def fingerprint(self) -> str:
        """SHA-256 over id and content of every token: equal for equal vocabularies, whatever file they come from."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return self._vocabulary.fingerprint()

    def _encode_run(self, text: str) -> list[int]:
        try:
            return self._encoder.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            return self._encoder.encode(_SURROGATES.sub("�", text), add_special_tokens=False).ids
