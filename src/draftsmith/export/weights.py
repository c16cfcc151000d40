"""A model's weights on their way from one file to another: read in rows, changed in size, encoded when written.

Shape legend: V rows of the embedding and output matrices, one for each token id; D hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint import Checkpoint, ModelConfig, Tensor
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.checkpoint.tensor import LazyTensor
from draftsmith.errors import CheckpointError, UsageError
from draftsmith.quant import BlockType, quantize
from draftsmith.quant.rounding import F16_MAX

__all__ = ["Weight", "WeightSet", "encoded", "weights_of"]

Floats = npt.NDArray[np.float32]

PART_VALUES: Final = 1 << 22  # decoded at a time: 16 MB of float32 for each thread


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A vector (n,) or matrix (rows, cols). ``read(start, stop)`` gives float32 [stop - start, cols] of its rows; a
    vector is one row. ``stored`` is the tensor it comes from, None when it is not the same any more."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    stored: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class WeightSet:
    """A config and the weights that it asks for, under their canonical names and in canonical order."""

    config: ModelConfig
    weights: Mapping[str, Weight]

    def with_vocabulary(self, rows: int, used: int) -> WeightSet:
        """The same model with ``rows`` token ids, of which the first ``used`` (or all that there are now) stay.

        A new row of the output layer is the mean of the rows that stay. So its logit is the mean of theirs, and that
        is never above the largest: no greedy draft picks it. Rows of zeros would give a logit of 0, which may well be
        the largest. In the embedding the new rows are the same; nobody reads them.
        """
        if rows == self.config.vocab_size:
            return self
        if rows < used:
            raise UsageError(f"the vocabulary has {used} tokens and cannot be cut to {rows}")
        kept = np.arange(min(rows, self.config.vocab_size))
        names = [EMBEDDING] if self.config.tie_embeddings else [EMBEDDING, OUTPUT]
        changed = {name: _resized(self.weights[name], rows, kept[:used], kept) for name in names}
        return WeightSet(replace(self.config, vocab_size=rows), {**self.weights, **changed})

    def with_full_head(self, kept_ids: npt.NDArray[np.int64]) -> WeightSet:
        """The same model for engines that know no pruned vocabularies: the output layer has a row for every id, and
        those outside ``kept_ids`` [M] can never win (see with_vocabulary). The output layer is then one of its own."""
        head = self.weights.get(OUTPUT, self.weights[EMBEDDING])
        ids = np.sort(kept_ids)
        full = replace(_resized(head, self.config.vocab_size, ids, ids), name=OUTPUT)
        return WeightSet(replace(self.config, tie_embeddings=False), {**self.weights, OUTPUT: full})


def weights_of(checkpoint: Checkpoint) -> WeightSet:
    """The weights as they are in the files."""
    weights = {name: Weight(name, t.shape, partial(_rows, t), t) for name, t in checkpoint.tensors.items()}
    return WeightSet(checkpoint.config, weights)


def encoded(weight: Weight, block_type: BlockType, threads: int | None = None) -> LazyTensor:
    """The weight in this type, made when it is written. Blocks that have the type already stay as they are."""
    if weight.stored is not None and weight.stored.block_type is block_type:
        return LazyTensor(weight.name, block_type, weight.shape, lambda tensor=weight.stored: tensor.data)  # type: ignore[misc]
    return LazyTensor(weight.name, block_type, weight.shape, partial(_encode, weight, block_type, threads))


def _rows(tensor: Tensor, start: int, stop: int) -> Floats:
    return tensor.dequantize()[None] if len(tensor.shape) == 1 else tensor.dequantize_rows(start, stop)


def _encode(weight: Weight, block_type: BlockType, threads: int | None) -> npt.NDArray[np.uint8]:
    """uint8 [bytes]: part by part, on several threads; the parts do not depend on each other."""
    rows = 1 if len(weight.shape) == 1 else weight.shape[0]
    step = max(1, PART_VALUES // weight.shape[-1])
    encoded_rows = np.empty((rows, block_type.row_bytes(weight.shape[-1])), np.uint8)

    def encode(start: int) -> None:
        stop = min(start + step, rows)
        values = weight.read(start, stop)
        if block_type is BlockType.F16 and not (np.abs(values) <= F16_MAX).all():
            raise CheckpointError(
                f"the tensor {weight.name} holds values beyond 65504, which 16-bit floats cannot; use bf16 or f32"
            )
        encoded_rows[start:stop] = quantize(block_type, values).reshape(stop - start, -1)

    starts = range(0, rows, step)
    if len(starts) == 1:
        encode(0)
    else:
        with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
            list(pool.map(encode, starts))
    return encoded_rows.reshape(-1)


def _resized(weight: Weight, rows: int, averaged: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> Weight:
    """``rows`` rows: those in ``kept`` (rising) are the weight's own, the others the mean of those in ``averaged``."""
    is_kept = np.zeros(rows, np.bool_)
    is_kept[kept] = True
    means: list[Floats] = []

    def read(start: int, stop: int) -> Floats:
        if not means:
            means.append(_mean(weight, averaged))
        chosen = np.broadcast_to(means[0], (stop - start, weight.shape[1])).copy()
        own_stop = min(stop, weight.shape[0])
        if start < own_stop:
            mask = is_kept[start:own_stop]
            chosen[: own_stop - start][mask] = weight.read(start, own_stop)[mask]
        return chosen

    return Weight(weight.name, (rows, weight.shape[1]), read, None)


def _mean(weight: Weight, ids: npt.NDArray[np.int64]) -> Floats:
    """float32 [D]: the mean of these rows, summed in float64."""
    chosen = np.zeros(weight.shape[0], np.bool_)
    chosen[ids] = True
    total = np.zeros(weight.shape[1], np.float64)
    step = max(1, PART_VALUES // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        total += weight.read(start, stop)[chosen[start:stop]].sum(axis=0, dtype=np.float64)
    return np.asarray(total / chosen.sum(), np.float32)
