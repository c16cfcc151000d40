"""What each token id stands for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType

from draftsmith.errors import TokenizerError

__all__ = ["MAX_VOCAB_SIZE", "WORD_BOUNDARY", "TokenType", "Vocabulary", "is_padding_name"]

MAX_VOCAB_SIZE = 1 << 22
WORD_BOUNDARY = "▁"  # SentencePiece writes a space so


class TokenType(IntEnum):
    """Numbers of SentencePiece's ``ModelProto.SentencePiece.Type``, which GGUF's ``token_type`` shares."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _byte_of_char() -> Mapping[str, int]:
    """GPT-2's printable stand-ins for bytes: visible Latin-1 characters are themselves, the others follow U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    pairs = {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
    return MappingProxyType(pairs)


BYTE_OF_CHAR = _byte_of_char()
_CHAR_OF_BYTE = tuple(char for char, _ in sorted(BYTE_OF_CHAR.items(), key=lambda pair: pair[1]))


def is_padding_name(piece: str, token_id: int) -> bool:
    """Whether a piece is the name that GGUF converters give to an id which the original vocabulary lacks."""
    return piece == f"[PAD{token_id}]"


@dataclass(frozen=True)
class Vocabulary:
    """``pieces[i]`` is token i as its file writes it, "" where there is none. ``types`` lists every id that is not
    NORMAL. ``byte_level``: normal pieces are written in GPT-2's stand-ins for bytes; otherwise in SentencePiece's way
    (``▁`` for a space, ``<0x0A>`` for a byte)."""

    pieces: Sequence[str]
    types: Mapping[int, TokenType]
    byte_level: bool

    @cached_property
    def size(self) -> int:
        """One more than the largest id that has content."""
        size = len(self.pieces)
        while size and not self.pieces[size - 1]:
            size -= 1
        return size

    def type_of(self, token_id: int) -> TokenType:
        """NORMAL unless listed."""
        return self.types.get(token_id, TokenType.NORMAL)

    def is_special(self, token_id: int) -> bool:
        """Control and unknown tokens: they are no text."""
        return self.types.get(token_id) in (TokenType.CONTROL, TokenType.UNKNOWN)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for ids without content. Raises ValueError for a negative id."""
        if token_id < 0:
            raise ValueError(f"token id {token_id} is negative")
        if token_id >= len(self.pieces):
            return b""
        piece, kind = self.pieces[token_id], self.types.get(token_id, TokenType.NORMAL)
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            return piece.encode()
        if kind is TokenType.BYTE:
            return bytes((int(piece[3:5], 16),))
        if not self.byte_level:
            return piece.replace(WORD_BOUNDARY, " ").encode()
        if kind is TokenType.NORMAL:
            try:
                return bytes([BYTE_OF_CHAR[char] for char in piece])
            except KeyError:  # a token that was added as plain text without saying so
                pass
        return piece.encode()

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Ids by piece; the lower id where two are written alike."""
        return {piece: token_id for token_id, piece in reversed(list(enumerate(self.pieces))) if piece}

    def id_of(self, token: str) -> int | None:
        """The id of the token whose content is ``token``."""
        literal = self.ids.get(token)
        if literal is not None and self.types.get(literal, TokenType.NORMAL) not in (TokenType.NORMAL, TokenType.BYTE):
            return literal
        data = token.encode("utf-8", "surrogatepass")
        if self.byte_level:
            found = self.ids.get("".join(_CHAR_OF_BYTE[byte] for byte in data))
        else:
            found = self.ids.get(token.replace(" ", WORD_BOUNDARY))
            if found is None and len(data) == 1:
                found = self.ids.get(f"<0x{data[0]:02X}>")
        return found if found is not None and self.token_bytes(found) == data else None

    def fingerprint(self) -> str:
        """SHA-256 over (id, length, content) of every token that has content."""
        digest = hashlib.sha256()
        for token_id in range(self.size):
            content = self.token_bytes(token_id)
            if content:
                digest.update(b"%d:%d:%b" % (token_id, len(content), content))
        return digest.hexdigest()


def byte_value(piece: str) -> int | None:
    """The byte that a piece like ``<0x0A>`` names; None for any other piece."""
    if len(piece) != 6 or not piece.startswith("<0x") or piece[5] != ">":
        return None
    digits = piece[3:5]
    return int(digits, 16) if all(char in "0123456789ABCDEF" for char in digits) else None


def check_size(size: int) -> None:
    """Raises TokenizerError for a number of tokens that no vocabulary has."""
    if not 0 < size <= MAX_VOCAB_SIZE:
        raise TokenizerError(f"the vocabulary has {size} tokens; expected from 1 to {MAX_VOCAB_SIZE}")
