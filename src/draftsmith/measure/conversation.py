"""Having a conversation twice, plain and speculative, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from draftsmith.engine import LLM
from draftsmith.errors import PromptTooLong
from draftsmith.measure.pair import Pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.recording import Forward
from draftsmith.speculate import RoundRecord
from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["Report", "Turn", "both_ways", "forget_caches", "tell_nobody"]

Report = Callable[[int, int, str], None]
"""``report(done, total, what)``: how far a run is, in prompts."""


def tell_nobody(done: int, total: int, what: str) -> None:
    """A Report that tells nobody."""
    del done, total, what


@dataclass(frozen=True, slots=True)
class Turn:
    """One user's turn answered both ways. ``target_forwards`` gave logits to the speculative reply, in order, and
    ``plain_forwards`` to the plain one."""

    prompt_ids: tuple[int, ...]
    plain: Completion
    speculative: Completion
    target_forwards: tuple[Forward, ...]
    plain_forwards: tuple[Forward, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()  # of the speculative reply, where they were recorded; its first is none


def both_ways(pair: Pair, item: PromptItem, sampling: SamplingParams, *, speculative_first: bool) -> Iterator[Turn]:
    """Answer the turns of ``item``; a conversation goes on with the plain reply, so both ways see the same prompts.

    It ends before a turn that does not fit into the context.
    """
    forget_caches(pair.plain)
    forget_caches(pair.speculative)
    messages: list[Message] = []
    for text in item.turns:
        messages.append(Message("user", text))
        try:
            turn = _answer(pair, messages, sampling, speculative_first)
        except PromptTooLong:
            return
        yield turn
        messages.append(Message("assistant", turn.plain.text))


def forget_caches(llm: LLM) -> None:
    """Make sure that the next prompt is read afresh, as if it were the first, whatever was answered before."""
    first = 1 if llm.target.model.vocab_size > 1 else 0
    llm.generate([first], SamplingParams(greedy=True, max_new_tokens=1))


def _answer(pair: Pair, messages: list[Message], sampling: SamplingParams, speculative_first: bool) -> Turn:
    told: list[tuple[Completion, tuple[Forward, ...]]] = []
    for llm in (pair.speculative, pair.plain) if speculative_first else (pair.plain, pair.speculative):
        pair.target.take()
        reply = llm.chat(messages, sampling)
        told.append((reply, tuple(forward for forward in pair.target.take() if forward.num_logits)))
    (speculative, checks), (plain, steps) = told if speculative_first else reversed(told)
    prompt = pair.plain.prompt_format.encode(messages, add_generation_prompt=True)
    return Turn(prompt.token_ids, plain, speculative, checks, steps)
