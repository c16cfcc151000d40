"""eval: perplexity against the definition, grids on models that can or cannot read, acceptance counted."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import UsageError
from draftsmith.measure.acceptance import measure_acceptance
from draftsmith.measure.needles import NeedleTask, make_haystack, measure_needles
from draftsmith.measure.perplexity import measure_perplexity
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.protocol import TokenRun
from draftsmith.types import SamplingParams
from tests.support.fakes import EOS, VOCAB_SIZE, FakeModel, byte_tokenizer, fake_target

TEXT = [97 + (i * i) % 8 for i in range(300)]


def losses_by_hand(ids: Sequence[int]) -> list[float]:
    model = FakeModel()
    [rows] = model.forward([TokenRun(model.new_cache(), ids, num_logits=len(ids))])
    probs = np.exp(rows.astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    return [-float(np.log(probs[i, ids[i + 1]])) for i in range(len(ids) - 1)]


def test_perplexity_is_the_definition() -> None:
    result = measure_perplexity(FakeModel(), TEXT, context=150)
    expected = losses_by_hand(TEXT[:150]), losses_by_hand(TEXT[150:])
    assert result.windows == 2
    assert [(b.start, b.end, b.tokens) for b in result.buckets] == [(1, 64, 126), (64, 128, 128), (128, 150, 44)]
    first = [loss for window in expected for loss in window[:63]]
    assert result.buckets[0].perplexity == pytest.approx(np.exp(np.mean(first)), rel=1e-5)
    assert result.overall.perplexity == pytest.approx(np.exp(np.mean([*expected[0], *expected[1]])), rel=1e-5)


def test_windows_begin_with_bos() -> None:
    result = measure_perplexity(FakeModel(), TEXT, context=100, bos_id=EOS, limit=1)
    assert result.overall.tokens == 99
    assert result.overall.nll == pytest.approx(sum(losses_by_hand([EOS, *TEXT[:99]])), rel=1e-5)


def test_a_short_text_is_one_window() -> None:
    assert measure_perplexity(FakeModel(), TEXT[:10], context=64).overall.tokens == 9
    with pytest.raises(UsageError, match="no token to predict"):
        measure_perplexity(FakeModel(), TEXT[:1], context=64)
    with pytest.raises(UsageError, match="context is 9999"):
        measure_perplexity(FakeModel(), TEXT, context=9999)


class Reader(FakeModel):
    """Answers with what a pattern finds in the prompt, if that lies within the last ``reach`` tokens."""

    def __init__(self, pattern: str, reach: int) -> None:
        super().__init__(max_context=2048)
        self._pattern, self._reach = pattern, reach

    def _row(self, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        text = bytes(min(i, 255) if i < 256 else 0 for i in ids).decode("latin-1")
        prompt, _, reply = text.rpartition("assistant\n")
        asked = re.search(r"Where was (\w+) born", prompt)
        found = re.search(self._pattern.replace("NAME", asked[1] if asked else ""), prompt[-self._reach :])
        answer = found[1] if found else "unknown"
        row = np.zeros(VOCAB_SIZE, np.float32)
        row[ord(answer[len(reply)]) if len(reply) < len(answer) else EOS] = 9
        return row


@pytest.mark.parametrize(
    ("task", "pattern"), [("passkey", r"pass key is (\d+)"), ("needle", r"NAME was born in (\w+)")]
)
def test_grids_show_what_a_model_can_reach(task: NeedleTask, pattern: str) -> None:
    near = LLM(LoadedModel("near", Reader(pattern, 500), byte_tokenizer()), "none")
    far = LLM(LoadedModel("far", Reader(pattern, 5000), byte_tokenizer()), "none")
    cells = measure_needles(far, task, [400, 1000], [0, 1], trials=2)
    assert [(c.length, c.depth, c.hits) for c in cells] == [(400, 0, 2), (400, 1, 2), (1000, 0, 2), (1000, 1, 2)]
    cells = measure_needles(near, task, [400, 1000], [0, 1])
    assert [cell.hits for cell in cells] == [1, 1, 0, 1]


@pytest.mark.parametrize("task", ["passkey", "needle"])
def test_haystacks_have_the_length_that_was_asked_for(task: NeedleTask) -> None:
    llm = LLM(LoadedModel("far", Reader("x", 1), byte_tokenizer()), "none")
    for length in (300, 1200):
        rng = random.Random(1)  # noqa: S311
        haystack = make_haystack(llm, task, length, 0.5, rng)
        tokens = len(llm.tokenizer.encode(haystack.message)) + 60  # the chat format
        assert 0.55 * length <= tokens <= length + 40
        place = haystack.message.index(haystack.answer) / len(haystack.message)
        assert 0.3 < place < 0.7


def test_grids_out_of_range_are_refused() -> None:
    llm = LLM(fake_target(), "none")
    with pytest.raises(UsageError, match="from 192 to the context's 512"):
        measure_needles(llm, "passkey", [4096], [0])
    with pytest.raises(UsageError, match="depths from 0 to 1"):
        measure_needles(llm, "passkey", [400], [2])


def test_acceptance_by_temperature_and_context() -> None:
    llm = LLM(fake_target(), fake_target("draft"), num_draft_tokens=3)
    items = [PromptItem("a", "x", ("abc",)), PromptItem("b", "x", ("abc " * 40,)), PromptItem("c", "x", ("a" * 600,))]
    rows = measure_acceptance(llm, items, [0, 1.0], SamplingParams(max_new_tokens=20, seed=1))
    assert [(row.temperature, row.context, row.replies) for row in rows] == [
        (0, 0, 1), (0, 128, 1), (1.0, 0, 1), (1.0, 128, 1),
    ]  # fmt: skip
    assert all(row.num_accepted_tokens == row.num_draft_tokens > 0 for row in rows)
