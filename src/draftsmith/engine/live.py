"""Costs that follow what steps really take while text is written: longer contexts, a machine that others use.

Only for texts that do not depend on the length of drafts (greedy ones, and all under the coupled rule): there the clock
may decide where rounds are cut. Sampled texts under the rejection rule get the costs as first measured.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from draftsmith.engine.calibrate import StepCosts
from draftsmith.speculate import CostModel, RoundTimes

__all__ = ["LiveCosts"]

_WINDOW = 16  # rounds of a kind that are remembered: a pause of the whole machine is soon outvoted
_ENOUGH = 4  # fewer rounds of a kind say nothing
_RECENT = 6  # rounds of a text that tell how fast the machine is just now
_MOST = 3.0  # a correction beyond this factor is a fault of the clock, not of the machine
_TABLE = 18  # sizes that are kept ready: a draft of the greatest length, and the bonus token
_LAST_OF_SIZE = (1, 4, 8)  # checks of 1, 2 to 4, 5 to 8 and more tokens are corrected apart


class LiveCosts:
    """``Costs`` that begin with ``steps`` and are corrected by ``see``, which hears of every round.

    What a round took is compared with the last few plain ones of the same text, when it happens: seconds of other texts
    tell of other contexts and of other times. Where a text has no plain rounds, all its checks together take their
    place for judging drafts.
    """

    def __init__(self, steps: StepCosts) -> None:
        self._steps = steps
        self._plain, self._any = deque[float](maxlen=_RECENT), deque[float](maxlen=_RECENT)
        self._plain_speeds = deque[float](maxlen=_WINDOW)
        self._checks = tuple(deque[float](maxlen=_WINDOW) for _ in range(len(_LAST_OF_SIZE) + 1))
        self._drafts = deque[float](maxlen=_WINDOW)
        self._draft_factor = 1.0
        self._check_factors = [1.0] * len(self._checks)
        self._base = [steps.costs.verify_cost(size) for size in range(1, _TABLE + 1)]
        self._verify = self._base  # v(1), v(2), ... as corrected: asked for dozens of times a round
        self.num_seen = 0

    def see(self, times: RoundTimes) -> None:
        """Compare a round's seconds with those expected of it."""
        self.num_seen += 1
        if not times.apart:  # it says nothing about either part
            return
        costs, plain_s = self._steps.costs, self._steps.plain_s
        size = times.num_draft_tokens + 1
        self._any.append(times.check_s / (plain_s * self.verify_cost(size)))
        if size == 1:
            self._plain.append(times.check_s / plain_s)
            self._plain_speeds.append(times.check_s / plain_s)
            return
        plain = _typical(self._plain)
        unit = plain or _typical(self._any)
        expected = plain_s * costs.draft_cost(times.num_drawn)
        if expected > 0 and unit is not None:
            self._drafts.append(times.draft_s / (expected * unit))
            self._draft_factor = _bounded(_typical(self._drafts) or 1.0)
        if plain is not None:
            kind = _kind(size)
            self._checks[kind].append(times.check_s / (plain_s * costs.verify_cost(size) * plain))
            self._correct(kind)

    def end_text(self) -> None:
        """What comes now may have another context, and another time of day."""
        self._plain.clear()
        self._any.clear()

    @property
    def draft_step(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_step * self._draft_factor

    @property
    def draft_start(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_start * self._draft_factor

    @property
    def draft_read(self) -> float:
        """See ``Costs``."""
        return self._steps.costs.draft_read * self._draft_factor

    def verify_cost(self, num_tokens: int) -> float:
        """See ``Costs``."""
        if num_tokens <= _TABLE:
            return self._verify[num_tokens - 1]
        return self._steps.costs.verify_cost(num_tokens) * self._check_factors[_kind(num_tokens)]

    def steps(self) -> StepCosts:
        """What is known now, as if it had been measured like this."""
        costs = self._steps.costs
        sizes = range(1, len(costs.verify) + 1)
        rising = tuple(max(1.0, *(self.verify_cost(size) for size in sizes[:last])) for last in sizes)
        scale = _typical(self._plain_speeds) or 1.0
        return StepCosts(
            self._steps.plain_s * scale, CostModel(self.draft_step, rising, self.draft_read, self.draft_start)
        )

    def _correct(self, kind: int) -> None:
        self._check_factors[kind] = _bounded(_typical(self._checks[kind]) or 1.0)
        self._verify = [v * self._check_factors[kind] for v, kind in zip(self._base, _KINDS, strict=True)]


def _kind(size: int) -> int:
    return sum(size > last for last in _LAST_OF_SIZE)


_KINDS = tuple(_kind(size) for size in range(1, _TABLE + 1))


def _typical(ratios: deque[float]) -> float | None:
    return median(ratios) if len(ratios) >= _ENOUGH else None


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / _MOST), _MOST)
