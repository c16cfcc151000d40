"""One reply while it is written: rounds of tokens in, pieces of text out, a Completion at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from draftsmith.engine.assemble import Piece, TextAssembler
from draftsmith.speculate import Round, SpeculationCounter
from draftsmith.types import Completion, FinishReason, Request, Timing, TokenLogprobs

__all__ = ["TextStream"]


class TextStream:
    """Iterate over it for the reply's pieces of text; then ``completion`` tells all about the reply.

    Nothing is computed before the first piece is asked for. ``stop`` ends the reply after the round under way; it may
    be called from a signal handler. ``close`` (or dropping the stream) abandons the reply.
    """

    def __init__(
        self,
        rounds: Iterator[Round],
        assembler: TextAssembler,
        request: Request,
        *,
        drafter: str | None,
        seed: int | None,
        load_s: float,
        before_drafting: Callable[[], object] | None,
        on_plain_round: Callable[[float], object],
        on_end: Callable[[tuple[int, ...] | None], None],
    ) -> None:
        """``before_drafting`` is called once the first token is out; it keeps nobody waiting for it and is not timed.
        ``on_plain_round`` hears the seconds of every round, after the first, that checked no draft token.
        ``on_end`` is called once: with prompt and reply ids, or None when an error leaves the caches uncertain.
        """
        self._rounds = rounds
        self._assembler = assembler
        self._request = request
        self._seed = seed
        self._load_s = load_s
        self._before_drafting = before_drafting
        self._on_plain_round = on_plain_round
        self._on_end = on_end
        self._counter = SpeculationCounter(drafter) if drafter is not None else None
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._from_draft: list[bool] = []
        self._logprobs: list[TokenLogprobs] = []
        self._finish_reason: FinishReason = "stop"
        self._prefill_s = self._decode_s = 0.0
        self._stop_asked = self._done = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    @property
    def stopped_early(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stop_asked

    def stop(self) -> None:
        """End the reply after the round under way; what is written so far is the reply, with finish_reason stop."""
        self._stop_asked = True

    def close(self) -> None:
        """Abandon the reply where it is."""
        self._pieces.close()

    def wait(self) -> Completion:
        """Write the whole reply and return it."""
        for _ in self._pieces:
            pass
        return self.completion

    @property
    def completion(self) -> Completion:
        """The finished reply. Raises RuntimeError before the stream has ended."""
        if not self._done:
            raise RuntimeError("the reply is not finished; iterate over the stream first, or call wait()")
        return Completion(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            from_draft=tuple(self._from_draft),
            finish_reason=self._finish_reason,
            num_prompt_tokens=len(self._request.prompt_ids),
            seed=self._seed,
            timing=Timing(
                load_s=self._load_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                num_decoded=max(0, len(self._token_ids) - 1),
            ),
            speculation=self._counter.stats() if self._counter is not None else None,
            logprobs=tuple(self._logprobs) if self._request.sampling.logprobs is not None else None,
        )

    def _run(self) -> Generator[Piece, None, None]:
        """Every round: count, turn into text, hand out. Clocks stand still while the caller has the pieces."""
        known: tuple[int, ...] | None = None
        try:
            while not self._stop_asked:
                if self._before_drafting is not None and len(self._token_ids) == 1:
                    self._before_drafting()
                began = time.perf_counter()
                finished, pieces = self._next_round()
                elapsed = time.perf_counter() - began
                if not self._prefill_s:
                    self._prefill_s = elapsed
                else:
                    self._decode_s += elapsed
                    if finished.num_draft_tokens == 0:
                        self._on_plain_round(elapsed)
                known = (*self._request.prompt_ids, *self._token_ids)
                yield from self._keep(pieces)
                if finished.finish_reason is not None:
                    self._finish_reason = finished.finish_reason
                    break
            self._done = True
            yield from self._keep(self._assembler.flush())
        except GeneratorExit:
            raise
        except BaseException:
            known = None
            raise
        finally:
            self._on_end(known)

    def _next_round(self) -> tuple[Round, list[Piece]]:
        finished = next(self._rounds)
        pieces: list[Piece] = []
        for index, token_id in enumerate(finished.token_ids):
            pieces += self._assembler.push(token_id, index < finished.num_accepted)
            if self._assembler.stopped:
                finished = finished.cut(index + 1, "stop")
                break
        self._token_ids += finished.token_ids
        self._from_draft += [index < finished.num_accepted for index in range(len(finished.token_ids))]
        self._logprobs += finished.logprobs
        if self._counter is not None:
            self._counter.add(finished)
        return finished, pieces

    def _keep(self, pieces: list[Piece] | tuple[Piece, ...]) -> Iterator[Piece]:
        for piece in pieces:
            self._text.append(piece.text)
            yield piece
