"""plan: the replay along the target's text is what decoding does, draft length by draft length."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.engine.loading import DraftChoice
from draftsmith.errors import UsageError
from draftsmith.measure import planning
from draftsmith.measure.contest import LocalSide
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.drafter_parts import DrafterParts, drafter_parts
from draftsmith.measure.origin import measurement_origin
from draftsmith.measure.plan import (
    LENGTHS,
    WORTHWHILE,
    Forecast,
    Hits,
    PlainReply,
    at_half_cost,
    drawn_hits,
    forecast,
    mixed_hits,
    model_hits,
    write_replies,
)
from draftsmith.measure.planning import make_plan, plan_json, plan_text
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.rounds import never_falling
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import MixedDrafter, ModelDrafter, PromptLookupDrafter
from draftsmith.types import SamplingParams
from tests.support.fakes import FakeModel, byte_tokenizer, fake_target
from tests.support.letters import letters
from tests.support.schemas import check_schema

ITEMS = (PromptItem("a", "x", ("abc", "more")), PromptItem("b", "x", ("gh gh gh",)))
GREEDY = SamplingParams(greedy=True, max_new_tokens=50)
SAMPLED = SamplingParams(temperature=0.8, repetition_penalty=1.05, seed=5, max_new_tokens=50)
FREE = CostCurves(10, 1e-3, 0.0, {1: 1.0, 16: 1.0})


class Half(FakeModel):
    """Agrees with the fake target after some tokens and not after others."""

    def _row(self, ids):  # type: ignore[no-untyped-def]
        row = super()._row(ids)
        return row if ids[-1] % 3 else row[::-1].copy()


class Narrow(FakeModel):
    """Knows 27 ids and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 27

    def _forward(self, run: TokenRun) -> Logits:
        if max(run.token_ids) >= self.vocab_size:
            raise ValueError(f"token id {max(run.token_ids)} is outside the vocabulary of {self.vocab_size}")
        return super()._forward(replace(run, vocab_limit=None))[:, : run.vocab_limit or self.vocab_size]


def half() -> LoadedModel:
    return LoadedModel("half", Half(), byte_tokenizer())


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("kind", ["half", "lookup", "suffix", "mix"])
def test_the_replay_counts_what_decoding_counts(sampling: SamplingParams, k: int, kind: str) -> None:
    target = fake_target()
    [first, *_] = write_replies(LLM(target, "none"), ITEMS, sampling)
    draft: DraftChoice = half() if kind == "half" else kind
    if kind == "mix":
        draft = MixedDrafter(PromptLookupDrafter(), ModelDrafter(half().model, target_vocab_size=10**6))
        hits = DrafterParts("mix", draft, half(), PromptLookupDrafter, draft).hits(target, first)
    else:
        hits = drafter_parts(half() if kind == "half" else kind, target, {}).hits(target, first)
    [reply] = LLM(target, draft, num_draft_tokens=k).generate([first.prompt_ids], sampling)
    stats = reply.speculation
    assert stats is not None
    assert reply.token_ids == first.token_ids
    place, drafted, accepted = 1, 0, 0
    while place < len(first.token_ids):
        proposed, kept = hits.runs[k][place]
        proposed = min(proposed, sampling.max_new_tokens - place - 1)
        drafted, accepted, place = drafted + proposed, accepted + min(kept, proposed), place + min(kept, proposed) + 1
    assert (drafted, accepted) == (stats.num_draft_tokens, stats.num_accepted_tokens)


def test_a_forecast_is_arithmetic() -> None:
    target = fake_target()
    replies = write_replies(LLM(target, "none"), ITEMS[1:], GREEDY)
    [hits] = [model_hits(fake_target("same"), target, reply) for reply in replies]
    perfect = forecast(replies, [hits], CostCurves(10, 1e-3, 0.25, {1: 1.0, 2: 1.5, 16: 8.5}))
    rounds = {1: 25, 3: 13}  # 49 tokens after the first; the last round is cut to what is missing
    assert perfect.by_length[1] == pytest.approx(49 / (24 * 1.75 + 1.0), rel=1e-6), rounds
    assert perfect.acceptance_rate == 1
    assert forecast(replies, [hits], FREE).num_draft_tokens == max(LENGTHS)
    slow = CostCurves(10, 1e-3, 2.0, {1: 1.0, 16: 1.0})
    assert forecast(replies, [hits], slow).speedup < 1
    assert at_half_cost(slow).draft_cost == 1.0
    called = forecast(replies, [hits], CostCurves(10, 1e-3, 0.0, {1: 1.0, 16: 1.0}, draft_call=0.5))
    assert called.by_length[3] == pytest.approx(49 / (12 * 1.5 + 1.0)), (
        "a call costs half a step, in every round but one"
    )


def test_what_a_draft_may_cost_is_the_cost_at_which_it_just_pays() -> None:
    target = fake_target()
    replies = write_replies(LLM(target, "none"), ITEMS, GREEDY)
    hits = [model_hits(half(), target, reply) for reply in replies]
    curves = CostCurves(10, 1e-3, 0.3, {1: 1.0, 16: 1.3})
    limit = forecast(replies, hits, curves).break_even_cost
    assert forecast(replies, hits, replace(curves, draft_cost=limit)).speedup == pytest.approx(WORTHWHILE, rel=1e-6)
    dear = CostCurves(10, 1e-3, 0.3, {1: 1.0, 2: 3.0, 16: 30.0})
    assert forecast(replies, hits, dear).break_even_cost == 0
    free = [drafter_parts("lookup", target, {}).hits(target, reply) for reply in replies]
    assert forecast(replies, free, FREE).break_even_cost == math.inf


def test_a_curve_that_falls_is_levelled() -> None:
    assert never_falling({1: 1.0, 2: 1.2, 4: 1.1, 8: 1.5}) == pytest.approx({1: 1.0, 2: 1.15, 4: 1.15, 8: 1.5})
    assert never_falling({1: 1.0, 2: 0.9}) == pytest.approx({1: 1.0, 2: 1.0})


def test_copies_of_a_mix_cost_no_step_of_its_model() -> None:
    copies = Hits({k: ((0, 0), (k, 1), (0, 0), (0, 0)) for k in LENGTHS}, (True,) * 4)
    drawn = Hits({k: ((0, 0), (k, 2), (k, 1), (k, 1)) for k in LENGTHS})
    mix = mixed_hits(copies, drawn)
    assert mix.runs[3] == ((0, 0), (3, 1), (3, 1), (3, 1))
    assert [mix.is_free(place) for place in range(4)] == [False, True, False, False]
    reply = PlainReply((1,), (2, 3, 4, 5), replace(GREEDY, ignore_eos=True), 1.0)
    costs = CostCurves(10, 1e-3, 0.5, {1: 1.0, 16: 1.0}, draft_call=0.25)
    # Two tokens by a copy that costs its check alone, then one by the model.
    assert forecast([reply], [mix], costs).by_length[1] == pytest.approx(3 / (1.0 + 0.25 + 0.5 + 1.0))


def test_running_a_drafter_along_a_text_finds_what_reading_it_finds() -> None:
    """The one for models that read tokens of their own, the other for those that read the target's: the same hits."""
    target = fake_target()
    reply, _ = write_replies(LLM(target, "none"), ITEMS[:1], replace(GREEDY, max_new_tokens=30))
    for draft in (fake_target("itself"), fake_target("stranger", seed=9)):
        drafter = ModelDrafter(draft.model, target_vocab_size=target.model.vocab_size)
        found, expected = drawn_hits(reply, drafter), model_hits(draft, target, reply)
        assert found.runs == expected.runs
        assert (sum(kept for _, kept in found.runs[1]) == len(reply.token_ids) - 1) == (draft.name == "itself")


def test_drafts_with_vocabularies_of_their_own_are_planned_for() -> None:
    """One that calls a letter something else and is right about the others, and one that has 26 ids in all."""
    target = LLM(fake_target(), "none")
    other = LoadedModel("other", FakeModel(), byte_tokenizer(first_letter="ß"))
    narrow = LoadedModel("narrow", Narrow(), letters([chr(97 + i) for i in range(26)], control=["<end>"]))
    plan = make_plan(target, [other, narrow], ITEMS, GREEDY)
    rates = {candidate.name: candidate.forecast.acceptance_rate for candidate in plan.candidates}
    assert rates["other"] > rates["narrow"]
    assert narrow.model.tokens_read > 0  # type: ignore[attr-defined]


def test_a_prompt_that_the_draft_cannot_hold_gives_no_hits() -> None:
    target = fake_target()
    short = LoadedModel("short", FakeModel(max_context=8), byte_tokenizer())
    hits = model_hits(short, target, PlainReply(tuple(range(97, 105)), (97, 98, 99), GREEDY, 1.0))
    assert hits.runs[4] == ((0, 0),) * 3


def test_a_plan_ranks_and_advises() -> None:
    target = LLM(fake_target(), "none")
    plan = make_plan(target, [fake_target("stranger", seed=9), "lookup"], ITEMS, GREEDY)
    gains = [candidate.forecast.speedup for candidate in plan.candidates]
    assert gains == sorted(gains, reverse=True)
    value = plan_json(plan, measurement_origin({"target": "lookup"}, {}, None))
    check_schema(value, "plan")
    advice = value["recommendation"]["advice"]
    assert advice.startswith("Use lookup" if plan.best else "Do not draft: the best candidate")
    assert "| lookup |" in plan_text(value)


def test_candidates_near_the_best_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, two are near; the second gains more with lengths chosen round by round, and so it is the one to use."""
    predicted = iter((2.0, 2.0, 1.5, 1.5, 1.9, 1.9))  # at half the cost and at the cost, by candidate
    speeds = {"lookup": (1.8, 1.7), "suffix": (1.9, 1.95)}

    def forecast_next(*_: object) -> Forecast:
        gain = next(predicted)
        return Forecast(4, gain, (gain, gain), 0.8, 2.4, {4: gain}, 0.9)

    def contest(
        sides: Sequence[LocalSide], some: Sequence[PromptItem], *_: object, repeats: int, report: object
    ) -> SimpleNamespace:
        del repeats, report
        assert len(some) == 16
        plain, fixed, auto = sides
        assert plain.llm.drafter is None
        assert fixed.llm.drafter is auto.llm.drafter
        gains = speeds.pop(auto.llm.drafter_name)
        told = [SimpleNamespace(ratio=lambda _, gain=gain: (gain, (gain, gain)), answers=some) for gain in gains]
        return SimpleNamespace(sides=(None, *told))

    monkeypatch.setattr(planning, "forecast", forecast_next)
    monkeypatch.setattr(planning, "run_contest", contest)
    items = [replace(ITEMS[0], id=str(number)) for number in range(18)]
    plan = make_plan(LLM(fake_target(), "none"), ["lookup", fake_target("far", seed=9), "suffix"], items, GREEDY)
    assert not speeds
    measured = [(one.name, one.measured, one.measured_auto) for one in plan.candidates]
    assert measured == [("suffix", 1.9, 1.95), ("lookup", 1.8, 1.7), ("far", None, None)]
    assert plan.best is plan.candidates[0]


@pytest.mark.parametrize(("decode_s", "repeats"), [(0.1, 8), (1.25, 8), (3.0, 3), (60.0, 1)])
def test_slow_replies_are_measured_less_often(monkeypatch: pytest.MonkeyPatch, decode_s: float, repeats: int) -> None:
    """Two prompts, so that what plain replies take in all is twice as much."""
    replies = [PlainReply((97,), (97, 98), GREEDY, decode_s)] * 2
    monkeypatch.setattr(planning, "write_replies", lambda *_: replies)
    monkeypatch.setattr(planning, "forecast", lambda *_: Forecast(4, 2.0, (2.0, 2.0), 0.8, 2.4, {4: 2.0}, 0.9))
    asked: list[int] = []

    def contest(*_: object, repeats: int, report: object) -> SimpleNamespace:
        del report
        asked.append(repeats)
        side = SimpleNamespace(ratio=lambda _: (1.5, (1.5, 1.5)), answers=())
        return SimpleNamespace(sides=(None, side, side))

    monkeypatch.setattr(planning, "run_contest", contest)
    make_plan(LLM(fake_target(), "none"), ["lookup"], [replace(ITEMS[0], id=str(i)) for i in range(2)], GREEDY)
    assert asked == [repeats]


@pytest.mark.parametrize(("low", "prompts", "by_chance"), [(0.99, 4, True), (1.01, 4, False), (1.01, 3, True)])
def test_chance_does_not_choose_a_fixed_length(
    monkeypatch: pytest.MonkeyPatch, low: float, prompts: int, by_chance: bool
) -> None:
    """It is compared with auto itself, prompt by prompt: both are far from plain, and may be near each other."""
    plain, auto = SimpleNamespace(), SimpleNamespace(ratio=lambda _: (1.5, (1.4, 1.6)))
    fixed = SimpleNamespace(
        ratio=lambda other: (1.6, (1.4, 1.8)) if other is plain else (1.07, (low, 1.2)), answers=[None] * prompts
    )
    monkeypatch.setattr(planning, "forecast", lambda *_: Forecast(4, 2.0, (2.0, 2.0), 0.8, 2.4, {4: 2.0}, 0.9))
    monkeypatch.setattr(planning, "run_contest", lambda *_, **__: SimpleNamespace(sides=(plain, fixed, auto)))
    plan = make_plan(LLM(fake_target(), "none"), ["lookup"], ITEMS, GREEDY)
    [found] = plan.candidates
    assert (found.measured, found.measured_auto) == (1.6, 1.5)
    assert found.by_chance == found.use_auto == by_chance
    [told] = plan_json(plan, {})["candidates"]
    assert (told["use_auto"], told["fixed_over_auto_ci95"]) == (by_chance, [low, 1.2] if prompts == 4 else None)


def test_the_advice_takes_the_better_way_to_choose_lengths() -> None:
    target = LLM(fake_target(), "none")
    plan = make_plan(target, ["lookup"], ITEMS, GREEDY)
    [candidate], sure = plan.candidates, Forecast(3, 1.4, (1.3, 1.5), 0.8, 2.4, {3: 1.4}, 0.9)

    def advice(measured: float | None, auto: float | None, *, clearly: bool = True) -> str:
        ratio = None if measured is None else (1.01, 1.2) if clearly else (0.99, 1.2)
        found = replace(candidate, forecast=sure, measured=measured, measured_auto=auto, fixed_over_auto=ratio)
        value = plan_json(replace(plan, candidates=(found,), replies=4, tokens=200), {})
        assert value["recommendation"]["measured_speedup_auto"] == auto
        return str(value["recommendation"]["advice"])

    fixed = "1.40x with --num-draft-tokens 3, measured"
    auto = "Use lookup, its lengths chosen round by round (auto): measured 1.50x. A fixed length:"
    assert advice(1.3, 1.5) == f"{auto} {fixed} 1.30x."
    assert advice(0.9, 1.5) == f"{auto} {fixed} 0.90x."
    assert advice(1.5, 1.3) == f"Use lookup: expect {fixed} 1.50x. With lengths chosen round by round (auto): 1.30x."
    assert advice(1.53, 1.5) == f"{auto} {fixed} 1.53x."
    assert advice(1.7, 1.5, clearly=False) == f"{auto} {fixed} 1.70x (by chance, perhaps)."
    assert advice(1.03, 1.01) == f"Use lookup: expect {fixed} 1.03x. With lengths chosen round by round (auto): 1.01x."
    none = "Do not draft: the best candidate, lookup, does not pay"
    assert advice(1.03, 1.01, clearly=False).startswith(none)
    assert advice(1.0, 0.99) == f"{none} (predicted {fixed} 1.00x; 0.99x with lengths chosen round by round)."
    with pytest.raises(ValueError, match="both ways are measured"):
        advice(None, 1.5)
    assert advice(None, None) == f"{none} (predicted 1.40x)."


def test_an_advice_that_rests_on_little_says_so() -> None:
    plan = make_plan(LLM(fake_target(), "none"), ["lookup"], ITEMS, GREEDY)

    def advice(replies: int, tokens: int) -> str:
        return str(plan_json(replace(plan, replies=replies, tokens=tokens), {})["recommendation"]["advice"])

    enough = advice(4, 200)
    for replies, tokens in ((3, 200), (4, 199)):
        told = f"Too little to rely on: {tokens} tokens in all, replies: {replies}. Give at least 4 prompts and 200"
        assert advice(replies, tokens) == f"{enough}\n{told} tokens (--limit, --max-new-tokens)."
    assert "little" not in enough


def test_a_candidate_that_cannot_be_opened_is_told_before_any_reply_is_written() -> None:
    target = fake_target()
    with pytest.raises(UsageError, match="none is no candidate"):
        make_plan(LLM(target, "none"), ["lookup", "none"], ITEMS, GREEDY)
    assert target.model.tokens_read == 0  # type: ignore[attr-defined]


def test_what_does_not_pay_is_said_plainly() -> None:
    target = LLM(fake_target(), "none")
    plan = make_plan(target, [fake_target("stranger", seed=9)], ITEMS, GREEDY)
    assert plan.best is None
    assert plan_json(plan, {})["recommendation"]["draft"] == "none"
    assert "Do not draft" in plan_text(plan_json(plan, {}))


def test_impossible_plans_are_refused() -> None:
    target = LLM(fake_target(), "none")
    with pytest.raises(UsageError, match="no drafter to plan for"):
        make_plan(target, [], ITEMS, GREEDY)
    with pytest.raises(UsageError, match="auto is no candidate"):
        make_plan(target, ["auto"], ITEMS, GREEDY)
    with pytest.raises(UsageError, match="no reply had a second token"):
        write_replies(target, [PromptItem("long", "x", ("a" * 600,))], GREEDY)
