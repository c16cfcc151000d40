"""A trained draft as one small GGUF file, only the rows of the ids that it writes, in 4 or 8 bits; and back again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftsmith.checkpoint import Checkpoint, ModelConfig, RopeConfig, Tensor, open_checkpoint, resolve
from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT, expected_tensors
from draftsmith.checkpoint.rope import rope_frequencies
from draftsmith.engine.pruned import EMBEDDED, embedded_draft, open_pruned, shipped_drafts
from draftsmith.errors import TokenizerError, UsageError
from draftsmith.quant import BlockType, quantize
from draftsmith.text import Tokenizer
from draftsmith.train.models import Learner, decoded, load_weights, new_model
from draftsmith.train.schema import InitStage, PackStage
from draftsmith.train.vocabulary import nearest_rows

__all__ = ["DRAFT_FILE", "pack_draft", "unpack_draft"]

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


def unpack_draft(stage: InitStage, reference: str, parent: str) -> tuple[Learner, dict[str, Any]]:
    """The draft of a packed file as a model with all rows, and what is to be recorded; see ``InitStage.packed``.

    Ids that it does not know have the row that read them. ``parent``: the reference of the model with the tokenizer,
    whose weights are not read. Raises UsageError, TokenizerError, CheckpointError, HubError.
    """
    resolved = resolve(parent)
    target = open_checkpoint(resolved.path)
    tokenizer = target.tokenizer()
    path = _packed_file(stage, reference, parent, target, tokenizer)
    opened = open_pruned(path)
    if opened is None:
        raise UsageError(f"stage.{stage.name}.packed is {path}, which no pack stage wrote; give it as model instead")
    checkpoint, vocabulary = opened
    if vocabulary.fingerprint != tokenizer.fingerprint():
        raise TokenizerError(
            f"stage.{stage.name}.packed is {path}, which was made for another vocabulary than that of {parent}; give "
            "the model it was made for, or one that was tuned from it"
        )
    rows = torch.from_numpy(vocabulary.rows)
    config = replace(checkpoint.config, vocab_size=len(rows), rope=_stated_rope(checkpoint.config, target.config))
    tensors = decoded(checkpoint)
    tensors |= {name: tensors[name][rows] for name in (EMBEDDING, OUTPUT) if name in tensors}
    model = new_model(config, stage.seed)
    load_weights(model, config, tensors)
    origin = {"reference": parent, "revision": resolved.revision, "sha256": target.sha256()}
    learner = Learner(model, config, tokenizer, target, origin, torch.from_numpy(vocabulary.token_ids))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return learner, {"packed": {"reference": reference, "sha256": checkpoint.sha256()}, "parameters": parameters}


def _packed_file(stage: InitStage, reference: str, parent: str, target: Checkpoint, tokenizer: Tokenizer) -> Path:
    if reference != EMBEDDED:
        path = Path(reference).expanduser()
        return path / DRAFT_FILE if (path / DRAFT_FILE).is_file() else path
    shipped = embedded_draft(parent, target.config.vocab_size, tokenizer)
    if shipped is None:
        raise UsageError(
            f"stage.{stage.name}.packed is {EMBEDDED}, but no draft is shipped for the vocabulary of {parent}; "
            f"there is one for {', '.join(shipped_drafts())}, or give a file that a pack stage wrote"
        )
    return shipped


def _stated_rope(draft: ModelConfig, target: ModelConfig) -> RopeConfig:
    """The target's RoPE where it says the same as the draft's: files state factors one by one that folders name."""
    if draft.head_dim != target.head_dim or not draft.rope.frequency_factors:
        return draft.rope
    ours, theirs = (rope_frequencies(rope, draft.head_dim)[0] for rope in (draft.rope, target.rope))
    return target.rope if np.allclose(ours, theirs, rtol=1e-6, atol=0) else draft.rope  # float32 in the file
