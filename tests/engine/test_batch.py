"""The batched engine: every request gets the tokens of the reference loop, whatever else happens around it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.batch import Engine
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.errors import CheckpointError, OutOfMemory, PromptTooLong, QueueFull, UsageError
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import (
    ModelDrafter,
    PromptLookupDrafter,
    Round,
    SpeculationCounter,
)
from draftsmith.types import Request, SamplingParams
from tests.support.batches import (
    GREEDY,
    SEEDED,
    alone,
    drafters,
    engine_of,
    outcome,
    prompt,
    run,
)
from tests.support.fakes import VOCAB_SIZE, FakeModel
from tests.support.shared_fakes import SharedFakeModel


@dataclasses.dataclass
class Case:
    """A request, when it comes, and after how many rounds it is cancelled (None: never)."""

    request: Request
    options: RequestOptions
    arrives: int
    cancelled_after: int | None


PROMPTS = st.builds(
    lambda beginning, size, end: prompt((beginning * 300)[:size] + end),
    st.sampled_from(["ab cd\n", "gh", "abcdefgh "]),
    st.integers(0, 200),
    st.text("abc ", min_size=1, max_size=4),
)
SAMPLING = st.builds(
    lambda params, seed, length, ignore: dataclasses.replace(
        params, seed=seed, max_new_tokens=length, ignore_eos=ignore
    ),
    st.sampled_from([GREEDY, SEEDED, SamplingParams(temperature=1.1)]),
    st.integers(0, 3),
    st.integers(1, 90),
    st.booleans(),
)
OPTIONS = st.builds(
    lambda draft, k: RequestOptions(draft=draft, num_draft_tokens=k),
    st.booleans(),
    st.sampled_from([None, None, 0, 1, 3, 20]),
)
CASES = st.lists(
    st.builds(
        lambda ids, sampling, options, arrives, cancelled: Case(
            Request(prompt_ids=ids, sampling=sampling), options, arrives, cancelled
        ),
        PROMPTS,
        SAMPLING,
        OPTIONS,
        st.integers(0, 20),
        st.none() | st.none() | st.integers(0, 5),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60)
@given(
    cases=CASES,
    drafter=st.sampled_from(sorted(drafters())),
    k=st.sampled_from([None, 2, 5]),
    max_running=st.integers(1, 6),
    prefill=st.integers(1, 300),
    beside=st.integers(1, 80),
    blocks=st.integers(6, 40),
    kept=st.integers(0, 5),
)
def test_as_alone_whatever_happens(
    cases: list[Case],
    drafter: str,
    k: int | None,
    max_running: int,
    prefill: int,
    beside: int,
    blocks: int,
    kept: int,
) -> None:
    """Arrivals, cancellations, shared prompts, chunks of prompts, little memory, drafts of all kinds: same tokens."""
    model = SharedFakeModel(eos_after=230)
    engine = engine_of(
        model,
        drafters(eos_after=230)[drafter],
        k,
        max_running=max_running,
        prefill_tokens=prefill,
        prefill_tokens_beside=beside,
        kv_bytes=blocks * 64,
        max_kept_texts=kept,
    )
    play(engine, cases)


def play(engine: Engine, cases: Sequence[Case]) -> None:
    handles: list[tuple[Case, Handle, list[Round]]] = []
    capacity = engine.capacity
    for step in range(6000):
        for case in cases:
            if case.arrives == step:
                if len(case.request.prompt_ids) < capacity:
                    handles.append((case, engine.submit(case.request, case.options), []))
                else:
                    with pytest.raises(PromptTooLong):
                        engine.submit(case.request, case.options)
        if step > 20 and engine.idle:
            break
        engine.step()
        for case, handle, rounds in handles:
            rounds += handle.take()
            if case.cancelled_after is not None and len(rounds) > case.cancelled_after:
                handle.cancel()
    else:
        pytest.fail("the engine does not come to an end")
    for case, handle, rounds in handles:
        ids, reason, logprobs = outcome(rounds)
        expected = alone(FakeModel(eos_after=230), case.request, capacity)
        assert handle.finished
        assert handle.error is None
        if not handle.cancelled:
            assert (ids, reason, logprobs) == expected
        assert ids == expected[0][: len(ids)]
        check_counters(handle, rounds)


@pytest.mark.parametrize("name", sorted(drafters()))
def test_a_step_with_nothing_to_do_does_nothing(name: str) -> None:
    """Also where lengths have been chosen before, and where the only text was cancelled since the last step."""
    engine = engine_of(SharedFakeModel(), drafters()[name], None)
    sampling = SamplingParams(greedy=True, max_new_tokens=20)
    first = engine.submit(Request(prompt_ids=(97, 98, 97, 98), sampling=sampling))
    while not engine.idle:
        engine.step()
    assert first.error is None
    engine.step()
    second = engine.submit(Request(prompt_ids=(97, 98, 97, 98), sampling=sampling))
    second.cancel()
    engine.step()
    assert engine.idle
    assert (second.finished, second.error) == (True, None)


def check_counters(handle: Handle, rounds: Sequence[Round]) -> None:
    stats = handle.speculation
    if stats is not None:
        counter = SpeculationCounter(stats.drafter)
        for written in rounds:
            counter.add(written)
        assert counter.stats() == stats


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("drafter", sorted(drafters()))
@pytest.mark.parametrize("size", [1, 4, 8])
def test_batches_of_all_sizes(params: SamplingParams, drafter: str, size: int) -> None:
    model = SharedFakeModel()
    engine = engine_of(model, drafters()[drafter], 3)
    requests = [Request(prompt_ids=prompt("abc " * (i + 1)), sampling=params) for i in range(size)]
    handles = [engine.submit(request) for request in requests]
    run(engine, *handles)
    for request, handle in zip(requests, handles, strict=True):
        assert outcome(handle.take()) == alone(FakeModel(), request)


def test_a_step_is_one_forward_of_the_target_and_k_of_the_draft() -> None:
    model, draft_model = SharedFakeModel(), SharedFakeModel()
    engine = engine_of(model, ModelDrafter(draft_model, target_vocab_size=VOCAB_SIZE), 4)
    handles = [engine.submit(Request(prompt_ids=prompt("abc" * n), sampling=GREEDY)) for n in (1, 2, 3)]
    engine.step()
    assert model.batches == [[3, 6, 9]]
    assert draft_model.batches == []
    engine.step()
    assert model.batches[1:] == [[5, 5, 5]]
    assert [len(batch) for batch in draft_model.batches] == [3] * 4
    run(engine, *handles)


def test_a_request_may_do_without_drafts_or_choose_their_length() -> None:
    model = SharedFakeModel()
    engine = engine_of(model, ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE), 4)
    wishes = [RequestOptions(draft=False), RequestOptions(num_draft_tokens=0), RequestOptions(num_draft_tokens=2)]
    handles = [
        engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY), options)
        for options in (*wishes, RequestOptions())
    ]
    engine.step()
    engine.step()
    assert model.batches[1] == [1, 1, 3, 5]
    run(engine, *handles)
    assert [handle.speculation is None for handle in handles] == [True, True, False, False]
    with pytest.raises(UsageError, match="num_draft_tokens is 65; it must be from 0"):
        RequestOptions(num_draft_tokens=65)


def test_a_long_prompt_does_not_stall_others() -> None:
    """Neither those who write nor a short prompt that comes later, and no step reads more than it may."""
    model = SharedFakeModel(max_context=5000)
    engine = engine_of(model, prefill_tokens=200, prefill_tokens_beside=20)
    writer = engine.submit(Request(prompt_ids=prompt("a"), sampling=GREEDY))
    engine.step()
    long = engine.submit(Request(prompt_ids=prompt("b" * 600), sampling=GREEDY))
    engine.step()
    short = engine.submit(Request(prompt_ids=prompt("c" * 20), sampling=GREEDY))
    for _ in range(3):
        engine.step()
    assert [len(handle.take()) for handle in (writer, long, short)] == [5, 0, 2]
    assert max(map(sum, model.batches)) <= 22
    run(engine, long)
    assert outcome(long.take()) == alone(FakeModel(max_context=5000), long.request)


def test_samples_of_one_prompt_read_it_once() -> None:
    model = SharedFakeModel()
    engine = engine_of(model)
    ids = prompt("abc d " * 40)
    requests = [Request(prompt_ids=ids, sampling=dataclasses.replace(SEEDED, seed=n)) for n in range(4)]
    handles = [engine.submit(request) for request in requests]
    run(engine, *handles)
    assert sum(map(sum, model.batches)) < len(ids) + 4 * 45
    assert engine.stats.num_reused_tokens == 3 * (len(ids) - 1)
    replies = [outcome(handle.take()) for handle in handles]
    assert replies == [alone(FakeModel(), request) for request in requests]
    assert len({tuple(ids) for ids, _, _ in replies}) == 4


def test_nothing_is_shared_where_nobody_is_to_tell_what_others_asked() -> None:
    """Neither with a text that is being read or written, nor with one that is over; then every prompt takes as long."""
    model = SharedFakeModel()
    engine = engine_of(model, share_prompts=False)
    requests = [Request(prompt_ids=prompt("abc d " * 40), sampling=GREEDY) for _ in range(4)]
    first = [engine.submit(request) for request in requests[:2]]
    engine.step()
    assert model.batches[0] == [240, 16]  # the second does not wait for the first
    during = engine.submit(requests[2])
    run(engine, *first, during)
    after = engine.submit(requests[3])
    run(engine, after)
    assert engine.stats.num_reused_tokens == 0
    assert engine.stats.kept_texts == 0
    replies = [outcome(handle.take()) for handle in (*first, during, after)]
    assert replies == [alone(FakeModel(), requests[0])] * 4


def test_the_next_turn_reads_only_what_is_new() -> None:
    model, draft_model = SharedFakeModel(), SharedFakeModel()
    engine = engine_of(model, ModelDrafter(draft_model, target_vocab_size=VOCAB_SIZE), 3)
    first = engine.submit(Request(prompt_ids=prompt("abcd " * 20), sampling=GREEDY))
    run(engine, first)
    text = (*first.request.prompt_ids, *outcome(first.take())[0])
    model.tokens_read = draft_model.tokens_read = 0
    second = engine.submit(Request(prompt_ids=(*text, *prompt("abc")), sampling=GREEDY))
    engine.step()
    assert model.tokens_read == 4  # the last token of the reply was never read
    engine.step()
    assert draft_model.tokens_read < 12
    run(engine, second)
    assert outcome(second.take()) == alone(FakeModel(), second.request)
    assert engine.stats.kept_texts == 1  # the second text goes on from the first and replaces it


def test_short_memory_preempts_the_latest_and_resumes_it() -> None:
    model = SharedFakeModel()
    engine = engine_of(model, PromptLookupDrafter(), 3, kv_bytes=512, max_kept_texts=0)
    params = dataclasses.replace(SEEDED, max_new_tokens=200)
    requests = [
        Request(prompt_ids=prompt(letter * 60), sampling=dataclasses.replace(params, seed=n))
        for n, letter in enumerate("abcd")
    ]
    handles = [engine.submit(request) for request in requests]
    run(engine, handles[0])
    assert engine.stats.num_preemptions > 0
    assert model.cache_bytes_in_use <= 512
    run(engine, *handles)
    assert [outcome(h.take()) for h in handles] == [alone(FakeModel(), request) for request in requests]
    assert model.cache_bytes_in_use == 0


def test_memory_bounds_the_context() -> None:
    engine = engine_of(SharedFakeModel(), kv_bytes=128)
    assert engine.capacity == 128
    handle = engine.submit(Request(prompt_ids=prompt("a" * 120), sampling=GREEDY))
    run(engine, handle)
    ids, reason, _ = outcome(handle.take())
    assert (len(ids), reason) == (8, "length")
    with pytest.raises(PromptTooLong, match="has 128 tokens, but the context holds 128"):
        engine.submit(Request(prompt_ids=prompt("a" * 128), sampling=GREEDY))


def test_kept_texts_yield_to_requests() -> None:
    model = SharedFakeModel()
    engine = engine_of(model, kv_bytes=512)
    for letter in "abcdefgh":
        handle = engine.submit(Request(prompt_ids=prompt(letter * 100), sampling=GREEDY))
        run(engine, handle)
        assert model.cache_bytes_in_use <= 512
    assert engine.stats.num_preemptions == 0
    assert 0 < engine.stats.kept_texts < 8


def test_a_full_queue_refuses_and_forgets_nobody() -> None:
    engine = engine_of(SharedFakeModel(), max_running=2, max_waiting=3)
    request = Request(prompt_ids=prompt("abc"), sampling=GREEDY)
    handles = [engine.submit(request) for _ in range(3)]
    with pytest.raises(QueueFull, match="3 requests are waiting already; try again"):
        engine.submit(request)
    engine.step()
    handles += [engine.submit(request) for _ in range(2)]
    run(engine, *handles)
    assert {len(outcome(handle.take())[0]) for handle in handles} == {40}


def test_first_come_first_served() -> None:
    engine = engine_of(SharedFakeModel(), max_running=2)
    handles = [engine.submit(Request(prompt_ids=prompt(letter), sampling=GREEDY)) for letter in "abcdef"]
    order: list[int] = []
    while len(order) < len(handles):
        engine.step()
        order += [i for i, handle in enumerate(handles) if handle.finished and i not in order]
    assert order == sorted(order)


def test_cancelled_requests_leave_at_once() -> None:
    model = SharedFakeModel()
    engine = engine_of(model, max_running=1, max_kept_texts=0)
    first, second = (engine.submit(Request(prompt_ids=prompt(text), sampling=GREEDY)) for text in ("ab", "cd"))
    engine.step()
    first.cancel()
    second_waits = second.take()
    engine.step()
    assert first.finished
    assert len(first.take()) == 1
    assert not second_waits
    assert len(second.take()) == 1
    second.cancel()
    engine.step()
    assert engine.idle
    assert model.cache_bytes_in_use == 0
    second.cancel()  # harmless


def test_a_round_filter_ends_the_reply() -> None:
    engine = engine_of(SharedFakeModel(), PromptLookupDrafter(), 3)
    seen: list[int] = []

    def stop_after_five(written: Round) -> Round:
        room = 5 - len(seen)
        seen.extend(written.token_ids[:room])
        return written.cut(room, "stop") if len(seen) == 5 else written

    request = Request(prompt_ids=prompt("abc"), sampling=GREEDY)
    handle = engine.submit(request, RequestOptions(round_filter=stop_after_five))
    run(engine, handle)
    ids, reason, _ = outcome(handle.take())
    assert (ids, reason) == (alone(FakeModel(), request)[0][:5], "stop")


def test_one_bad_request_fails_alone() -> None:
    """A bias that forbids everything shows only when logits come; a filter may raise anything."""
    engine = engine_of(SharedFakeModel(), PromptLookupDrafter(), 3)
    nothing = SamplingParams(seed=1, logit_bias=dict.fromkeys(range(VOCAB_SIZE), float("-inf")))
    good = engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY))
    bad = engine.submit(Request(prompt_ids=prompt("abc"), sampling=nothing))
    error = CheckpointError("broken")

    def raises(_: Round) -> Round:
        raise error

    worse = engine.submit(good.request, RequestOptions(round_filter=raises))
    run(engine, good, bad, worse)
    assert outcome(good.take()) == alone(FakeModel(), good.request)
    assert isinstance(bad.error, UsageError)
    assert worse.error is error
    assert good.error is None


def test_a_forward_without_memory_is_tried_with_fewer() -> None:
    model = SharedFakeModel()
    engine = engine_of(model)
    handles = [engine.submit(Request(prompt_ids=prompt(text), sampling=GREEDY)) for text in ("ab", "cd")]
    engine.step()
    model.errors = [OutOfMemory("none left")]
    run(engine, *handles)
    assert [outcome(handle.take()) for handle in handles] == [alone(FakeModel(), h.request) for h in handles]
    assert engine.stats.num_preemptions == 1
    model.errors = [OutOfMemory("none left")]
    lonely = engine.submit(handles[0].request)
    run(engine, lonely)
    assert isinstance(lonely.error, OutOfMemory)


def test_a_failing_draft_ends_its_requests_only() -> None:
    draft_model = SharedFakeModel()
    engine = engine_of(SharedFakeModel(), ModelDrafter(draft_model, target_vocab_size=VOCAB_SIZE), 2)
    request = Request(prompt_ids=prompt("abc"), sampling=GREEDY)
    drafting, plain = engine.submit(request), engine.submit(request, RequestOptions(draft=False))
    engine.step()
    draft_model.errors = [CheckpointError("not numbers")]
    run(engine, drafting, plain)
    assert isinstance(drafting.error, CheckpointError)
    assert outcome(plain.take()) == alone(FakeModel(), request)


def test_an_interrupt_ends_what_runs_and_leaves_a_sound_engine() -> None:
    model = SharedFakeModel()
    engine = engine_of(model, max_running=1)
    request = Request(prompt_ids=prompt("abc"), sampling=GREEDY)
    running, waiting = engine.submit(request), engine.submit(request)
    engine.step()
    model.fail_at = model.tokens_read + 1
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    model.fail_at = None
    assert running.finished
    run(engine, waiting)
    assert outcome(waiting.take()) == alone(FakeModel(), request)


def test_a_draft_model_reads_a_long_text_in_parts() -> None:
    """While it does, the text is written without drafts; nobody waits for a long read."""
    draft_model = SharedFakeModel(max_context=2000)
    model = SharedFakeModel(max_context=2000)
    engine = engine_of(model, ModelDrafter(draft_model, target_vocab_size=VOCAB_SIZE), 4, prefill_tokens=100)
    request = Request(prompt_ids=prompt("abc " * 120), sampling=GREEDY)
    handle = engine.submit(request)
    run(engine, handle)
    assert outcome(handle.take()) == alone(FakeModel(max_context=2000), request)
    assert max(map(sum, draft_model.batches)) <= 101
    assert handle.speculation is not None
    assert handle.speculation.num_accepted_tokens > 20


def test_requests_that_cannot_be_served() -> None:
    engine = engine_of(SharedFakeModel())
    with pytest.raises(UsageError, match="the prompt has the token id 260"):
        engine.submit(Request(prompt_ids=(260,), sampling=GREEDY))
    with pytest.raises(UsageError, match="logit_bias has the token id 999"):
        engine.submit(Request(prompt_ids=(1,), sampling=dataclasses.replace(GREEDY, logit_bias={999: 1.0})))
    with pytest.raises(UsageError, match="empty"):
        engine.submit(Request(prompt_ids=(), sampling=GREEDY))
    assert engine.idle


def test_models_without_shared_caches() -> None:
    """Their finished caches are handed on whole; nothing is counted."""
    model = FakeModelWithoutLogits()
    engine = engine_of(model, PromptLookupDrafter(), 2)
    first = engine.submit(Request(prompt_ids=prompt("abc " * 30), sampling=GREEDY))
    run(engine, first)
    model.tokens_read = 0
    second = engine.submit(Request(prompt_ids=prompt("abc " * 30 + "d"), sampling=GREEDY))
    engine.step()
    assert model.tokens_read == 1
    run(engine, second)
    assert outcome(second.take()) == alone(FakeModel(), second.request)
    assert engine.stats.kv_budget is None


class FakeModelWithoutLogits(FakeModel):
    """A FakeModel that can be asked for no logits at all."""

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        rows = [self._forward(dataclasses.replace(run, num_logits=max(1, run.num_logits))) for run in runs]
        return [row if run.num_logits else row[:0] for row, run in zip(rows, runs, strict=True)]
