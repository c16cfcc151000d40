"""The replies to one HTTP request: submitted together, read as one stream of events, cancelled together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from draftsmith.engine import Handle, Piece
from draftsmith.engine.assemble import TextAssembler
from draftsmith.server.metrics import Metrics
from draftsmith.server.problems import ApiError
from draftsmith.speculate import CostModel, Round
from draftsmith.text import Tokenizer
from draftsmith.types import FinishReason, SpeculationStats, TokenLogprobs

__all__ = ["PING", "Choice", "Event", "Generation", "ReplyReader"]


@dataclass(frozen=True, slots=True)
class Event:
    """What one round has added to choice ``index``. ``pieces`` may lag behind ``token_ids`` (stop strings, UTF-8)."""

    index: int
    pieces: tuple[Piece, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All of the new text."""
        return "".join(piece.text for piece in self.pieces)


PING = Event(-1)
"""Nothing has happened for a while."""


class ReplyReader:
    """The round filter of one reply: detokenises in the engine's thread, and ends the reply at its stop strings."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._assembler = TextAssembler(tokenizer, stops)
        self._pieces: deque[tuple[Piece, ...]] = deque()

    def __call__(self, written: Round) -> Round:
        """See ``RoundFilter``."""
        pieces: list[Piece] = []
        for i, token_id in enumerate(written.token_ids):
            pieces += self._assembler.push(token_id, i < written.num_accepted)
            if self._assembler.stopped:
                written = written.cut(i + 1, "stop")
                break
        if written.finish_reason is not None:
            pieces += self._assembler.flush()
        self._pieces.append(tuple(pieces))
        return written

    def take(self) -> tuple[Piece, ...]:
        """The text of the next round, in the order of the rounds."""
        return self._pieces.popleft()


@dataclass(slots=True)
class Choice:
    """One reply. ``prompt``: the index of its prompt. ``steps``: what its rounds should have cost, in plain steps."""

    handle: Handle
    reader: ReplyReader
    prompt: int = 0
    num_tokens: int = 0
    steps: float = 0.0
    finish_reason: FinishReason | None = None


class Generation:
    """All replies to one HTTP request. ``news`` is to be set for all that happens to any of them.

    Whoever makes it must call ``close`` in the end, in whatever way that comes.
    """

    def __init__(self, metrics: Metrics, ping_s: float, costs: CostModel | None = None) -> None:
        """``costs``: what drafts and checks cost, where that was measured."""
        self._costs = costs
        self.choices: list[Choice] = []
        self._metrics = metrics
        self._ping_s = ping_s
        self.news = asyncio.Event()
        self._closed = False

    async def events(self) -> AsyncIterator[Event]:
        """What is written, as it is written, and PING whenever nothing comes for a while.

        Raises what went wrong with a reply; the others then end, too.
        """
        open_choices = list(enumerate(self.choices))
        while open_choices:
            try:
                await asyncio.wait_for(self.news.wait(), self._ping_s)
            except TimeoutError:
                yield PING
                continue
            self.news.clear()
            for index, choice in list(open_choices):
                finished = choice.handle.finished  # asked before the rounds are taken, so that none is missed
                for written in choice.handle.take():
                    choice.steps += self._cost(choice, written)
                    choice.num_tokens += len(written.token_ids)
                    choice.finish_reason = written.finish_reason
                    pieces = choice.reader.take()
                    yield Event(index, pieces, written.token_ids, written.logprobs, written.finish_reason)
                if finished:
                    open_choices.remove((index, choice))
                    _check_end(choice)

    def close(self) -> None:
        """End what is not finished, and count everything."""
        if self._closed:
            return
        self._closed = True
        for choice in self.choices:
            handle = choice.handle
            handle.cancel()
            reason = "error" if handle.error is not None else choice.finish_reason or "abort"
            self._metrics.finish(reason, choice.num_tokens, handle.speculation)
            if choice.finish_reason is not None:
                prompt = len(handle.request.prompt_ids)
                self._metrics.observe(handle.queued_s, handle.timing, num_prompt=prompt, num_reply=choice.num_tokens)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum({choice.prompt: len(choice.handle.request.prompt_ids) for choice in self.choices}.values())

    @property
    def num_reused_tokens(self) -> int:
        """Tokens of all prompts that did not have to be read; where a prompt has several replies, for the first."""
        first = {choice.prompt: choice.handle.num_reused for choice in reversed(self.choices)}
        return sum(first.values())

    @property
    def num_reply_tokens(self) -> int:
        """Tokens of all replies so far."""
        return sum(choice.num_tokens for choice in self.choices)

    def _cost(self, choice: Choice, written: Round) -> float:
        """What a round should have cost, in plain steps of its context; the first one reads the prompt, with a draft or
        without."""
        if self._costs is None or not choice.num_tokens:
            return 0.0
        k = written.num_draft_tokens
        context = len(choice.handle.request.prompt_ids) + choice.num_tokens
        return k * self._costs.draft_step + self._costs.check_cost(k + 1, context)

    @property
    def expected_speedup(self) -> float | None:
        """Tokens written after the first over what they should have cost in plain steps, by the costs as measured; None
        where nothing was measured or drafted. Unlike the clock, it does not count what others do on the machine.
        """
        [choice] = self.choices if len(self.choices) == 1 else [None]
        if choice is None or not choice.steps or choice.handle.speculation is None:
            return None
        return (choice.num_tokens - 1) / choice.steps

    @property
    def speculation(self) -> SpeculationStats | None:
        """The statistics of the reply; None when there are several, or it did not draft."""
        return self.choices[0].handle.speculation if len(self.choices) == 1 else None


def _check_end(choice: Choice) -> None:
    if choice.handle.error is not None:
        raise choice.handle.error
    if choice.finish_reason is None:
        raise ApiError(503, "the server is shutting down; try again when it is back", code="overloaded", retry=True)
