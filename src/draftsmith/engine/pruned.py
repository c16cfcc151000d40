"""Drafts that know a part of their target's vocabulary: how they are loaded, and the one that draftsmith ships."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from draftsmith.checkpoint import Checkpoint, open_checkpoint
from draftsmith.checkpoint.aliases import ALIASES
from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.engine.options import EngineOptions
from draftsmith.errors import TokenizerError, UsageError
from draftsmith.model.protocol import Model
from draftsmith.speculate import ModelDrafter, PrunedModel
from draftsmith.text import Tokenizer

__all__ = ["EMBEDDED", "embedded_draft", "is_pruned", "open_pruned", "pruned_drafter", "shipped_drafts"]

EMBEDDED = "embedded"
_FOLDER = "drafts"  # of the package: a folder for each alias that a draft is shipped for
_FILE = "draft.gguf"


def embedded_draft(target_name: str, vocab_size: int, tokenizer: Tokenizer) -> Path | None:
    """The shipped draft for a target: made for the alias ``target_name``, or for a model with the same vocabulary."""
    for alias, path in shipped_drafts().items():
        if target_name == alias:
            return path
        opened = open_pruned(path)
        same_size = opened is not None and len(opened[1].rows) == vocab_size
        if opened is not None and same_size and opened[1].fingerprint == tokenizer.fingerprint():
            return path
    return None


def shipped_drafts() -> dict[str, Path]:
    """The files of the drafts in this package, by the alias of the target that each was made for."""
    found = {alias: resources.files("draftsmith").joinpath(_FOLDER, alias, _FILE) for alias in ALIASES}
    # The path is asked of the file, not of the package: an editable install spreads that over two folders.
    return {alias: Path(str(file)) for alias, file in found.items() if file.is_file()}


def pruned_drafter(
    reference: str | Path, target_name: str, target: Model, tokenizer: Tokenizer, options: EngineOptions
) -> tuple[ModelDrafter, Model, str] | None:
    """The drafter for a file with a pruned vocabulary, the model in it and its identity; None if it is no such file.

    ``reference`` may be ``embedded``. Raises TokenizerError when the draft was made for another vocabulary, UsageError
    when no draft is shipped for the target, and what opening it raises.
    """
    from draftsmith.model.native import NativeModel

    embedded = reference == EMBEDDED
    path = embedded_draft(target_name, target.vocab_size, tokenizer) if embedded else _local_file(reference)
    if path is None and embedded:
        raise UsageError(
            f"no draft for {target_name} is shipped with draftsmith; there is one for {', '.join(ALIASES)}, so choose "
            "another draft, for example lookup"
        )
    if path is None:
        return None
    opened = open_pruned(path)
    if opened is None:
        return None
    checkpoint, vocabulary = opened
    known = embedded and target_name in ALIASES  # the alias stands for a file with a known hash
    if not known and vocabulary.fingerprint != tokenizer.fingerprint():
        raise TokenizerError(
            f"the draft {reference} was made for another vocabulary than that of {target_name}; choose another draft"
        )
    context = options.max_context and min(options.max_context, checkpoint.config.max_context)
    model = NativeModel.load(checkpoint, max_context=context, threads=options.threads)
    pruned = PrunedModel(model, vocabulary)
    drafter = ModelDrafter(pruned, target_vocab_size=target.vocab_size, name=str(reference))
    return drafter, pruned, checkpoint.fingerprint


def open_pruned(path: Path) -> tuple[Checkpoint, DraftVocabulary] | None:
    """A file with a pruned vocabulary; None if it is another. Raises CheckpointError."""
    checkpoint = open_checkpoint(path)
    vocabulary = DraftVocabulary.of(checkpoint.metadata, checkpoint.config.vocab_size, path)
    return None if vocabulary is None else (checkpoint, vocabulary)


def is_pruned(reference: str | Path) -> bool:
    """Whether a reference is ``embedded``, or a file with a pruned vocabulary: models that can do nothing but draft."""
    path = None if reference == EMBEDDED else _local_file(reference)
    return reference == EMBEDDED or (path is not None and open_pruned(path) is not None)


def _local_file(reference: str | Path) -> Path | None:
    """The GGUF file that a reference names, if it is here already: other drafts are not looked at."""
    if isinstance(reference, str) and not reference.endswith(".gguf"):
        return None
    path = Path(reference).expanduser()
    return path if path.is_file() else None
