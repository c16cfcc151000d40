"""From a row of logits to the distribution that the next token is drawn from, with the meaning of ``transformers``.

Order: logit_bias, repetition penalty, presence and frequency penalties, the caller's processors, grammar, temperature,
top_k, top_p, min_p. All up to the grammar are done in float32 on the row, as ``transformers`` does them; the rest in
float64, on the few ids that can survive. No step sorts or draws noise for ids that cannot.

Where values are equal at an edge: top_k keeps every id that equals the k-th largest logit (as ``transformers`` does);
top_p keeps the lower ids first (``transformers`` leaves it to the sorting algorithm); greedy takes the lowest id.

Shape legend: V width of the logits, S ids kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from draftsmith.errors import CheckpointError, UsageError
from draftsmith.sampling.distribution import point
from draftsmith.sampling.history import TokenHistory
from draftsmith.types import Distribution, SamplingParams

__all__ = ["kth_largest", "needs_history", "process"]

Logits: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int64]
Weights: TypeAlias = npt.NDArray[np.float64]

_GROUP = 64  # see kth_largest
_LEAST = np.finfo(np.float32).min
_FEW = 256  # ids that are sorted sooner than thinned out


def needs_history(params: SamplingParams) -> bool:
    """Whether ``process`` looks at the text so far: whether a penalty is on."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def process(
    logits: Logits,
    params: SamplingParams,
    history: TokenHistory | None = None,
    restrict: Callable[[Logits], Logits] | None = None,
) -> Distribution:
    """The distribution of the token that follows the text in ``history``, from its raw ``logits`` [V].

    ``history`` may be None when ``needs_history(params)`` is False. ``restrict`` gets the row before the temperature
    and returns another (processors, grammar; see ``TextState``); it may not modify what it gets. Nothing is modified.
    Raises UsageError for a logit_bias outside the vocabulary or when every token is forbidden, CheckpointError when the
    logits are not numbers.
    """
    scores = _adjusted(logits, params, history)
    if restrict is not None:
        scores = restrict(scores)
    best = int(scores.argmax())
    peak = float(scores[best])
    if not math.isfinite(peak):
        raise _unusable(logits)
    if params.greedy:
        return point(best)
    if 0 < params.top_k < scores.size:
        ids, weights = _top_k(scores, peak, params)
        rest = 0.0
    else:
        ids, weights, rest = _whole_row(scores, peak, params)
    if params.top_p < 1:
        ids, weights = _top_p(ids, weights, rest, params.top_p)
    kept = weights >= max(params.min_p, 1e-300)  # the likeliest id weighs 1; weights below are rounded to nothing
    if not kept.all():
        ids, weights = ids[kept], weights[kept]
    weights /= weights.sum()
    return Distribution(ids, weights)


def _adjusted(logits: Logits, params: SamplingParams, history: TokenHistory | None) -> Logits:
    """The row after logit_bias and the penalties; ``logits`` itself when all are off."""
    penalise = needs_history(params)
    if not params.logit_bias and not penalise:
        return logits
    scores = logits.copy()
    if params.logit_bias:
        bias_ids = np.fromiter(params.logit_bias, np.int64)
        if bias_ids.max() >= scores.size:
            raise UsageError(
                f"logit_bias names token id {bias_ids.max()}, but the model has {scores.size} ids; leave it out"
            )
        scores[bias_ids] += np.fromiter(params.logit_bias.values(), np.float32)
    if penalise:
        if history is None:
            raise ValueError("penalties need the history of the text")
        _penalise(scores, params, history)
    return scores


def _penalise(scores: Logits, params: SamplingParams, history: TokenHistory) -> None:
    """Modify ``scores``: repetition over prompt and reply, presence and frequency over the reply."""
    ids, counts = history.token_ids, history.reply_counts
    if ids.size and ids.max() >= scores.size:  # a tokenizer may know ids that the model cannot write
        inside = ids < scores.size
        ids, counts = ids[inside], counts[inside]
    found = scores[ids]
    if params.repetition_penalty != 1:
        factor = np.float32(params.repetition_penalty)
        found = np.where(found < 0, found * factor, found / factor)
    if params.presence_penalty != 0 or params.frequency_penalty != 0:
        found = found - np.float32(params.presence_penalty) * (counts > 0).astype(np.float32)
        found = found - np.float32(params.frequency_penalty) * counts.astype(np.float32)
    scores[ids] = found


def _top_k(scores: Logits, peak: float, params: SamplingParams) -> tuple[Ids, Weights]:
    ids = np.flatnonzero(scores >= max(kth_largest(scores, params.top_k), _LEAST))  # -inf is forbidden
    return ids, _weights(scores[ids], peak, params.temperature)


def _weights(scores: Logits, peak: float, temperature: float) -> Weights:
    """exp((scores - peak) / temperature) in float64, in one new array."""
    weights = scores.astype(np.float64)
    weights -= peak
    weights /= temperature
    return np.exp(weights, out=weights)


def _whole_row(scores: Logits, peak: float, params: SamplingParams) -> tuple[Ids, Weights, float]:
    """The ids that top_p and min_p may keep, their weights, and the summed weight of the others."""
    if params.top_p >= 1:
        if params.min_p > 0:  # a margin below the edge; process() draws the line itself
            ids = np.flatnonzero(scores >= peak + params.temperature * math.log(params.min_p) * 1.001 - 1e-3)
            return ids, _weights(scores[ids], peak, params.temperature), 0.0
        return _all_ids(scores.size), _weights(scores, peak, params.temperature), 0.0
    rough = np.exp((scores - np.float32(peak)) / np.float32(params.temperature))
    total = float(rough.sum(dtype=np.float64))
    ids = _nucleus_candidates(rough, 0.999 * (1 - params.top_p) * total)
    rest = max(0.0, total - float(rough[ids].sum(dtype=np.float64)))
    return ids, _weights(scores[ids], peak, params.temperature), rest


@lru_cache(maxsize=4)
def _all_ids(width: int) -> Ids:
    """0, 1, ..., width - 1: made once, as a fresh megabyte costs more than the softmax."""
    ids = np.arange(width)
    ids.setflags(write=False)
    return ids


def _nucleus_candidates(rough: Logits, cut: float) -> Ids:
    """A superset of the nucleus: all ids but small ones that together weigh no more than ``cut``.

    Ids below cut / V qualify without looking; then the floor is raised as long as what lies below stays light enough.
    That leaves so few that sorting them is cheap.
    """
    floor = cut / rough.size
    ids = np.flatnonzero(rough >= floor)
    cut -= floor * (rough.size - ids.size)
    while ids.size > _FEW:
        floor *= 2
        kept = rough[ids] >= floor
        cut -= float(rough[ids[~kept]].sum(dtype=np.float64))
        if cut < 0:
            break
        ids = ids[kept]
    return ids


def _top_p(ids: Ids, weights: Weights, rest: float, top_p: float) -> tuple[Ids, Weights]:
    """The smallest set of likeliest ids that holds ``top_p`` of the weight; ``rest`` is the weight of ids below."""
    rising = np.argsort(weights[::-1], kind="stable")  # reversed, so that among equals the higher ids go first
    heaped = rest + weights[::-1][rising].cumsum()
    cut = int(np.searchsorted(heaped, (1 - top_p) * heaped[-1], side="right"))
    kept = np.sort(ids.size - 1 - rising[min(cut, ids.size - 1) :])
    return ids[kept], weights[kept]


def kth_largest(row: Logits, k: int) -> np.float32:
    """The k-th largest value of ``row`` [V], 1 <= k <= V; equal values count one by one.

    Every group of 64 has its maximum in the row, so the k-th largest of the groups' maxima is a lower bound, and only
    the few values above it need to be put in order. Maxima of groups are read at memory speed; a partition is not.
    """
    groups = row.size // _GROUP
    if groups >= 4 * k:
        maxima = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        row = row[row >= np.partition(maxima, groups - k)[groups - k]]
    value: np.float32 = np.partition(row, row.size - k)[row.size - k]
    return value


def _unusable(logits: Logits) -> UsageError | CheckpointError:
    if np.isfinite(logits.max()):
        return UsageError("logit_bias, the grammar or a processor forbids every token; leave one that may be written")
    return CheckpointError("The model's logits are not finite numbers; its files may be damaged, so fetch them again")
