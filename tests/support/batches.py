"""What the tests of the batched engine share: drafters of every kind, an engine over fakes, the reference to match."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from draftsmith.engine.batch import Engine
from draftsmith.engine.handle import Handle
from draftsmith.engine.limits import EngineLimits
from draftsmith.model.protocol import Model
from draftsmith.speculate import (
    CostModel,
    Drafter,
    DraftSession,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    Round,
    SuffixDrafter,
    WantsMore,
    generate,
)
from draftsmith.types import Draft, Request, SamplingParams, Verdict, VerificationRule
from tests.support.fakes import EOS, VOCAB_SIZE
from tests.support.shared_fakes import SharedFakeModel

LETTERS = b"abcdefgh \n"
GREEDY = SamplingParams(greedy=True, max_new_tokens=40)
SEEDED = SamplingParams(
    seed=7,
    max_new_tokens=40,
    temperature=0.9,
    top_k=9,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={97: 1.5},
    logprobs=2,
)
COSTS = CostModel(0.2)
Outcome = tuple[list[int], str | None, list[object]]


class RandomDrafter:
    """Drafts anything, as long as it is wanted."""

    name = "random"

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        del rule
        return RandomSession(len(request.prompt_ids))


class RandomSession:
    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)  # noqa: S311 (drafts at random)
        self._open = False

    def restart(self, request: Request) -> None:
        del request
        self._open = False

    def read(self, token_ids: Sequence[int]) -> None:
        del token_ids

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        del token_ids
        assert not self._open, "a draft was never answered"
        drawn: list[int] = []
        while len(drawn) < max_tokens and wants_more([0.5] * len(drawn), None):
            drawn.append(self._dice.choice(LETTERS))
        self._open = bool(drawn)
        return Draft(tuple(drawn), None, (0.5,) * len(drawn))

    def commit(self, verdict: Verdict) -> None:
        del verdict
        self._open = False


def drafters(**options: int) -> dict[str, Drafter | None]:
    models = {
        "itself": SharedFakeModel(**options),
        "stranger": SharedFakeModel(9),
        "short": SharedFakeModel(max_context=70),
    }
    of_models = {name: ModelDrafter(models[name], target_vocab_size=VOCAB_SIZE, name=name) for name in models}
    return {
        "none": None,
        "lookup": PromptLookupDrafter(3, 1),
        "suffix": SuffixDrafter(2, remember=500),
        "random": RandomDrafter(),
        "mixed": MixedDrafter(PromptLookupDrafter(3, 1), of_models["itself"]),
        "random mixed": MixedDrafter(RandomDrafter(), of_models["stranger"]),
        **of_models,
    }


def alone(model: Model, request: Request, capacity: int | None = None) -> Outcome:
    """The reference loop, plain."""
    return outcome(list(generate(model, model.new_cache(capacity), request, eos_ids=(EOS,))))


def outcome(rounds: Sequence[Round]) -> Outcome:
    return (
        [token_id for written in rounds for token_id in written.token_ids],
        rounds[-1].finish_reason if rounds else None,
        [logprobs for written in rounds for logprobs in written.logprobs],
    )


def prompt(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def engine_of(model: Model, drafter: Drafter | None = None, k: int | None = None, **limits: Any) -> Engine:
    draft_model = getattr(drafter, "_model", None)
    return Engine(
        model,
        eos_ids=(EOS,),
        drafter=drafter,
        draft_model=draft_model,
        costs=lambda: COSTS,
        num_draft_tokens=k,
        limits=EngineLimits(**limits),
    )


def run(engine: Engine, *handles: Handle, at_most: int = 5000) -> None:
    for _ in range(at_most):
        if all(handle.finished for handle in handles):
            return
        engine.step()
    pytest.fail(f"not finished after {at_most} steps")
