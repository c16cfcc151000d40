"""From a reference to a model that is ready to run, and from a word to a drafter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from draftsmith.checkpoint import Checkpoint, open_checkpoint
from draftsmith.engine.memory import check_memory
from draftsmith.engine.options import EngineOptions, Progress, no_progress
from draftsmith.model.protocol import Model
from draftsmith.speculate import Drafter, ModelDrafter, PromptLookupDrafter, check_same_vocabulary
from draftsmith.text import Tokenizer

__all__ = ["DraftChoice", "LoadedDrafter", "LoadedModel", "load_drafter", "load_model"]

# What a weight takes in memory, block scales included.
_BITS_PER_WEIGHT = {"4bit": 5.0, "8bit": 9.0, "float32": 32.0, "bfloat16": 16.0, "float16": 16.0}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer. ``name`` is what it was asked for by, for messages and status lines."""

    name: str
    model: Model
    tokenizer: Tokenizer


DraftChoice = str | Path | LoadedModel | Drafter | None
"""What a drafter can be chosen by; see ``load_drafter``."""


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter, and the model behind it if there is one, so that its steps can be timed."""

    drafter: Drafter
    model: Model | None = None


def load_model(ref: str | Path, options: EngineOptions, progress: Progress = no_progress) -> LoadedModel:
    """Find, fetch if need be, and load the model ``ref`` (a path, hub id or alias).

    Raises HubError, CheckpointError, TokenizerError, OutOfMemory, UsageError; each says what to do.
    """
    from draftsmith.checkpoint.reference import resolve
    from draftsmith.model.native import NativeModel

    name = str(ref)
    resolved = resolve(name, progress=lambda done, total: progress(f"Downloading {name}", done, total))
    checkpoint = open_checkpoint(resolved.path)
    check_memory(_weight_bytes(checkpoint, options), f"loading {name}")
    model = NativeModel.load(
        checkpoint,
        quantize=options.quantize,
        dtype=options.dtype,
        max_context=options.max_context,
        threads=options.threads,
        progress=lambda done, total: progress(f"Loading {name}", done, total),
    )
    return LoadedModel(name, model, checkpoint.tokenizer())


def load_drafter(
    draft: DraftChoice, target: LoadedModel, options: EngineOptions, progress: Progress = no_progress
) -> LoadedDrafter | None:
    """The drafter for ``draft``: None or ``"none"``, ``"auto"`` (prompt lookup), ``"lookup"``, or a model's reference.

    Raises TokenizerError when a draft model has another vocabulary than the target, and what ``load_model`` raises.
    """
    if draft is None or draft == "none":
        return None
    if draft in ("auto", "lookup"):
        return LoadedDrafter(PromptLookupDrafter())
    if not isinstance(draft, str | Path | LoadedModel):
        return LoadedDrafter(draft)
    loaded = draft if isinstance(draft, LoadedModel) else load_model(draft, options, progress)
    check_same_vocabulary(target.tokenizer.fingerprint(), loaded.tokenizer.fingerprint(), target.name, loaded.name)
    drafter = ModelDrafter(loaded.model, target_vocab_size=target.model.vocab_size, name=loaded.name)
    return LoadedDrafter(drafter, loaded.model)


def _weight_bytes(checkpoint: Checkpoint, options: EngineOptions) -> int:
    """About how much memory the weights will take. Blocks that a file already has are never made larger."""
    wanted = _BITS_PER_WEIGHT.get(options.quantize or options.dtype)
    total = 0.0
    for tensor in checkpoint.tensors.values():
        stored = tensor.block_type.bits_per_weight
        bits = stored if wanted is None else min(wanted, stored) if tensor.block_type.is_quantized else wanted
        total += tensor.num_bytes * bits / stored
    return int(total)
