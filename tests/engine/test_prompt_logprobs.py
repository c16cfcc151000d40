"""Log-probabilities of the prompt's own tokens: as one forward over the whole prompt gives them, however it is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import Engine, EngineLimits, RequestOptions
from draftsmith.errors import OutOfMemory, UsageError
from draftsmith.model.protocol import TokenRun
from draftsmith.sampling import logprobs_of
from draftsmith.speculate import PromptLookupDrafter
from draftsmith.types import Request, SamplingParams, TokenLogprobs
from tests.support.fakes import EOS
from tests.support.shared_fakes import SharedFakeModel

PARAMS = SamplingParams(greedy=True, max_new_tokens=70, logprobs=1)


def expected(prompt: bytes, top: int) -> tuple[TokenLogprobs, ...]:
    model = SharedFakeModel()
    [logits] = model.forward([TokenRun(model.new_cache(), list(prompt), num_logits=len(prompt))])
    return tuple(logprobs_of(row, token_id, top) for row, token_id in zip(logits, prompt[1:], strict=False))


@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize("limits", [{}, {"prefill_tokens": 7, "prefill_tokens_beside": 5}, {"kv_bytes": 800}])
def test_they_are_those_of_one_forward(limits: dict[str, Any], top: int) -> None:
    model = SharedFakeModel()
    engine = Engine(
        model,
        eos_ids=[EOS],
        drafter=PromptLookupDrafter(),
        num_draft_tokens=4,
        limits=EngineLimits(**limits),
    )
    prompts = [b"abcabcab" * 12, b"abcabcab" * 12, b"hgfe", b"a", b"abcabcab" * 10]
    options = RequestOptions(prompt_logprobs=top)
    requests = [Request(prompt_ids=tuple(prompt), sampling=PARAMS) for prompt in prompts]
    handles = [engine.submit(request, options) for request in requests]
    plain = [engine.submit(request) for request in requests]
    for _ in range(6):
        engine.step()
    model.errors.append(OutOfMemory("for the test"))  # the last that runs has to begin again
    while not engine.idle:
        engine.step()
    for prompt, handle, other in zip(prompts, handles, plain, strict=True):
        assert handle.error is None
        assert handle.prompt_logprobs == expected(prompt, top)
        assert other.prompt_logprobs == ()
        assert [one.token_ids for one in handle.take()] != []
    assert engine.stats.num_preemptions > 0


def test_a_kept_cache_is_not_used_for_them() -> None:
    engine = Engine(SharedFakeModel(), eos_ids=[EOS])
    prompt = b"abcdefgh" * 20
    texts = []
    for options in (RequestOptions(), RequestOptions(prompt_logprobs=1), RequestOptions()):
        handle = engine.submit(Request(prompt_ids=tuple(prompt), sampling=PARAMS), options)
        while not engine.idle:
            engine.step()
        texts.append([i for one in handle.take() for i in one.token_ids])
        assert handle.prompt_logprobs == (expected(prompt, 1) if options.prompt_logprobs else ())
    assert texts[0] == texts[1] == texts[2]
    assert engine.stats.num_reused_tokens == len(prompt) - 1  # by the third


def test_what_is_out_of_range() -> None:
    with pytest.raises(UsageError, match="prompt_logprobs"):
        RequestOptions(prompt_logprobs=101)
