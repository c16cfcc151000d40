"""What rounds cost beyond their steps, by a clock that only models and drafters move."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.measure.plan import PlainReply
from draftsmith.measure.rounds import measure_round_costs
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import ModelDrafter
from draftsmith.speculate.drafters.model import ModelDraftSession
from draftsmith.types import Request, SamplingParams, Verdict, VerificationRule
from tests.support.clock import Clock, SlowModel, clock_of_the_process
from tests.support.fakes import VOCAB_SIZE, byte_tokenizer

STEP_S, DRAFT_S, AROUND_S = 5e-3, 5e-4, 1.5e-3


class BusyDrafter(ModelDrafter):
    """After every round with a draft it does something else for ``AROUND_S``."""

    def __init__(self, clock: Clock) -> None:
        self.draft = SlowModel(clock, DRAFT_S)
        super().__init__(self.draft, target_vocab_size=VOCAB_SIZE)
        self._clock = clock

    def start(self, request: Request, rule: VerificationRule) -> ModelDraftSession:
        session, clock = super().start(request, rule), self._clock
        commit = session.commit

        def slowly(verdict: Verdict) -> None:
            clock.seconds += AROUND_S if verdict.num_draft_tokens else 0.0
            commit(verdict)

        session.commit = slowly  # type: ignore[method-assign]
        return session


class DisturbedModel(SlowModel):
    """Now and then another program has the machine for a tenth of a second."""

    share = 1 / 301

    def __init__(self, clock: Clock, step_s: float) -> None:
        super().__init__(clock, step_s)
        self._random = Random(0)  # noqa: S311

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        self.clock.seconds += 0.1 if self._random.random() < self.share else 0.0
        return super().forward(runs)


class OftenDisturbedModel(DisturbedModel):
    """In every second or third reply."""

    share = 1 / 67


@pytest.mark.parametrize("target", [SlowModel, DisturbedModel, OftenDisturbedModel])
def test_what_lies_around_the_models_is_measured(monkeypatch: pytest.MonkeyPatch, target: type[SlowModel]) -> None:
    clock = clock_of_the_process(monkeypatch)
    plain = LLM(LoadedModel("target", target(clock, STEP_S), byte_tokenizer()), draft=None)
    drafter = BusyDrafter(clock)
    sampling = SamplingParams(greedy=True, max_new_tokens=64, ignore_eos=True)
    replies = [PlainReply(tuple(f"{i} ab".encode()), tuple(b"abc" * 20), sampling, 0.3) for i in range(6)]
    costs = measure_round_costs(plain, drafter, drafter.draft, replies)
    assert costs.draft_cost == pytest.approx(DRAFT_S / STEP_S, rel=0.02)
    # A draft that is always right: rounds of two tokens, 0.2 + 1 steps, weigh more than the fewer ones of six.
    assert costs.round_factor == pytest.approx(1 + AROUND_S / STEP_S / 1.2, rel=0.02)
