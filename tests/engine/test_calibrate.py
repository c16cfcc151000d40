"""Measured costs: relative to a plain step, never falling, and inputs of the policy rather than part of the text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.calibrate import StepCosts, measure_steps
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import CostModel
from tests.support.clock import Clock, SlowModel
from tests.support.fakes import FakeCache, FakeModel


def test_costs_are_relative_to_a_plain_step() -> None:
    clock = Clock()
    steps = measure_steps(SlowModel(clock, 0.02), SlowModel(clock, 0.005), clock=clock)
    assert steps.plain_s == pytest.approx(0.02)
    assert steps.costs.draft_step == pytest.approx(0.25)
    assert steps.costs.verify == pytest.approx([1.0] * 32)


class DisturbedModel(SlowModel):
    """Takes ten times as long for its first forwards of more than two tokens."""

    def __init__(self, clock: Clock, seconds: float, forwards: int) -> None:
        super().__init__(clock, seconds)
        self.forwards, self.extra = forwards, 9 * seconds

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        if 2 < len(runs[0].token_ids) < 64 and self.forwards > 0:
            self.forwards -= 1
            self.clock.seconds += self.extra
        return super().forward(runs)


def test_a_disturbance_does_not_count() -> None:
    """Two whole rounds of all sizes are disturbed alike, and half of the third."""
    clock = Clock()
    model = DisturbedModel(clock, 0.004, forwards=25)
    verify = measure_steps(model, clock=clock).costs.verify
    assert model.forwards == 0
    assert verify == pytest.approx([1.0] * 32)


class UnevenModel(SlowModel):
    """A plain step takes 0.01 s, six tokens as long as eight, and more than eight twice as long and more."""

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        extra = {6: 0.8, 8: 0.8 + 1e-9, 3: 0.2, 4: 0.3}  # eight not less, whatever rounding does
        size = len(runs[0].token_ids)
        if size < 64:
            self.clock.seconds += 0.01 * (extra.get(size, 0.0) if size <= 8 else 1.0 + size / 100)
        return super().forward(runs)


def test_no_rows_before_the_end_of_a_tile_seem_to_be_free() -> None:
    """Six is halfway to what lies beside it, 1.55; the end of a tile, and what comes after, stays as measured."""
    clock = Clock()
    verify = measure_steps(UnevenModel(clock, 0.01), clock=clock).costs.verify
    assert verify[5] == pytest.approx((1.8 + 1.55) / 2)
    assert verify[6] == pytest.approx((verify[5] + 1.8) / 2)
    assert [verify[m - 1] for m in (1, 2, 8, 9, 16, 32)] == pytest.approx([1, 1, 1.8, 2.09, 2.16, 2.32])


def test_a_model_so_slow_that_the_budget_is_used_up_is_measured_twice() -> None:
    clock = Clock()
    assert measure_steps(SlowModel(clock, 1.0), clock=clock).plain_s == pytest.approx(1.0)
    assert clock.seconds < 60  # 12 forwards of different sizes, a plain one more and 12 caches to fill


def test_no_draft_model_costs_nothing() -> None:
    assert measure_steps(FakeModel()).costs.draft_step == 0


def test_tiny_contexts_can_be_measured() -> None:
    for max_context in (1, 2, 5, 17):
        steps = measure_steps(FakeModel(max_context=max_context), FakeModel(max_context=1))
        assert steps.plain_s > 0


class RisingModel(SlowModel):
    """A forward of m tokens takes 1 + m / 10 ms, and 5 ms more for sizes that are always disturbed."""

    def __init__(self, clock: Clock, disturbed: Sequence[int]) -> None:
        super().__init__(clock, 1.1e-3, 1e-4)
        self.disturbed = disturbed

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        self.clock.seconds += 5e-3 * (len(runs[0].token_ids) in self.disturbed)
        return super().forward(runs)


@pytest.mark.parametrize("disturbed", [[], [16], [8, 9], [6, 8, 16]])
def test_rows_are_not_free_up_to_a_size_that_was_disturbed(disturbed: list[int]) -> None:
    """What lies around it says what it costs; rows cost the same everywhere here."""
    clock = Clock()
    verify = measure_steps(RisingModel(clock, disturbed), clock=clock).costs.verify
    assert verify == pytest.approx([(10 + size) / 11 for size in range(1, 33)])


def test_a_disturbed_plain_step_takes_no_longer_than_two_tokens() -> None:
    clock = Clock()
    steps = measure_steps(RisingModel(clock, [1]), clock=clock)
    assert steps.plain_s == pytest.approx(1.2e-3)
    assert steps.costs.verify[:3] == pytest.approx([1.0, 1.0, 13 / 12])


class RepeatedCache(FakeCache):
    """Can be lengthened."""

    def repeat(self, length: int) -> None:
        self.ids += self.ids[-1:] * (length - self.length)


class ReadingModel(SlowModel):
    """A forward of m tokens takes 10 + m ms, and attention ``first`` ms for every 1,024 tokens before them, and
    ``slope`` more for every token but one."""

    def __init__(self, clock: Clock, max_context: int, first: float = 1.0, slope: float = 0.5) -> None:
        self.first, self.slope = first, slope
        super().__init__(clock, 11e-3, 1e-3, max_context=max_context)

    def new_cache(self, capacity: int | None = None) -> FakeCache:
        return RepeatedCache(super().new_cache(capacity).capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        before, rows = runs[0].cache.length, len(runs[0].token_ids)
        attention = self.first + (rows - 1) * self.slope
        self.clock.seconds += (before - 64) / 1024 * attention * 1e-3 if before >= 64 else 0
        return super().forward(runs)


def test_what_context_adds_is_measured_for_every_size() -> None:
    clock = Clock()
    model = ReadingModel(clock, max_context=2048)
    steps = measure_steps(model, clock=clock)
    assert steps.plain_s == pytest.approx(11e-3)
    assert steps.costs.verify == pytest.approx([(10 + m) / 11 for m in range(1, 33)])
    assert (steps.costs.context_step, steps.costs.context_row) == pytest.approx((1 / 11, 0.5 / 11))
    assert clock.seconds < 3  # most of it for sizes up to 32: nobody reads 1,024 tokens for this
    assert model.tokens_read < 4000


@pytest.mark.parametrize("max_context", [512, 1095])
def test_models_with_a_short_context_have_no_growth(max_context: int) -> None:
    clock = Clock()
    assert measure_steps(ReadingModel(clock, max_context), clock=clock).costs.context_step == 0


def test_caches_that_cannot_be_lengthened_have_no_growth() -> None:
    clock = Clock()
    model = SlowModel(clock, 0.01, max_context=4096)
    steps = measure_steps(model, clock=clock)
    assert (steps.costs.context_step, steps.costs.context_row) == (0, 0)
    assert model.tokens_read < 4000


@pytest.mark.parametrize(("step", "row"), [(0.0, 0.5), (2.0, 0.0), (3.0, -0.25), (-1.0, 0.75)])
def test_neither_part_of_the_growth_is_less_than_nothing(step: float, row: float) -> None:
    """A line that falls counts as flat, one that begins below nothing begins there."""
    clock = Clock()
    model = ReadingModel(clock, max_context=2048, first=step, slope=row)
    steps = measure_steps(model, clock=clock)
    if min(step, row) >= 0:
        assert (steps.costs.context_step, steps.costs.context_row) == pytest.approx((step / 11, row / 11))
    else:
        assert (
            min(steps.costs.context_step, steps.costs.context_row)
            == 0
            < max(steps.costs.context_step, steps.costs.context_row)
        )
        assert steps.costs.context_step < max(0.0, step) / 11 or step < 0
        assert steps.costs.context_row < max(0.0, row) / 11 or row < 0


def test_costs_after_a_context_are_in_units_of_its_plain_step() -> None:
    steps = StepCosts(2.0, CostModel(0.25, (1.0, 1.0, 1.5), 0.125, 0.0625, 0.25, 0.125))
    assert steps.at(0) == steps.at(64) == StepCosts(2.0, CostModel(0.25, (1.0, 1.0, 1.5), 0.125, 0.0625))
    assert steps.at(64 + 1024) == StepCosts(2.5, CostModel(0.25, (1.0, 1.1, 1.6), 0.125, 0.0625))
    assert steps.at(64 + 4096) == StepCosts(4.0, CostModel(0.25, (1.0, 1.25, 1.75), 0.125, 0.0625))


def test_context_never_makes_steps_cheaper() -> None:
    """Whatever noise says."""
    clock = Clock()
    steps = measure_steps(ReadingModel(clock, max_context=2048, first=-1.0, slope=-0.25), clock=clock)
    assert (steps.costs.context_step, steps.costs.context_row) == (0, 0)
