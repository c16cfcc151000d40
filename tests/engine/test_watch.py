"""Costs of batches that follow the machine, by a clock that is made up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))

from draftsmith.engine.batch import Engine
from draftsmith.engine.drafting import BatchCosts
from draftsmith.engine.watch import BatchStep, StepWatch
from draftsmith.speculate import CostModel, ModelDrafter
from draftsmith.types import Request, SamplingParams, VerificationRule
from tests.support.batches import COSTS, GREEDY, prompt, run
from tests.support.fakes import VOCAB_SIZE
from tests.support.shared_fakes import SharedFakeModel

MEASURED = CostModel(0.2, (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7), draft_read=0.05, draft_start=0.1)
PLAIN_S = 0.02


def watched(draft_factor: float, check_factor: float, *, speed: float = 1.0, rounds: int = 60) -> StepWatch:
    """A watch after ``rounds`` plain steps and as many with two drafts of three tokens, on such a machine."""
    watch = StepWatch(MEASURED)
    plain = MEASURED.verify_cost(4)
    step = BatchStep(writing=4, rows=8, drawing=2, drawn=3, read=6)
    draft = MEASURED.draft_cost(3) * MEASURED.verify_cost(2) + 0.05 * 4
    extra = MEASURED.verify_cost(8) - plain
    for _ in range(rounds):
        watch.see(BatchStep(writing=4, rows=4), 0.0, PLAIN_S / speed * plain)
        watch.see(step, PLAIN_S / speed * draft * draft_factor, PLAIN_S / speed * (plain + extra * check_factor))
    return watch


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("draft_factor", "check_factor"), [(1.0, 1.0), (1.7, 1.0), (1.0, 2.0), (0.85, 1.4)])
def test_what_is_dearer_than_it_was_is_found(draft_factor: float, check_factor: float, speed: float) -> None:
    """To 20 %: the measurement before counts for two plain steps. How fast the machine is as a whole says nothing."""
    watch = watched(draft_factor, check_factor, speed=speed)
    assert watch.draft_factor == pytest.approx(draft_factor, rel=0.2)
    assert watch.check_factor == pytest.approx(check_factor, rel=0.2)


def test_what_long_texts_cost_is_no_fault_of_the_machine() -> None:
    """Steps that take what texts of their length take are as expected, also right after steps of short ones."""
    costs = replace(MEASURED, context_step=0.4, context_row=0.2)
    watch = StepWatch(costs)
    for turn in range(200):
        context = 64 + 1024 * (turn % 3)
        step, row = costs.growth(context)
        plain = MEASURED.verify_cost(4) + 4 * step
        watch.see(BatchStep(4, 4, context=context), 0.0, PLAIN_S * plain)
        draft = MEASURED.draft_cost(3) * (MEASURED.verify_cost(2) + 2 * step) + 0.05 * 4 * (1 + step)
        check = MEASURED.verify_cost(8) + 4 * step + 4 * row
        watch.see(BatchStep(4, 8, 2, 3, 6, context), PLAIN_S * draft, PLAIN_S * check)
    assert watch.draft_factor == pytest.approx(1)
    assert watch.check_factor == pytest.approx(1)


@given(st.lists(st.floats(1e-6, 1e3), min_size=30, max_size=60))
def test_a_clock_gone_mad_does_only_so_much(seconds: list[float]) -> None:
    watch = StepWatch(MEASURED)
    for i, value in enumerate(seconds):
        watch.see(BatchStep(2, 2 + i % 3, i % 3, i % 3, i % 3), value, value)
        assert 0.8 <= watch.draft_factor <= 3
        assert 0.8 <= watch.check_factor <= 3


def test_where_rows_cost_nothing_or_less_nothing_is_learnt_of_them() -> None:
    """Costs may come from anywhere; measured ones never fall."""
    for verify in ((1.0, 1.0), (1.0, 0.4, 0.1)):
        watch = StepWatch(CostModel(0.0, verify))
        for rows in (1, 1, 1, 1, *[4] * 40):
            watch.see(BatchStep(1, rows, int(rows > 1), rows - 1, 1), PLAIN_S, PLAIN_S)
        assert (watch.draft_factor, watch.check_factor) == (1.0, 1.0)


def test_one_disturbance_is_not_believed() -> None:
    watch = watched(1.0, 1.0)
    watch.see(BatchStep(writing=4, rows=8), 0.0, 100 * PLAIN_S)
    assert watch.check_factor == pytest.approx(1.0, abs=0.35)


def test_what_was_found_is_forgotten_while_nothing_is_drafted() -> None:
    watch = watched(2.0, 2.0)
    for _ in range(2000):
        watch.see(BatchStep(writing=4, rows=4), 0.0, PLAIN_S)
    assert watch.draft_factor == pytest.approx(1.0, abs=0.01)
    assert watch.check_factor == pytest.approx(1.0, abs=0.01)


def test_without_plain_steps_nothing_is_said_of_checks() -> None:
    """A text that always drafts: the machine may have become another since its last plain step."""
    watch = watched(1.0, 1.0)
    for _ in range(200):
        watch.see(BatchStep(writing=1, rows=4, drawing=1, drawn=3, read=1), 0.0, 4 * PLAIN_S)
    before = watch.check_factor
    watch.see(BatchStep(writing=1, rows=4), 0.0, 40 * PLAIN_S)
    assert watch.check_factor == before


def test_steps_of_microseconds_say_nothing_of_models() -> None:
    watch = watched(2.0, 2.0, speed=1000.0)
    assert (watch.draft_factor, watch.check_factor) == (1.0, 1.0)


def test_the_costs_of_a_batch_are_those_that_were_found() -> None:
    watch = watched(1.5, 2.0)
    costs, before = BatchCosts(MEASURED, watch), BatchCosts(MEASURED)
    for one in (costs, before):
        one.set(writing=4, drafting=2, reading=0, running=4, context=0)
    assert costs.verify_cost(1) == 1
    assert costs.draft_step == pytest.approx(before.draft_step * watch.draft_factor)
    assert costs.draft_start == pytest.approx(before.draft_start * watch.draft_factor)
    assert costs.draft_read == pytest.approx(before.draft_read * watch.draft_factor)
    first, third = costs.verify_cost(2), costs.verify_cost(3)
    assert third - first == pytest.approx((before.verify_cost(3) - before.verify_cost(2)) * watch.check_factor)


def drafts(rule: VerificationRule, sampling: SamplingParams) -> int:
    """How many drafts three texts take that are written together."""
    drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE)
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: COSTS, rule=rule)
    handles = [engine.submit(Request(prompt_ids=prompt(text), sampling=sampling)) for text in ("abc", "abc", "cab")]
    run(engine, *handles)
    return sum(handle.speculation.num_drafts for handle in handles if handle.speculation is not None)


def test_the_engine_tells_what_its_steps_were(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[BatchStep, float, float]] = []
    monkeypatch.setattr(StepWatch, "see", lambda _, step, draft_s, check_s: seen.append((step, draft_s, check_s)))
    assert drafts("coupled", GREEDY) > 10
    assert all(draft_s > 0 and check_s > 0 for _, draft_s, check_s in seen)
    together = [step for step, *_ in seen if step.drawing == 3]
    assert together
    assert all(3 < step.rows <= 3 + 3 * step.drawn for step in together)
    assert all(step.read >= step.drawing for step, *_ in seen)
    assert all((step.rows > step.writing) is (step.drawing > 0) for step, *_ in seen)
    contexts = [step.context for step, *_ in seen if step.writing == 3]
    assert contexts == sorted(contexts)
    assert len(prompt("abc")) < contexts[0] < contexts[-1] <= len(prompt("abc")) + (GREEDY.max_new_tokens or 0)


def test_a_forward_that_went_wrong_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BatchStep] = []
    monkeypatch.setattr(StepWatch, "see", lambda _, step, *__: seen.append(step))
    target = SharedFakeModel()
    drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE)
    engine = Engine(target, drafter=drafter, costs=lambda: COSTS)
    handle = engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY))
    while not seen:
        engine.step()
    seen.clear()

    def fail(*_: object) -> None:
        raise RuntimeError("no forward")

    monkeypatch.setattr(target, "forward", fail)
    engine.step()
    assert handle.error is not None
    assert not seen


@pytest.mark.parametrize(
    ("rule", "greedy", "heeds"), [("coupled", False, True), ("rejection", True, True), ("rejection", False, False)]
)
def test_the_clock_is_not_heeded_where_a_text_depends_on_it(
    monkeypatch: pytest.MonkeyPatch, rule: VerificationRule, greedy: bool, heeds: bool
) -> None:
    sampling = GREEDY if greedy else SamplingParams(seed=5, max_new_tokens=GREEDY.max_new_tokens)
    before = drafts(rule, sampling)
    monkeypatch.setattr(StepWatch, "draft_factor", property(lambda _: 1000.0))
    assert (drafts(rule, sampling) < before / 2) is heeds
