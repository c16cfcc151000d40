"""What a Tokenizer is made of, and the settings that every kind of file states in its own way."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from draftsmith.errors import TokenizerError
from draftsmith.text.splitting import AddedToken, PrefixRule
from draftsmith.text.vocabulary import TokenType, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder

__all__ = ["Parts", "TokenizerKind", "checked_id", "looks_like_control", "reply_ends", "token_type"]

TokenizerKind = Literal["byte-bpe", "sentencepiece-bpe", "unigram"]

# Tokens with these names end a turn or a text in the models that have them, whether or not their files say so.
REPLY_ENDS = frozenset(
    (
        "</s>",
        "<eos>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|end|>",
        "<end_of_turn>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    )
)
_CONTROL_SHAPE = re.compile(r"<\|[^<>\s]*\|>|<｜[^<>\s]*｜>")
_MARKER_SHAPE = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that makes a tokenizer; see Tokenizer for the meaning of the ids. ``added`` are the tokens that are found
    whole: those whose vocabulary type is special only when asked for, the others always."""

    kind: TokenizerKind
    name: str
    vocabulary: Vocabulary
    encoder: Encoder
    added: tuple[AddedToken, ...]
    prefix: PrefixRule
    strips_leading_space: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    chat_template: str | None


def looks_like_control(text: str) -> bool:
    """Whether a token is written as only control tokens are (``<|im_end|>``).

    Fine-tunes often add these without marking them as special; read from user text they would be a way to forge turns.
    """
    return _CONTROL_SHAPE.fullmatch(text) is not None


def token_type(kind: TokenType, text: str, *, named: bool) -> TokenType:
    """The type to use for a token whose file says ``kind``. ``named``: the file uses it as BOS, EOS or the like."""
    if kind in (TokenType.NORMAL, TokenType.USER_DEFINED) and named and _MARKER_SHAPE.fullmatch(text):
        return TokenType.CONTROL
    if kind is TokenType.USER_DEFINED and looks_like_control(text):
        return TokenType.CONTROL
    return kind


def reply_ends(vocabulary: Vocabulary, declared: Iterable[int | None]) -> tuple[int, ...]:
    """The ids that end a reply: the declared ones in order, then every special token with a well-known name."""
    known = [i for i in vocabulary.types if vocabulary.is_special(i) and vocabulary.pieces[i] in REPLY_ENDS]
    ids = [i for i in declared if i is not None] + sorted(known)
    return tuple(dict.fromkeys(i for i in ids if 0 <= i < len(vocabulary.pieces)))


def checked_id(value: Any, size: int, key: str) -> int | None:
    """``value`` as an id below ``size``; None when absent. Raises TokenizerError for anything else."""
    if value is None:
        return None
    try:
        token_id = operator.index(value)
    except TypeError:
        token_id = -1
    if not 0 <= token_id < size:
        raise TokenizerError(f"{key} is {value!r}; expected a token id from 0 to {size - 1}")
    return token_id
