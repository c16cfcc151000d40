"""Stop strings: found as if read character by character, held back no longer than needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.errors import UsageError
from draftsmith.text import StopMatcher

letters = st.text("ab", max_size=12)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """By definition: the text until the first character with which a stop string is complete, less the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(st.lists(letters, max_size=8), stop_lists)
def test_the_result_does_not_depend_on_how_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    whole, stopped = expected("".join(pieces), stops)
    for piece in pieces:
        emit, _ = matcher.push(piece)
        shown += emit
        assert whole.startswith(shown)
    assert matcher.stopped == stopped
    assert shown + matcher.flush() == whole


@given(letters, stop_lists)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emit, stopped = matcher.push(text)
    held = matcher.flush()
    if stopped:
        assert held == ""
    else:
        assert emit + held == text
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_is_shown_after_a_stop() -> None:
    matcher = StopMatcher(["\n\n###", "###"])
    assert matcher.push("one\n\n##") == ("one", False)
    assert matcher.push("# two") == ("", True)
    assert matcher.push("three") == ("", True)
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty string"):
        StopMatcher(["a", ""])
