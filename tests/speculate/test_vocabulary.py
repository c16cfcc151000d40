"""Vocabularies are compared by content, and texts keep their bytes on the way from one to the other."""

from __future__ import annotations

import random
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.speculate.retokenize import ByteEncoder, Retokenizer
from draftsmith.speculate.vocabulary import VocabularyMap, compare_vocabularies
from draftsmith.text import Tokenizer
from tests.support.fakes import byte_tokenizer
from tests.support.made_tokenizers import (
    byte_level_gguf,
    byte_level_json,
    corpus,
    llama_json,
    sentencepiece_model,
    training_lines,
)

MAKERS = {
    "bytes": lambda: byte_tokenizer(),
    "qwen2": lambda: Tokenizer.from_json(byte_level_json("qwen2")),
    "gpt-2": lambda: Tokenizer.from_gguf(byte_level_gguf("gpt-2")),
    "llama": lambda: Tokenizer.from_json(llama_json("prepend")),
    "llama 3": lambda: Tokenizer.from_json(llama_json("never")),
    "sentencepiece": lambda: Tokenizer.from_sentencepiece(sentencepiece_model()),
    "unigram": lambda: Tokenizer.from_sentencepiece(sentencepiece_model("unigram")),
}
PAIRS = [
    ("qwen2", "llama"),
    ("llama", "qwen2"),
    ("unigram", "sentencepiece"),
    ("sentencepiece", "gpt-2"),
    ("bytes", "llama"),
    ("gpt-2", "bytes"),
    ("llama 3", "llama"),
]


@cache
def made(name: str) -> Tokenizer:
    return MAKERS[name]()


@cache
def between(target: str, draft: str) -> VocabularyMap:
    return compare_vocabularies(made(target), made(draft))


def spelling(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(i) for i in ids if not tokenizer.is_special(i))


def test_padding_makes_no_difference() -> None:
    padded = Tokenizer.from_gguf(byte_level_gguf("qwen2", padding=128))
    both = compare_vocabularies(padded, made("qwen2"))
    assert both.method(sampled=True) == both.method(sampled=False) == "ids"
    assert both.overlap == both.same_ids == 1


def test_one_control_token_more_makes_no_difference() -> None:
    """Fine-tunes add a few; the ids of all words are the same."""
    metadata = byte_level_gguf("qwen2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<|think|>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 3]
    more = Tokenizer.from_gguf(metadata)
    assert more.fingerprint() != made("qwen2").fingerprint()
    assert compare_vocabularies(more, made("qwen2")).method(sampled=False) == "ids"


def test_equal_sizes_say_nothing() -> None:
    """The same tokens under other ids: as many entries, nothing in its place, all in common."""
    metadata = byte_level_gguf("qwen2")
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        ordinary, rest = metadata[key][:1000], metadata[key][1000:]
        metadata[key] = [*ordinary[500:], *ordinary[:500], *rest]
    shuffled = Tokenizer.from_gguf(metadata)
    both = compare_vocabularies(shuffled, made("qwen2"))
    assert shuffled.vocab_size == made("qwen2").vocab_size
    assert both.same_ids < 0.2
    assert both.overlap == pytest.approx(1)
    assert (both.method(sampled=True), both.method(sampled=False)) == ("tokens", "text")


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_matched_ids_stand_for_the_same_bytes(target: str, draft: str) -> None:
    both = between(target, draft)
    assert len(set(both.target_ids.tolist())) == len(set(both.draft_ids.tolist())) == len(both.target_ids) > 100
    for target_id, draft_id in zip(both.target_ids.tolist(), both.draft_ids.tolist(), strict=True):
        if both.target.is_special(target_id):
            assert both.draft.is_special(draft_id)
        else:
            assert both.target.token_bytes(target_id) == both.draft.token_bytes(draft_id)


def test_a_piece_is_preferred_to_a_byte_token() -> None:
    """SentencePiece vocabularies have both; encoding gives the piece."""
    both = between("qwen2", "llama")
    letter = both.draft_ids[both.target_ids.tolist().index(made("qwen2").encode("e")[0])]
    assert letter == made("llama").encode_piece("e", after="text")[0]


def test_control_tokens_are_matched_by_name_or_by_task() -> None:
    both = between("qwen2", "llama")
    pairs = dict(zip(both.target_ids.tolist(), both.draft_ids.tolist(), strict=True))
    for name in ("<|im_start|>", "<|im_end|>"):
        assert pairs[made("qwen2").id_of(name)] == made("llama").id_of(name)
    assert made("sentencepiece").bos_id in between("qwen2", "sentencepiece").draft_ids


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_every_text_keeps_its_bytes_as_it_grows(target: str, draft: str) -> None:
    """A corpus of all that tokenizers change, in steps of any size, with retreats, against the target's own bytes."""
    both, dice = between(target, draft), random.Random(3)  # noqa: S311 (a simulation)
    encoder = ByteEncoder(both.draft)
    texts = [text for text in corpus() if text.strip()][::16]
    for text in ["".join(texts[i : i + 6]) for i in range(0, len(texts), 6)]:
        ids = both.target.encode(text, add_bos=False)
        growing, length = Retokenizer(both, encoder), 0
        while length < len(ids):
            step = dice.choice((1, 2, 3, 30))
            growing.extend(ids[length : length + step])
            got = growing.draft_ids()
            length = growing.num_read
            if dice.random() < 0.2:
                length = dice.randrange(length + 1)
                growing.truncate(length)
        expected = spelling(both.target, ids).removeprefix(b" " if both.target.strips_leading_space else b"")
        found = spelling(both.draft, got).removeprefix(b" " if both.draft.strips_leading_space else b"")
        assert found == expected


@pytest.mark.parametrize(("target", "draft"), PAIRS)
def test_ordinary_text_is_spelt_as_the_draft_model_learnt_it(target: str, draft: str) -> None:
    both = between(target, draft)
    encoder = ByteEncoder(both.draft)
    for lines in ("".join(training_lines()[i : i + 8]) for i in (0, 40, 1500, 1600)):
        ids = both.target.encode(lines, add_bos=False)
        growing = Retokenizer(both, encoder)
        for i in range(0, len(ids), 7):
            growing.extend(ids[i : i + 7])
            got = growing.draft_ids()
        assert got == both.draft.encode(lines)


def test_only_the_end_is_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    both, encoded = between("qwen2", "llama"), 0
    ids = both.target.encode("the quick brown fox jumps over a lazy dog while twelve small tokens wait " * 20)
    encode = ByteEncoder.encode

    def counting(self: ByteEncoder, data: bytes, *, as_start: bool = False) -> list[int]:
        nonlocal encoded
        encoded = max(encoded, len(data)) if growing.num_read > 100 else 0
        return encode(self, data, as_start=as_start)

    monkeypatch.setattr(ByteEncoder, "encode", counting)
    growing = Retokenizer(both, ByteEncoder(both.draft))
    for token_id in ids:
        growing.extend([token_id])
        growing.draft_ids()
    assert 0 < encoded < 600 < len(both.target.decode(ids))


def test_sync_keeps_what_texts_share() -> None:
    both = between("qwen2", "llama")
    encoder = ByteEncoder(both.draft)
    first = both.target.encode("the quick brown fox jumps over a lazy dog " * 12)
    other = [*first[: len(first) // 2], *both.target.encode(" def return import")]
    for texts in ((first, other, first), (other, first[:3]), (first, [])):
        growing = Retokenizer(both, encoder)
        for ids in texts:
            growing.sync(ids)
            growing.draft_ids()
        fresh = Retokenizer(both, encoder)
        fresh.sync(texts[-1])
        assert spelling(both.draft, growing.draft_ids()) == spelling(both.draft, fresh.draft_ids())


def test_unfinished_characters_become_byte_tokens() -> None:
    both = between("bytes", "llama")
    growing = Retokenizer(both, ByteEncoder(both.draft))
    growing.extend(both.target.encode("x日")[:-1])
    assert spelling(both.draft, growing.draft_ids()).endswith("x日".encode()[:-1])
    growing.extend(both.target.encode("日")[-1:])
    assert both.draft.decode(growing.draft_ids()).endswith("x日")
