"""Options in any combination, grammars and processors among them, with every drafter, in batches, through preemptions.

Each seed draws some requests, some of them as samples of one prompt, and one way to serve them; every reply must have
the tokens, the end and the log-probabilities that it has alone and plain.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.grammar import GrammarCompiler
from draftsmith.engine.handle import RequestOptions
from draftsmith.types import Grammar, Request, SamplingParams
from tests.engine.test_every_drafter import every_drafter
from tests.support.batches import alone, engine_of, outcome, prompt, run
from tests.support.fakes import FakeModel, byte_tokenizer
from tests.support.shared_fakes import SharedFakeModel

CHOICES: dict[str, Sequence[Any]] = {
    "temperature": (0.7, 1.4),
    "top_k": (0, 3, 12),
    "top_p": (0.8, 0.97),
    "min_p": (0.01, 0.08),
    "repetition_penalty": (0.9, 1.3),
    "presence_penalty": (-0.4, 0.8),
    "frequency_penalty": (-0.3, 0.5),
    "logit_bias": ({97: 2.0, 99: -3.0}, {10: 1.0}, {101: -float("inf")}),
    "logprobs": (0, 3),
    "ignore_eos": (True,),
}
GRAMMARS = (
    Grammar(
        "json_schema",
        '{"type": "object", "properties": {"a": {"type": "integer", "maximum": 9999}, "b": '
        '{"enum": ["abc", "abd"]}}, "required": ["a", "b"], "additionalProperties": false}',
    ),
    Grammar("regex", r"[a-d]{3}(-[a-h]{2,4}){1,9}\."),
    Grammar("grammar", 'start: "(" start ")" | "a" | "b"'),
)
PROMPTS = ("abcd abcd ab", "hgfe\n" * 12, "a b c d e f", "gh gh gh " * 9, 'abc {"a": 1, "b": "ab')


class ForbidsRepeats:
    """A custom processor: never the letter that stands ``back`` places before."""

    def __init__(self, back: int) -> None:
        self.back = back

    def __call__(self, token_ids: Sequence[int], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if len(token_ids) >= self.back:
            scores[token_ids[-self.back]] = -np.inf
        return scores


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(byte_tokenizer())


def any_request(dice: Random) -> Request:
    some = {name: dice.choice(values) for name, values in CHOICES.items() if dice.random() < 0.3}
    params = SamplingParams(greedy=dice.random() < 0.4, seed=dice.randrange(4), max_new_tokens=dice.randint(1, 90))
    params = dataclasses.replace(params, **some)
    constraint = None
    if dice.random() < 0.3:
        grammar = dice.choice(GRAMMARS)
        params = dataclasses.replace(params, grammar=grammar, ignore_eos=False, logit_bias={})
        constraint = compiler().compile(grammar)
    elif dice.random() < 0.3:
        params = dataclasses.replace(params, logits_processors=(ForbidsRepeats(dice.randint(2, 4)),))
    return Request(prompt_ids=prompt(dice.choice(PROMPTS)), sampling=params, constraint=constraint)


def samples(request: Request, count: int) -> list[Request]:
    """``n`` replies to one prompt: the same request with other seeds."""
    return [
        dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=seed)) for seed in range(count)
    ]


@pytest.mark.parametrize("seed", range(40))
def test_as_alone_and_plain(seed: int) -> None:
    dice = Random(seed)  # noqa: S311 (a choice of tests)
    names = sorted(every_drafter())
    drafter = every_drafter()[names[seed % len(names)]]
    requests = [any_request(dice) for _ in range(dice.choice((1, 4, 8, 8)))]
    requests += samples(requests[0], dice.choice((0, 3)))
    little = 160 if drafter is None or not hasattr(drafter, "_model") else 320
    memory = dice.choice(({}, {"kv_bytes": little}, {"kv_bytes": little}, {"max_running": 2, "prefill_tokens": 9}))
    engine = engine_of(SharedFakeModel(), drafter, dice.choice((None, None, 1, 3, 7)), **memory)
    options = [
        RequestOptions(draft=dice.random() < 0.9, num_draft_tokens=dice.choice((None, None, 2))) for _ in requests
    ]
    handles = [engine.submit(request, option) for request, option in zip(requests, options, strict=True)]
    run(engine, *handles)
    for request, handle in zip(requests, handles, strict=True):
        assert handle.error is None
        assert outcome(handle.take()) == alone(FakeModel(), request, engine.capacity), request.sampling
