"""A clock that only models move, so that what a measurement says does not depend on the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.model.protocol import Logits, TokenRun
from tests.support.fakes import FakeModel


class Clock:
    """Stands still unless a model works; ``tick`` seconds pass each time that it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.seconds, self._tick = 0.0, tick

    def __call__(self) -> float:
        self.seconds += self._tick
        return self.seconds


class SlowModel(FakeModel):
    """Takes ``base`` seconds of ``clock`` for every run of a forward, and ``each`` more for every token after the
    run's first."""

    def __init__(self, clock: Clock, base: float, each: float = 0.0, *, max_context: int = 512) -> None:
        super().__init__(max_context=max_context)
        self.clock, self._base, self._each = clock, base, each

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        self.clock.seconds += sum(self._base + self._each * (len(run.token_ids) - 1) for run in runs)
        return super().forward(runs)


def clock_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that ``time.perf_counter`` reads from now on: a microsecond passes each time."""
    found = Clock(1e-6)
    monkeypatch.setattr(time, "perf_counter", found)
    return found
