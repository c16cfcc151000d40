"""Log-probabilities for the reader: of the raw logits, before any option acts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from draftsmith.sampling.process import kth_largest
from draftsmith.types import TokenLogprobs

__all__ = ["logprobs_of"]


def logprobs_of(logits: npt.NDArray[np.float32], token_id: int, num_top: int = 0) -> TokenLogprobs:
    """The natural log-probability of ``token_id`` under ``logits`` [V] and the ``num_top`` likeliest ids with theirs.

    The likeliest come first; of equals the lower id. Nothing is modified.
    """
    peak = logits.max()
    log_total = float(peak) + math.log(float(np.exp(logits - peak).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    num_top = min(num_top, logits.size)
    if num_top:
        ids = np.flatnonzero(logits >= kth_largest(logits, num_top))
        ids = ids[np.argsort(-logits[ids], kind="stable")][:num_top]
        top = tuple((int(i), float(logits[i]) - log_total) for i in ids)
    return TokenLogprobs(token_id, float(logits[token_id]) - log_total, top)
