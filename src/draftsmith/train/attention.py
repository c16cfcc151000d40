"""Attention over documents that lie end to end: each sees itself alone.

Registered with ``transformers`` under a name of our own, for which it builds no mask: at 32,768 tokens a mask would
take a gigabyte. Every document is one causal call of PyTorch's scaled_dot_product_attention, so what is computed for
it does not depend on its neighbours, and on a GPU the flash kernel runs.

Shape legend: H heads, K key/value heads, T tokens of all documents, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

__all__ = ["NAME", "document_attention"]

NAME = "draftsmith_documents"


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    document_lengths: Sequence[int] | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, T, D], key and value [1, K, T, D] to [1, T, H, D]; the lengths sum to T (None: one document)."""
    del module, attention_mask, rest
    lengths = [query.shape[2]] if document_lengths is None else list(document_lengths)
    parts = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window(q, sliding_window),
            dropout_p=dropout,
            is_causal=_window(q, sliding_window) is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for q, k, v in zip(*(torch.split(whole, lengths, dim=2) for whole in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _window(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """bool [t, t], True where a token sees another; None where plain causal attention says the same."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(NAME, document_attention)
