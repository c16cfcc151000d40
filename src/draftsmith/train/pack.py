"""A trained draft as one small GGUF file, only the rows of the ids that it writes, in 4 or 8 bits; and back again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftsmith.checkpoint import Tensor, open_checkpoint
from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT, expected_tensors
from draftsmith.engine.pruned import EMBEDDED, embedded_draft
from draftsmith.errors import TokenizerError, UsageError
from draftsmith.quant import BlockType, quantize
from draftsmith.train.models import Learner, new_model
from draftsmith.train.schema import InitStage, PackStage
from draftsmith.train.vocabulary import nearest_rows

__all__ = ["DRAFT_FILE", "pack_draft", "unpack_draft"]

DRAFT_FILE = "draft.gguf"
_OF_THE_PARENT = (
    "layers", "num_layers", "hidden_size", "intermediate_size", "from_scratch", "keep_vocabulary",
)  # fmt: skip


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


def unpack_draft(stage: InitStage, reference: str, parent: Learner) -> tuple[Learner, dict[str, Any]]:
    """The draft of a packed file as a model with all rows, and what is to be recorded; see ``InitStage.packed``.

    Ids that it does not know have the row that read them. Raises UsageError, TokenizerError, CheckpointError.
    """
    others = [name for name in _OF_THE_PARENT if getattr(stage, name) not in (None, False)]
    if others:
        raise UsageError(f"stage.{stage.name} has both packed and {others[0]}; give one of them")
    path: Path | None = Path(reference).expanduser()
    if reference == EMBEDDED:
        path = embedded_draft(stage.model or "", parent.config.vocab_size, parent.tokenizer)
    if path is None:
        raise UsageError(f"stage.{stage.name}.packed is {EMBEDDED}, but no draft is shipped for {stage.model}")
    checkpoint = open_checkpoint(path)
    vocabulary = DraftVocabulary.of(checkpoint.metadata, checkpoint.config.vocab_size, path)
    if vocabulary is None:
        raise UsageError(f"stage.{stage.name}.packed is {reference}, which has a whole vocabulary; give it as model")
    if vocabulary.fingerprint != parent.tokenizer.fingerprint():
        raise TokenizerError(f"stage.{stage.name}: {reference} was made for another vocabulary than {stage.model}'s")
    rows = torch.from_numpy(vocabulary.rows)
    config = replace(checkpoint.config, vocab_size=len(rows))
    tensors = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in checkpoint.tensors.items()}
    tensors |= {name: tensors[name][rows] for name in (EMBEDDING, OUTPUT) if name in tensors}
    if config.tie_embeddings:
        tensors[OUTPUT] = tensors[EMBEDDING]
    model = new_model(config, stage.seed)
    model.load_state_dict(tensors, strict=True)
    learner = replace(parent, model=model, config=config, kept_ids=torch.from_numpy(vocabulary.token_ids))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return learner, {"packed": {"reference": reference, "sha256": checkpoint.sha256()}, "parameters": parameters}
