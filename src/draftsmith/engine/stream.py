"""One reply while it is written, for the caller who asks for its pieces."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

from draftsmith.engine.assemble import Piece
from draftsmith.engine.reply import Reply
from draftsmith.speculate import Round
from draftsmith.types import Completion, Timing

__all__ = ["TextStream"]


class TextStream:
    """Iterate over it for the reply's pieces of text; then ``completion`` tells all about the reply.

    Nothing is computed before the first piece is asked for. ``stop`` ends the reply after the round under way; it may
    be called from a signal handler. ``close`` (or dropping the stream) abandons the reply.
    """

    def __init__(
        self,
        rounds: Iterator[Round],
        reply: Reply,
        *,
        load_s: float,
        before_drafting: Callable[[], object] | None,
        on_plain_round: Callable[[float], object],
        on_end: Callable[[tuple[int, ...] | None], None],
    ) -> None:
        """``before_drafting`` is called before the prompt is read; it is not timed.
        ``on_plain_round`` hears the seconds of every round, after the first, that checked no draft token.
        ``on_end`` is called once: with prompt and reply ids, or None when an error leaves the caches uncertain.
        """
        self._rounds = rounds
        self._reply = reply
        self._load_s = load_s
        self._before_drafting = before_drafting
        self._on_plain_round = on_plain_round
        self._on_end = on_end
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
        return self._reply.completion(
            Timing(
                load_s=self._load_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                num_decoded=max(0, self._reply.num_tokens - 1),
                draft_s=self._reply.draft_s,
            )
        )

    def _run(self) -> Generator[Piece, None, None]:
        """Every round: count, turn into text, hand out. Clocks stand still while the caller has the pieces."""
        known: tuple[int, ...] | None = None
        try:
            while not self._stop_asked:
                if self._before_drafting is not None and self._reply.num_tokens == 0:
                    self._before_drafting()
                began = time.perf_counter()
                finished, pieces = self._reply.add(next(self._rounds))
                elapsed = time.perf_counter() - began
                if not self._prefill_s:
                    self._prefill_s = elapsed
                else:
                    self._decode_s += elapsed
                    if finished.num_draft_tokens == 0:
                        self._on_plain_round(elapsed)
                known = self._reply.text_ids
                yield from pieces
                if finished.finish_reason is not None:
                    break
            self._done = True
            yield from self._reply.finish()
        except GeneratorExit:
            raise
        except BaseException:
            known = None
            raise
        finally:
            self._on_end(known)
