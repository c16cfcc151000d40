"""Token counts under any sequence of pushes and pops equal counting afresh."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.sampling import TokenHistory


def check(history: TokenHistory, prompt: list[int], reply: list[int]) -> None:
    assert history.token_ids.tolist() == list(dict.fromkeys(prompt + reply))
    counts = Counter(reply)
    assert history.reply_counts.tolist() == [counts[i] for i in history.token_ids.tolist()]
    assert history.reply_length == len(reply)


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.one_of(st.integers(0, 9), st.none()), max_size=60))
def test_pushes_and_pops(prompt: list[int], steps: list[int | None]) -> None:
    history, reply = TokenHistory(prompt), list[int]()
    for token_id in steps:
        if token_id is not None:
            history.push(token_id)
            reply.append(token_id)
        elif reply:
            assert history.pop() == reply.pop()
        check(history, prompt, reply)


def test_grows_beyond_its_first_size() -> None:
    history = TokenHistory([])
    for token_id in range(1000):
        history.push(token_id)
    check(history, [], list(range(1000)))


def test_the_prompt_cannot_be_popped() -> None:
    with pytest.raises(IndexError):
        TokenHistory([1, 2]).pop()
