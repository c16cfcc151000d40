"""A draft model of another vocabulary: what it would write arrives in the target's tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.model.protocol import KVCache, Logits, TokenRun
from draftsmith.speculate import FixedLength, TranslatedDrafter, VocabularyMap, compare_vocabularies
from draftsmith.speculate.drafters.foreign import ForeignModel
from draftsmith.speculate.drafters.text import TextDrafter
from draftsmith.text import Tokenizer
from draftsmith.types import Request, SamplingParams, Verdict
from tests.support.letters import letters
from tests.support.made_tokenizers import byte_level_json, llama_json

TEXT = "the quick brown fox jumps über the lazy dog, 日本語 wait for their target model and its draft; " * 3
GREEDY = SamplingParams(greedy=True)


class Cache:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.ids)
        del self.ids[length:]


class Knows:
    """A model that knows a text by heart: after any of its beginnings the next token of the rest is likeliest.

    ``most`` is the largest number of tokens that a forward had to read.
    """

    def __init__(self, tokenizer: Tokenizer, text: str, max_context: int = 400) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.max_context = max_context
        self.reads: list[int] = []
        self._tokenizer = tokenizer
        self._text = text.encode()

    def new_cache(self, capacity: int | None = None) -> Cache:
        return Cache(capacity or self.max_context)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        return [self._forward(run) for run in runs]

    def _forward(self, run: TokenRun) -> Logits:
        cache: KVCache = run.cache
        assert isinstance(cache, Cache)
        self.reads.append(len(run.token_ids))
        cache.ids += run.token_ids
        assert cache.length <= cache.capacity
        row = np.zeros((1, self.vocab_size), np.float32)
        contents = [self._tokenizer.token_bytes(i) for i in cache.ids if not self._tokenizer.is_special(i)]
        read = b"".join(contents).removeprefix(b" ")
        at = self._text.find(read[-40:])
        rest = self._text[at + len(read[-40:]) :] if at >= 0 else b""
        if rest:
            row[0, self._tokenizer.encode_piece(rest.decode("utf-8", "replace"), after="text")[0]] = 9
        return row


@cache
def between(target: str, draft: str) -> VocabularyMap:
    made = {
        "qwen2": lambda: Tokenizer.from_json(byte_level_json("qwen2")),
        "llama": lambda: Tokenizer.from_json(llama_json("prepend")),
    }
    return compare_vocabularies(made[target](), made[draft]())


def session(drafter: Any, params: SamplingParams = GREEDY) -> Any:
    return drafter.start(Request(prompt_ids=(), sampling=params), "coupled")


def spoken(vocabularies: VocabularyMap, ids: Sequence[int]) -> str:
    return b"".join(map(vocabularies.target.token_bytes, ids)).decode()


@pytest.mark.parametrize(("target", "draft"), [("qwen2", "llama"), ("llama", "qwen2")])
def test_text_goes_on_as_the_draft_model_says_in_the_targets_own_tokens(target: str, draft: str) -> None:
    """Round after round; nearly all tokens are the ones that the target's tokenizer gives the whole text."""
    both = between(target, draft)
    model, expected = Knows(both.draft, TEXT), both.target.encode(TEXT, add_bos=False)
    drafting = session(TextDrafter(model, both))
    ids, right, drafted = expected[:4], 0, 0
    while len(ids) < len(expected) - 8:
        proposed = drafting.draft(ids, 6, FixedLength(6).wants_more)
        assert len(proposed.confidences) == len(proposed.token_ids) > 0
        assert max(proposed.confidences) <= 1
        accepted = next(
            (i for i, x in enumerate(proposed.token_ids) if x != expected[len(ids) + i]), len(proposed.token_ids)
        )
        right, drafted = right + accepted, drafted + len(proposed.token_ids)
        kept = expected[len(ids) : len(ids) + accepted + 1]
        drafting.commit(Verdict(tuple(kept), accepted, len(proposed.token_ids)))
        ids = [*ids, *kept]
    assert right > 0.85 * drafted
    assert max(model.reads[1:]) <= 12  # a few tokens around the end of the text, never the text


@pytest.mark.parametrize(("target", "draft"), [("qwen2", "llama"), ("llama", "qwen2")])
def test_common_tokens_get_the_draft_models_logits(target: str, draft: str) -> None:
    both = between(target, draft)
    model = Knows(both.draft, TEXT)
    foreign = ForeignModel(model, both, max_context=100)
    memory, ids = foreign.new_cache(), both.target.encode(TEXT, add_bos=False)
    hits = 0
    for i in range(30):
        [row] = foreign.forward([TokenRun(memory, ids[i : i + 1])])
        assert row.shape == (1, both.target.vocab_size)
        best = int(row.argmax())
        assert best in both.target_ids
        hits += TEXT.startswith(both.target.decode([*ids[: i + 1], best]))
        assert memory.length == i + 1
    assert hits >= 27
    memory.truncate(10)
    [row] = foreign.forward([TokenRun(memory, ids[10:12])])
    assert TEXT.startswith(both.target.decode([*ids[:12], int(row.argmax())]))
    with pytest.raises(ValueError, match="cannot truncate 12 tokens to 13"):
        memory.truncate(13)


def test_a_token_that_only_the_draft_has_becomes_several() -> None:
    both = compare_vocabularies(letters("abcd"), letters(["d", "ab", "a", "b"], ["a b"]))
    drafting = session(TextDrafter(Knows(both.draft, "dddabab"), both))
    proposed = drafting.draft([3, 3, 3], 9, FixedLength(2).wants_more)
    assert spoken(both, proposed.token_ids) == "abab"
    assert proposed.confidences[1] == 1  # the second letter comes with the first
    assert drafting.draft([3, 3, 3], 3, FixedLength(2).wants_more).token_ids == proposed.token_ids[:3]


def test_the_end_of_a_reply_is_understood() -> None:
    """Whatever the control tokens are called."""
    both = compare_vocabularies(letters("ab", control=["<|im_end|>"]), letters("ba", control=["</s>"]))

    class Ends(Knows):
        def _forward(self, run: TokenRun) -> Logits:
            row = super()._forward(run)
            row[0, 2 if cast_ids(run)[-1] == 0 else 0] = 20  # after b the reply ends
            return row

    proposed = session(TextDrafter(Ends(both.draft, "a"), both)).draft([0], 5, FixedLength(5).wants_more)
    assert proposed.token_ids == (1, 2)


def cast_ids(run: TokenRun) -> list[int]:
    assert isinstance(run.cache, Cache)
    return run.cache.ids


def test_unfinished_characters_wait() -> None:
    """A draft ends with a whole character, though the draft model spells it byte by byte."""
    both = between("qwen2", "llama")
    text = "wait 語語語語"
    drafting = session(TextDrafter(Knows(both.draft, text), both))
    ids = both.target.encode("wait ")
    for k in range(1, 8):
        said = b"".join(map(both.target.token_bytes, drafting.draft(ids, 20, FixedLength(k).wants_more).token_ids))
        assert text.encode().startswith(b"wait " + said)
        said.decode()


def test_a_text_longer_than_the_drafts_context_goes_on() -> None:
    both = between("qwen2", "llama")
    model = Knows(both.draft, TEXT, max_context=24)
    drafting, ids = session(TextDrafter(model, both)), both.target.encode(TEXT)
    proposed = [drafting.draft(ids[:i], 2, FixedLength(2).wants_more).token_ids for i in range(10, len(ids) - 3)]
    assert sum(p == tuple(ids[i : i + len(p)]) for i, p in enumerate(proposed, start=10)) > 0.7 * len(proposed)


def test_the_way_follows_the_request() -> None:
    both = compare_vocabularies(letters("abcd"), letters("dcba"))
    drafter = TranslatedDrafter(Knows(both.draft, "ab" * 20), both, target_vocab_size=4, max_context=50)
    drafting = session(drafter)
    whole = drafting.draft([0, 1, 0], 3, FixedLength(3).wants_more)
    assert spoken(both, whole.token_ids) == "bab"
    drafting.restart(Request(prompt_ids=(0, 1), sampling=SamplingParams(seed=1, top_k=1)))
    sampled = drafting.draft([0, 1], 3, FixedLength(3).wants_more)
    assert spoken(both, sampled.token_ids) == "aba"
    assert isinstance(drafting.model, ForeignModel)
    drafting.restart(Request(prompt_ids=(0, 1, 0), sampling=GREEDY))
    assert drafting.draft([0, 1, 0], 3, FixedLength(3).wants_more) == whole
    assert not isinstance(drafting.model, ForeignModel)
