"""Every drafter with every option, in batches of several sizes and through preemptions: always the plain tokens."""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.speculate import (
    Drafter,
    MixedDrafter,
    PromptLookupDrafter,
    SuffixDrafter,
    TranslatedDrafter,
    VocabularyMap,
    compare_vocabularies,
)
from draftsmith.types import Request, SamplingParams
from tests.support.batches import Outcome, alone, drafters, engine_of, outcome, prompt, run
from tests.support.fakes import VOCAB_SIZE, byte_tokenizer
from tests.support.shared_fakes import SharedFakeModel

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "temperature": {"temperature": 1.4},
    "repetition": {"repetition_penalty": 1.3},
    "presence": {"presence_penalty": 0.8},
    "frequency": {"frequency_penalty": -0.5},
    "bias": {"logit_bias": {97: 2.0, 99: -3.0}},
    "logprobs": {"logprobs": 3},
    "no end": {"ignore_eos": True},
    "all": {
        "top_k": 9,
        "top_p": 0.95,
        "min_p": 0.01,
        "temperature": 0.9,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {98: 1.5},
        "logprobs": 2,
    },
}


@cache
def vocabularies() -> VocabularyMap:
    return compare_vocabularies(byte_tokenizer(), byte_tokenizer(first_letter="ab"))


def translated() -> TranslatedDrafter:
    return TranslatedDrafter(SharedFakeModel(), vocabularies(), target_vocab_size=VOCAB_SIZE, max_context=512)


def every_drafter() -> dict[str, Drafter | None]:
    return {
        **drafters(),
        "foreign": translated(),
        "foreign + lookup": MixedDrafter(PromptLookupDrafter(4, 2), translated()),
        "foreign + suffix": MixedDrafter(SuffixDrafter(2), translated()),
    }


@cache
def plain(request_key: tuple[str, bool, int]) -> Outcome:
    return alone(SharedFakeModel(), request(*request_key))


def request(option: str, greedy: bool, number: int) -> Request:
    params = SamplingParams(
        seed=number,
        greedy=greedy,
        max_new_tokens=110 if "ignore_eos" in OPTIONS[option] else 60 + number,
        ignore_eos=number % 3 == 0,
    )
    text = ["abcd abcd ab", "hgfe\n" * 12, "a b c d e f", "gh gh gh " * 9][number % 4]
    return Request(prompt_ids=prompt(text), sampling=dataclasses.replace(params, **OPTIONS[option]))


def test_the_foreign_draft_goes_both_ways() -> None:
    """By text where greedy, by common tokens where sampled; or the tests below would say less than they seem to."""
    assert vocabularies().method(sampled=False) == "text"
    assert vocabularies().method(sampled=True) == "tokens"


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "seeded"])
@pytest.mark.parametrize("drafter", sorted(every_drafter()))
def test_the_plain_tokens(drafter: str, greedy: bool) -> None:
    """One, four, all options at once; chosen and fixed lengths; the last in so little memory that some lose theirs."""
    names = list(OPTIONS)
    little = 640 if hasattr(every_drafter()[drafter], "_model") else 320  # a draft model's caches count as well
    for some, k, memory in ((names[-1:], None, {}), (names[:4], 3, {}), (names, None, {"kv_bytes": little})):
        engine = engine_of(SharedFakeModel(), every_drafter()[drafter], k, **memory)
        handles = [engine.submit(request(option, greedy, number)) for number, option in enumerate(some)]
        run(engine, *handles)
        for number, (option, handle) in enumerate(zip(some, handles, strict=True)):
            assert handle.error is None
            assert outcome(handle.take()) == plain((option, greedy, number)), option
    if drafter == "none":
        assert engine.stats.num_preemptions > 0
