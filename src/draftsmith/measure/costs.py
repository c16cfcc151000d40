"""What steps cost on this machine: c and v(m), measured on real text at a given context length.

c is the time of a draft step / the time of a plain step of the target; v(m) is the target's time for m tokens at once /
for one. A round that drafts k tokens costs k c + v(k + 1) plain steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from draftsmith.model.protocol import GREEDY, DraftingModel, DraftRun, KVCache, Model, TokenRun

__all__ = ["SIZES", "CostCurves", "measure_costs"]

SIZES = (1, 2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class CostCurves:
    """``plain_s``: median seconds of one plain step after ``context`` tokens. ``verify``: v(m) by m, with v(1) = 1."""

    context: int
    plain_s: float
    draft_cost: float
    verify: Mapping[int, float]

    def verify_cost(self, size: int) -> float:
        """v(size), linear between the sizes that were measured and beyond the last two."""
        sizes = sorted(self.verify)
        if size in self.verify or len(sizes) < 2:
            return self.verify.get(size, self.verify[sizes[0]])
        right = next((i for i, known in enumerate(sizes) if known > size), len(sizes) - 1)
        low, high = sizes[max(0, right - 1)], sizes[max(1, right)]
        return self.verify[low] + (self.verify[high] - self.verify[low]) * (size - low) / (high - low)

    def round_cost(self, num_draft_tokens: int) -> float:
        """k c + v(k + 1), in plain steps."""
        return num_draft_tokens * self.draft_cost + self.verify_cost(num_draft_tokens + 1)


def measure_costs(
    target: Model, draft: Model | None, token_ids: Sequence[int], *, repeats: int = 9, sizes: Sequence[int] = SIZES
) -> CostCurves:
    """Time steps that follow ``token_ids`` (cut to the context), all sizes in turn so that drift cancels.

    Draft steps are timed between those of the target, as in speculative decoding, where both share the caches.
    """
    room = min(model.max_context for model in (target, draft) if model is not None)
    sizes = [size for size in sizes if size < room]
    text = list(token_ids[: room - sizes[-1]])
    target_cache = _read(target, text, len(text) + sizes[-1])
    draft_cache = _read(draft, text, len(text) + 1) if draft is not None else None
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    draft_seconds: list[float] = []
    for repeat in range(repeats + 1):
        for size in sizes:
            spent = _step(target, target_cache, (text * size)[-size:])
            drafted = _draft(draft, draft_cache, text[-1:]) if draft is not None and draft_cache is not None else 0.0
            if repeat:  # the first time wakes the weights up
                seconds[size].append(spent)
                draft_seconds.append(drafted)
    plain = median(seconds[1])
    verify = {size: median(times) / plain for size, times in seconds.items()}
    return CostCurves(len(text), plain, median(draft_seconds) / plain, verify)


def _read(model: Model, text: Sequence[int], capacity: int) -> KVCache:
    cache = model.new_cache(min(capacity, model.max_context))
    model.forward([TokenRun(cache, text)])
    return cache


def _draft(model: Model, cache: KVCache, tokens: Sequence[int]) -> float:
    """Seconds that a model takes to draft one token after ``tokens``; the cache is then as before."""
    if not isinstance(model, DraftingModel):
        return _step(model, cache, tokens)
    length = cache.length
    began = time.perf_counter()
    model.draft([DraftRun(cache, tokens, 1, GREEDY, lambda _: False)])
    spent = time.perf_counter() - began
    cache.truncate(length)
    return spent


def _step(model: Model, cache: KVCache, tokens: Sequence[int]) -> float:
    """Seconds that a forward of ``tokens`` takes; the cache is then as before."""
    length = cache.length
    began = time.perf_counter()
    model.forward([TokenRun(cache, tokens, num_logits=len(tokens))])
    spent = time.perf_counter() - began
    cache.truncate(length)
    return spent
