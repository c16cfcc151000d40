"""What steps cost on this machine: c and v(m), measured on real text at a given context length.

c is the time of a draft step / the time of a plain step of the target; v(m) is the target's time for m tokens at once,
each chosen from its logits, / for one. A call of the draft model for k tokens costs d + k c, where d is what a call
costs however many tokens it drafts. A round that drafts k tokens costs d + k c + v(k + 1) plain steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from draftsmith.model.protocol import GREEDY, DraftingModel, DraftRun, KVCache, Model, TokenRun
from draftsmith.sampling import Noise, process
from draftsmith.speculate.drafters.model import common_vocabulary
from draftsmith.types import SamplingParams

__all__ = ["SIZES", "CostCurves", "measure_costs"]

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17)
DRAFTS = (1, 5)  # lengths of timed drafts
_WITHOUT_HISTORY: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "grammar": None,
    "logits_processors": (),
}


@dataclass(frozen=True, slots=True)
class CostCurves:
    """``plain_s``: median seconds of one plain step after ``context`` tokens. ``verify``: v(m) by m, with v(1) = 1.

    ``draft_cost`` is c, ``draft_call`` d. ``round_factor``: what rounds with a draft take in earnest, with everything
    around the models, / what these curves say; 1 where that was not measured.
    """

    context: int
    plain_s: float
    draft_cost: float
    verify: Mapping[int, float]
    draft_call: float = 0.0
    round_factor: float = 1.0

    def verify_cost(self, size: int) -> float:
        """v(size), linear between the sizes that were measured and beyond the last two."""
        sizes = sorted(self.verify)
        if size in self.verify or len(sizes) < 2:
            return self.verify.get(size, self.verify[sizes[0]])
        right = next((i for i, known in enumerate(sizes) if known > size), len(sizes) - 1)
        low, high = sizes[max(0, right - 1)], sizes[max(1, right)]
        return self.verify[low] + (self.verify[high] - self.verify[low]) * (size - low) / (high - low)

    def round_cost(self, num_draft_tokens: int, *, free: bool = False) -> float:
        """d + k c + v(k + 1), in plain steps; with a ``free`` draft only v. Without a draft it is a plain step."""
        if not num_draft_tokens:
            return 1.0
        drafting = 0.0 if free else self.draft_call + num_draft_tokens * self.draft_cost
        return (drafting + self.verify_cost(num_draft_tokens + 1)) * self.round_factor


def measure_costs(
    target: Model,
    draft: Model | None,
    token_ids: Sequence[int],
    *,
    repeats: int = 9,
    sizes: Sequence[int] = SIZES,
    sampling: SamplingParams | None = None,
) -> CostCurves:
    """Time steps that follow ``token_ids`` (cut to the context), all sizes in turn so that drift cancels.

    Draft steps are timed between those of the target, as in speculative decoding, where both share the processor's
    caches; plain steps by themselves, as in plain decoding.
    ``sampling``: how tokens are chosen; greedily if not given.
    """
    sampling = replace(sampling or SamplingParams(greedy=True), **_WITHOUT_HISTORY)
    room = min(model.max_context for model in (target, draft) if model is not None)
    sizes = [size for size in sizes if size < room]
    text = list(token_ids[: room - sizes[-1]])
    target_cache = _read(target, text, len(text) + sizes[-1])
    drafts = None
    if draft is not None:
        # A draft with a vocabulary of its own lacks some of the ids; a step takes as long with any others.
        known = [token_id % draft.vocab_size for token_id in text]
        drafts = _DraftTimer(draft, _read(draft, known, len(known) + max(DRAFTS)), known[-1:], target.vocab_size)
    seconds: dict[int, list[float]] = {size: [] for size in sizes if size > 1}
    alone: list[float] = []
    for repeat in range(repeats + 1):
        _step(target, target_cache, text[-1:], sampling)  # finds the caches full of the draft
        steps = [_step(target, target_cache, text[-1:], sampling) for _ in range(2)]
        alone += steps if repeat else ()  # the first time wakes the weights up
        for place, size in enumerate(seconds):
            spent = _step(target, target_cache, (text * size)[-size:], sampling)
            if drafts is not None:
                drafts.run(DRAFTS[(place + repeat) % len(DRAFTS)], keep=repeat > 0)
            if repeat:
                seconds[size].append(spent)
    plain = median(alone)
    verify = {1: 1.0} | {size: median(times) / plain for size, times in seconds.items()}
    step, call = (0.0, 0.0) if drafts is None else drafts.step_and_call()
    return CostCurves(len(text), plain, step / plain, verify, call / plain)


class _DraftTimer:
    """Times drafts of a model after ``token_ids``, in one call where it can, from the part of the vocabulary that a
    drafter would use. Its cache is as before each time."""

    def __init__(self, model: Model, cache: KVCache, token_ids: Sequence[int], target_vocab_size: int) -> None:
        self._model, self._cache, self._token_ids = model, cache, token_ids
        self._limit = common_vocabulary(min(model.vocab_size, target_vocab_size))
        self._seconds: dict[int, list[float]] = {}

    def run(self, length: int, *, keep: bool) -> None:
        """Draft ``length`` tokens, or one where the model cannot go on by itself; ``keep`` the time."""
        before = self._cache.length
        began = time.perf_counter()
        if isinstance(self._model, DraftingModel):
            left = iter(range(length - 1))
            run = DraftRun(
                self._cache, self._token_ids, length, GREEDY, lambda _: next(left, None) is not None, self._limit
            )
            self._model.draft([run])
        else:
            length = 1
            [rows] = self._model.forward([TokenRun(self._cache, self._token_ids, vocab_limit=self._limit)])
            rows[0].argmax()
        spent = time.perf_counter() - began
        self._cache.truncate(before)
        if keep:
            self._seconds.setdefault(length, []).append(spent)

    def step_and_call(self) -> tuple[float, float]:
        """Seconds of a draft step, and of a call besides its steps."""
        known = {length: median(times) for length, times in self._seconds.items()}
        one = known[min(known)]
        if len(known) == 1:
            return one, 0.0
        step = min(one, (known[DRAFTS[1]] - one) / (DRAFTS[1] - DRAFTS[0]))
        return max(0.0, step), one - max(0.0, step)


def _read(model: Model, text: Sequence[int], capacity: int) -> KVCache:
    cache = model.new_cache(min(capacity, model.max_context))
    model.forward([TokenRun(cache, text)])
    return cache


def _step(model: Model, cache: KVCache, tokens: Sequence[int], sampling: SamplingParams) -> float:
    """Seconds that a forward of ``tokens`` takes, and choosing a token from every row; the cache is then as before."""
    length, noise = cache.length, Noise(0)
    began = time.perf_counter()
    [rows] = model.forward([TokenRun(cache, tokens, num_logits=len(tokens))])
    for place, row in enumerate(rows):
        noise.sample(process(row, sampling, None), place)
    spent = time.perf_counter() - began
    cache.truncate(length)
    return spent
