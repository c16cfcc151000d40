"""Drafts that may write only a part of the vocabulary: which ids, and the file that says so.

The model folder stays an ordinary one, with all rows of the output layer; ``draft_vocabulary.safetensors`` beside the
weights holds ``token_ids`` int32 [M], the ids that the draft was trained to write, most frequent first: entry i is the
id that row i of a pruned head stands for. An engine that knows the file computes those M rows only.

While such a draft learns, its embedding has these M rows too, and so has its output layer where the two are tied: what
text has of other ids is read with the row of the id whose embedding was nearest. The folder then has that row in the
place of theirs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.errors import CheckpointError, UsageError
from draftsmith.text import Tokenizer
from draftsmith.train.store import TokenStore

__all__ = [
    "VOCABULARY_FILE",
    "PrunedEmbedding",
    "most_frequent",
    "nearest_rows",
    "prune",
    "read_kept_ids",
    "restore",
    "write_kept_ids",
]

VOCABULARY_FILE = "draft_vocabulary.safetensors"
_AT_ONCE = 2048  # ids whose neighbours are looked for together


class PrunedEmbedding(torch.nn.Embedding):
    """An embedding of M rows that takes the ids of the whole vocabulary; ``rows`` int64 [V]: which row reads each."""

    rows: torch.Tensor

    def __init__(self, weight: torch.Tensor, rows: torch.Tensor) -> None:
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - PyTorch's name
        """[...] ids to [..., H]."""
        return super().forward(self.rows[input])


def prune(model: Any, kept_ids: torch.Tensor) -> None:
    """Leave a ``transformers`` model the rows of ``kept_ids`` [M] in its embedding and its output layer. It goes on to
    take all V ids, and ``model.config`` goes on to state V."""
    full = model.get_input_embeddings().weight.detach()
    embedding = PrunedEmbedding(full[kept_ids], nearest_rows(full, kept_ids))
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    model.set_input_embeddings(embedding)
    head.weight = embedding.weight if tied else torch.nn.Parameter(head.weight.detach()[kept_ids])
    head.out_features = len(kept_ids)


def restore(model: Any, kept_ids: torch.Tensor, untied_head: torch.Tensor | None) -> None:
    """Undo ``prune``: V rows again, those of other ids being the rows that read them. ``untied_head`` [V, H]: the
    output layer before, where it is not tied; the rows of other ids stay as they were there."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    full = torch.nn.Embedding(
        len(embedding.rows), embedding.embedding_dim, _weight=embedding.weight[embedding.rows].detach()
    )
    model.set_input_embeddings(full)
    if untied_head is None:
        head.weight = full.weight
    else:
        head.weight = torch.nn.Parameter(untied_head.index_copy(0, kept_ids, head.weight.detach()))
    head.out_features = len(full.weight)


def nearest_rows(embedding: torch.Tensor, kept_ids: torch.Tensor) -> torch.Tensor:
    """int64 [V]: for each row of ``embedding`` [V, H] the position in ``kept_ids`` of the most similar id, by cosine;
    for those ids themselves their own."""
    directions = torch.nn.functional.normalize(embedding.float(), dim=-1)
    kept = directions[kept_ids]
    rows = torch.cat([(part @ kept.T).argmax(-1) for part in torch.split(directions, _AT_ONCE)])
    rows[kept_ids] = torch.arange(len(kept_ids))
    return rows


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
