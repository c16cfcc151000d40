"""A draft from a large vocabulary looks at its common part, unless the text at hand does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import FixedLength, ModelDrafter
from draftsmith.speculate.drafters.model import COMMON_IDS, common_vocabulary
from draftsmith.types import Request, SamplingParams

VOCAB = 151_936
RARE = VOCAB - 1


class Cache:
    length = 0

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def truncate(self, length: int) -> None:
        self.length = length


class WideModel:
    """Prefers the last entry that it is asked for, and keeps what it was asked for."""

    vocab_size, max_context = VOCAB, 1000

    def __init__(self) -> None:
        self.limits: list[int | None] = []

    def new_cache(self, capacity: int | None = None) -> Cache:
        return Cache(capacity or self.max_context)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        [run] = runs
        self.limits.append(run.vocab_limit)
        return [np.arange(VOCAB, dtype=np.float32)[None, : run.vocab_limit]]


def draft_after(text: list[int], target_vocab_size: int = VOCAB) -> tuple[int, int | None]:
    """The token that is drafted after ``text``, and the limit that the model was given."""
    model = WideModel()
    session = ModelDrafter(model, target_vocab_size=target_vocab_size).start(
        Request(prompt_ids=tuple(text), sampling=SamplingParams(greedy=True)), "coupled"
    )
    draft = session.draft(text, 1, FixedLength(1).wants_more)
    return draft.token_ids[0], model.limits[-1]


@pytest.mark.parametrize(
    ("size", "common"), [(32_000, 32_000), (65_536, 65_536), (128_256, COMMON_IDS), (256_000, 85_333)]
)
def test_small_vocabularies_are_common_as_a_whole(size: int, common: int) -> None:
    assert common_vocabulary(size) == common


def test_a_common_text_is_continued_from_the_common_part() -> None:
    assert draft_after([1] * 60 + [RARE] * 4) == (common_vocabulary(VOCAB) - 1, common_vocabulary(VOCAB))


def test_a_text_of_rare_tokens_is_continued_from_the_whole() -> None:
    assert draft_after([1] * 50 + [RARE] * 14) == (RARE, VOCAB)


def test_ids_that_the_target_cannot_write_are_never_drafted() -> None:
    assert draft_after([1] * 50 + [RARE - 500] * 14, target_vocab_size=VOCAB - 400) == (VOCAB - 401, VOCAB - 400)
