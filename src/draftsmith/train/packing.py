"""Which documents share a micro-batch, and the micro-batch itself: documents end to end, with no padding.

Nothing leaks from one document into the next: attention runs document by document (``attention``), positions begin
again at 0 with each, and no token predicts the first of the next document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from draftsmith.train.store import TokenStore

__all__ = ["Bins", "PackedBatch", "pack", "plan_bins", "spread"]

OPEN_BINS = 64  # bins that wait for a document that fits; more would pack better and mix less

Bins = tuple[tuple[int, ...], ...]
"""For each micro-batch, the numbers of its groups of documents."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """T tokens of several documents, N of them to predict. All arrays are int64 unless said otherwise.

    ``ids`` [T]; ``positions`` [T], from 0 in each document; ``lengths``: of the documents, in order. ``at`` [N]: the
    places whose logits predict; ``labels`` [N]: what comes next there; ``document`` [N]: in which document.
    ``top_ids`` [N, k] and ``top_logprobs`` float32 [N, k]: the target's, or None.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    lengths: tuple[int, ...]
    at: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    document: npt.NDArray[np.int64]
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None


def plan_bins(lengths: npt.NDArray[np.int64], capacity: int, seed: int, epoch: int) -> Bins:
    """Groups in an order drawn from (seed, epoch), each put into the first of the open bins that has room for it.

    ``lengths`` [groups], each at most ``capacity``. The same arguments give the same bins, so a position in the data
    is (epoch, bin).
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(lengths.size)
    closed: list[tuple[int, ...]] = []
    bins: list[list[int]] = []
    room: list[int] = []
    for group in order.tolist():
        length = int(lengths[group])
        place = next((i for i, free in enumerate(room) if free >= length), None)
        if place is None:
            if len(bins) == OPEN_BINS:
                fullest = room.index(min(room))
                closed.append(tuple(bins.pop(fullest)))
                room.pop(fullest)
            bins.append([])
            room.append(capacity)
            place = len(bins) - 1
        bins[place].append(group)
        room[place] -= length
    return (*closed, *map(tuple, bins))


def pack(store: TokenStore, groups: Sequence[int]) -> PackedBatch:
    """The documents of ``groups``, end to end."""
    documents = [store.document(group * store.group + member) for group in groups for member in range(store.group)]
    lengths = [document.ids.size for document in documents]
    starts = np.cumsum([0, *lengths[:-1]])
    learnt = [np.flatnonzero(document.mask) for document in documents]
    ids = np.concatenate([document.ids for document in documents]).astype(np.int64)
    at = np.concatenate([start + places - 1 for start, places in zip(starts, learnt, strict=True)])
    tops: Any = None, None
    if store.top_k:
        tops = (
            np.concatenate([document.top_ids for document in documents if document.top_ids is not None]),
            np.concatenate([document.top_logprobs for document in documents if document.top_logprobs is not None]),
        )
    return PackedBatch(
        ids=ids,
        positions=np.concatenate([np.arange(length) for length in lengths]),
        lengths=tuple(lengths),
        at=at,
        labels=ids[at + 1],
        document=np.repeat(np.arange(len(documents)), [places.size for places in learnt]),
        top_ids=None if tops[0] is None else tops[0].astype(np.int64),
        top_logprobs=None if tops[1] is None else tops[1].astype(np.float32),
    )


def spread(batch: PackedBatch, context: int, seed: Sequence[int]) -> PackedBatch:
    """The batch with the positions of each document in two runs: the first from 0, the second further on.

    Where the second begins and how far on it is moved is drawn from ``seed``, evenly over all that keeps positions
    below ``context``. So documents of 2,048 tokens hold distances of up to 32,767 (PoSE, arXiv:2309.10400).
    """
    rng = np.random.Generator(np.random.PCG64(list(seed)))
    parts = []
    for length in batch.lengths:
        positions = np.arange(length)
        if 1 < length < context:
            positions[int(rng.integers(1, length)) :] += int(rng.integers(0, context - length + 1))
        parts.append(positions)
    return replace(batch, positions=np.concatenate(parts))
