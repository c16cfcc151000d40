"""One reply as it grows: rounds of tokens in, pieces of text out, a Completion at the end."""

from __future__ import annotations

from collections.abc import Iterable

from draftsmith.engine.assemble import Piece, TextAssembler
from draftsmith.speculate import Round, RoundTimes, SpeculationCounter
from draftsmith.types import Completion, FinishReason, Request, Timing, TokenLogprobs

__all__ = ["Reply"]


class Reply:
    """Adds up the rounds of one reply, and ends it where a stop string begins."""

    def __init__(self, assembler: TextAssembler, request: Request, *, drafter: str | None, seed: int | None) -> None:
        """``drafter``: its name for the statistics, None without one. ``seed``: the one to report."""
        self._assembler = assembler
        self._request = request
        self._seed = seed
        self._counter = SpeculationCounter(drafter) if drafter is not None else None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._from_draft: list[bool] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason: FinishReason = "stop"
        self.draft_s = 0.0  # seconds of drafting

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(self._token_ids)

    @property
    def text_ids(self) -> tuple[int, ...]:
        """Prompt and reply so far."""
        return (*self._request.prompt_ids, *self._token_ids)

    def add(self, written: Round) -> tuple[Round, list[Piece]]:
        """Take in one round. Returns it as far as it is part of the reply, and the text that it completes."""
        pieces: list[Piece] = []
        for index, token_id in enumerate(written.token_ids):
            pieces += self._assembler.push(token_id, index < written.num_accepted)
            if self._assembler.stopped:
                written = written.cut(index + 1, "stop")
                break
        self._token_ids += written.token_ids
        self._from_draft += [index < written.num_accepted for index in range(len(written.token_ids))]
        self._logprobs += written.logprobs
        if self._counter is not None:
            self._counter.add(written)
        if written.finish_reason is not None:
            self._finish_reason = written.finish_reason
        return written, self._kept(pieces)

    def see(self, times: RoundTimes) -> None:
        """Hear what a round took; see ``speculate.generate``."""
        self.draft_s += times.draft_s

    def finish(self) -> list[Piece]:
        """There are no more rounds: the text that was held back."""
        return self._kept(self._assembler.flush())

    def completion(self, timing: Timing) -> Completion:
        """The finished reply."""
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            from_draft=tuple(self._from_draft),
            finish_reason=self._finish_reason,
            num_prompt_tokens=len(self._request.prompt_ids),
            seed=self._seed,
            timing=timing,
            speculation=self._counter.stats() if self._counter is not None else None,
            logprobs=tuple(self._logprobs) if self._request.sampling.logprobs is not None else None,
        )

    def _kept(self, pieces: Iterable[Piece]) -> list[Piece]:
        kept = list(pieces)
        self._text += [piece.text for piece in kept]
        return kept
