"""With real weights: whatever the drafter and the draft length, the tokens are those of plain decoding.

Runs where the default model is in the cache (``draftsmith models pull smollm2-135m-instruct``, or ``make demo``).
"""

from __future__ import annotations

import pytest

from draftsmith.checkpoint.reference import resolve
from draftsmith.engine import DEFAULT_TARGET, LLM
from draftsmith.engine.loading import DraftChoice
from draftsmith.errors import HubError
from draftsmith.types import Message, SamplingParams

pytestmark = pytest.mark.slow

PROMPTS = (
    "Repeat word for word: the quick brown fox jumps over the lazy dog, then it sleeps.",
    "Écris « bonjour » en français, puis 日本語 und auf Deutsch 🙂.",
    "Write a Python function that adds two numbers.",
)
GREEDY = SamplingParams(greedy=True, max_new_tokens=32)
SAMPLED = SamplingParams(
    seed=11,
    max_new_tokens=32,
    temperature=0.9,
    top_k=40,
    top_p=0.9,
    min_p=0.02,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    logit_bias={260: 1.5},
)


@pytest.fixture(scope="module")
def plain() -> LLM:
    try:
        resolve(DEFAULT_TARGET, local_only=True)
    except HubError as error:
        pytest.skip(str(error))
    return LLM(draft="none", threads=1)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "all options"])
@pytest.mark.parametrize(
    ("draft", "k"),
    [("lookup", "auto"), ("lookup", 1), ("lookup", 16), ("itself", 5), ("embedded", 4), ("auto", "auto")],
)
def test_tokens_are_those_of_plain_decoding(plain: LLM, draft: str, k: int, sampling: SamplingParams) -> None:
    choice: DraftChoice = plain.target if draft == "itself" else draft
    speculative = LLM(plain.target, choice, num_draft_tokens=k)
    for prompt in PROMPTS:
        messages = [Message("user", prompt)]
        expected = plain.chat(messages, sampling)
        got = speculative.chat(messages, sampling)
        assert got.token_ids == expected.token_ids
        assert got.text == expected.text
        assert got.finish_reason == expected.finish_reason
    if draft == "itself":
        assert got.speculation is not None
        assert got.speculation.acceptance_rate == 1


def test_a_conversation_reads_only_what_is_new(plain: LLM) -> None:
    """The second turn's prompt is longer, and its reading is shorter than from nothing; its text is the same."""
    first = [Message("user", "Describe the sea in detail. " * 60)]
    reply = plain.chat(first, GREEDY)
    second = [*first, Message("assistant", reply.text), Message("user", "Now in one word.")]
    fresh = LLM(plain.target, "none").chat(second, GREEDY)
    again = plain.chat(second, GREEDY)
    assert again.token_ids == fresh.token_ids
    assert again.timing.prefill_s < fresh.timing.prefill_s
