"""From a Hugging Face folder's config and weights to a config that says what is really in the files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from draftsmith.checkpoint.config import ModelConfig
from draftsmith.checkpoint.experts import canonical_expert_name
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.checkpoint.tensor import Tensor

__all__ = ["settle_embeddings"]

# Frequencies that old versions of transformers saved; they follow from the config.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def settle_embeddings(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Decide, as ``transformers`` 5 does, whether the output layer is the embedding matrix; drop derived tensors.

    If the config says so: when both are in the files, they are one only if they are equal; when one is missing, the
    other stands for both. If the config does not say so, nothing changes (a missing one is found missing later).
    """
    named = ((canonical_expert_name(name), tensor) for name, tensor in tensors.items())
    kept = {name: replace(tensor, name=name) for name, tensor in named if not _DERIVED.fullmatch(name)}
    if not config.tie_embeddings or OUTPUT not in kept:
        return config, kept
    output = kept[OUTPUT]
    if EMBEDDING not in kept:
        kept[EMBEDDING] = replace(kept.pop(OUTPUT), name=EMBEDDING)
        return config, kept
    embedding = kept[EMBEDDING]
    same_kind = (output.block_type, output.shape) == (embedding.block_type, embedding.shape)
    if same_kind and np.array_equal(output.stored, embedding.stored):
        del kept[OUTPUT]
        return config, kept
    return replace(config, tie_embeddings=False), kept
