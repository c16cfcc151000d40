"""A trace is recorded without changing the text, read back as it was, and replayed with other policies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from draftsmith.errors import UsageError
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    Drafter,
    FixedLength,
    LengthPolicy,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    RoundRecord,
    SpeculationCounter,
    Trace,
    TracedDrafter,
    generate,
    read_trace,
    replay,
    trace_json,
)
from draftsmith.types import Request, SamplingParams, SpeculationStats

Factory = Callable[..., Any]

COSTS = CostModel(0.3, (1.0, 1.1, 1.2))
GREEDY = SamplingParams(greedy=True, max_new_tokens=120, presence_penalty=0.5, frequency_penalty=0.3)


def write(target: Any, drafter: Drafter, policy: LengthPolicy) -> tuple[list[list[int]], SpeculationStats]:
    """The replies to a few prompts, and what was counted over all."""
    texts, counter = [], SpeculationCounter("")
    for first in range(3):
        request = Request(prompt_ids=(first, 1, 2), sampling=GREEDY)
        session = drafter.start(request, "coupled")
        rounds = list(generate(target, target.new_cache(), request, session=session, policy=policy))
        texts.append([token_id for r in rounds for token_id in r.token_ids])
        for finished in rounds:
            counter.add(finished)
    return texts, counter.stats()


def drafter_for(table_model: Factory, noise: float = 0.4) -> ModelDrafter:
    return ModelDrafter(table_model(noise=noise), target_vocab_size=30)


def record(table_model: Factory, k: int, noise: float = 0.4) -> tuple[Trace, list[list[int]]]:
    clock = itertools.count()
    traced = TracedDrafter(drafter_for(table_model, noise), lambda: next(clock) / 1000)
    texts, _ = write(table_model(), traced, FixedLength(k))
    return Trace(traced.name, tuple(traced.rounds), COSTS), texts


def test_recording_changes_nothing_and_misses_nothing(table_model: Factory) -> None:
    trace, texts = record(table_model, 4)
    plain, stats = write(table_model(), drafter_for(table_model), FixedLength(4))
    assert texts == plain
    for number, text in enumerate(texts):
        written = [token_id for r in trace.rounds if r.text == number for token_id in r.written]
        assert written[: len(text) - 1] == text[1:]  # the prompt's round wrote the first
    assert sum(r.num_accepted for r in trace.rounds) == stats.num_accepted_tokens
    assert sum(len(r.drafted) for r in trace.rounds) == stats.num_draft_tokens
    assert {(round(r.draft_s, 6), round(r.check_s, 6)) for r in trace.rounds} == {(0.001, 0.001)}


def test_a_file_holds_it_all_and_is_chromes_format(table_model: Factory, tmp_path: Path) -> None:
    trace, _ = record(table_model, 3)
    content = trace_json(trace, lambda token_id: f"<{token_id}>")
    for event in content["traceEvents"]:
        assert (event["ph"], event["pid"]) == ("X", 1)
        assert event["dur"] > 0
        assert event["name"] in ("round", "draft", "check")
    assert content["traceEvents"][0]["args"]["draft_text"].startswith(f"<{trace.rounds[0].drafted[0]}>")
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(content))
    again = read_trace(path)
    assert again.costs == trace.costs
    for a, b in zip(again.rounds, trace.rounds, strict=True):
        assert a.confidences == pytest.approx(b.confidences, abs=1e-4)
        assert (a.began, a.draft_s, a.check_s) == pytest.approx((b.began, b.draft_s, b.check_s), abs=1e-8)
        assert replace(a, confidences=(), began=0, draft_s=0, check_s=0) == replace(
            b, confidences=(), began=0, draft_s=0, check_s=0
        )


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5, 8])
def test_a_replay_is_what_the_models_would_have_done(k: int, table_model: Factory) -> None:
    """Recorded with 16 tokens a round, replayed with k: the same rounds as with the models and k."""
    trace, texts = record(table_model, 16)
    result = replay(trace, lambda _: FixedLength(k))
    _, stats = write(table_model(), drafter_for(table_model), FixedLength(k))
    assert result.tokens >= sum(len(text) - 1 for text in texts)
    assert result.accepted_tokens == pytest.approx(stats.num_accepted_tokens, abs=12)  # ends of texts differ
    assert result.draft_tokens == pytest.approx(stats.num_draft_tokens, abs=24)
    assert result.tokens == result.rounds + result.accepted_tokens
    if k == 0:
        assert result.speedup == 1


def test_a_replay_prefers_what_is_better(table_model: Factory) -> None:
    good, bad = record(table_model, 16, noise=0.05)[0], record(table_model, 16, noise=1.0)[0]
    assert replay(good, lambda _: FixedLength(6)).speedup > replay(good, lambda _: FixedLength(1)).speedup > 1.1
    assert replay(bad, lambda _: FixedLength(6)).speedup < replay(bad, lambda _: FixedLength(1)).speedup < 0.9
    assert replay(bad, AutoLength).speedup > 0.9
    assert replay(good, AutoLength).speedup > 1.3
    dear = CostModel(2.0, (1.0, 2.0))
    assert replay(good, lambda _: FixedLength(6), dear).speedup < 0.7


def test_copies_after_drawn_tokens_are_kept_apart(tmp_path: Path) -> None:
    row = RoundRecord(0, 5, (1, 2, 3, 4), (0.9, 0.8, 0.75, 0.8), False, (1, 2, 3, 9), 3, 0.0, 0.1, 0.1, num_copied=2)
    costs = CostModel(0.3, (1.0, 1.1, 1.2, 1.3, 1.4), 0.01, 0.05)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace_json(Trace("mix", (row,), costs), str)))
    again = read_trace(path)
    assert (again.rounds[0].num_copied, again.costs) == (2, costs)
    result = replay(again, lambda _: FixedLength(4))
    assert (result.draft_tokens, result.tokens) == (2, 4)  # a replayed round is of one kind
    assert result.cost == pytest.approx(0.05 + 2 * 0.3 + 1.2 + 1.0)


def test_copies_cost_nothing_in_a_replay(table_model: Factory) -> None:
    mixed = MixedDrafter(PromptLookupDrafter(3, 1), ModelDrafter(table_model(6), target_vocab_size=6))
    traced = TracedDrafter(mixed)
    write(table_model(6), traced, FixedLength(4))
    copies = tuple(r for r in traced.rounds if r.free)
    assert copies
    cheap, dear = (
        replay(Trace("mix", copies, CostModel(c, COSTS.verify)), lambda _: FixedLength(4)) for c in (0.1, 9.0)
    )
    assert cheap.cost == dear.cost


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", '{"traceEvents": [], "otherData": {"format": "other"}}', '{"traceEvents": 3}', "[" * 9999],
)
def test_files_that_are_no_traces(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="is no trace of draftsmith's"):
        read_trace(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "missing.json")
