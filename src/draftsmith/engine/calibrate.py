"""How long steps take on this machine with these models: measured once, then a fixed input of the length policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from draftsmith.model.protocol import GREEDY, DraftingModel, DraftRun, Model, TokenRun
from draftsmith.speculate import AutoLength, CostModel, Costs
from draftsmith.speculate.drafters.model import common_vocabulary, softmax_at
from draftsmith.types import Draft, Verdict

__all__ = ["MeasuredLength", "StepCosts", "measure_steps"]

_SIZES = (1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 24, 32)  # kernels work in tiles of 8 and 16: steps lie after these
_DRAFT_SIZES = (1, 16)
_REPEATS = 5
_BUDGET_S = 0.8  # once this is used up, no size is measured a third time
_CONTEXT = 64  # tokens in the cache while measuring


@dataclass(frozen=True, slots=True)
class StepCosts:
    """``plain_s``: seconds of one plain step of the target; ``costs``: what a draft and a check cost in units of it."""

    plain_s: float
    costs: CostModel


class MeasuredLength:
    """AutoLength over costs that are had when ``prepare`` is called, or else when they are first needed."""

    def __init__(self, costs: Callable[[], Costs]) -> None:
        self._costs = costs
        self._policy: AutoLength | None = None

    def prepare(self) -> AutoLength:
        """Measure, unless that is done."""
        if self._policy is None:
            self._policy = AutoLength(self._costs())
        return self._policy

    def begin(self, unread: int) -> None:
        """See ``LengthPolicy``."""
        self.prepare().begin(unread)

    def wants_more(self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False) -> bool:
        """See ``LengthPolicy``."""
        return self.prepare().wants_more(confidences, upcoming, instead=instead)

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """See ``LengthPolicy``. Before the measurement there were only rounds without a draft: nothing to learn."""
        if self._policy is not None:
            self._policy.learn(draft, verdict)


def measure_steps(target: Model, draft: Model | None = None) -> StepCosts:
    """Time forwards of 1 to 32 tokens of the target and steps of the draft model (None: drafts cost nothing).

    The two take turns, as they do while text is written: each finds the processor's caches full of the other.
    """
    timers = [_Timer(target, size) for size in _SIZES if size <= target.max_context]
    drafts = (
        [] if draft is None else [_Timer(draft, size, draft=True) for size in _DRAFT_SIZES if size <= draft.max_context]
    )
    deadline = time.perf_counter() + _BUDGET_S
    for repeat in range(_REPEATS):
        for place, timer in enumerate(timers):
            if repeat > 1 and time.perf_counter() > deadline:
                break
            timer.run()
            if drafts:
                drafts[place % len(drafts)].run()
    seconds = {timer.size: min(timer.seconds) for timer in timers}
    plain = seconds[1]
    # A larger batch never costs less; where it was measured so, that is noise.
    known = [(size, max(seconds[s] for s in seconds if s <= size) / plain) for size in seconds]
    verify = tuple(_interpolate(known, size) for size in range(1, known[-1][0] + 1))
    if not drafts:
        return StepCosts(plain, CostModel(0.0, verify))
    step, longest = median(drafts[0].seconds), median(drafts[-1].seconds)
    read = max(0.0, longest - step) / max(1, drafts[-1].size - 1)
    return StepCosts(plain, CostModel(step / plain, verify, read / plain))


class _Timer:
    """Seconds of forwards of ``size`` tokens, with the choice of a token from every row of logits.

    ``draft``: as a draft model does it, one row from the common part of the vocabulary, and a confidence. The least of
    a few is what a step of the target takes: other programs can only make it slower.
    """

    def __init__(self, model: Model, size: int, *, draft: bool = False) -> None:
        self.size = size
        self.seconds: list[float] = []
        self._model, self._draft = model, draft
        self._context = max(0, min(_CONTEXT, model.max_context - size - 1))
        self._cache = model.new_cache(min(self._context + size + 1, model.max_context))
        self._limit = common_vocabulary(model.vocab_size) if draft else None
        if self._context:
            model.forward([TokenRun(self._cache, [0] * self._context, num_logits=0)])

    def run(self) -> None:
        """One forward, timed."""
        self._cache.truncate(self._context)
        rows = 1 if self._draft else self.size
        began = time.perf_counter()
        if self._draft and isinstance(self._model, DraftingModel):
            run = DraftRun(self._cache, [0] * self.size, 1, GREEDY, lambda _: False, self._limit)
            self._model.draft([run])
            self.seconds.append(time.perf_counter() - began)
            return
        [logits] = self._model.forward(
            [TokenRun(self._cache, [0] * self.size, num_logits=rows, vocab_limit=self._limit)]
        )
        for row in logits:
            softmax_at(row, int(row.argmax())) if self._draft else row.argmax()
        self.seconds.append(time.perf_counter() - began)


def _interpolate(known: Sequence[tuple[int, float]], size: int) -> float:
    for (left, low), (right, high) in pairwise(known):
        if left <= size <= right:
            return low + (high - low) * (size - left) / (right - left)
    return known[-1][1]
