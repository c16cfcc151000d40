"""What a caller holds of a request that it has submitted to the batched engine: rounds as they come, and the end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from draftsmith.engine.options import MAX_DRAFT_TOKENS
from draftsmith.errors import UsageError
from draftsmith.speculate import Round, SpeculationCounter
from draftsmith.types import Request, SpeculationStats, Timing, TokenLogprobs

__all__ = ["Handle", "RequestOptions", "RoundFilter"]

RoundFilter = Callable[[Round], Round]
"""Sees every round before anybody else and may cut it (``Round.cut``), which ends the reply: for stop strings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """How one request is to be served. None of this changes its tokens, except where ``round_filter`` ends the reply.

    ``draft``: whether to draft at all. ``num_draft_tokens``: how many a round, 0 for none; None leaves the choice to
    the engine. ``prompt_logprobs``: report the log-probabilities of the prompt's own tokens, with so many of the
    likeliest for each, from token ``prompt_logprobs_from`` on (the first has none); what is before the last token that
    is not told may come from a cache, all else is read, whatever caches there are. None: no report. Raises UsageError
    for what is out of range.
    """

    draft: bool = True
    num_draft_tokens: int | None = None
    round_filter: RoundFilter | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_from: int = 1

    def __post_init__(self) -> None:
        k = self.num_draft_tokens
        if k is not None and not 0 <= k <= MAX_DRAFT_TOKENS:
            raise UsageError(f"num_draft_tokens is {k}; it must be from 0 (no draft) to {MAX_DRAFT_TOKENS}")
        if self.prompt_logprobs is not None and not 0 <= self.prompt_logprobs <= 100:
            raise UsageError(f"prompt_logprobs is {self.prompt_logprobs}; it must be from 0 to 100")
        if self.prompt_logprobs_from < 1:
            raise UsageError(f"prompt_logprobs_from is {self.prompt_logprobs_from}; it must be at least 1")


class Handle:
    """One submitted request. The engine's thread puts rounds in, any one thread may take them out.

    A request ends in one of three ways: its last round has a finish_reason; it was cancelled; it failed (``error``).
    ``prompt_logprobs``: those of the prompt's tokens but the first, where they were asked for, from the first round on.
    ``num_reused``: tokens of the prompt that were in a cache already, and so were not read.
    """

    def __init__(self, request: Request, drafter: str | None, wake: Callable[[], object] | None) -> None:
        """``drafter`` is the name for the statistics. ``wake`` is called, in the engine's thread, for all news."""
        self.request = request
        self.prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self.num_reused = 0
        self._rounds: deque[Round] = deque()
        self._counter = SpeculationCounter(drafter) if drafter is not None else None
        self._wake = wake
        self._cancelled = self._finished = False
        self._error: Exception | None = None
        self._num_tokens = 0
        self._submitted = self._started = self._first = self._last = time.perf_counter()

    @property
    def finished(self) -> bool:
        """Whether the last round is out, or there will be none. Look at it before ``take``, and nothing is missed."""
        return self._finished

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called before the end."""
        return self._cancelled

    @property
    def error(self) -> Exception | None:
        """What went wrong with this request, if anything did."""
        return self._error

    @property
    def speculation(self) -> SpeculationStats | None:
        """The counters so far; None for a request that never drafts."""
        return self._counter.stats() if self._counter is not None else None

    @property
    def queued_s(self) -> float:
        """Seconds from submission until the request first got a place in the batch."""
        return self._started - self._submitted

    @property
    def timing(self) -> Timing:
        """Seconds by the engine's clock so far; other requests of the batch take their share of them."""
        return Timing(
            load_s=0.0,
            prefill_s=self._first - self._started,
            decode_s=self._last - self._first,
            num_decoded=max(0, self._num_tokens - 1),
        )

    def take(self) -> list[Round]:
        """The rounds since the last call."""
        taken: list[Round] = []
        while self._rounds:
            taken.append(self._rounds.popleft())
        return taken

    def cancel(self) -> None:
        """Ask for the end: the request leaves the batch before the next round. Harmless after the end."""
        if not self._finished:
            self._cancelled = True

    def started(self, num_reused: int) -> None:
        """For the engine: the request got a place, and a cache that holds ``num_reused`` tokens of its text."""
        if not self._num_tokens:
            self.num_reused = num_reused
            self._started = self._first = self._last = time.perf_counter()

    def put(self, written: Round) -> None:
        """For the engine: one round more. It may be the last."""
        self._last = time.perf_counter()
        if not self._num_tokens:
            self._first = self._last
        self._num_tokens += len(written.token_ids)
        if self._counter is not None:
            self._counter.add(written)
        self._rounds.append(written)
        self._finished = written.finish_reason is not None
        self._tell()

    def end(self, error: Exception | None = None) -> None:
        """For the engine: there will be no further round."""
        self._error = error
        self._finished = True
        self._tell()

    def _tell(self) -> None:
        if self._wake is not None:
            self._wake()
