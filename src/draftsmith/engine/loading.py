"""From a reference to a model that is ready to run, and from a word to a drafter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from draftsmith.checkpoint import Checkpoint, open_checkpoint
from draftsmith.engine.backend import choose_backend, gpu_is_there, require_torch
from draftsmith.engine.options import EngineOptions, Progress, no_progress
from draftsmith.engine.pruned import EMBEDDED, embedded_draft, pruned_drafter
from draftsmith.errors import UsageError
from draftsmith.model.memory import check_memory
from draftsmith.model.protocol import Model
from draftsmith.speculate import (
    Drafter,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    PrunedModel,
    SuffixDrafter,
    TranslatedDrafter,
    compare_vocabularies,
)
from draftsmith.text import Tokenizer

__all__ = ["DraftChoice", "LoadedDrafter", "LoadedModel", "known_drafters", "load_drafter", "load_model"]

# What a weight takes in memory, block scales included.
_BITS_PER_WEIGHT = {"4bit": 5.0, "8bit": 9.0, "float32": 32.0, "bfloat16": 16.0, "float16": 16.0}


_FREE_IN_A_MIX: Mapping[str, Callable[[], Drafter]] = MappingProxyType(
    {"lookup": PromptLookupDrafter, "suffix": SuffixDrafter}
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer. ``name`` is what it was asked for by, for messages and status lines.

    ``identity``: the same for the same weights, stored the same way; None where there is no telling.
    """

    name: str
    model: Model
    tokenizer: Tokenizer
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class LoadedDrafter:
    """A drafter, and the model behind it if there is one, so that its steps can be timed.

    ``note``: what the user should know of how the draft model is used, in one sentence, if anything. ``identity``: the
    model's, "" without one.
    """

    drafter: Drafter
    model: Model | None = None
    note: str | None = None
    identity: str | None = ""


DraftChoice = str | Path | LoadedModel | Drafter | LoadedDrafter | None
"""What a drafter can be chosen by; see ``load_drafter``."""


def load_model(ref: str | Path, options: EngineOptions, progress: Progress = no_progress) -> LoadedModel:
    """Find, fetch if need be, and load the model ``ref`` (a path, hub id or alias).

    Raises HubError, CheckpointError, TokenizerError, OutOfMemory, UsageError; each says what to do.
    """
    from draftsmith.checkpoint.reference import resolve

    name = str(ref)
    resolved = resolve(name, progress=lambda done, total: progress(f"Downloading {name}", done, total))
    if choose_backend(resolved.path, options, gpu_is_there) == "torch":
        return _load_torch(resolved.path, name, options, progress)
    return _load_native(resolved.path, name, options, progress)


def _load_torch(path: Path, name: str, options: EngineOptions, progress: Progress) -> LoadedModel:
    require_torch(name)
    if options.kv_dtype != "auto":
        raise UsageError(
            f"kv_dtype is {options.kv_dtype} and {name} runs on torch, which chooses it; use kv_dtype auto"
        )
    from draftsmith.model.torch_backend import TorchOptions, load_torch_model

    progress(f"Loading {name}", 0, 0)
    wanted = TorchOptions(
        dtype=options.dtype,
        quantize=options.quantize,
        device=options.device,
        max_context=options.max_context,
        threads=options.threads,
        exact=options.exact,
    )
    model = load_torch_model(path, name, wanted)
    return LoadedModel(name, model, Tokenizer.from_folder(path) if path.is_dir() else open_checkpoint(path).tokenizer())


def _load_native(path: Path, name: str, options: EngineOptions, progress: Progress) -> LoadedModel:
    from draftsmith.model.native import NativeModel

    checkpoint = open_checkpoint(path)
    check_memory(_weight_bytes(checkpoint, options), f"loading {name}")
    model = NativeModel.load(
        checkpoint,
        quantize=options.quantize,
        dtype=options.dtype,
        max_context=options.max_context,
        threads=options.threads,
        cache_dtype=options.kv_dtype,
        progress=lambda done, total: progress(f"Loading {name}", done, total),
    )
    identity = f"{checkpoint.fingerprint} {options.quantize} {options.dtype} {options.kv_dtype}"
    return LoadedModel(name, model, checkpoint.tokenizer(), identity)


def load_drafter(
    draft: DraftChoice, target: LoadedModel, options: EngineOptions, progress: Progress = no_progress
) -> LoadedDrafter | None:
    """The drafter for ``draft``: None or ``"none"``, ``"lookup"``, ``"suffix"``, ``"embedded"`` (the draft that is
    shipped for the target), a model's reference, or a mix, ``"MODEL+lookup"`` or ``"MODEL+suffix"``; ``"auto"`` is
    ``"embedded+lookup"`` where there is such a draft, else ``"lookup"``. What is loaded already is taken as it is.

    Raises what ``load_model`` raises.
    """
    if draft is None or draft == "none":
        return None
    if draft == "auto":
        draft = known_drafters(target)[0]
    if draft == "lookup":
        return LoadedDrafter(PromptLookupDrafter())
    if draft == "suffix":
        return LoadedDrafter(SuffixDrafter())
    if isinstance(draft, str):
        model_ref, plus, free = draft.rpartition("+")
        if plus and model_ref and free in _FREE_IN_A_MIX:
            loaded = _referenced(model_ref, target, options, progress)
            watched = not isinstance(loaded.model, PrunedModel)  # as small as these are, a call costs too much
            return replace(loaded, drafter=MixedDrafter(_FREE_IN_A_MIX[free](), loaded.drafter, watched=watched))
    if isinstance(draft, str | Path):
        return _referenced(draft, target, options, progress)
    if isinstance(draft, LoadedModel):
        return _model_drafter(draft, target)
    return draft if isinstance(draft, LoadedDrafter) else LoadedDrafter(draft)


def known_drafters(target: LoadedModel) -> list[str]:
    """What can draft for ``target`` without another file, as in ``--draft``; ``auto`` takes the first."""
    shipped = embedded_draft(target.name, target.model.vocab_size, target.tokenizer)
    return ["lookup", "suffix"] if shipped is None else [f"{EMBEDDED}+lookup", EMBEDDED, "lookup", "suffix"]


def _referenced(ref: str | Path, target: LoadedModel, options: EngineOptions, progress: Progress) -> LoadedDrafter:
    """The drafter with the model ``ref``, whose vocabulary may be a part of the target's."""
    pruned = pruned_drafter(ref, target.name, target.model, target.tokenizer, options)
    if pruned is None:
        return _model_drafter(load_model(ref, options.for_draft(), progress), target)
    drafter, model, identity = pruned
    return LoadedDrafter(drafter, model, identity=identity)


def _model_drafter(draft: LoadedModel, target: LoadedModel) -> LoadedDrafter:
    """Any model can draft: where its vocabulary is not the target's, the text is translated."""
    width = target.model.vocab_size
    if target.tokenizer.fingerprint() != draft.tokenizer.fingerprint():
        vocabularies = compare_vocabularies(target.tokenizer, draft.tokenizer)
        if vocabularies.method(sampled=True) != "ids":
            translated = TranslatedDrafter(
                draft.model,
                vocabularies,
                target_vocab_size=width,
                max_context=target.model.max_context,
                name=draft.name,
            )
            note = f"the draft {draft.name}: {vocabularies.describe()}"
            return LoadedDrafter(translated, draft.model, note, draft.identity)
    drafter = ModelDrafter(draft.model, target_vocab_size=width, name=draft.name)
    return LoadedDrafter(drafter, draft.model, identity=draft.identity)


def _weight_bytes(checkpoint: Checkpoint, options: EngineOptions) -> int:
    """About how much memory the weights will take. Blocks that a file already has are never made larger."""
    wanted = _BITS_PER_WEIGHT.get(options.quantize or options.dtype)
    total = 0.0
    for tensor in checkpoint.tensors.values():
        stored = tensor.block_type.bits_per_weight
        bits = stored if wanted is None else min(wanted, stored) if tensor.block_type.is_quantized else wanted
        total += tensor.num_bytes * bits / stored
    return int(total)
