"""Whole drafts in one call: the tokens that one forward after the other would draw, and the same cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import DraftRun, KVCache, Logits, TokenChoice, TokenRun
from draftsmith.speculate import FixedLength, ModelDrafter
from draftsmith.types import Draft, Request, SamplingParams, Verdict
from tests.support.native_models import Recipe, make_checkpoint

PROMPT = (5, 9, 2, 7, 7, 1, 30)
OPTIONS = (
    {"greedy": True},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 3, "top_p": 1.0},
    {"temperature": 0.9, "top_k": 0, "top_p": 0.6},
    {"temperature": 1.1, "top_k": 20, "top_p": 0.9, "min_p": 0.2},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    return NativeModel.load(make_checkpoint(tmp_path_factory.mktemp("draft"), Recipe()), threads=1)


class OnlyForward:
    """The model without its way to write drafts by itself."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self.vocab_size, self.max_context = model.vocab_size, model.max_context

    def new_cache(self, capacity: int | None = None) -> KVCache:
        return self._model.new_cache(capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        return self._model.forward(runs)


def choice(**options: float) -> TokenChoice:
    defaults = {"greedy": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3, "position": 7}
    return TokenChoice(**{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)))
def test_drafts_equal_those_drawn_token_by_token(model: NativeModel, options: dict[str, float]) -> None:
    for seed in range(12):
        request = Request(prompt_ids=PROMPT, sampling=SamplingParams(seed=seed, **options))  # type: ignore[arg-type]
        sessions = [
            ModelDrafter(m, target_vocab_size=999).start(request, "coupled") for m in (model, OnlyForward(model))
        ]
        text = list(PROMPT)
        for accepted in (3, 0, 5, 1):
            one, other = (session.draft(text, 5, FixedLength(5).wants_more) for session in sessions)
            assert one.token_ids == other.token_ids
            assert len(one.token_ids) == 5
            np.testing.assert_allclose(one.confidences, other.confidences, rtol=1e-4)  # float32 against float64
            bonus = (one.token_ids[accepted] + 1) % 32 if accepted < 5 else 4
            verdict = Verdict((*one.token_ids[:accepted], bonus), accepted, 5)
            for session in sessions:
                session.commit(verdict)
            text += verdict.token_ids


def test_the_policy_ends_a_draft(model: NativeModel) -> None:
    heard: list[float] = []

    def wants_more(confidence: float) -> bool:
        heard.append(confidence)
        return len(heard) < 3

    cache = model.new_cache()
    [drawn] = model.draft([DraftRun(cache, PROMPT, 9, choice(greedy=True), wants_more)])
    assert len(drawn) == len(heard) == 3
    assert cache.length == len(PROMPT) + 2
    assert all(0 < confidence <= 1 for confidence in heard)


def test_side_by_side_as_alone(model: NativeModel) -> None:
    prompts = [PROMPT[:n] for n in (1, 4, 7)]
    lengths = [2, 6, 4]

    def runs() -> list[DraftRun]:
        return [
            DraftRun(model.new_cache(), prompt, length, choice(seed=length, position=len(prompt)), lambda _: True)
            for prompt, length in zip(prompts, lengths, strict=True)
        ]

    together = model.draft(runs())
    assert together == [model.draft([run])[0] for run in runs()]
    assert [len(drawn) for drawn in together] == lengths


def test_the_noise_knows_entries_by_their_names(model: NativeModel) -> None:
    """A renamed entry has the waiting time of its name: with the names turned round, the draws change."""
    names = np.arange(model.vocab_size, dtype=np.int32)[::-1].copy()
    draws = [
        [
            model.draft([DraftRun(model.new_cache(), PROMPT, 1, choice(temperature=9.0, seed=s), lambda _: True)], n)
            for s in range(20)
        ]
        for n in (None, np.arange(model.vocab_size, dtype=np.int32), names)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_only_the_first_entries(model: NativeModel) -> None:
    for seed in range(30):
        run = DraftRun(model.new_cache(), PROMPT, 4, choice(temperature=5.0, seed=seed), lambda _: True, vocab_limit=19)
        assert max(model.draft([run])[0]) < 19


def test_a_policy_that_fails_leaves_the_session_usable(model: NativeModel) -> None:
    request = Request(prompt_ids=PROMPT, sampling=SamplingParams(greedy=True))
    session = ModelDrafter(model, target_vocab_size=999).start(request, "coupled")

    def fails(confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0) -> bool:
        del upcoming, instead, drawn
        if len(confidences) == 2:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        session.draft(PROMPT, 5, fails)
    fresh = ModelDrafter(model, target_vocab_size=999).start(request, "coupled")
    drafts: list[Draft] = [s.draft(PROMPT, 4, FixedLength(4).wants_more) for s in (session, fresh)]
    assert drafts[0] == drafts[1]


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_vocabulary(model: NativeModel, bad: int) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.draft([DraftRun(model.new_cache(), [1, bad], 2, choice(greedy=True), lambda _: True)])
