"""LLM with a fake model: the drafter changes nothing but the counters, caches are reused, wrong use is told."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.engine.loading import DraftChoice, known_drafters
from draftsmith.errors import DraftsmithError, PromptTooLong, UsageError
from draftsmith.types import Completion, Message, SamplingParams
from tests.support.fakes import EOS, FakeModel, byte_tokenizer, fake_target

PROMPT = "abcd abcd "
ALL_OPTIONS = SamplingParams(
    max_new_tokens=80,
    temperature=0.9,
    top_k=9,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={ord("a"): 1.0},
    seed=7,
)
GREEDY = SamplingParams(max_new_tokens=80, greedy=True)


def complete(llm: LLM, sampling: SamplingParams, prompt: str = PROMPT) -> Completion:
    [completion] = llm.generate(prompt, sampling)
    return completion


@pytest.mark.parametrize("sampling", [GREEDY, ALL_OPTIONS], ids=["greedy", "all options"])
@pytest.mark.parametrize("k", ["auto", 1, 3, 16])
@pytest.mark.parametrize("drafter", ["lookup", "itself", "stranger"])
def test_a_drafter_never_changes_the_text(sampling: SamplingParams, k: int, drafter: str) -> None:
    plain = complete(LLM(fake_target(), "none"), sampling)
    drafts: dict[str, DraftChoice] = {
        "lookup": "lookup",
        "itself": fake_target("itself"),
        "stranger": fake_target("stranger", seed=9),
    }
    drafted = complete(LLM(fake_target(), drafts[drafter], num_draft_tokens=k), sampling)
    assert drafted.token_ids == plain.token_ids
    assert drafted.text == plain.text
    assert drafted.finish_reason == plain.finish_reason == "length"
    assert plain.speculation is None
    stats = drafted.speculation
    assert stats is not None
    assert stats.drafter == drafter
    assert stats.num_accepted_tokens == sum(drafted.from_draft) == sum(stats.num_accepted_tokens_per_pos)


def test_a_perfect_draft_is_always_accepted() -> None:
    stats = complete(LLM(fake_target(), fake_target(), num_draft_tokens=4), GREEDY).speculation
    assert stats is not None
    assert stats.acceptance_rate == 1
    assert stats.mean_acceptance_length > 4


def test_same_seed_same_text_and_seeds_are_reported() -> None:
    llm = LLM(fake_target(), "lookup")
    sampling = SamplingParams(max_new_tokens=40)
    first, second = complete(llm, sampling), complete(llm, sampling)
    assert first.seed is not None
    assert first.text != second.text
    assert complete(llm, dataclasses.replace(sampling, seed=first.seed)).text == first.text
    assert complete(llm, GREEDY).seed is None


def test_a_stop_string_ends_text_tokens_and_counters_alike() -> None:
    whole = complete(LLM(fake_target(), "none"), GREEDY)
    stop = whole.text[30:33]
    sampling = dataclasses.replace(GREEDY, stop=(stop,))
    plain = complete(LLM(fake_target(), "none"), sampling)
    drafted = complete(LLM(fake_target(), fake_target(), num_draft_tokens=16), sampling)
    assert plain.text == drafted.text == whole.text[: whole.text.index(stop)]
    assert plain.token_ids == drafted.token_ids
    assert drafted.finish_reason == "stop"
    assert drafted.speculation is not None
    assert drafted.speculation.num_draft_tokens < len(drafted.token_ids)


def test_end_of_text_is_a_token_but_no_text() -> None:
    target = LoadedModel("fake", FakeModel(eos_after=20), byte_tokenizer())
    done = complete(LLM(target, "lookup"), GREEDY)
    assert done.token_ids[-1] == EOS
    assert done.finish_reason == "stop"
    assert "<|im_end|>" not in done.text
    assert len(done.text) == len(done.token_ids) - 1


def test_the_pieces_of_a_stream_are_the_text_and_clocks_are_set() -> None:
    stream = LLM(fake_target(), fake_target(), num_draft_tokens=3).stream(PROMPT, GREEDY)
    with pytest.raises(RuntimeError, match="not finished"):
        _ = stream.completion
    pieces = list(stream)
    done = stream.completion
    assert "".join(piece.text for piece in pieces) == done.text
    assert {piece.from_draft for piece in pieces} == {True, False}
    assert done.timing.load_s > 0
    assert done.timing.prefill_s > 0
    assert done.timing.decode_s > 0
    assert done.timing.num_decoded == len(done.token_ids) - 1
    assert done.num_prompt_tokens == len(PROMPT)


def test_stop_ends_the_reply_and_the_next_goes_on_from_the_caches() -> None:
    llm = LLM(fake_target(), "lookup")
    stream = llm.stream(PROMPT, GREEDY)
    for count, _ in enumerate(stream):
        if count == 10:
            stream.stop()
    assert stream.stopped_early
    assert stream.completion.finish_reason == "stop"
    assert len(stream.completion.token_ids) < 80
    assert complete(llm, GREEDY).text.startswith(stream.completion.text)


def test_what_prompts_share_is_read_once() -> None:
    target = fake_target()
    model = target.model
    assert isinstance(model, FakeModel)
    llm = LLM(target, "none")
    first = complete(llm, GREEDY)
    before = model.tokens_read
    again = complete(llm, GREEDY)
    assert again.text == first.text
    assert model.tokens_read - before == len(again.token_ids)  # of the prompt, only the last token
    before = model.tokens_read
    longer = PROMPT + first.text + " more"
    one = dataclasses.replace(GREEDY, max_new_tokens=1)
    assert complete(llm, one, longer).text == complete(LLM(fake_target(), "none"), one, longer).text
    assert model.tokens_read - before <= len(" more") + 1


def test_two_streams_at_once_do_not_disturb_each_other() -> None:
    llm = LLM(fake_target(), "lookup")
    alone = [complete(LLM(fake_target(), "lookup"), GREEDY, prompt).text for prompt in ("abc ", "gfe ")]
    first, second = llm.stream("abc ", GREEDY), llm.stream("gfe ", GREEDY)
    for _ in zip(first, second, strict=False):
        pass
    assert [first.wait().text, second.wait().text] == alone


def test_after_an_interruption_in_the_middle_of_a_step_the_caches_are_not_trusted() -> None:
    target = fake_target()
    model = target.model
    assert isinstance(model, FakeModel)
    llm = LLM(target, "lookup")
    expected = complete(llm, GREEDY).text
    model.fail_at = model.tokens_read + 20
    with pytest.raises(KeyboardInterrupt):
        complete(llm, GREEDY)
    model.fail_at = None
    assert complete(llm, GREEDY).text == expected


def test_changing_the_drafter_keeps_the_text_and_the_cache() -> None:
    target = fake_target()
    llm = LLM(target, "none")
    expected = complete(llm, ALL_OPTIONS).text
    for draft in ("lookup", fake_target("twin"), None):
        llm.use_draft(draft)
        assert complete(llm, ALL_OPTIONS).text == expected
    assert llm.drafter_name == "none"


@pytest.mark.parametrize("sampling", [GREEDY, ALL_OPTIONS], ids=["greedy", "all options"])
def test_a_draft_with_another_vocabulary_changes_nothing_and_is_told(sampling: SamplingParams) -> None:
    stranger = LoadedModel("stranger", FakeModel(), byte_tokenizer(first_letter="x"))
    llm = LLM(fake_target(), stranger, num_draft_tokens=3)
    for prompt in (PROMPT, PROMPT + "more"):
        drafted = complete(llm, sampling, prompt)
        assert drafted.token_ids == complete(LLM(fake_target(), "none"), sampling, prompt).token_ids
        assert drafted.speculation is not None
        assert drafted.speculation.num_accepted_tokens > 0
    assert llm.drafter_note is not None
    assert llm.drafter_note.startswith("the draft stranger: its vocabulary differs")
    llm.use_draft(fake_target("same"))
    assert llm.drafter_note is None


def test_a_draft_that_cannot_be_loaded_leaves_the_old_one() -> None:
    llm = LLM(fake_target(), "lookup")
    with pytest.raises(DraftsmithError, match="no/such/model"):
        llm.use_draft("./no/such/model.gguf")
    assert llm.drafter_name == "lookup"


def test_chat_uses_the_prompt_format_and_reuses_the_conversation() -> None:
    target = fake_target(eos_after=90)
    model = target.model
    assert isinstance(model, FakeModel)
    llm = LLM(target, "lookup")
    turns = [Message("user", "abc def")]
    first = llm.chat(turns, GREEDY)
    before = model.tokens_read
    turns += [Message("assistant", first.text), Message("user", "again")]
    second = llm.chat(turns, dataclasses.replace(GREEDY, max_new_tokens=1))
    fresh = LLM(fake_target(eos_after=90), "none").chat(turns, dataclasses.replace(GREEDY, max_new_tokens=1))
    assert second.token_ids == fresh.token_ids
    assert model.tokens_read - before < second.num_prompt_tokens / 2


def test_rejection_rule_with_a_seed_is_reproducible() -> None:
    texts = set()
    for _ in range(2):
        llm = LLM(fake_target(), fake_target("twin", seed=1), rule="rejection", num_draft_tokens=4)
        texts |= {complete(llm, ALL_OPTIONS).text for _ in range(2)}
    assert len(texts) == 1


def test_logprobs_come_with_every_token() -> None:
    sampling = dataclasses.replace(GREEDY, logprobs=3)
    plain = complete(LLM(fake_target(), "none"), sampling)
    drafted = complete(LLM(fake_target(), fake_target(), num_draft_tokens=5), sampling)
    assert plain.logprobs is not None
    assert drafted.logprobs == plain.logprobs
    assert [entry.token_id for entry in plain.logprobs] == list(plain.token_ids)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "gpu"}, "backend is 'gpu'; it must be auto or native or torch"),
        ({"dtype": "int3"}, "dtype is 'int3'; it must be auto or float32 or bfloat16 or float16"),
        ({"quantize": "2bit"}, "quantize is '2bit'; it must be none or 4bit or 8bit"),
        ({"rule": "guess"}, "rule is 'guess'; it must be coupled or rejection"),
        ({"num_draft_tokens": 0}, "num_draft_tokens is 0; it must be auto or from 1 to 64"),
        ({"num_draft_tokens": "many"}, "num_draft_tokens is 'many'; it must be auto or from 1 to 64"),
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"max_context": -1}, "max_context is -1; it must be at least 1"),
        ({"draft": "none", "num_draft_tokens": 3}, "num_draft_tokens 3 and draft none contradict each other; give one"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        LLM(fake_target(), **options)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_wrong_prompts_are_one_sentence() -> None:
    llm = LLM(fake_target(max_context=32), "lookup")
    with pytest.raises(PromptTooLong, match="33 tokens"):
        complete(llm, GREEDY, "a" * 33)
    with pytest.raises(UsageError, match="empty"):
        complete(llm, GREEDY, "")
    with pytest.raises(UsageError, match="the prompt has the token id 260; fake has ids from 0 to 259"):
        llm.generate([1, 260], GREEDY)
    with pytest.raises(UsageError, match="logit_bias has the token id 999"):
        complete(llm, dataclasses.replace(GREEDY, logit_bias={999: 1.0}))


def test_the_context_ends_the_reply() -> None:
    for draft in ("none", fake_target(max_context=32)):
        done = complete(LLM(fake_target(max_context=32), draft), GREEDY, "a" * 20)
        assert len(done.token_ids) == 12
        assert done.finish_reason == "length"


def test_several_prompts_and_token_ids() -> None:
    llm = LLM(fake_target(), "lookup")
    texts = [completion.text for completion in llm.generate(["abc ", "gfe "], GREEDY)]
    assert texts == [complete(llm, GREEDY, "abc ").text, complete(llm, GREEDY, "gfe ").text]
    assert llm.generate([97, 98, 99, 32], GREEDY)[0].text == texts[0]
    assert llm.generate([], GREEDY) == []


@pytest.mark.parametrize("sampling", [GREEDY, ALL_OPTIONS], ids=["greedy", "all options"])
@pytest.mark.parametrize("draft", ["none", "lookup", "itself"])
def test_prompts_together_and_alone(sampling: SamplingParams, draft: str) -> None:
    """Texts, tokens, reasons, stop strings and counters; only times differ."""
    llm = LLM(fake_target(eos_after=70), fake_target("itself", eos_after=70) if draft == "itself" else draft)
    params = dataclasses.replace(sampling, stop=("ga", "bb"), logprobs=1)
    prompts = [PROMPT, "abc", PROMPT + "a", "h" * 40]
    together = llm.generate(prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        single = complete(llm, params, prompt)
        assert (completion.text, completion.token_ids) == (single.text, single.token_ids)
        assert completion.finish_reason == single.finish_reason
        assert completion.logprobs == single.logprobs
        assert (completion.speculation is None) == (draft == "none")
    assert {completion.finish_reason for completion in together} == {"stop"}


def test_one_prompt_too_long_among_others_is_told_before_anything_is_written() -> None:
    llm = LLM(fake_target(max_context=32), "lookup")
    with pytest.raises(PromptTooLong, match="has 40 tokens"):
        llm.generate(["abc", "a" * 40], GREEDY)


def test_sampled_drafts_under_rejection_do_not_depend_on_the_other_prompts() -> None:
    llm = LLM(fake_target(), fake_target("stranger", seed=9), rule="rejection")
    prompts = ["abc ", "gfe ", "h"]
    texts = [completion.text for completion in llm.generate(prompts, ALL_OPTIONS)]
    assert texts == [complete(llm, ALL_OPTIONS, prompt).text for prompt in prompts]


def test_lookup_comes_first_where_no_draft_is_shipped() -> None:
    assert known_drafters(fake_target()) == ["lookup", "suffix"]
    assert LLM(fake_target()).drafter_name == "lookup"
