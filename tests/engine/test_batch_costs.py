"""What a draft costs in a batch, and how reading is shared out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.batch import Engine
from draftsmith.engine.drafting import BatchCosts
from draftsmith.engine.handle import RequestOptions
from draftsmith.engine.limits import EngineLimits, share_reading
from draftsmith.engine.pause import Pause, longest_pause
from draftsmith.errors import UsageError
from draftsmith.speculate import CostModel, DraftSession, ModelDrafter
from draftsmith.speculate.drafters.protocol import WantsMore
from draftsmith.types import Draft, Request, Verdict, VerificationRule
from tests.support.batches import (
    COSTS,
    GREEDY,
    RandomDrafter,
    prompt,
    run,
)
from tests.support.fakes import VOCAB_SIZE
from tests.support.shared_fakes import SharedFakeModel

LONGEST = 1000  # rounds of a pause, where nothing else is said


class Silent:
    """A drafter that never has anything to propose. ``asked``: how often it was asked."""

    name = "silent"

    def __init__(self) -> None:
        self.asked = 0

    def start(self, request: Request, rule: VerificationRule) -> Silent:
        del request, rule
        return self

    def restart(self, request: Request) -> None:
        del request

    def read(self, token_ids: Sequence[int]) -> None:
        del token_ids

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        del token_ids, max_tokens, wants_more
        self.asked += 1
        return Draft(())

    def commit(self, verdict: Verdict) -> None:
        del verdict


def test_the_length_is_chosen_once_costs_are_known() -> None:
    calls: list[int] = []

    def measure() -> CostModel:
        calls.append(1)
        return COSTS

    drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE)
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=measure)
    handles = [engine.submit(Request(prompt_ids=prompt(text), sampling=GREEDY)) for text in ("abc", "de")]
    engine.step()
    assert calls == []  # the first token is not kept waiting for a measurement
    run(engine, *handles)
    assert calls == [1]
    assert all(h.speculation and h.speculation.num_accepted_tokens > 10 for h in handles)
    with pytest.raises(UsageError, match="needs num_draft_tokens, or costs"):
        Engine(SharedFakeModel(), drafter=drafter)


def test_the_first_draft_of_a_batch_already_sees_what_a_batch_costs() -> None:
    """Alone, checking a second token is cheap here; for four texts at once it costs more than it can gain."""
    costs = CostModel(0.1, (1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0))

    def drafts_of(size: int) -> int:
        drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE)
        engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: costs)
        handles = [engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY)) for _ in range(size)]
        run(engine, *handles)
        return sum(handle.speculation.num_drafts for handle in handles if handle.speculation is not None)

    assert drafts_of(1) > 5
    assert drafts_of(4) == 0


@pytest.mark.parametrize(("length", "reads"), [(4, False), (60, True)])
def test_a_prompt_is_read_for_drafts_where_the_reply_is_long_enough(length: int, reads: bool) -> None:
    model = SharedFakeModel()
    drafter = ModelDrafter(model, target_vocab_size=VOCAB_SIZE)
    costs = CostModel(0.1, (1.0, 1.0, 1.0, 1.1), draft_read=0.1)
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: costs)
    sampling = replace(GREEDY, max_new_tokens=length)
    handle = engine.submit(Request(prompt_ids=prompt("abcdefgh" * 8), sampling=sampling))
    run(engine, handle)
    assert (model.tokens_read > 0) is reads


@pytest.mark.parametrize("others", [0, 3])
def test_who_begins_first_sees_those_that_still_read_their_prompts(others: int) -> None:
    """Checking two tokens is free for one text and dear for four: what it gains alone, it will not gain for long."""
    model = SharedFakeModel()
    drafter = ModelDrafter(model, target_vocab_size=VOCAB_SIZE)
    costs = CostModel(0.05, (1.0, 1.0, 1.0, 1.0, 1.2), draft_read=0.03)
    limits = EngineLimits(prefill_tokens=64, prefill_tokens_beside=4)
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: costs, limits=limits)
    texts = ["abcdefgh" * 4, *[f"{letter}hgfedcba" * 24 for letter in "bcd"[:others]]]
    first, *_ = [engine.submit(Request(prompt_ids=prompt(text), sampling=GREEDY)) for text in texts]
    written = 0
    while written < 6:
        engine.step()
        written += sum(len(one.token_ids) for one in first.take())
    assert engine.stats.running == 1 + others
    assert (model.tokens_read > 0) is (others == 0)
    engine.abandon()


@pytest.mark.parametrize(("longest", "expected"), [(4, [0, 2, 5, 10, 15, 20]), (16, [0, 2, 5, 10, 19])])
def test_texts_that_have_no_drafts_are_asked_more_rarely(longest: int, expected: list[int]) -> None:
    """One round left alone, then two, then four and so on; a draft ends it."""
    pause, asked = Pause(), []
    for _ in range(24):
        asked.append(pause.over(LONGEST))
        if asked[-1]:
            pause.settle(drafted=False, longest=longest)
    assert [i for i, due in enumerate(asked) if due] == expected
    pause.settle(drafted=True, longest=longest)
    assert [pause.over(LONGEST), pause.over(LONGEST)] == [True, True]


def test_a_pause_ends_sooner_when_others_have_gone() -> None:
    """It was to be a hundred rounds among many; of two texts none is left alone for more than four."""
    pause = Pause(100)
    assert [pause.over(LONGEST) for _ in range(3)] == [False] * 3
    assert [pause.over(4) for _ in range(5)] == [False] * 4 + [True]


def test_pauses_are_longer_where_texts_are_many_and_drafts_rare() -> None:
    """In proportion to the texts, and to one over the root of the chance; never less than four rounds."""
    assert [longest_pause(texts, 0.25) for texts in (1, 2, 4, 8, 16)] == [4, 4, 8, 16, 32]
    assert [longest_pause(8, chance) for chance in (1.0, 0.25, 1 / 16, 1 / 64, 0.0)] == [8, 16, 32, 64, 64]


def test_a_draft_of_which_nothing_was_right_is_as_good_as_none() -> None:
    """Pauses of one, two and four rounds after it, as after questions without a draft; a right one ends them."""
    pause, asked = Pause(), []
    for _ in range(12):
        asked.append(pause.over(LONGEST))
        if asked[-1]:
            pause.settle(drafted=True, longest=4)
            pause.regret()
    assert [i for i, due in enumerate(asked) if due] == [0, 2, 5, 10]
    pause.settle(drafted=True, longest=4)
    assert [pause.over(LONGEST), pause.over(LONGEST)] == [True, True]


def test_texts_whose_drafts_are_wrong_are_asked_more_rarely() -> None:
    """Two texts of 40 tokens: each is asked after pauses of 1, 2 and 4 rounds, and then in every fifth."""

    class Wrong(Silent):
        def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
            super().draft(token_ids, max_tokens, wants_more)
            return Draft((1,), None, (0.9,), free=True)  # the fakes write letters

    drafter = Wrong()
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: COSTS)
    run(engine, *[engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY)) for _ in range(2)])
    assert 10 <= drafter.asked <= 24


def test_where_asking_others_has_brought_little_the_first_pause_is_longer() -> None:
    """Eight texts, then eight more: of the latter none is asked in its first rounds, and each more rarely."""
    drafter = Silent()
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: COSTS)

    def asked() -> tuple[int, int]:
        before = drafter.asked
        handles = [engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY)) for _ in range(8)]
        for _ in range(3):  # one reads the prompts
            engine.step()
        at_once = drafter.asked - before
        run(engine, *handles)
        return at_once, drafter.asked - before

    (at_once, first), (later, second) = asked(), asked()
    assert (at_once, later) == (8, 0)
    assert 8 <= second < first


@pytest.mark.parametrize(("size", "least", "most"), [(1, 0.9, 1.0), (4, 0.15, 0.45), (16, 0.01, 0.18)])
def test_a_batch_does_not_ask_everybody_every_round(size: int, least: float, most: float) -> None:
    """A drafter that never has anything; alone it is asked all the time, and with fixed lengths too."""

    def share_asked(num_draft_tokens: int | None) -> float:
        drafter = Silent()
        engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: COSTS)
        options = RequestOptions(num_draft_tokens=num_draft_tokens)
        handles = [engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY), options) for _ in range(size)]
        run(engine, *handles)
        return drafter.asked / sum(len(one.token_ids) for handle in handles for one in handle.take())

    assert least <= share_asked(None) <= most
    assert share_asked(3) > 0.9


class Seldom(RandomDrafter):
    """Drafts for the first text that it is started for, never for others."""

    def __init__(self) -> None:
        self._started = 0

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        self._started += 1
        return super().start(request, rule) if self._started == 1 else Silent()


@pytest.mark.parametrize("all_draft", [False, True])
def test_a_check_is_shared_with_as_many_as_have_drafts(monkeypatch: pytest.MonkeyPatch, all_draft: bool) -> None:
    """A further row may cost a whole tile of rows; four that are asked share it only if four have a draft."""
    expected: list[int] = []
    set_costs = BatchCosts.set

    def watched(costs: BatchCosts, *, writing: int, drafting: int, reading: int, running: int, context: float) -> None:
        expected.append(drafting)
        set_costs(costs, writing=writing, drafting=drafting, reading=reading, running=running, context=context)

    monkeypatch.setattr(BatchCosts, "set", watched)
    drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE) if all_draft else Seldom()
    engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: CostModel(0.01, (1.0, 1.0)))
    run(engine, *[engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY)) for _ in range(4)])
    assert set(expected[len(expected) // 2 :]) == {4 if all_draft else 1}


@given(
    writing=st.integers(1, 20),
    drafting=st.integers(1, 20),
    reading=st.integers(0, 64),
    tokens=st.integers(1, 9),
)
def test_costs_in_a_batch(writing: int, drafting: int, reading: int, tokens: int) -> None:
    """Alone they are the measured ones. Where a row always costs the same, nothing is gained by a draft: v(m) = m, and
    what its handling keeps the others waiting for is lost."""
    drafting = min(drafting, writing)
    handling = 0.0 if tokens == 1 else 0.02 * (writing - 1)
    measured = BatchCosts(COSTS)
    assert measured.draft_step == COSTS.draft_step
    assert measured.verify_cost(tokens) == pytest.approx(COSTS.verify_cost(tokens))
    linear = BatchCosts(CostModel(0.5, (1.0, 2.0)))
    linear.set(writing=writing, drafting=drafting, reading=reading, running=writing, context=64)
    assert linear.verify_cost(tokens) == pytest.approx(tokens + handling / writing)
    assert linear.draft_step == pytest.approx(0.5)
    free = BatchCosts(CostModel(0.5, (1.0, 1.0)))
    free.set(writing=writing, drafting=drafting, reading=reading, running=writing, context=64)
    assert free.verify_cost(tokens) == pytest.approx(1.0 + handling)
    assert free.draft_step == pytest.approx(0.5 * writing / drafting)


def test_all_that_run_wait_while_the_draft_model_reads() -> None:
    """Also those whose prompts are still to be read: one that writes beside three of them costs what four would."""
    costs = BatchCosts(CostModel(0.5, (1.0, 1.0, 1.0, 1.6), draft_read=0.1))
    costs.set(writing=1, drafting=1, reading=8, running=4, context=0)
    assert costs.draft_read == pytest.approx(0.1 * 4 / 1.6)


GROWING = CostModel(0.2, (1.0, 1.1, 1.2, 1.3), 0.05, 0.1, context_step=0.3, context_row=0.1)


@given(context=st.floats(0, 1e5), tokens=st.integers(1, 20))
def test_a_text_alone_costs_what_texts_of_its_length_do(context: float, tokens: int) -> None:
    batch, alone = BatchCosts(GROWING), GROWING.at(context)
    batch.set(writing=1, drafting=1, reading=0, running=1, context=context)
    assert batch.verify_cost(tokens) == pytest.approx(alone.verify_cost(tokens))
    assert batch.draft_step == pytest.approx(alone.draft_step)
    assert batch.draft_start == pytest.approx(alone.draft_start)
    assert batch.draft_read == pytest.approx(alone.draft_read)


def test_every_text_of_a_batch_has_its_own_attention() -> None:
    """Three texts of 1,088 tokens, of which two check three tokens beside four that are read; counted by hand."""
    batch = BatchCosts(GROWING)
    batch.set(writing=3, drafting=2, reading=4, running=3, context=64 + 1024)
    plain = 1.2 + 3 * 0.3
    more = (1.6 + 0.4) - 1.6 + 4 * 0.1  # v(11) - v(7), and the attention of four rows
    assert batch.verify_cost(1) == 1
    assert batch.verify_cost(3) == pytest.approx(1 + 0.02 * 2 / plain + more * 3 / 2 / plain)
    assert batch.draft_step == pytest.approx(0.2 * (1.1 + 2 * 0.3) * 3 / 2 / plain)
    assert batch.draft_read == pytest.approx(0.05 * (1 + 0.3) * 3 / plain)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_drafts_are_as_long_as_costs_of_long_texts_allow(rule: VerificationRule) -> None:
    """Where every row of a check costs what its text is long, long texts are not drafted for, and short ones are."""
    costs = replace(COSTS, context_row=100.0)

    def drafts(prompt_length: int) -> int:
        drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE)
        engine = Engine(SharedFakeModel(), drafter=drafter, costs=lambda: costs, rule=rule)
        sampling = replace(GREEDY, greedy=rule == "coupled", seed=3)
        ids = (prompt("abc") * prompt_length)[:prompt_length]
        handles = [engine.submit(Request(prompt_ids=ids, sampling=sampling)) for _ in range(2)]
        run(engine, *handles)
        return sum(handle.speculation.num_drafts for handle in handles if handle.speculation is not None)

    assert drafts(8) > 10
    assert drafts(200) == 0


@given(st.lists(st.integers(1, 1000), max_size=8), st.integers(1, 300))
def test_reading_is_shared_fully_and_the_first_gets_half(unread: list[int], tokens: int) -> None:
    shares = share_reading(unread, tokens)
    assert all(0 <= share <= left for share, left in zip(shares, unread, strict=True))
    assert sum(shares) == min(tokens, sum(unread))
    if unread:
        assert shares[0] >= min(unread[0], tokens / 2)
