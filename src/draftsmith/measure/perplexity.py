"""Perplexity by position: how well a model predicts real text, and whether that gets better or worse far in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.model.protocol import Logits, Model, TokenRun

__all__ = [
    "PerplexityResult",
    "PositionBucket",
    "cut_windows",
    "measure_perplexity",
    "summed_up",
    "window_losses",
]

Losses = npt.NDArray[np.float64]
CHUNK = 64  # rows of logits at once
FIRST_EDGE = 64


@dataclass(frozen=True, slots=True)
class PositionBucket:
    """Tokens at positions ``start`` to ``end`` - 1 of their window; ``nll``: the sum of -ln p of them."""

    start: int
    end: int
    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp(mean nll)."""
        return math.exp(self.nll / self.tokens)


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """``windows`` texts of ``context`` tokens, none overlapping; a window's first token is given, not predicted."""

    context: int
    windows: int
    buckets: tuple[PositionBucket, ...]

    @property
    def overall(self) -> PositionBucket:
        """All positions taken together."""
        tokens, nll = sum(b.tokens for b in self.buckets), sum(b.nll for b in self.buckets)
        return PositionBucket(1, self.context, tokens, nll)


def measure_perplexity(
    model: Model,
    token_ids: Sequence[int],
    *,
    context: int,
    bos_id: int | None = None,
    limit: int | None = None,
    report: Report = tell_nobody,
) -> PerplexityResult:
    """Cut the text into windows of ``context`` tokens, each led by ``bos_id`` if there is one; read ``limit`` at most.

    What is left over at the end is a window too, if it is the only one. Buckets of positions end at powers of two.
    Raises UsageError when there is no token to predict or the context is not the model's.
    """
    windows = cut_windows(model.max_context, token_ids, context=context, bos_id=bos_id, limit=limit)
    losses = []
    for done, window in enumerate(windows):
        report(done, len(windows), "perplexity")
        losses.append(window_losses(model, window))
    return summed_up(losses, context)


def cut_windows(
    max_context: int, token_ids: Sequence[int], *, context: int, bos_id: int | None = None, limit: int | None = None
) -> list[list[int]]:
    """The windows that ``measure_perplexity`` reads. Raises UsageError as it does."""
    if not 2 <= context <= max_context:
        raise UsageError(f"context is {context}; it must be from 2 to the model's {max_context}")
    step = context - (bos_id is not None)
    lead = [] if bos_id is None else [bos_id]
    starts = range(0, max(1, len(token_ids) - step + 1), step)
    windows = [[*lead, *token_ids[i : i + step]] for i in starts][:limit]
    if len(windows[0]) < 2:
        raise UsageError("the text has no token to predict; give a longer one")
    return windows


def summed_up(losses: Sequence[Losses], context: int) -> PerplexityResult:
    """The result of windows whose tokens had these ``losses`` (``window_losses``)."""
    edges = _edges(context)
    sums, counts = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1, np.int64)
    for window in losses:
        slots = np.searchsorted(edges, np.arange(1, window.size + 1), side="right") - 1
        sums += np.bincount(slots, window, len(sums))
        counts += np.bincount(slots, minlength=len(counts))
    buckets = [
        PositionBucket(start, end, int(count), float(total))
        for start, end, count, total in zip(edges, edges[1:], counts, sums, strict=False)
        if count
    ]
    return PerplexityResult(context, len(losses), tuple(buckets))


def _edges(context: int) -> list[int]:
    edges = [1]
    edge = FIRST_EDGE
    while edge < context:
        edges.append(edge)
        edge *= 2
    return [*edges, context]


def window_losses(model: Model, ids: Sequence[int]) -> Losses:
    """-ln p of each token but the first, float64 [len(ids) - 1]."""
    cache = model.new_cache(len(ids))
    losses = []
    for start in range(0, len(ids) - 1, CHUNK):
        part = ids[start : min(start + CHUNK, len(ids) - 1)]
        [rows] = model.forward([TokenRun(cache, part, num_logits=len(part))])
        losses.append(_surprise(rows, ids[start + 1 : start + 1 + len(part)]))
    return np.concatenate(losses)


def _surprise(rows: Logits, ids: Sequence[int]) -> Losses:
    peak = rows.max(axis=1, keepdims=True)
    totals = np.log(np.exp(rows - peak).sum(axis=1, dtype=np.float64)) + peak[:, 0]
    values: Losses = totals - rows[np.arange(len(ids)), list(ids)]
    return values
