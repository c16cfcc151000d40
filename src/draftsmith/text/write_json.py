"""A tokenizer in the form of the ``tokenizers`` library, for other programs to read the same ids from."""

from __future__ import annotations

import json
from typing import Any

from draftsmith.text.parts import Parts
from draftsmith.text.vocabulary import TokenType

__all__ = ["older_merges", "tokenizer_json"]


def tokenizer_json(parts: Parts) -> dict[str, Any]:
    """The content of a tokenizer.json. The parts must be of a BPE kind, with no prefix rule but SentencePiece's."""
    root: dict[str, Any] = json.loads(parts.encoder.to_str())
    vocabulary = parts.vocabulary
    root["added_tokens"] = [
        {
            "id": token_id,
            "content": vocabulary.pieces[token_id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": vocabulary.is_special(token_id),
        }
        for token_id, kind in sorted(vocabulary.types.items())
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and vocabulary.pieces[token_id]
    ]
    # The library gives an added token the id that the model's vocabulary has for it, whatever number stands beside it.
    placed = {token["id"]: token["content"] for token in root["added_tokens"]}
    ordinary = {piece: i for piece, i in root["model"]["vocab"].items() if i not in placed}
    root["model"]["vocab"] = ordinary | {content: token_id for token_id, content in placed.items()}
    older_merges(root)
    if parts.kind == "byte-bpe":
        root["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    else:
        _spell_spaces(root, strip=parts.strips_leading_space)
        for token_id, kind in vocabulary.types.items():  # bytes are ordinary entries there
            if kind is TokenType.BYTE:
                root["model"]["vocab"].setdefault(vocabulary.pieces[token_id], token_id)
    if parts.add_bos and parts.bos_id is not None:
        begin = vocabulary.pieces[parts.bos_id]
        first = {"SpecialToken": {"id": begin, "type_id": 0}}
        root["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": [parts.bos_id], "tokens": [begin]}},
        }
    return root


def older_merges(root: dict[str, Any]) -> None:
    """Write the merges as ``"a b"`` where they are ``["a", "b"]``: readers from before tokenizers 0.20 know no other
    form, and new ones read it too. Left alone when a piece holds a space, which the old form cannot say."""
    merges = root["model"].get("merges") or []
    if all(isinstance(pair, list) and not any(" " in piece for piece in pair) for pair in merges):
        root["model"]["merges"] = [" ".join(pair) for pair in merges]


def _spell_spaces(root: dict[str, Any], *, strip: bool) -> None:
    """SentencePiece's way with spaces: one before the text, all written as ▁."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    stated = root.get("normalizer") or {}
    steps = [step for step in stated.get("normalizers", [stated]) if step and step != spaces]
    before = [{"type": "Prepend", "prepend": "▁"}] if strip else []
    root["normalizer"] = {"type": "Sequence", "normalizers": [*steps, *before, spaces]}
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if strip else []
    root["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *after,
        ],
    }
