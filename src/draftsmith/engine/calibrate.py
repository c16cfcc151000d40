"""How long steps take on this machine with these models: measured once, then a fixed input of the length policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from draftsmith.model.protocol import GREEDY, DraftingModel, DraftRun, KVCache, Model, RepeatableCache, TokenRun
from draftsmith.optional import fulfils
from draftsmith.speculate import AutoLength, CostModel, Costs
from draftsmith.speculate.drafters.model import common_vocabulary, softmax_at
from draftsmith.speculate.policy import GROWTH, SHORT_TEXT
from draftsmith.types import Draft, Verdict

__all__ = ["MeasuredLength", "StepCosts", "measure_steps"]

_SIZES = (1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 24, 32)  # kernels work in tiles of 8 and 16: steps lie after these
_TILE = 8
_DRAFT_SIZES = (1, 16)
_DRAWS = 4
_FEWEST, _MOST = 4, 24  # times that each size is measured: more than a disturbance of some forwards of each lasts
_FEWEST_LATE = 2  # of models so slow that the budget is used up before
_BUDGET_S = 4.0  # once this is used up, no size is measured again, settled or not
_AGREEMENT = 1.04  # the two shortest times of a size are at most so far apart when it is settled
_FAR_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """``plain_s``: seconds of one plain step of the target after a short text; ``costs``: what a draft and a check cost
    in units of it."""

    plain_s: float
    costs: CostModel

    def at(self, context: int) -> StepCosts:
        """The same for texts of so many tokens; see ``CostModel.at``."""
        step, _ = self.costs.growth(context)
        return StepCosts(self.plain_s * (1 + step), self.costs.at(context))


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

    def begin(self, unread: int, left: int | None = None) -> None:
        """See ``LengthPolicy``."""
        self.prepare().begin(unread, left)

    def repays(self, unread: int, left: int) -> bool:
        """See ``LengthPolicy``."""
        return self.prepare().repays(unread, left)

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """See ``LengthPolicy``."""
        return self.prepare().wants_more(confidences, upcoming, instead=instead, drawn=drawn)

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """See ``LengthPolicy``. Before the measurement there were only rounds without a draft: nothing to learn."""
        if self._policy is not None:
            self._policy.learn(draft, verdict)


def measure_steps(
    target: Model, draft: Model | None = None, *, clock: Callable[[], float] = time.perf_counter
) -> StepCosts:
    """Time forwards of 1 to 32 tokens of the target and steps of the draft model (None: drafts cost nothing).

    The two take turns, as they do while text is written: each finds the processor's caches full of the other. A plain
    step follows another one. It goes on until the two shortest times of everything agree: what other programs do to the
    machine for a moment must not count for all texts to come. ``clock``: seconds that only grow.
    """
    sizes = [size for size in _SIZES if size <= target.max_context]
    near = _timers(target, sizes, clock, _short_text(target, sizes[-1] + 1))
    text = _longer_text(target)
    far = _timers(target, _FAR_SIZES, clock, text) if text is not None else []
    timers = [*near, *far]
    drafts = [] if draft is None else _draft_timers(draft, clock)
    deadline = clock() + _BUDGET_S
    for repeat in range(_MOST):
        if repeat >= _FEWEST_LATE and clock() > deadline:
            break
        if repeat >= _FEWEST and all(timer.settled for timer in (*timers, *drafts)):
            break
        for place in range(max(len(timers), len(drafts))):
            timer = timers[place % len(timers)]
            if timer.size == 1:
                timer.run()
                timer.seconds.pop()
            timer.run()
            if drafts:
                drafts[place % len(drafts)].run()
    known = _undisturbed(near)
    plain = known[0][1]
    known = [(size, took / plain) for size, took in known]
    verify = _interpolated(_smoothed(known))
    costs = CostModel(0.0, verify)
    if far:
        context_step, context_row = _growth(known, [(size, took / plain) for size, took in _undisturbed(far)])
        costs = replace(costs, context_step=context_step, context_row=context_row)
    if not drafts:
        return StepCosts(plain, costs)
    first, several, longest = (sorted(timer.seconds)[1] for timer in drafts)
    step = (several - first) / max(1, drafts[1].draws - 1) if drafts[1].draws > 1 else first
    step = min(max(step, first / 2), first)  # anything else is noise
    read = max(0.0, longest - first) / max(1, drafts[2].size - 1)
    return StepCosts(
        plain, replace(costs, draft_step=step / plain, draft_read=read / plain, draft_start=(first - step) / plain)
    )


def _growth(near: Sequence[tuple[int, float]], far: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """What context adds to a plain step, and to each further token: the line that fits what it adds to some sizes, and
    neither of the two less than nothing.

    What is measured is off by a share of the whole, so that is what the line's errors are to be small beside.
    """
    before = _interpolated(near)
    rows = np.array([size - 1 for size, _ in far])
    added = np.array([took - before[size - 1] for size, took in far])
    weights = np.array([1 / took for _, took in far])
    row, step = np.polyfit(rows, added, 1, w=weights)
    if row < 0:
        row, step = 0.0, np.average(added, weights=weights**2)
    elif step < 0:
        row, step = np.average(added * rows, weights=weights**2) / np.average(rows**2, weights=weights**2), 0.0
    return max(0.0, float(step)), max(0.0, float(row))


def _undisturbed(timers: Sequence[_Timer]) -> list[tuple[int, float]]:
    """Sizes and seconds without those of a size that took longer than a larger one.

    A smaller batch never costs more, and nothing makes a machine faster than it is, so such a size was disturbed: what
    lies around it says better what it costs. Were it taken to cost as much as the larger one, the rows between the two
    would seem to be free. Size 1 is needed and takes at most what others took.
    """
    seconds = {timer.size: min(timer.seconds) for timer in timers}
    plain = min(seconds.values())
    rest = [(size, took) for size, took in seconds.items() if all(seconds[s] >= took for s in seconds if s > size)]
    return rest if rest[0][0] == 1 else [(1, plain), *rest]


def _smoothed(known: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Sizes and costs, each of them averaged with what its neighbours in the tile say of it: rows of a tile cost alike.

    Were a size of three to seven tokens taken to cost as much as the eight after it, the rows between the two would
    seem to be free. Sizes that begin or end a tile stay as they are.
    """
    smooth = list(known)
    for place in range(1, len(known) - 1):
        (left, low), (size, took), (right, high) = known[place - 1 : place + 2]
        if left >= 2 and (left - 1) // _TILE == (right - 1) // _TILE:
            smooth[place] = (size, (took + low + (high - low) * (size - left) / (right - left)) / 2)
    return smooth


def _draft_timers(draft: Model, clock: Callable[[], float]) -> list[_Timer]:
    """Of a draft of one token, of several, and of one after reading more: as far as the context goes."""
    several = _DRAWS if isinstance(draft, DraftingModel) and draft.max_context > _DRAWS else 1
    longest = max(size for size in _DRAFT_SIZES if size <= draft.max_context)
    return [  # with a text for each: on a GPU a cache tells how many tokens are to be written at once
        _Timer(draft, size, clock, _short_text(draft, size + draws), draws)
        for size, draws in ((1, 1), (1, several), (longest, 1))
    ]


def _timers(model: Model, sizes: Sequence[int], clock: Callable[[], float], text: KVCache) -> list[_Timer]:
    return [_Timer(model, size, clock, text) for size in sizes]


class _Timer:
    """Seconds of forwards of ``size`` tokens after a text, with the choice of a token from every row of logits.

    ``draws``: as a draft model does it, one row from the common part of the vocabulary, and a confidence, so many times
    (0: as the target does it). The least of a few is what a step of the target takes: other programs can only make it
    slower.
    """

    def __init__(self, model: Model, size: int, clock: Callable[[], float], text: KVCache, draws: int = 0) -> None:
        self.size, self.draws = size, draws
        self.seconds: list[float] = []
        self._clock = clock
        self._model = model
        self._limit = common_vocabulary(model.vocab_size) if draws else None
        self._cache, self._context = text, text.length

    @property
    def settled(self) -> bool:
        """Whether the two shortest times agree."""
        shortest, second = sorted(self.seconds)[:2]
        return second <= _AGREEMENT * shortest

    def run(self) -> None:
        """One forward, timed."""
        self._cache.truncate(self._context)
        rows = 1 if self.draws else self.size
        began = self._clock()
        if self.draws and isinstance(self._model, DraftingModel):
            run = DraftRun(self._cache, [0] * self.size, self.draws, GREEDY, lambda _: True, self._limit)
            self._model.draft([run])
            self.seconds.append(self._clock() - began)
            return
        [logits] = self._model.forward(
            [TokenRun(self._cache, [0] * self.size, num_logits=rows, vocab_limit=self._limit)]
        )
        for row in logits:
            softmax_at(row, int(row.argmax())) if self.draws else row.argmax()
        self.seconds.append(self._clock() - began)


def _short_text(model: Model, room: int) -> KVCache:
    """A cache with some tokens, and room for so many more."""
    context = max(0, min(SHORT_TEXT, model.max_context - room))
    cache = model.new_cache(min(context + room, model.max_context))
    if context:
        model.forward([TokenRun(cache, [0] * context, num_logits=0)])
    return cache


def _longer_text(target: Model) -> KVCache | None:
    """Keys and values of a few tokens over and over: a step takes as long whatever they are. None where the model's
    caches cannot do that, its context is too short, or there is no memory for it.
    """
    context = SHORT_TEXT + GROWTH
    if context + _FAR_SIZES[-1] > target.max_context:
        return None
    cache = target.new_cache(context + _FAR_SIZES[-1])
    if not fulfils(cache, RepeatableCache):
        return None
    target.forward([TokenRun(cache, [0] * SHORT_TEXT, num_logits=0)])
    try:
        cache.repeat(context)
    except MemoryError:
        return None
    return cache


def _interpolated(known: Sequence[tuple[int, float]]) -> tuple[float, ...]:
    """The costs of 1, 2, ... tokens, as far as some are known."""
    costs = [known[0][1]]
    for (left, low), (right, high) in pairwise(known):
        costs += [low + (high - low) * (size - left) / (right - left) for size in range(left + 1, right + 1)]
    return tuple(costs)
