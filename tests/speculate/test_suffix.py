"""The suffix automaton finds the longest match, always; and it forgets what it must."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.errors import UsageError
from draftsmith.speculate import FixedLength, SuffixDrafter
from draftsmith.types import Draft, Request, SamplingParams, VerificationRule

GREEDY = SamplingParams(greedy=True)


def request(params: SamplingParams = GREEDY) -> Request:
    return Request(prompt_ids=(), sampling=params)


def draft(text: Sequence[int], k: int, min_match: int = 1) -> Draft:
    session = SuffixDrafter(min_match).start(request(), "coupled")
    return session.draft(text, k, FixedLength(k).wants_more)


def longest_match(text: Sequence[int]) -> tuple[int, set[int]]:
    """By trying everything: the length, and the tokens that followed an occurrence."""
    for n in range(len(text) - 1, 0, -1):
        after = {text[i + n] for i in range(len(text) - n) if text[i : i + n] == text[-n:]}
        if after:
            return n, after
    return 0, set()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80))
def test_the_longest_match_wins_whatever_its_length(text: list[int]) -> None:
    """Token by token, as in decoding; the confidence tells the length of the match."""
    session = SuffixDrafter(1).start(request(), "coupled")
    for end in range(1, len(text) + 1):
        found = session.draft(text[:end], 1, FixedLength(1).wants_more)
        length, after = longest_match(text[:end])
        assert len(found.token_ids) == (length > 0)
        if length:
            assert found.token_ids[0] in after
            assert found.confidences == (length / (length + 1),)
            assert found.free


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 9, 1, 2], (3, 9, 1)),
        ([8, 1, 2, 3, 7, 1, 2, 4, 8, 1, 2], (3, 7, 1)),  # the longer history decides, not the nearer place
        ([1, 2, 7, 5, 1, 2, 8, 6, 1, 2], (8, 6, 1)),  # of two with the same history, the nearer place
        ([5, 5, 5], (5, 5, 5)),
        ([1, 2, 1, 2, 1], (2, 1, 2)),
        ([1, 2, 3], ()),
    ],
)
def test_copies_what_followed(text: list[int], expected: tuple[int, ...]) -> None:
    assert draft(text, 3).token_ids == expected


def test_short_matches_are_no_reason() -> None:
    assert draft([1, 2, 3, 1, 2], 1, min_match=2).token_ids == (3,)
    assert draft([1, 2, 3, 1, 2], 1, min_match=3) == Draft(())


def begin(drafter: SuffixDrafter, rule: VerificationRule, params: SamplingParams) -> Draft:
    """Write one text, then begin another in the same session and draft."""
    session = drafter.start(request(params), rule)
    session.read([1, 2, 3, 4])
    session.restart(request(params))
    return session.draft([1, 2], 2, FixedLength(2).wants_more)


SAMPLED = SamplingParams(seed=1)


@pytest.mark.parametrize(
    ("remember", "rule", "params", "expected"),
    [
        (0, "coupled", GREEDY, ()),  # off by default
        (100, "coupled", GREEDY, (3, 4)),
        (100, "coupled", SAMPLED, (3, 4)),
        (100, "rejection", GREEDY, (3, 4)),
        (100, "rejection", SAMPLED, ()),  # there the same seed would give another text
        (2, "coupled", GREEDY, ()),  # only 3 4 is remembered
    ],
)
def test_past_texts_are_used_if_asked_for(
    remember: int, rule: VerificationRule, params: SamplingParams, expected: tuple[int, ...]
) -> None:
    assert begin(SuffixDrafter(1, remember=remember), rule, params).token_ids == expected


def test_a_new_session_knows_past_texts_too() -> None:
    drafter = SuffixDrafter(1, remember=100)
    begin(drafter, "coupled", GREEDY)
    fresh = drafter.start(request(), "coupled")
    assert fresh.draft([2, 3], 1, FixedLength(1).wants_more).token_ids == (4,)


@pytest.mark.parametrize(("min_match", "remember"), [(0, 0), (1, -1)])
def test_impossible_sizes(min_match: int, remember: int) -> None:
    with pytest.raises(UsageError, match="give at least 1 and 0"):
        SuffixDrafter(min_match, remember=remember)
