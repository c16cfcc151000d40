"""The reference loop: the same text with any drafter, the right end, the right counts, a cache that fits the text."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    Drafter,
    DraftSession,
    FixedLength,
    LengthPolicy,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    Round,
    SpeculationCounter,
    SuffixDrafter,
    TranslatedDrafter,
    WantsMore,
    compare_vocabularies,
    generate,
)
from draftsmith.speculate.drafters.foreign import ForeignModel
from draftsmith.speculate.drafters.text import TextDrafter
from draftsmith.types import Draft, Request, SamplingParams, SpeculationStats, Verdict, VerificationRule
from tests.support.letters import letters

Factory = Callable[..., Any]

V = 30
PROMPT = (3, 1, 4, 1, 5)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCD"
# The draft's ids are another alphabet's, and stand for pairs of letters here and there.
FOREIGN = compare_vocabularies(letters(LETTERS), letters([*LETTERS[-4::-1], "ab", "de", "fg"], ["a b", "d e", "f g"]))
GREEDY = SamplingParams(greedy=True, max_new_tokens=60)
SEEDED = SamplingParams(
    max_new_tokens=60,
    temperature=0.9,
    top_k=20,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    logit_bias={2: 1.5, 7: -2.0},
    seed=7,
    logprobs=2,
)


class StubSession:
    """Drafts what ``propose`` says for the position after the text, k tokens at a time."""

    def __init__(self, propose: Callable[[int], int]) -> None:
        self._propose = propose
        self.commits: list[Verdict] = []

    def restart(self, request: Request) -> None:
        del request

    def read(self, token_ids: Sequence[int]) -> None:
        del token_ids

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        drawn: list[int] = []
        while len(drawn) < max_tokens and wants_more([1.0] * len(drawn), None):
            drawn.append(self._propose(len(token_ids) + len(drawn)))
        return Draft(tuple(drawn))

    def commit(self, verdict: Verdict) -> None:
        self.commits.append(verdict)


def run(
    target: Any,
    params: SamplingParams,
    session: DraftSession | None = None,
    policy: LengthPolicy | None = None,
    rule: VerificationRule = "coupled",
    *,
    eos_ids: Sequence[int] = (),
    capacity: int | None = None,
) -> list[Round]:
    """All rounds; after each the cache must hold the text except its last token."""
    request, cache, text = Request(prompt_ids=PROMPT, sampling=params), target.new_cache(capacity), list(PROMPT)
    rounds: list[Round] = []
    for written in generate(target, cache, request, eos_ids=eos_ids, session=session, policy=policy, rule=rule):
        text += written.token_ids
        assert cache.ids == text[:-1]
        rounds.append(written)
    assert [r.finish_reason for r in rounds[:-1]] == [None] * (len(rounds) - 1)
    return rounds


def tokens(rounds: Sequence[Round]) -> list[int]:
    return [token_id for r in rounds for token_id in r.token_ids]


def count(rounds: Sequence[Round]) -> SpeculationStats:
    counter = SpeculationCounter("stub")
    for written in rounds:
        counter.add(written)
    return counter.stats()


def sessions(target: Any, table_model: Factory, plain: list[int], params: SamplingParams) -> dict[str, DraftSession]:
    """Drafters of every quality: stubs that are never, always and sometimes right, models, lookup, random."""
    text, request = [*PROMPT, *plain], Request(prompt_ids=PROMPT, sampling=params)
    dice = random.Random(0)  # noqa: S311 (drafts at random)
    models = {
        "itself": target,
        "good": table_model(V, noise=0.2),
        "wider, other": table_model(V + 20, seed=8),
        "narrower": table_model(V - 12, noise=0.2),
        "short context": table_model(V, noise=0.2, max_context=20),
    }
    drafts: dict[str, DraftSession] = {
        "never": StubSession(lambda i: (text[i] + 1) % V),
        "always": StubSession(lambda i: text[i]),
        "sometimes": StubSession(lambda i: text[i] if i % 3 else 0),
        "random": StubSession(lambda _: dice.randrange(V)),
        "lookup": PromptLookupDrafter(3, 1).start(request, "coupled"),
    }
    for name, model in models.items():
        drafts[name] = ModelDrafter(model, target_vocab_size=V).start(request, "coupled")
    drafters: dict[str, Drafter] = {
        "suffix": SuffixDrafter(1),
        "mixed": MixedDrafter(PromptLookupDrafter(3, 1), ModelDrafter(models["good"], target_vocab_size=V)),
        "mixed, automaton": MixedDrafter(SuffixDrafter(1), TextDrafter(models["good"], FOREIGN)),
        "text": TextDrafter(models["good"], FOREIGN),
        "text, short context": TextDrafter(models["short context"], FOREIGN),
        "common tokens": ModelDrafter(ForeignModel(models["good"], FOREIGN, max_context=400), target_vocab_size=V),
        "common tokens, short context": ModelDrafter(
            ForeignModel(models["short context"], FOREIGN, max_context=400), target_vocab_size=V
        ),
        "any way": TranslatedDrafter(models["good"], FOREIGN, target_vocab_size=V, max_context=400),
    }
    return drafts | {name: drafter.start(request, "coupled") for name, drafter in drafters.items()}


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, None])
def test_the_text_does_not_depend_on_the_drafter(params: SamplingParams, k: int | None, table_model: Factory) -> None:
    """Tokens and log-probabilities; ``k`` None is AutoLength."""
    target = table_model(V)
    plain = run(target, params)
    assert [len(r.token_ids) for r in plain] == [1] * 60
    for name, session in sessions(target, table_model, tokens(plain), params).items():
        policy = AutoLength(CostModel(0.2)) if k is None else FixedLength(k)
        rounds = run(target, params, session, policy)
        assert tokens(rounds) == tokens(plain), name
        assert [x for r in rounds for x in r.logprobs] == [x for r in plain for x in r.logprobs], name


def test_greedy_does_not_depend_on_the_rule(table_model: Factory) -> None:
    target = table_model(V)
    request = Request(prompt_ids=PROMPT, sampling=GREEDY)
    session = ModelDrafter(table_model(V, noise=0.3), target_vocab_size=V).start(request, "rejection")
    assert tokens(run(target, GREEDY, session, rule="rejection")) == tokens(run(target, GREEDY))


def test_rejection_repeats_itself_and_accepts_more_than_coupled(table_model: Factory) -> None:
    target, draft_model = table_model(V, scale=1.0), table_model(V, noise=0.3, scale=1.0)
    params = SamplingParams(seed=3, temperature=1.0, max_new_tokens=350)
    stats: dict[VerificationRule, SpeculationStats] = {}
    rules: tuple[VerificationRule, ...] = ("coupled", "rejection")
    for rule in rules:
        texts = []
        for _ in range(2):
            session = ModelDrafter(draft_model, target_vocab_size=V).start(
                Request(prompt_ids=PROMPT, sampling=params), rule
            )
            rounds = run(target, params, session, FixedLength(3), rule)
            texts.append(tokens(rounds))
        assert texts[0] == texts[1]
        stats[rule] = count(rounds)
    assert stats["rejection"].acceptance_rate > stats["coupled"].acceptance_rate > 0.4


@pytest.mark.parametrize(("name", "accepted"), [("never", 0), ("always", 4)])
def test_counts_when_never_and_always_right(name: str, accepted: int, table_model: Factory) -> None:
    target = table_model(V)
    params = SamplingParams(greedy=True, max_new_tokens=51)
    plain = tokens(run(target, params))
    rounds = run(target, params, sessions(target, table_model, plain, params)[name], FixedLength(4))
    stats = count(rounds)
    if accepted:  # one token by the prompt's round, then 10 rounds of 4 and a bonus token
        assert stats == SpeculationStats("stub", 10, 40, 40, (10, 10, 10, 10))
        assert (stats.acceptance_rate, stats.mean_acceptance_length) == (1.0, 5.0)
    else:  # the last tokens have less and less room for a draft; the very last has none
        assert stats == SpeculationStats("stub", 49, 46 * 4 + 3 + 2 + 1, 0, (0, 0, 0, 0))
        assert (stats.acceptance_rate, stats.mean_acceptance_length) == (0.0, 1.0)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("k", [1, 3, 4, 7])
def test_eos_at_any_place_in_a_draft(place: int, k: int, table_model: Factory) -> None:
    """The text ends with EOS; draft tokens after it are not counted, and the cache forgets them."""
    target = table_model(V)
    free = tokens(run(target, GREEDY))
    eos = free[place]
    end = free.index(eos) + 1
    session = sessions(target, table_model, free, GREEDY)["always"]
    rounds = run(target, GREEDY, session, FixedLength(k), eos_ids=(99, eos))
    assert tokens(rounds) == free[:end]
    assert rounds[-1].finish_reason == "stop"
    stats = count(rounds)
    assert stats.num_accepted_tokens == stats.num_draft_tokens
    in_drafts = [i for i in range(1, end) if (i - 1) % (k + 1) < k]  # token 0 is the prompt's, then k and a bonus
    assert stats.num_draft_tokens == len(in_drafts)


def test_eos_can_be_ignored(table_model: Factory) -> None:
    target = table_model(V)
    free = tokens(run(target, GREEDY))
    params = SamplingParams(greedy=True, max_new_tokens=60, ignore_eos=True)
    rounds = run(target, params, eos_ids=free[:5])
    assert (tokens(rounds), rounds[-1].finish_reason) == (free, "length")


@pytest.mark.parametrize("limit", range(1, 9))
@pytest.mark.parametrize("by_context", [False, True])
def test_ends_at_the_limit_and_never_reads_past_it(limit: int, by_context: bool, table_model: Factory) -> None:
    """TableModel raises when a run does not fit, so drafts that run into the end would show."""
    target = table_model(V)
    free = tokens(run(target, GREEDY))
    params = GREEDY if by_context else SamplingParams(greedy=True, max_new_tokens=limit)
    capacity = len(PROMPT) + limit
    for session in sessions(target, table_model, free, params).values():
        rounds = run(target, params, session, FixedLength(4), capacity=capacity)
        assert (tokens(rounds), rounds[-1].finish_reason) == (free[:limit], "length")


def test_prompts_that_cannot_be_used(table_model: Factory) -> None:
    with pytest.raises(PromptTooLong, match="has 5 tokens, but the context holds 5"):
        run(table_model(V), GREEDY, capacity=5)
    request = Request(prompt_ids=(), sampling=GREEDY)
    with pytest.raises(UsageError, match="empty"):
        next(generate(table_model(V), table_model(V).new_cache(), request))


def test_a_cache_that_holds_the_prompts_beginning_is_used(table_model: Factory) -> None:
    target = table_model(V)
    plain = tokens(run(target, GREEDY))
    cache = target.new_cache()
    cache.ids += PROMPT[:3]
    target.reads.clear()
    rounds = list(generate(target, cache, Request(prompt_ids=PROMPT, sampling=GREEDY)))
    assert tokens(rounds) == plain
    assert target.reads[0] == 2


def test_a_prompt_is_read_in_parts_for_those_who_watch(table_model: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftsmith.speculate.loop.PROMPT_PART", 2)
    target, told = table_model(V), list[tuple[int, int]]()
    request = Request(prompt_ids=PROMPT, sampling=GREEDY)
    watched = list(generate(target, target.new_cache(), request, on_prompt=lambda *counts: told.append(counts)))
    assert told == [(read, len(PROMPT)) for read in range(2, len(PROMPT), 2)]
    assert watched == run(target, GREEDY)


@pytest.mark.parametrize("k", [0, 4])
def test_the_draft_model_reads_the_prompt_in_its_round_if_it_is_going_to_draft(k: int, table_model: Factory) -> None:
    target, draft_model = table_model(V), table_model(V, noise=0.2)
    request = Request(prompt_ids=PROMPT, sampling=GREEDY)
    session = ModelDrafter(draft_model, target_vocab_size=V).start(request, "coupled")
    rounds = generate(target, target.new_cache(), request, session=session, policy=FixedLength(k))
    next(rounds)
    assert (target.reads, draft_model.reads) == ([len(PROMPT)], [len(PROMPT)] if k else [])
    next(rounds)
    assert draft_model.reads[1:] == [1] * k


def test_every_round_is_committed(table_model: Factory) -> None:
    target = table_model(V)
    session = StubSession(lambda i: i % V)
    rounds = run(target, GREEDY, session, FixedLength(2))
    assert [c.token_ids[: len(r.token_ids)] for c, r in zip(session.commits, rounds, strict=True)] == [
        r.token_ids for r in rounds
    ]


def test_cutting_a_round_where_a_stop_string_begins() -> None:
    whole = Round((1, 2, 3, 4), num_accepted=3, num_draft_tokens=5)
    assert whole.cut(2, "stop") == Round((1, 2), 2, 2, "stop")
    assert whole.cut(4, "stop") == Round((1, 2, 3, 4), 3, 4, "stop")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_drafter_and_any_lengths(data: st.DataObject, table_model: Factory) -> None:
    """Random drafts of random lengths, each round anew: still the plain text."""
    target = table_model(6)
    params = data.draw(st.sampled_from([GREEDY, SamplingParams(seed=5, max_new_tokens=20, repetition_penalty=1.3)]))
    plain = tokens(run(target, params))
    text = [*PROMPT, *plain]

    class Lengths:
        def __init__(self) -> None:
            self.k = 0

        def begin(self, unread: int, left: int | None = None) -> None:
            assert unread in (0, len(PROMPT))
            assert left == params.max_new_tokens - 1  # the first token is written with the prompt

        def repays(self, unread: int, left: int) -> bool:
            del unread, left
            return True

        def wants_more(
            self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
        ) -> bool:
            del upcoming, instead, drawn
            if not confidences:
                self.k = data.draw(st.integers(0, 6))
            return len(confidences) < self.k

        def learn(self, draft: Draft, verdict: Verdict) -> None:
            del draft, verdict

    session = StubSession(lambda i: text[i] if data.draw(st.booleans()) else data.draw(st.integers(0, 5)))
    assert tokens(run(target, params, session, Lengths())) == plain
