"""How long steps take on this machine with these models: measured once, then a fixed input of the length policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from draftsmith.model.protocol import Model, TokenRun
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
    """Time forwards of 1 to 32 tokens of the target and steps of the draft model (None: drafts cost nothing)."""
    seconds = _measure(target, _SIZES)
    plain = seconds[1]
    # A larger batch never costs less; where it was measured so, that is noise.
    known = [(size, max(seconds[s] for s in seconds if s <= size) / plain) for size in seconds]
    verify = tuple(_interpolate(known, size) for size in range(1, known[-1][0] + 1))
    if draft is None:
        return StepCosts(plain, CostModel(0.0, verify))
    drafting = _measure(draft, _DRAFT_SIZES, common_vocabulary(draft.vocab_size))
    most = max(drafting)
    read = max(0.0, drafting[most] - drafting[1]) / max(1, most - 1)
    return StepCosts(plain, CostModel(drafting[1] / plain, verify, read / plain))


def _measure(model: Model, sizes: Sequence[int], draft_vocab: int | None = None) -> dict[int, float]:
    """Least seconds of a forward by number of tokens, with the choice of a token from every row of logits; one forward
    goes before, to wake the weights up. ``draft_vocab``: as a draft model does it, one row from so much of the
    vocabulary and a confidence.

    The least of a few, not their average: other programs can only make a step slower.
    """
    sizes = [size for size in sizes if size <= model.max_context]
    context = max(0, min(_CONTEXT, model.max_context - sizes[-1]))
    cache = model.new_cache(context + sizes[-1])
    model.forward([TokenRun(cache, [0] * (context + 1))])
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    deadline = time.perf_counter() + _BUDGET_S
    for repeat in range(_REPEATS):
        for size in sizes:
            if repeat > 1 and time.perf_counter() > deadline:
                break
            cache.truncate(context)
            began = time.perf_counter()
            rows = 1 if draft_vocab is not None else size
            [logits] = model.forward([TokenRun(cache, [0] * size, num_logits=rows, vocab_limit=draft_vocab)])
            for row in logits:
                softmax_at(row, int(row.argmax())) if draft_vocab is not None else row.argmax()
            seconds[size].append(time.perf_counter() - began)
    return {size: min(times) for size, times in seconds.items()}


def _interpolate(known: Sequence[tuple[int, float]], size: int) -> float:
    for (left, low), (right, high) in pairwise(known):
        if left <= size <= right:
            return low + (high - low) * (size - left) / (right - left)
    return known[-1][1]
