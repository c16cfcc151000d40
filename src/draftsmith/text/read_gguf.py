"""Tokenizers from the metadata of GGUF files (the ``tokenizer.*`` keys of the GGUF specification)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from draftsmith.errors import TokenizerError
from draftsmith.text.bpe import bpe_model, encoder_of, merges_from_scores, split_merges
from draftsmith.text.parts import Parts, checked_id, looks_like_control, reply_ends, token_type
from draftsmith.text.pretokenizers import pre_tokenizer_named
from draftsmith.text.splitting import AddedToken, PrefixRule
from draftsmith.text.vocabulary import TokenType, Vocabulary, byte_value, check_size, is_padding_name

__all__ = ["read_gguf"]

_BOS, _PAD = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id"
_EOS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def read_gguf(metadata: Mapping[str, Any]) -> Parts:
    """Parts of the tokenizer that ``metadata`` describes. Arrays may be lists, tuples or numpy arrays.

    Raises TokenizerError when keys are missing, contradictory or of a kind that is not supported.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"the GGUF file's tokenizer is of the kind {model!r}; expected 'gpt2' or 'llama' (byte-level or "
            f"SentencePiece BPE)"
        )
    pieces = _strings(metadata, "tokenizer.ggml.tokens")
    check_size(len(pieces))
    size = len(pieces)
    bos_id, pad_id = checked_id(metadata.get(_BOS), size, _BOS), checked_id(metadata.get(_PAD), size, _PAD)
    ends = [checked_id(metadata.get(key), size, key) for key in _EOS]
    vocabulary = _vocabulary(metadata, pieces, {bos_id, *ends}, byte_level=model == "gpt2")
    template = metadata.get("tokenizer.chat_template")
    reader = _byte_level if model == "gpt2" else _sentencepiece
    return reader(
        metadata,
        vocabulary,
        {
            "name": str(metadata.get("general.name", model)),
            "vocabulary": vocabulary,
            "added": tuple(
                AddedToken(i, vocabulary.pieces[i])
                for i, kind in vocabulary.types.items()
                if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
            ),
            "bos_id": bos_id,
            "eos_ids": reply_ends(vocabulary, ends),
            "pad_id": pad_id,
            "chat_template": template if isinstance(template, str) and template else None,
        },
    )


def _byte_level(metadata: Mapping[str, Any], vocabulary: Vocabulary, common: Mapping[str, Any]) -> Parts:
    rules = pre_tokenizer_named(str(metadata.get("tokenizer.ggml.pre", "default")))
    merges = split_merges(_strings(metadata, "tokenizer.ggml.merges"))
    model = bpe_model(vocabulary, merges, ignore_merges=rules.ignore_merges)
    spaced = bool(metadata.get("tokenizer.ggml.add_space_prefix", False))
    return Parts(
        kind="byte-bpe",
        encoder=encoder_of(model, rules.settings()),
        prefix=PrefixRule("start", unless_space=True) if spaced else PrefixRule(),
        strips_leading_space=False,
        unk_id=_unknown(metadata, vocabulary),
        add_bos=_add_bos(metadata, common, default=rules.add_bos),
        **common,
    )


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary, common: Mapping[str, Any]) -> Parts:
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(vocabulary.pieces), np.float64)
    has_bytes = TokenType.BYTE in vocabulary.types.values()
    unk_id = _unknown(metadata, vocabulary)
    model = bpe_model(
        vocabulary,
        merges_from_scores(vocabulary, scores.tolist()),
        unk=None if unk_id is None else vocabulary.pieces[unk_id],
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spaced = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    return Parts(
        kind="sentencepiece-bpe",
        encoder=encoder_of(model, {"normalizer": spaces}),
        prefix=PrefixRule("every", whole=True) if spaced else PrefixRule(),
        strips_leading_space=spaced,
        unk_id=unk_id,
        add_bos=_add_bos(metadata, common, default=True),
        **common,
    )


def _vocabulary(
    metadata: Mapping[str, Any], pieces: list[str], named: set[int | None], *, byte_level: bool
) -> Vocabulary:
    """Pieces and types; padding entries lose their made-up names, so that they are no content."""
    stated = metadata.get("tokenizer.ggml.token_type") is not None
    if stated:
        kinds = _numbers(metadata, "tokenizer.ggml.token_type", len(pieces), np.int64)
        unusual = np.flatnonzero(kinds != TokenType.NORMAL).tolist()
    else:
        kinds = np.ones(len(pieces), dtype=np.int64)
        unusual = [i for i, piece in enumerate(pieces) if looks_like_control(piece)]
        kinds[unusual] = TokenType.CONTROL
    types: dict[int, TokenType] = {}
    for token_id in sorted({*unusual, *(i for i in named if i is not None)}):
        try:
            kind = TokenType(int(kinds[token_id]))
        except ValueError as error:
            raise TokenizerError(f"token {token_id} has the type {kinds[token_id]}; expected 1 to 6") from error
        kind = token_type(kind, pieces[token_id], named=token_id in named)
        if kind is TokenType.UNUSED and is_padding_name(pieces[token_id], token_id):
            pieces[token_id] = ""
        if kind is TokenType.BYTE and byte_value(pieces[token_id]) is None:
            raise TokenizerError(f"token {token_id} is {pieces[token_id]!r}; a byte token is written like <0x0A>")
        if kind is not TokenType.NORMAL:
            types[token_id] = kind
    return Vocabulary(pieces, types, byte_level)


def _unknown(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> int | None:
    key = "tokenizer.ggml.unknown_token_id"
    stated = checked_id(metadata.get(key), len(vocabulary.pieces), key)
    if stated is not None:
        return stated
    return next((i for i, kind in vocabulary.types.items() if kind is TokenType.UNKNOWN), None)


def _add_bos(metadata: Mapping[str, Any], common: Mapping[str, Any], *, default: bool) -> bool:
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default)) and common["bos_id"] is not None


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A new list of the strings under ``key``; bytes are read as UTF-8."""
    values = metadata.get(key)
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
        raise TokenizerError(f"the GGUF file has no list of strings named {key}; get a complete file")
    if set(map(type, values)) <= {str}:
        return list(values)
    if not all(isinstance(value, str | bytes) for value in values):
        raise TokenizerError(f"{key} holds something else than strings; get the GGUF file again")
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def _numbers(metadata: Mapping[str, Any], key: str, count: int, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """The numbers under ``key``, one for each token."""
    try:
        values = np.asarray(metadata.get(key, ()), dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise TokenizerError(f"{key} holds something else than numbers; get the GGUF file again") from error
    if values.shape != (count,):
        raise TokenizerError(f"{key} has {values.size} entries; expected one for each of the {count} tokens")
    return values
