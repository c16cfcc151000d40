"""Measured costs: relative to a plain step, never falling, and inputs of the policy rather than part of the text."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.calibrate import measure_steps
from draftsmith.model.protocol import Logits, TokenRun
from tests.support.fakes import FakeModel


class SlowModel(FakeModel):
    """Takes ``seconds`` a forward, whatever its size."""

    def __init__(self, seconds: float, max_context: int = 512) -> None:
        super().__init__(max_context=max_context)
        self._seconds = seconds

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        time.sleep(self._seconds)
        return super().forward(runs)


def test_costs_are_relative_to_a_plain_step() -> None:
    steps = measure_steps(SlowModel(0.02), SlowModel(0.005))
    assert 0.02 <= steps.plain_s < 0.1
    assert 0.1 < steps.costs.draft_step < 0.9
    assert len(steps.costs.verify) == 32
    assert steps.costs.verify[0] == 1
    assert list(steps.costs.verify) == sorted(steps.costs.verify)


class DisturbedModel(SlowModel):
    """Takes ten times as long for its first forwards of more than two tokens."""

    def __init__(self, seconds: float, forwards: int) -> None:
        super().__init__(seconds)
        self.forwards = forwards

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        if 2 < len(runs[0].token_ids) < 64 and self.forwards > 0:
            self.forwards -= 1
            time.sleep(9 * self._seconds)
        return super().forward(runs)


def test_a_disturbance_does_not_count() -> None:
    """Two whole rounds of all sizes are disturbed, and half of the third."""
    verify = measure_steps(DisturbedModel(0.004, forwards=25)).costs.verify
    assert max(verify) < 2


def test_no_draft_model_costs_nothing() -> None:
    assert measure_steps(FakeModel()).costs.draft_step == 0


def test_tiny_contexts_can_be_measured() -> None:
    for max_context in (1, 2, 5, 17):
        steps = measure_steps(FakeModel(max_context=max_context), FakeModel(max_context=1))
        assert steps.plain_s > 0
