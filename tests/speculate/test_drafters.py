"""What drafters propose, and that their caches follow the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.errors import UsageError
from draftsmith.speculate import Drafter, FixedLength, ModelDrafter, PromptLookupDrafter, common_prefix
from draftsmith.speculate.drafters.model import ModelDraftSession
from draftsmith.types import Draft, Request, SamplingParams, Verdict, VerificationRule

Factory = Callable[..., Any]

GREEDY = SamplingParams(greedy=True)


def request(prompt: Sequence[int], params: SamplingParams = GREEDY) -> Request:
    return Request(prompt_ids=tuple(prompt), sampling=params)


def look_up(text: Sequence[int], k: int, max_ngram: int = 3, min_ngram: int = 1) -> Draft:
    session = PromptLookupDrafter(max_ngram, min_ngram).start(request(text), "coupled")
    return session.draft(text, k, FixedLength(k).wants_more)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], (3, 9, 1)),  # what followed 1 2
        ([1, 2, 7, 5, 1, 2, 8, 5, 1, 2], (8, 5, 1)),  # the most recent of two matches
        ([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], (4, 9, 2)),  # a longer match beats a more recent one
        ([5, 5, 5], (5, 5, 5)),  # a copy that runs into the end goes on with itself
        ([1, 2, 1, 2, 1], (2, 1, 2)),
        ([1, 2, 3], ()),  # nothing occurred before
        ([1], ()),
    ],
)
def test_lookup_copies_what_followed(text: list[int], expected: tuple[int, ...]) -> None:
    assert look_up(text, 3).token_ids == expected


def test_lookup_is_surer_of_longer_matches() -> None:
    short, long = look_up([7, 1, 5, 8, 1], 1), look_up([7, 6, 1, 5, 7, 6, 1], 1)
    assert (short.confidences, long.confidences) == ((1 / 2,), (3 / 4,))


def test_lookup_asks_before_it_drafts() -> None:
    asked: list[tuple[list[float], float | None]] = []

    def wants_more(
        confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        assert not instead
        assert not drawn
        asked.append((list(confidences), upcoming))
        return False

    session = PromptLookupDrafter(2, 1).start(request([]), "coupled")
    assert session.draft([4, 4], 3, wants_more) == Draft(())
    assert asked == [([], 0.5)]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=90),
    st.integers(1, 4),
    st.integers(0, 3),
    st.lists(st.integers(1, 80), max_size=3),
)
def test_lookup_finds_the_most_recent_longest_match(
    text: list[int], min_ngram: int, extra: int, leaps: list[int]
) -> None:
    """Against a search of the whole text; the index is built in leaps, then token by token."""
    sizes = range(min_ngram + extra, min_ngram - 1, -1)
    expected = next(
        (
            text[start + n]
            for n in sizes
            for start in range(len(text) - n - 1, -1, -1)
            if text[start : start + n] == text[-n:]
        ),
        None,
    )
    session = PromptLookupDrafter(min_ngram + extra, min_ngram).start(request([]), "coupled")
    read = 0
    for leap in leaps:
        read = min(read + leap, len(text) - 1)
        session.read(text[:read])
    for end in range(read + 1, len(text) + 1):
        draft = session.draft(text[:end], 1, FixedLength(1).wants_more)
    assert draft.token_ids == (() if expected is None else (expected,))


@pytest.mark.parametrize("first", [0, 1, 2, 3, 7])
def test_a_prompt_read_at_once_is_known_like_one_read_token_by_token(first: int) -> None:
    """Every pair of tokens that occurs once is found, also where one reading ends and the next begins."""
    text = [i * i % 101 for i in range(100)]
    for end in range(2, len(text)):
        asked = [*text, 777, *text[end - 2 : end]]
        drafts = []
        for leaps in ((first, len(text)), range(len(asked))):
            session = PromptLookupDrafter(4, 2).start(request([]), "coupled")
            for leap in leaps:
                session.read(asked[:leap])
            drafts.append(session.draft(asked, 3, FixedLength(3).wants_more))
        assert drafts[0] == drafts[1]


def test_lookup_forgets_the_last_text() -> None:
    session = PromptLookupDrafter(2, 1).start(request([]), "coupled")
    session.read([1, 2, 1, 2])
    session.restart(request([3, 1]))
    assert session.draft([3, 1], 2, FixedLength(2).wants_more).token_ids == ()


@pytest.mark.parametrize(("max_ngram", "min_ngram"), [(0, 0), (2, 3), (3, 0)])
def test_lookup_refuses_impossible_sizes(max_ngram: int, min_ngram: int) -> None:
    with pytest.raises(UsageError, match="give 1 <= min <= max"):
        PromptLookupDrafter(max_ngram, min_ngram)


def start(model: Any, prompt: Sequence[int], params: SamplingParams = GREEDY, v: int = 30) -> ModelDraftSession:
    return ModelDrafter(model, target_vocab_size=v).start(request(prompt, params), "coupled")


def greedy(model: Any, text: Sequence[int], k: int) -> tuple[int, ...]:
    ids = list(text)
    for _ in range(k):
        ids.append(int(model.logits(ids).argmax()))
    return tuple(ids[len(text) :])


def test_a_model_reads_unseen_text_and_its_first_step_in_one_forward(table_model: Factory) -> None:
    model = table_model()
    text = [1, 2, 3, 4, 5]
    session = start(model, text)
    draft = session.draft(text, 3, FixedLength(3).wants_more)
    assert draft.token_ids == greedy(model, text, 3)
    assert model.reads == [5, 1, 1]
    session.commit(Verdict((*draft.token_ids, 9), 3, 3))  # all kept: the last draft token is still unread
    text += [*draft.token_ids, 9]
    session.draft(text, 1, FixedLength(1).wants_more)
    assert model.reads == [5, 1, 1, 2]


@pytest.mark.parametrize("accepted", range(4))
def test_rejected_tokens_leave_the_cache(accepted: int, table_model: Factory) -> None:
    """Whatever was accepted, the next draft is that of a fresh session; at most two tokens are read for it."""
    model, text = table_model(), [1, 2, 3]
    params = SamplingParams(greedy=True, repetition_penalty=1.5, frequency_penalty=0.5)
    session = start(model, text, params)
    first = session.draft(text, 3, FixedLength(3).wants_more)
    kept = first.token_ids[:accepted]
    session.commit(Verdict((*kept, 29), accepted, 3))
    model.reads.clear()
    text = [*text, *kept, 29]
    again = session.draft(text, 4, FixedLength(4).wants_more)
    assert model.reads[0] == (2 if accepted == 3 else 1)
    fresh = start(model, [1, 2, 3], params)
    assert again == fresh.draft(text, 4, FixedLength(4).wants_more)


def test_rounds_without_a_draft_cost_nothing_until_the_next_with_one(table_model: Factory) -> None:
    model, text = table_model(), [1, 2, 3]
    session = start(model, text)
    for token_id in (4, 5, 6):
        assert session.draft(text, 4, FixedLength(0).wants_more).token_ids == ()
        session.commit(Verdict((token_id,), 0, 0))
        text.append(token_id)
    assert model.reads == []
    assert session.draft(text, 2, FixedLength(2).wants_more).token_ids == greedy(model, text, 2)
    assert model.reads == [6, 1]


def test_reading_ahead_leaves_only_the_last_token(table_model: Factory) -> None:
    model, text = table_model(), [1, 2, 3, 4]
    session = start(model, text)
    session.read(text)
    session.read(text)
    session.draft(text, 1, FixedLength(1).wants_more)
    assert model.reads == [3, 1]


@pytest.mark.parametrize(("prompt", "read"), [([1, 2, 3, 8, 8], 2), ([1, 2], 1), ([7, 2, 3], 3)])
def test_a_new_turn_keeps_the_common_beginning(prompt: list[int], read: int, table_model: Factory) -> None:
    model = table_model()
    session = start(model, [1, 2, 3, 4])
    session.draft([1, 2, 3, 4], 3, FixedLength(3).wants_more)  # and interrupted: there is no verdict
    session.restart(request(prompt))
    model.reads.clear()
    assert session.draft(prompt, 2, FixedLength(2).wants_more).token_ids == greedy(model, prompt, 2)
    assert model.reads[0] == read


@pytest.mark.parametrize("context", range(3, 9))
def test_a_model_never_drafts_past_its_context(context: int, table_model: Factory) -> None:
    """TableModel raises when a run does not fit."""
    model, text = table_model(max_context=context), [1, 2, 3, 4]
    draft = start(model, text).draft(text, 9, FixedLength(9).wants_more)
    assert len(draft.token_ids) == max(0, context - len(text) + 1)


def test_ids_that_only_one_model_knows(table_model: Factory) -> None:
    narrow, wide = table_model(10), table_model(40)
    assert start(narrow, [1, 2]).draft([1, 25, 2], 3, FixedLength(3).wants_more).token_ids == ()
    text = [1, 2]
    for _ in range(60):
        text.append(start(wide, text, v=5).draft(text, 1, FixedLength(1).wants_more).token_ids[0])
    assert max(text) < 5


def test_confidence_is_the_drafts_probability(table_model: Factory) -> None:
    model, text = table_model(), [1, 2]
    logits = model.logits(text).astype(float)
    expected = 1 / sum(2.718281828459045 ** (x - logits.max()) for x in logits)
    [confidence] = start(model, text).draft(text, 1, FixedLength(1).wants_more).confidences
    assert confidence == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize(
    ("rule", "params", "wanted"),
    [
        ("coupled", SamplingParams(seed=1), False),
        ("rejection", SamplingParams(seed=1), True),
        ("rejection", GREEDY, False),
    ],
)
def test_distributions_are_given_where_the_rule_needs_them(
    rule: VerificationRule, params: SamplingParams, wanted: bool, table_model: Factory
) -> None:
    session = ModelDrafter(table_model(), target_vocab_size=30).start(request([1], params), rule)
    draft = session.draft([1], 3, FixedLength(3).wants_more)
    assert (draft.distributions is not None) is wanted
    assert len(draft.confidences) == 3


def test_names() -> None:
    drafters: list[Drafter] = [PromptLookupDrafter()]
    assert [d.name for d in drafters] == ["lookup"]


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
