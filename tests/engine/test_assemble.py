"""Pieces of text: nothing is shown that may change, everything is shown in the end, each with its origin."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine.assemble import Piece, TextAssembler
from tests.support.fakes import EOS, byte_tokenizer

TOKENIZER = byte_tokenizer()


def assemble(text: str, drafted: list[bool] | None = None, stops: tuple[str, ...] = ()) -> tuple[list[Piece], bool]:
    assembler = TextAssembler(TOKENIZER, stops)
    ids = TOKENIZER.encode(text)
    pieces = [piece for i, t in enumerate(ids) for piece in assembler.push(t, bool(drafted and drafted[i]))]
    return [*pieces, *assembler.flush()], assembler.stopped


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(st.text(max_size=40))
def test_the_pieces_are_the_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    pieces, stopped = assemble(text)
    assert joined(pieces) == text
    assert not stopped
    assert all(piece.text for piece in pieces)


@given(st.text(alphabet="ab#é", max_size=30), st.sampled_from([("#a",), ("##", "b#b"), ("é",)]))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: tuple[str, ...]) -> None:
    pieces, stopped = assemble(text, stops=stops)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert joined(pieces) == (text[: min(found)[1]] if found else text)
    assert stopped == bool(found)


@given(st.lists(st.tuples(st.sampled_from("ab#"), st.booleans()), max_size=30))
def test_every_character_keeps_its_origin_also_when_held_back(characters: list[tuple[str, bool]]) -> None:
    text = "".join(character for character, _ in characters)
    pieces, stopped = assemble(text, [drafted for _, drafted in characters], stops=("##a#",))
    origins = [(character, piece.from_draft) for piece in pieces for character in piece.text]
    assert origins == characters[: len(origins)]
    assert stopped or len(origins) == len(characters)


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    assembler = TextAssembler(TOKENIZER, ("##",))
    first, second = "é".encode()
    assert assembler.push(first, False) == ()
    assert assembler.push(second, True) == (Piece("é", True),)
    assert assembler.push(ord("#"), True) == ()
    assert assembler.push(ord("x"), False) == (Piece("#", True), Piece("x", False))


def test_control_tokens_have_no_text_and_broken_characters_come_out_at_the_end() -> None:
    assembler = TextAssembler(TOKENIZER)
    assert assembler.push(EOS, False) == ()
    assert assembler.push(0xC3, True) == ()
    assert [piece.text for piece in assembler.flush()] == ["\ufffd"]


def test_nothing_comes_after_a_stop() -> None:
    assembler = TextAssembler(TOKENIZER, ("x",))
    assert assembler.push(ord("x"), False) == ()
    assert assembler.stopped
    assert assembler.push(ord("y"), False) == ()
    assert assembler.flush() == ()


def test_neighbours_of_one_origin_come_together() -> None:
    pieces, _ = assemble("a##b", [False, True, True, True], stops=("##c",))
    assert joined(pieces) == "a##b"
    assert [key for key, _ in groupby(pieces, lambda piece: piece.from_draft)] == [False, True]
    with pytest.raises(AttributeError):
        pieces[0].text = ""  # type: ignore[misc]  # values are frozen
