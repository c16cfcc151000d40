"""A trained draft as one small GGUF file: only the rows of the ids that it writes, in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftsmith.checkpoint import Tensor
from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT, expected_tensors
from draftsmith.errors import UsageError
from draftsmith.quant import BlockType, quantize
from draftsmith.train.models import Learner
from draftsmith.train.schema import PackStage
from draftsmith.train.vocabulary import nearest_rows

__all__ = ["DRAFT_FILE", "pack_draft"]

DRAFT_FILE = "draft.gguf"


def pack_draft(stage: PackStage, learner: Learner, folder: Path) -> dict[str, Any]:
    """Write ``draft.gguf`` into ``folder``; what is to be recorded of it. Raises UsageError, DiskFull."""
    kept = learner.kept_ids
    if kept is None:
        raise UsageError(f"stage.{stage.name}: the model has its whole vocabulary; use draftsmith quantize for it")
    embedding = learner.model.get_input_embeddings().weight.detach()
    rows = nearest_rows(embedding, kept)
    vocabulary = DraftVocabulary(kept.numpy(), rows.numpy(), learner.tokenizer.fingerprint())
    config = replace(learner.config, vocab_size=len(kept))
    tensors = {tensor.name: tensor for tensor in _tensors(stage, learner, kept)}
    ordered = {name: tensors[name] for name in expected_tensors(config)}
    path = folder / DRAFT_FILE
    write_gguf_model(path, config, ordered, {"general.name": stage.title or stage.name, **vocabulary.metadata()})
    parameters = sum(int(np.prod(tensor.shape)) for tensor in ordered.values())
    return {"parameters": parameters, "bytes": path.stat().st_size}


def _tensors(stage: PackStage, learner: Learner, kept: torch.Tensor) -> Iterator[Tensor]:
    for name, tensor in learner.model.state_dict().items():
        if name == OUTPUT and learner.config.tie_embeddings:
            continue
        by_id = name in (EMBEDDING, OUTPUT)
        values = (tensor.detach()[kept] if by_id else tensor.detach()).float().contiguous().numpy()
        blocks = BlockType.F32 if values.ndim == 1 else BlockType[stage.vocabulary_blocks if by_id else stage.blocks]
        yield Tensor(name, blocks, values.shape, quantize(blocks, values))
