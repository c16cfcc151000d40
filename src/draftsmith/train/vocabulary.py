"""Drafts that may write only a part of the vocabulary: which ids, and the file that says so.

The model folder stays an ordinary one, with all rows of the output layer; ``draft_vocabulary.safetensors`` beside the
weights holds ``token_ids`` int32 [M], the ids that the draft was trained to write, most frequent first: entry i is the
id that row i of a pruned head stands for. An engine that knows the file computes those M rows only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.errors import CheckpointError, UsageError
from draftsmith.text import Tokenizer
from draftsmith.train.store import TokenStore

__all__ = ["VOCABULARY_FILE", "most_frequent", "read_kept_ids", "write_kept_ids"]

VOCABULARY_FILE = "draft_vocabulary.safetensors"


def most_frequent(store: TokenStore, tokenizer: Tokenizer, size: int, count: int) -> torch.Tensor:
    """int64 [count]: the ids learnt most often in ``store``, the tokens that end replies always among them; ties by
    their number. Raises UsageError when ``count`` is more than ``size``, the vocabulary's."""
    if count > size:
        raise UsageError(f"keep_vocabulary is {count}, but the model has {size} ids; give fewer")
    counts = np.zeros(size, np.int64)
    for number in range(store.lengths.size):
        document = store.document(number)
        counts += np.bincount(document.ids[document.mask], minlength=size)
    counts[list(tokenizer.eos_ids)] = counts.max() + 1
    order = np.lexsort((np.arange(size), -counts))
    return torch.from_numpy(order[:count].astype(np.int64))


def write_kept_ids(folder: Path, kept_ids: torch.Tensor) -> None:
    """Write the file into a model folder."""
    from safetensors.torch import save

    with atomic_file(folder / VOCABULARY_FILE) as file:
        file.write(save({"token_ids": kept_ids.to("cpu", torch.int32)}))


def read_kept_ids(folder: Path, size: int) -> torch.Tensor | None:
    """int64 [M], None when the folder has no such file. Raises CheckpointError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    try:
        kept = load_file(path)["token_ids"].to(torch.int64)
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); make the draft again") from None
    if (
        kept.ndim != 1
        or not kept.numel()
        or kept.min() < 0
        or kept.max() >= size
        or len(set(kept.tolist())) < len(kept)
    ):
        raise CheckpointError(f"{path} must list different ids from 0 to {size - 1}; make the draft again")
    return kept
