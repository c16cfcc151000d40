"""Streaming: pieces that add up, and that never end inside a character."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.text import Detokenizer, Tokenizer
from tests.support.made_tokenizers import byte_level_json, corpus, sentencepiece_model

KINDS = ("byte level", "sentencepiece")


@cache
def made(kind: str) -> Tokenizer:
    if kind == "byte level":
        return Tokenizer.from_json(byte_level_json("gpt-2"))
    return Tokenizer.from_sentencepiece(sentencepiece_model())


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(ids=st.lists(st.integers(0, 850)), skip=st.booleans())
def test_pieces_of_any_ids_add_up_to_decode(kind: str, ids: list[int], skip: bool) -> None:
    tokenizer = made(kind)
    pieces = stream(Detokenizer(tokenizer, at_start=True, skip_special=skip), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text())
def test_pieces_of_text_never_hold_broken_characters(kind: str, text: str) -> None:
    tokenizer = made(kind)
    pieces = stream(Detokenizer(tokenizer, at_start=True), tokenizer.encode(text, add_bos=False))
    assert "".join(pieces) == text.replace("▁", " " if kind == "sentencepiece" else "▁")
    assert ("\ufffd" in "".join(pieces)) == ("\ufffd" in text)


@pytest.mark.parametrize("kind", KINDS)
def test_an_emoji_comes_out_whole_with_its_last_token(kind: str) -> None:
    tokenizer = made(kind)
    ids = tokenizer.encode_piece("🎉", after="text")
    assert len(ids) == 4
    assert stream(Detokenizer(tokenizer), ids) == ["", "", "", "🎉", ""]
    assert stream(Detokenizer(tokenizer), ids[:3]) == ["", "", "", "\ufffd"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_is_what_it_adds_to_its_prompt(kind: str) -> None:
    tokenizer = made(kind)
    for prompt in ("### Response:\n", "a", ""):
        for text in corpus()[:300]:
            before = tokenizer.encode(prompt, add_bos=False)
            ids = tokenizer.encode_piece(text, after="text" if prompt else "start")
            pieces = stream(Detokenizer(tokenizer, at_start=not prompt), ids)
            assert tokenizer.decode(before) + "".join(pieces) == tokenizer.decode(before + ids)
