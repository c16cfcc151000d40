"""What the steps of batches really take, beside what was measured of one text before: costs follow the machine.

Seconds of drafts and checks are compared with those of plain steps just before, so what slows all alike says nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

from draftsmith.speculate import CostModel

__all__ = ["BatchStep", "StepWatch"]

_WINDOW, _ENOUGH = 16, 4  # steps whose median is what a plain step takes just now
_STALE = 16  # steps with drafts, after which the last plain ones say nothing any more
_SHORT_S = 5e-4  # what is shorter tells of Python, not of models
_PRIOR = 2.0  # plain steps of cost that the measurement before counts for
_KEEP = 1 - 1 / 32
_FADE = 0.995  # of what is known, in a step without drafts: what was given up is tried again
_LEAST, _MOST = 0.8, 3.0  # a correction beyond is a fault of the clock; to hope for much less costs more than it gains


@dataclass(frozen=True, slots=True)
class BatchStep:
    """A step in which texts only write. ``rows``: of the target's forward, drafts included. ``drawing`` texts have
    drafts of a model, of ``drawn`` tokens at most, for which it read ``read`` tokens in all. ``context``: tokens that a
    text has, on average.
    """

    writing: int
    rows: int
    drawing: int = 0
    drawn: int = 0
    read: int = 0
    context: float = 0.0


class StepWatch:
    """``draft_factor`` and ``check_factor``: how much dearer drafts, and rows that are checked besides, are than
    ``costs`` say. 1 until something else is known.
    """

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self._plain, self._any = deque[float](maxlen=_WINDOW), deque[float](maxlen=_WINDOW)  # s, of one text alone
        self._since_plain = 0
        self._drafts, self._checks = _Factor(), _Factor()

    @property
    def draft_factor(self) -> float:
        """Of the steps of a draft model."""
        return self._drafts.value

    @property
    def check_factor(self) -> float:
        """Of what a check costs above a plain step."""
        return self._checks.value

    def see(self, step: BatchStep, draft_s: float, check_s: float) -> None:
        """Compare the seconds of a step's drafts and of its forward with those expected of them."""
        costs, more = self._costs, step.rows - step.writing
        plain = costs.batch_cost(step.writing, step.context)
        row = costs.growth(step.context)[1]
        extra = max(0.0, costs.verify_cost(step.rows) - costs.verify_cost(step.writing) + row * more)
        self._any.append(check_s / (plain + extra * self.check_factor))
        if step.rows == step.writing:
            self._plain.append(check_s / plain)
            self._since_plain = 0
            self._drafts.fade()
            self._checks.fade()
            return
        self._since_plain += 1
        if step.drawing and (unit := _typical(self._any)):
            drawing = costs.draft_cost(step.drawn) * costs.batch_cost(step.drawing, step.context)
            reading = costs.draft_read * max(0, step.read - step.drawing) * costs.batch_cost(1, step.context)
            self._drafts.see(draft_s / unit, drawing + reading)
        if self._since_plain <= _STALE and (unit := _typical(self._plain)):
            self._checks.see(check_s / unit - plain, extra)


class _Factor:
    """What costs were over what they were expected to be, of late."""

    def __init__(self) -> None:
        self._found = self._expected = 0.0
        self.value = 1.0

    def see(self, found: float, expected: float) -> None:
        """In plain steps. What is far off is a disturbance, and counts as much as what is just possible."""
        if expected <= 0:
            return  # nothing was to be paid, so no factor tells what was
        self._found = self._found * _KEEP + min(max(found, -expected), (_MOST + 1) * expected)
        self._expected = self._expected * _KEEP + expected
        self._settle()

    def fade(self) -> None:
        """Hold the same on less evidence."""
        self._found *= _FADE
        self._expected *= _FADE
        self._settle()

    def _settle(self) -> None:
        ratio = (self._found + _PRIOR) / (self._expected + _PRIOR)
        self.value = min(max(ratio, _LEAST), _MOST)


def _typical(seconds: deque[float]) -> float | None:
    """None where too little is known, or nothing of models."""
    middle = median(seconds) if len(seconds) >= _ENOUGH else 0.0
    return middle if middle >= _SHORT_S else None
