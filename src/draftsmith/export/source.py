"""Where an export comes from and where it goes: checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint import Checkpoint, open_checkpoint, resolve
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.errors import CheckpointError, UsageError
from draftsmith.export.weights import WeightSet, weights_of
from draftsmith.text import Tokenizer

__all__ = ["RECORD", "Source", "check_destination", "opened"]

RECORD: Final = "export.json"
_PACKED: Final = "draftsmith.draft."  # keys of files that hold only some rows of a vocabulary
_KEPT_IDS: Final = "draft_vocabulary.safetensors"  # see train.vocabulary, which writes it


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An opened model. ``weights`` have every row that other engines need; ``notes`` say what that changed."""

    reference: str
    revision: str | None
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    weights: WeightSet
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name for people: the last part of the reference, without suffix or revision."""
        last = self.reference.split(":")[0].split("@")[0].rstrip("/").rsplit("/", 1)[-1]
        return last.removesuffix(".gguf") or "model"

    def with_weights(self, weights: WeightSet) -> Source:
        """The same with other weights."""
        return replace(self, weights=weights)

    def origin(self) -> dict[str, Any]:
        """For the record: what it was asked for by, and the hash of its weights (they are read in full)."""
        return {"reference": self.reference, "revision": self.revision, "sha256": self.checkpoint.sha256()}


@contextmanager
def opened(reference: str, progress: Progress = no_progress) -> Iterator[Source]:
    """The model of a reference (path, hub id, alias), fetched if need be.

    The output layer of a draft with a pruned vocabulary is completed: no other engine knows such drafts.
    Raises HubError, CheckpointError, TokenizerError, UsageError.
    """
    resolved = resolve(reference, progress=progress)
    with open_checkpoint(resolved.path) as checkpoint:
        if any(key.startswith(_PACKED) for key in checkpoint.metadata):
            raise UsageError(
                f"{reference} is a draft packed for draftsmith, without the target's other tokens; export the folder "
                "that it was packed from"
            )
        weights, notes = weights_of(checkpoint), []
        kept = _kept_ids(resolved.path, checkpoint.config.vocab_size) if checkpoint.kind == "folder" else None
        if kept is not None:
            weights = weights.with_full_head(kept)
            notes.append(
                f"{reference} writes {kept.size} of {checkpoint.config.vocab_size} tokens only; its output layer was "
                "completed with rows that a greedy draft never picks"
            )
        yield Source(reference, resolved.revision, checkpoint, checkpoint.tokenizer(), weights, tuple(notes))


def check_destination(out: Path, source: Path | None, *, force: bool, folder: bool) -> None:
    """Raises UsageError when ``out`` is there already and ``force`` is not given, or is not what it may replace.

    A folder is replaced only if it is an export, or empty: a slip of the hand must not remove anything else.
    """
    if source is not None and out.exists() and out.resolve() == source.resolve():
        raise UsageError(f"{out} is the model itself; give another name for the result")
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UsageError(f"there is a {out} already; give another name, or --force to replace it")
    if folder != out.is_dir():
        kind = "file" if folder else "folder"
        raise UsageError(f"{out} is a {kind}, which --force does not replace; remove it first")
    if folder and not (out / RECORD).is_file() and any(out.iterdir()):
        raise UsageError(f"{out} was not made by draftsmith export (it has no {RECORD}); remove it yourself first")


def _kept_ids(folder: Path, size: int) -> npt.NDArray[np.int64] | None:
    """int64 [M]: the ids that a pruned draft may write; None for ordinary models. Raises CheckpointError."""
    path = folder / _KEPT_IDS
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        kept = np.unique(load_file(path)["token_ids"].astype(np.int64))
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the draft again") from None
    if not kept.size or kept[0] < 0 or kept[-1] >= size:
        raise CheckpointError(f"{path} must list ids from 0 to {size - 1}; make the draft again")
    return kept
