"""From tokens to the text that a reader sees, piece by piece, each with its origin: drafter or target."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from draftsmith.text import Detokenizer, StopMatcher, Tokenizer

__all__ = ["Piece", "TextAssembler"]


@dataclass(frozen=True, slots=True)
class Piece:
    """An increment of text, never empty. ``from_draft``: its tokens were draft tokens that the target accepted."""

    text: str
    from_draft: bool


class TextAssembler:
    """Detokenises one reply and watches for its stop strings.

    A piece comes out as soon as it can no longer change: whole UTF-8 characters only, and nothing that may still turn
    out to be the beginning of a stop string. A character made of several tokens has the origin of the last of them.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops)
        self._held: deque[Piece] = deque()  # what the matcher keeps back, with its origin
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """True once a stop string is complete; the text before it has come out and nothing more will."""
        return self._stopped

    def push(self, token_id: int, from_draft: bool) -> tuple[Piece, ...]:
        """Add one token; control tokens (end of text and the like) have no text."""
        if self._stopped or self._tokenizer.is_special(token_id):
            return ()
        return self._feed(self._detokenizer.push(token_id), from_draft)

    def flush(self) -> tuple[Piece, ...]:
        """The reply is over: give out what was held back, an unfinished character as the replacement character."""
        if self._stopped:
            return ()
        pieces = self._feed(self._detokenizer.flush(), self._held[-1].from_draft if self._held else False)
        return pieces if self._stopped else pieces + self._release(self._matcher.flush())

    def _feed(self, text: str, from_draft: bool) -> tuple[Piece, ...]:
        if not text:
            return ()
        self._held.append(Piece(text, from_draft))
        emitted, self._stopped = self._matcher.push(text)
        return self._release(emitted)

    def _release(self, emitted: str) -> tuple[Piece, ...]:
        """Cut ``emitted``, which is the beginning of the held text, into pieces of one origin each."""
        pieces: list[Piece] = []
        missing = len(emitted)
        while missing > 0:
            held = self._held.popleft()
            if len(held.text) > missing:
                self._held.appendleft(Piece(held.text[missing:], held.from_draft))
            text = held.text[:missing]
            missing -= len(text)
            if pieces and pieces[-1].from_draft == held.from_draft:
                text = pieces.pop().text + text
            pieces.append(Piece(text, held.from_draft))
        return tuple(pieces)
