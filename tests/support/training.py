"""Small stores and stages for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from draftsmith.train.encode import Document
from draftsmith.train.schema import DataSource, SftStage
from draftsmith.train.store import StoreWriter, TokenStore

__all__ = ["random_store", "sft_stage"]


def random_store(folder: Path, count: int, *, vocabulary: int = 256, group: int = 1, top_k: int = 0) -> TokenStore:
    """``count`` groups of documents of 5 to 30 random tokens; some are learnt, the last always."""
    rng = np.random.default_rng(3)
    with StoreWriter(folder, group) as writer:
        for _ in range(count * group):
            length = int(rng.integers(5, 30))
            mask = rng.random(length) < 0.6
            mask[0], mask[-1] = False, True
            top_ids = top_logprobs = None
            if top_k:
                scores = rng.standard_normal((int(mask.sum()), vocabulary)) * 2
                logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
                top_ids = np.argsort(-logprobs, -1)[:, :top_k].astype(np.uint32)
                top_logprobs = np.take_along_axis(logprobs, top_ids.astype(np.int64), -1).astype(np.float16)
            writer.add(Document(rng.integers(0, vocabulary, length).astype(np.uint32), mask, top_ids, top_logprobs))
        return writer.finish({})


def sft_stage(**changes: Any) -> SftStage:
    """Settings for a few quick steps."""
    values: dict[str, Any] = {
        "name": "sft",
        "kind": "sft",
        "data": (DataSource(path="unused"),),
        "batch_tokens": 64,
        "max_length": 64,
        "learning_rate": 1e-3,
        "steps": 8,
        "save_every": 4,
        "log_every": 100,
        "logits_chunk": 16,
    }
    return SftStage(**{**values, **changes})
