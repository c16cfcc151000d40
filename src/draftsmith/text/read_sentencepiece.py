"""Tokenizers from SentencePiece's tokenizer.model (``sentencepiece_model.proto`` of google/sentencepiece)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from draftsmith.errors import TokenizerError
from draftsmith.text.bpe import bpe_model, encoder_of, merges_from_scores, unigram_model
from draftsmith.text.hub_settings import HubSettings
from draftsmith.text.parts import Parts, TokenizerKind
from draftsmith.text.protobuf import Value, fields, signed, to_float
from draftsmith.text.splitting import PrefixRule
from draftsmith.text.vocabulary import WORD_BOUNDARY, TokenType, Vocabulary, byte_value, check_size

__all__ = ["read_sentencepiece"]

_UNIGRAM, _BPE = 1, 2
_MODEL_NAMES = {3: "word", 4: "character"}


@dataclass(slots=True)
class _Model:
    """The fields of the file that matter, with the defaults of its schema."""

    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: dict[int, TokenType] = field(default_factory=dict)
    model_type: int = _UNIGRAM
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    byte_fallback: bool = False
    whitespace_as_suffix: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True


def read_sentencepiece(data: bytes, config: Mapping[str, Any]) -> Parts:
    """Parts of the tokenizer in ``data``; ``config`` as Tokenizer.from_json describes it. Raises TokenizerError."""
    model = _parse(data)
    if model.model_type not in (_UNIGRAM, _BPE) or model.whitespace_as_suffix or not model.escape_whitespaces:
        what = _MODEL_NAMES.get(model.model_type, "whitespace-as-suffix")
        raise TokenizerError(f"the SentencePiece model is of the {what} kind; expected BPE or unigram")
    settings = HubSettings.of(config)
    additions = {a.token.token_id: a for a in settings.additions}
    check_size(max(len(model.pieces), 1 + max(additions, default=-1)))
    for token_id, addition in sorted(additions.items()):
        gap = token_id + 1 - len(model.pieces)
        model.pieces += [""] * gap
        model.scores += [0.0] * gap
        if model.types.get(token_id) is not TokenType.UNKNOWN:
            model.types[token_id] = settings.type_of(addition)
        model.pieces[token_id] = addition.token.text
    vocabulary = Vocabulary(model.pieces, model.types, byte_level=False)
    spaced = model.add_dummy_prefix if settings.add_prefix_space is None else settings.add_prefix_space
    kind: TokenizerKind = "sentencepiece-bpe" if model.model_type == _BPE else "unigram"
    return settings.parts(
        vocabulary,
        kind=kind,
        encoder=encoder_of(_built(model, vocabulary), _pipeline(model)),
        additions=additions,
        prefix=PrefixRule("every" if settings.legacy else "start", whole=True) if spaced else PrefixRule(),
        strips_leading_space=spaced,
        default_bos=_in_range(model.bos_id, model),
        default_eos=_in_range(model.eos_id, model),
        default_unk=_in_range(model.unk_id, model),
        default_add_bos=True,  # what transformers does for every Llama-like folder that says nothing
    )


def _built(model: _Model, vocabulary: Vocabulary) -> Any:
    unk_id = next((i for i, kind in model.types.items() if kind is TokenType.UNKNOWN), None)
    if model.model_type == _UNIGRAM:
        return unigram_model(vocabulary, model.scores, unk_id)
    return bpe_model(
        vocabulary,
        merges_from_scores(vocabulary, model.scores),
        unk=None if unk_id is None else vocabulary.pieces[unk_id],
        fuse_unk=True,
        byte_fallback=TokenType.BYTE in model.types.values(),
    )


def _pipeline(model: _Model) -> dict[str, Any]:
    """SentencePiece's normalisation: its character map, superfluous spaces, and spaces written as ``▁``."""
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        import base64

        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
        steps.append({"type": "Replace", "pattern": {"Regex": r" \z"}, "content": ""})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": WORD_BOUNDARY})
    return {"normalizer": {"type": "Sequence", "normalizers": steps}}


def _in_range(token_id: int, model: _Model) -> int | None:
    return token_id if 0 <= token_id < len(model.pieces) else None


def _parse(data: bytes) -> _Model:
    model = _Model()
    for number, value in fields(data):
        if number == 1:
            _add_piece(model, _message(value))
        elif number == 2:
            _read_trainer(model, _message(value))
        elif number == 3:
            _read_normalizer(model, _message(value))
    check_size(len(model.pieces))
    return model


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError("the SentencePiece model has a number where a message belongs; it is damaged")
    return value


def _add_piece(model: _Model, message: bytes) -> None:
    piece, score, kind = "", 0.0, TokenType.NORMAL
    for number, value in fields(message):
        if number == 1:
            try:
                piece = _message(value).decode()
            except UnicodeDecodeError as error:
                raise TokenizerError(f"piece {len(model.pieces)} of the SentencePiece model is no UTF-8") from error
        elif number == 2:
            score = to_float(value)
        elif number == 3:
            try:
                kind = TokenType(signed(value))
            except ValueError as error:
                raise TokenizerError(f"piece {len(model.pieces)} has the type {value!r}; expected 1 to 6") from error
    if math.isnan(score) or (kind is TokenType.BYTE and byte_value(piece) is None):
        raise TokenizerError(f"piece {len(model.pieces)} of the SentencePiece model ({piece[:20]!r}) is damaged")
    if kind is not TokenType.NORMAL:
        model.types[len(model.pieces)] = kind
    model.pieces.append(piece)
    model.scores.append(score)


def _read_trainer(model: _Model, message: bytes) -> None:
    for number, value in fields(message):
        if number == 3:
            model.model_type = signed(value)
        elif number == 24:
            model.whitespace_as_suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in (40, 41, 42):
            setattr(model, {40: "unk_id", 41: "bos_id", 42: "eos_id"}[number], signed(value))


def _read_normalizer(model: _Model, message: bytes) -> None:
    for number, value in fields(message):
        if number == 2:
            model.charsmap = _message(value)
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)
