"""Costs that follow what steps really take while text is written: longer contexts, a machine that others use.

Only for texts that do not depend on the length of drafts (greedy ones, and all under the coupled rule): there the clock
may decide where rounds are cut. Sampled texts under the rejection rule get the costs as first measured.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import accumulate, chain

from draftsmith.engine.calibrate import StepCosts
from draftsmith.speculate import CostModel, RoundTimes

__all__ = ["LiveCosts"]

_WINDOW = 16  # rounds of a kind that are remembered: a pause of the whole machine is soon outvoted
_MEASURED = 6  # of them that what was measured first counts for: a few rounds prove nothing against it
_LONG_WINDOW, _FOR_GOOD = 256, 64  # rounds of a kind that are remembered for ``steps``, and how few say nothing
_ENOUGH = 4  # rounds of a text that tell how fast the machine is just now, at least ...
_RECENT = 6  # ... and at most ...
_STALE = 24  # ... as long as so many rounds have not gone by since
_WARM = 2  # rounds since the last draft: after more of them the model's weights have left the caches
_OUTLIER = 10.0  # a ratio beyond it counts as this
_MOST = 3.0  # a correction beyond this factor is a fault of the clock, not of the machine
_SAME_CONTEXT = 128  # tokens that a text grows by before other costs are looked up for it
_LEAST_ROW = 0.02  # plain steps that a row more is taken to cost at least, where what it costs is corrected


class _Factor:
    """How many times as long as measured first something takes: the median of the last rounds, and of many of them."""

    __slots__ = ("_many", "_recent", "value")

    def __init__(self) -> None:
        self._recent = deque([1.0] * _MEASURED, maxlen=_WINDOW)
        self._many = deque[float](maxlen=_LONG_WINDOW)
        self.value = 1.0

    def see(self, ratio: float) -> None:
        """A round took ``ratio`` times what was expected of it."""
        ratio = min(max(ratio, 0.0), _OUTLIER)
        self._recent.append(ratio)
        self._many.append(ratio)
        self.value = _median(self._recent)

    def forget(self) -> None:
        """What was measured first counts for one round more."""
        self._recent.append(1.0)
        self.value = _median(self._recent)

    @property
    def for_good(self) -> float:
        """What many rounds say."""
        return _median(self._many) if len(self._many) >= _FOR_GOOD else 1.0


class LiveCosts:
    """``Costs`` that begin with ``steps``, follow a text as it grows, and are corrected by ``see``, which hears of all
    rounds.

    What a round took is compared with the last few plain ones of the same text, when it happens: seconds of other texts
    tell of other contexts and of other times. Where a text has no plain rounds, all its checks together take their
    place for judging drafts. A draft all by itself takes half as long again as one that follows another, so it says
    nothing of what drafting would cost.

    What a check of three tokens or more costs above a plain step is the rows' computing, which others on the machine
    slow down, while reading the weights takes as long as before. So that part is corrected, for all sizes together. Two
    tokens may cost no more than one; they have a factor of their own.
    """

    def __init__(self, steps: StepCosts) -> None:
        self._steps = steps
        self._part, self._now = 0, steps  # how long the text is, and what is told of such ones
        self._plain, self._any = deque[float](maxlen=_RECENT), deque[float](maxlen=_RECENT)
        self._plain_speeds = deque[float](maxlen=_LONG_WINDOW)
        self._drafts, self._pairs, self._rows = _Factor(), _Factor(), _Factor()
        self._since_plain, self._since_draft = 0, _WARM  # rounds
        self._correct()

    def follow(self, context: int) -> None:
        """A text has so many tokens now. To be told when one begins: costs are asked for before any round is seen."""
        part = context // _SAME_CONTEXT
        if part != self._part:
            self._part, self._now = part, self._steps.at(part * _SAME_CONTEXT)
            self._correct()

    def see(self, times: RoundTimes) -> None:
        """Compare a round's seconds with those expected of it."""
        self.follow(times.context)
        if not times.apart:  # it says nothing about either part
            return
        costs, plain_s = self._now.costs, self._now.plain_s
        size = times.num_draft_tokens + 1
        self._any.append(times.check_s / (plain_s * self.verify_cost(size)))
        self._since_plain += 1
        self._since_draft += 1
        if size == 1:
            if self._since_plain > _STALE:
                self._plain.clear()
            self._plain.append(times.check_s / plain_s)
            self._plain_speeds.append(times.check_s / plain_s)
            self._since_plain = 0
            return
        plain = _typical(self._plain) if self._since_plain <= _STALE else None
        unit = plain or _typical(self._any)
        expected = plain_s * costs.draft_cost(times.num_drawn)
        if expected > 0:
            if unit is not None and self._since_draft <= _WARM:
                self._drafts.see(times.draft_s / (expected * unit))
            self._since_draft = 0
        if plain is not None:
            took, told = times.check_s / (plain_s * plain), costs.verify_cost(size)
            if size == 2:
                self._pairs.see(took / told)
            else:
                self._rows.see(1.0 + (took - told) / _above_plain(told, size))
            self._correct()

    def end_text(self) -> None:
        """What comes now may have another context, and another time of day."""
        self._plain.clear()
        self._any.clear()
        for factor in (self._drafts, self._pairs, self._rows):
            factor.forget()
        self._correct()

    @property
    def draft_step(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_step * _bounded(self._drafts.value)

    @property
    def draft_start(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_start * _bounded(self._drafts.value)

    @property
    def draft_read(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_read * _bounded(self._drafts.value)

    def verify_cost(self, num_tokens: int) -> float:
        """See ``Costs``."""
        if num_tokens > len(self._verify):
            self._extend(num_tokens)
        return self._verify[num_tokens - 1]

    def steps(self) -> StepCosts:
        """What many rounds have told, as if it had been measured like this."""
        costs, drafts = self._steps.costs, _bounded(self._drafts.for_good)
        pairs, rows = self._pairs.for_good, self._rows.for_good
        more = (_with_rows(cost, size, rows) for size, cost in enumerate(costs.verify[2:], 3))
        verify = tuple(accumulate(chain(_pair(costs, pairs), more), max))
        known = len(self._plain_speeds) >= _FOR_GOOD
        scale = _median(self._plain_speeds) if known else 1.0
        return StepCosts(
            self._steps.plain_s * scale,
            replace(
                costs,
                draft_step=costs.draft_step * drafts,
                verify=verify,
                draft_read=costs.draft_read * drafts,
                draft_start=costs.draft_start * drafts,
            ),
        )

    def _correct(self) -> None:
        """v(1), v(2), ... may change in every round; most of them are not asked for."""
        self._verify = _pair(self._now.costs, self._pairs.value)

    def _extend(self, longest: int) -> None:
        for size in range(len(self._verify) + 1, longest + 1):
            told = _with_rows(self._now.costs.verify_cost(size), size, self._rows.value)
            self._verify.append(max(told, self._verify[-1]))


def _above_plain(told: float, size: int) -> float:
    """What a check of so many tokens costs above a plain step, in plain steps."""
    return max(told - 1.0, _LEAST_ROW * (size - 1))


def _with_rows(told: float, size: int, rows: float) -> float:
    """v(size), where what is above a plain step costs ``rows`` times what was told."""
    return min(max(told + (rows - 1.0) * _above_plain(told, size), told / _MOST), told * _MOST)


def _pair(costs: CostModel, pairs: float) -> list[float]:
    """v(1) and v(2), where two tokens cost ``pairs`` times what was told, and no less than one."""
    return [costs.verify_cost(1), max(costs.verify_cost(1), costs.verify_cost(2) * _bounded(pairs))]


def _typical(ratios: deque[float]) -> float | None:
    return _median(ratios) if len(ratios) >= _ENOUGH else None


def _median(ratios: deque[float]) -> float:
    """A round asks for five of them: the library's takes longer than all else that is done for it."""
    ordered, middle = sorted(ratios), len(ratios) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / _MOST), _MOST)
