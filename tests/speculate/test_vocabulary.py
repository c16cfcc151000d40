"""Vocabularies are compared by content."""

from __future__ import annotations

import pytest

from draftsmith.errors import TokenizerError
from draftsmith.speculate import check_same_vocabulary


def test_equal_content_is_accepted() -> None:
    check_same_vocabulary("aa", "aa", "big", "small")


def test_different_content_is_refused_in_one_sentence() -> None:
    with pytest.raises(TokenizerError, match="The draft small has another vocabulary than the target big") as caught:
        check_same_vocabulary("aa", "ab", "big", "small")
    assert "\n" not in str(caught.value)
