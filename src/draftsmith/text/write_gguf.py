"""A tokenizer as the ``tokenizer.*`` keys of a GGUF file: the way back from ``read_gguf``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from draftsmith.errors import TokenizerError
from draftsmith.text.parts import Parts
from draftsmith.text.pretokenizers import PRE_TOKENIZERS
from draftsmith.text.vocabulary import TokenType

__all__ = ["gguf_tokenizer"]

_ID_KEYS: Final = {"bos": "bos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def gguf_tokenizer(parts: Parts, num_tokens: int) -> dict[str, Any]:
    """The keys for a model whose embedding has ``num_tokens`` rows; rows beyond the vocabulary get padding names.

    Raises TokenizerError when GGUF cannot state this tokenizer: a unigram model, or words cut by rules without a name.
    """
    vocabulary = parts.vocabulary
    if parts.kind == "unigram":
        raise TokenizerError("a SentencePiece unigram tokenizer cannot be stored for llama models in GGUF; export hf")
    if vocabulary.size > num_tokens:
        raise TokenizerError(
            f"the tokenizer has {vocabulary.size} tokens, but the model only {num_tokens} rows for them; the folder is "
            "contradictory"
        )
    pieces = [*vocabulary.pieces[:num_tokens], *[""] * (num_tokens - len(vocabulary.pieces))]
    kinds = [vocabulary.type_of(token_id) for token_id in range(num_tokens)]
    for token_id, piece in enumerate(pieces):
        if not piece:
            pieces[token_id], kinds[token_id] = f"[PAD{token_id}]", TokenType.UNUSED
    keys: dict[str, Any] = {
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.add_bos_token": parts.add_bos,
        "tokenizer.ggml.add_eos_token": False,
    }
    if parts.kind == "byte-bpe":
        keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": _rules(parts)}
        keys["tokenizer.ggml.merges"] = [" ".join(pair) for pair in _merges(parts)]
        keys["tokenizer.ggml.add_space_prefix"] = parts.prefix.where != "never"
    else:
        keys |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        keys["tokenizer.ggml.scores"] = _scores(parts, pieces)
        keys["tokenizer.ggml.add_space_prefix"] = parts.prefix.where != "never"
    return keys | _special_ids(parts)


def _special_ids(parts: Parts) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, key in _ID_KEYS.items():
        token_id = getattr(parts, f"{name}_id")
        if token_id is not None:
            keys[f"tokenizer.ggml.{key}"] = token_id
    for key, token_id in zip(("eos", "eot"), parts.eos_ids, strict=False):  # what ends a text, what ends a turn
        keys[f"tokenizer.ggml.{key}_token_id"] = token_id
    if parts.chat_template:
        keys["tokenizer.chat_template"] = parts.chat_template
    return keys


def _merges(parts: Parts) -> Sequence[tuple[str, str]]:
    """The merges, most important first."""
    merges = json.loads(parts.encoder.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ", 1)) for pair in merges]


def _rules(parts: Parts) -> str:
    """The name under which GGUF knows how the words are cut. Raises TokenizerError."""
    root = json.loads(parts.encoder.to_str())
    ignore_merges = bool(root["model"].get("ignore_merges"))
    found = (_steps(root.get("normalizer")), _steps(root.get("pre_tokenizer")), ignore_merges)
    for name, rules in PRE_TOKENIZERS.items():
        settings = rules.settings()
        if name != "default" and found == (
            _steps(settings["normalizer"]),
            _steps(settings["pre_tokenizer"]),
            rules.ignore_merges,
        ):
            return name
    raise TokenizerError(
        "the tokenizer cuts words by rules for which GGUF has no name among "
        f"{', '.join(PRE_TOKENIZERS)}; export to a Hugging Face folder instead"
    )


def _steps(node: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences unfolded, without settings that change nothing."""
    if not isinstance(node, dict):
        return []
    if node.get("type") == "Sequence":
        inner = node.get("normalizers") or node.get("pretokenizers") or []
        return [step for part in inner for step in _steps(part)]
    return [{key: value for key, value in node.items() if key not in ("trim_offsets",)}]


def _scores(parts: Parts, pieces: Sequence[str]) -> list[float]:
    """A score for each token from which the same merges follow in the same order: what merges first scores best."""
    scores = [0.0] * len(pieces)
    ids = parts.vocabulary.ids
    rank = 0
    for left, right in _merges(parts):
        token_id = ids.get(left + right)
        if token_id is not None and scores[token_id] == 0.0:
            rank += 1
            scores[token_id] = float(-rank)
    return scores
