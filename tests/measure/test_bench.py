"""bench on models without weights: what it counts, what it compares, and the shape of what it tells."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LoadedModel
from draftsmith.engine.loading import DraftChoice
from draftsmith.errors import UsageError
from draftsmith.measure.bench import BenchResult, run_bench
from draftsmith.measure.bench_output import bench_details, bench_json, bench_text
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.origin import measurement_origin
from draftsmith.measure.pair import Pair, load_pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.roofline import measure_roofline
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import MixedDrafter, ModelDrafter, PromptLookupDrafter
from draftsmith.types import SamplingParams
from tests.support.clock import Clock, SlowModel, clock_of_the_process
from tests.support.fakes import FakeModel, byte_tokenizer, fake_target
from tests.support.schemas import check_schema

ITEMS = (
    PromptItem("a", "letters", ("abc", "more abc")),
    PromptItem("b", "letters", ("gh gh gh",)),
    PromptItem("c", "lines", ("a\nb\nc",)),
)
GREEDY = SamplingParams(greedy=True, max_new_tokens=40)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return clock_of_the_process(monkeypatch)


def pair_with(draft: DraftChoice, k: int = 3, target: LoadedModel | None = None) -> Pair:
    return load_pair(target or fake_target(), draft, num_draft_tokens=k)


@pytest.mark.parametrize("mix", [False, True])
def test_the_time_of_drafting_is_told_for_every_drafter(clock: Clock, mix: bool) -> None:
    """A draft model that takes 4 ms a step: that much was spent, also behind a mix."""
    draft = replace(fake_target("draft"), model=SlowModel(clock, 0.004))
    drafter = ModelDrafter(draft.model, target_vocab_size=10**6)
    result = run_bench(pair_with(MixedDrafter(PromptLookupDrafter(), drafter) if mix else draft), ITEMS, GREEDY)
    drafted = sum(prompt.num_draft_tokens for prompt in result.prompts)
    spent = sum(prompt.time.draft_s for prompt in result.prompts)
    assert drafted > 0
    assert spent > 0
    assert mix or 0.004 * drafted <= spent < 0.0045 * drafted


def test_a_perfect_draft_is_counted_right() -> None:
    result = run_bench(pair_with(fake_target("draft"), k=3), ITEMS, GREEDY)
    overall = result.overall
    assert all(prompt.identical for prompt in result.prompts)
    assert overall.acceptance_rate == 1
    assert overall.mean_acceptance_length == pytest.approx(4, abs=0.3)  # texts end within a draft now and then
    assert overall.drafted_per_pos[0] == sum(prompt.num_drafts for prompt in result.prompts)
    first = result.prompts[0]
    assert first.decoded == (78, 78)
    assert sum(first.accepted_per_pos) + len(first.drafted_per_round) == 78
    assert all(accepted <= drafted for drafted, accepted in result.timeline)


def test_a_stranger_is_seldom_accepted() -> None:
    result = run_bench(pair_with(fake_target("draft", seed=5)), ITEMS, GREEDY)
    assert all(prompt.identical for prompt in result.prompts)
    assert result.overall.acceptance_rate < 0.4


def test_rounds_are_told_apart_by_their_forwards() -> None:
    """What the counters of the engine say and what the recorded forwards say is the same."""
    result = run_bench(pair_with("lookup", k=4), ITEMS, SamplingParams(temperature=1.0, seed=3, max_new_tokens=60))
    for prompt in result.prompts:
        assert sum(k > 0 for k in prompt.drafted_per_round) == prompt.num_drafts
        assert sum(prompt.drafted_per_round) >= prompt.num_draft_tokens
    assert sum(drafted > 0 for drafted, _ in result.timeline) > 0


def test_speed_and_its_prediction(clock: Clock) -> None:
    """A draft that is always right and costs a tenth gains (k + 1) / (k / 10 + v(k + 1))."""
    target, draft = LoadedModel("t", SlowModel(clock, 5e-3), byte_tokenizer()), SlowModel(clock, 5e-4)
    pair = pair_with(LoadedModel("d", draft, byte_tokenizer()), k=4, target=target)
    result = run_bench(pair, ITEMS[:2], SamplingParams(greedy=True, max_new_tokens=41), repeats=2)
    expected = 5 / (0.4 + 1)
    exact = CostCurves(0, 5e-3, 0.1, {1: 1.0, 16: 1.0})
    assert result.overall.predicted_speedup(exact) == pytest.approx(expected, rel=0.05)
    assert result.costs.draft_cost == pytest.approx(0.1, rel=0.01)
    assert result.overall.speedup == pytest.approx(expected, rel=0.05)
    low, high = result.overall.intervals[2]
    assert low <= result.overall.speedup <= high


def test_costs_of_steps(clock: Clock) -> None:
    costs = measure_costs(SlowModel(clock, 4e-3, 4e-4), SlowModel(clock, 2e-3), [97] * 30, repeats=3)
    assert costs.context == 30
    assert costs.draft_cost == pytest.approx(0.5, rel=0.01)
    assert costs.verify_cost(8) == pytest.approx(1.7, rel=0.01)
    assert measure_costs(SlowModel(clock, 1e-4), None, [97], repeats=1).draft_cost == 0


def test_a_draft_with_fewer_ids_is_timed_on_those_that_it_has() -> None:
    class Narrow(FakeModel):
        def _forward(self, run: TokenRun) -> Logits:
            assert max(run.token_ids) < 50
            return super()._forward(run)

    draft = Narrow()
    draft.vocab_size = 50
    assert measure_costs(FakeModel(), draft, [200, 250, 255], repeats=1).draft_cost > 0


def test_cost_curves_are_read_between_their_points() -> None:
    costs = CostCurves(0, 1.0, 0.25, {1: 1.0, 2: 1.5, 4: 2.5})
    assert [costs.verify_cost(size) for size in (1, 2, 3, 4, 6)] == [1.0, 1.5, 2.0, 2.5, 3.5]
    assert costs.round_cost(2) == 0.5 + 2.0


def test_the_json_object_keeps_its_promise() -> None:
    pair = pair_with(fake_target("draft"))
    result = run_bench(pair, ITEMS, GREEDY)
    value = bench_json(result, pair, measurement_origin({"target": "lookup"}, {"k": 3}, None))
    assert list(value) == [
        "prompts", "tokens", "plain", "speculative", "speedup", "identical", "worst_prompt_speedup",
        "acceptance_rate", "mean_acceptance_length", "by_category", "draft_cost_c", "draft_call_cost",
        "verify_cost_v", "provenance",
    ]  # fmt: skip
    check_schema(value, "bench")
    check_schema({**value, "details": bench_details(result)}, "bench")
    assert (value["prompts"], value["tokens"]) == (3, 160)
    assert list(value["verify_cost_v"]) == ["2", "4", "8", "16"]
    assert list(value["by_category"]) == ["letters", "lines"]
    text = bench_text(value)
    assert "identical: yes" in text
    assert "| letters | 2 |" in text
    assert "accepted / draft tokens" in text


def test_prompts_that_do_not_fit_are_skipped() -> None:
    items = (*ITEMS[:1], PromptItem("long", "letters", ("a" * 600,)))
    result: BenchResult = run_bench(pair_with("lookup"), items, GREEDY)
    assert [prompt.id for prompt in result.prompts] == ["a"]
    assert result.skipped == ("long",)
    with pytest.raises(UsageError, match="no reply had a second token"):
        run_bench(pair_with("lookup"), items[1:], GREEDY)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        load_pair(fake_target(), "none")
    with pytest.raises(UsageError, match="repeat is 0"):
        run_bench(pair_with("lookup"), ITEMS, GREEDY, repeats=0)


class KnownMemory(FakeModel):
    """Reads 1000 bytes a step and 10 for each token before it, of a memory that gives a million a second."""

    def step_bytes(self, context: int, vocab_limit: int | None = None) -> int:
        return 1000 + 10 * context - (500 if vocab_limit not in (None, self.vocab_size) else 0)

    def read_bandwidth(self) -> float:
        return 1e6


def test_the_roofline_sets_what_must_be_read_beside_the_bandwidth() -> None:
    costs = CostCurves(50, 3e-3, 0.25, {1: 1.0, 2: 1.0, 4: 1.5, 5: 2.0})
    found = measure_roofline(KnownMemory(), KnownMemory(), costs)
    assert found is not None
    shares = {phase["phase"]: phase["share_of_bandwidth"] for phase in found.as_dict()["phases"]}
    assert shares == pytest.approx({"plain step": 0.5, "check of 2": 0.5, "check of 4": 1 / 3, "draft step": 2.0})
    assert measure_roofline(FakeModel(), KnownMemory(), costs) is None
    without = measure_roofline(KnownMemory(), FakeModel(), costs)
    assert without is not None
    assert "draft step" not in [phase.name for phase in without.phases]


def test_the_roofline_is_told_with_the_details() -> None:
    target = LoadedModel("t", KnownMemory(), byte_tokenizer())
    result = run_bench(pair_with("lookup", target=target), ITEMS[:1], GREEDY)
    details = bench_details(result)
    assert details["roofline"]["read_bandwidth"] == 1e6
    assert details["roofline"]["phases"][0]["seconds"] == result.costs.plain_s
