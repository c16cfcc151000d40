"""Small operations on sparse probability distributions (see ``types.Distribution``). All are pure."""

from __future__ import annotations

import numpy as np

from draftsmith.types import Distribution

__all__ = ["point", "probability_of", "residual", "without"]


def point(token_id: int) -> Distribution:
    """All the probability on one id: what a greedy choice looks like."""
    return Distribution(np.array([token_id], np.int64), np.ones(1))


def probability_of(distribution: Distribution, token_id: int) -> float:
    """The probability of ``token_id``; 0 when it is not listed."""
    slot = int(distribution.token_ids.searchsorted(token_id))
    if slot == distribution.token_ids.size or distribution.token_ids[slot] != token_id:
        return 0.0
    return float(distribution.probs[slot])


def residual(p: Distribution, q: Distribution) -> Distribution:
    """max(p - q, 0), normalised: what a rejected draft token of q is replaced from (arXiv:2211.17192, algorithm 1).

    Where rounding leaves nothing (p equals q up to the last bits), p itself.
    """
    slots = q.token_ids.searchsorted(p.token_ids)
    slots[slots == q.token_ids.size] = 0
    shared = q.token_ids[slots] == p.token_ids
    return _normalised(p, np.maximum(p.probs - np.where(shared, q.probs[slots], 0.0), 0.0))


def without(p: Distribution, token_id: int) -> Distribution:
    """p given that the token is not ``token_id``: the residual against a draft that was certain of it."""
    return _normalised(p, np.where(p.token_ids == token_id, 0.0, p.probs))


def _normalised(p: Distribution, weights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Distribution:
    total = weights.sum()
    if not total > 0.0:
        return p
    kept = weights > 0.0
    return Distribution(p.token_ids[kept], weights[kept] / total)
