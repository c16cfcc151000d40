"""Tokenizers of a few hand-picked pieces, for texts that fit on a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftsmith.text import Tokenizer

__all__ = ["letters"]


def letters(tokens: Sequence[str], merges: Sequence[str] = (), control: Sequence[str] = ()) -> Tokenizer:
    """Ids in the order given, ``control`` tokens last; the first of these ends a text. A space is written ``Ġ``."""
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *control],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(control),
        "tokenizer.ggml.merges": list(merges),
    }
    if control:
        metadata["tokenizer.ggml.eos_token_id"] = len(tokens)
    return Tokenizer.from_gguf(metadata)
