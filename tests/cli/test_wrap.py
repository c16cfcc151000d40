"""Word wrapping never changes the words, and never leaves a line wider than the terminal if words fit."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from draftsmith.cli.wrap import WordWrapper


def wrap(pieces: list[str], width: int) -> str:
    written: list[str] = []
    wrapper = WordWrapper(lambda text, _style: written.append(text), width)
    for piece in pieces:
        wrapper.push(piece, "")
    wrapper.flush()
    return "".join(written)


def test_breaks_between_words() -> None:
    assert wrap(["the quick bro", "wn fox"], 10) == "the quick\nbrown fox"


def test_keeps_the_texts_own_lines_and_indentation() -> None:
    code = "def f(x):\n    return x\n"
    assert wrap([code], 20) == code


def test_a_word_is_held_until_it_is_complete() -> None:
    written: list[str] = []
    wrapper = WordWrapper(lambda text, _style: written.append(text), 20)
    wrapper.push("hel", "")
    assert written == []
    wrapper.push("lo ", "")
    assert "".join(written) == "hello"


def test_each_part_keeps_its_style() -> None:
    written: list[tuple[str, str]] = []
    wrapper = WordWrapper(lambda text, style: written.append((text, style)), 20)
    wrapper.push("spec", "")
    wrapper.push("ulate", "36")
    wrapper.flush()
    assert written == [("spec", ""), ("ulate", "36")]


def test_width_zero_writes_through() -> None:
    assert wrap(["a" * 50 + " b"], 0) == "a" * 50 + " b"


def test_wide_characters_count_twice_and_come_out_at_once() -> None:
    written: list[str] = []
    wrapper = WordWrapper(lambda text, _style: written.append(text), 10)
    wrapper.push("日本語", "")
    assert written == ["日本語"]
    wrapper.push(" ab cd", "")
    wrapper.flush()
    assert "".join(written) == "日本語 ab\ncd"


def test_after_a_word_wider_than_the_line_the_column_is_known() -> None:
    assert wrap(["x" * 15 + " yy zz"], 10) == "x" * 15 + " yy\nzz"


@given(st.lists(st.text(alphabet="ab \n", max_size=12)), st.integers(4, 12))
def test_only_spaces_become_line_breaks(pieces: list[str], width: int) -> None:
    text = "".join(pieces)
    out = wrap(pieces, width)
    assert out.split() == text.split()
    assert wrap([text], width) == out  # how the text was cut does not matter
    for line in out.split("\n"):
        if not line.startswith(" "):  # indentation is never given up
            for word in re.finditer(r"\S+", line):
                if len(word.group()) <= width:
                    assert word.start() // width == (word.end() - 1) // width, "a terminal would split this word"
