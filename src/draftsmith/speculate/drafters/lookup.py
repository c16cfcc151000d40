"""Prompt lookup: propose what followed the last time the text ended like this. Needs no model, costs next to nothing.

The idea is Saxena's "prompt lookup decoding" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.errors import UsageError
from draftsmith.speculate.drafters.protocol import WantsMore
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["PromptLookupDrafter", "PromptLookupSession", "copied", "copy_confidence"]

_MANY = 32  # tokens that are worth setting up columns for
_LONGEST_LOOK_BACK = 32  # how far a match is followed back to tell how good it is


class PromptLookupDrafter:
    """Looks for the last ``max_ngram`` tokens earlier in the text, then for fewer, down to ``min_ngram``.

    Raises UsageError unless 1 <= min_ngram <= max_ngram.
    """

    name = "lookup"

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise UsageError(f"Prompt lookup got n-grams of {min_ngram} to {max_ngram} tokens; give 1 <= min <= max")
        self._sizes = range(max_ngram, min_ngram - 1, -1)

    def start(self, request: Request, rule: VerificationRule) -> PromptLookupSession:
        """A session with an empty index."""
        del request, rule
        return PromptLookupSession(self._sizes)


class PromptLookupSession:
    """One text's index: for every n-gram, the position after its most recent occurrence that something follows."""

    def __init__(self, sizes: range) -> None:
        self._sizes = sizes
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed: list[int] = []

    def restart(self, request: Request) -> None:
        """Begin another text with an empty index: reading a prompt again takes about a microsecond a token."""
        del request
        self._follows.clear()
        self._indexed.clear()

    def read(self, token_ids: Sequence[int]) -> None:
        """Index the tokens that came since the last call: a prompt in whole columns, which takes half as long."""
        known, text = len(self._indexed), self._indexed
        if len(token_ids) - known < _MANY:
            for token_id in token_ids[known:]:
                end = len(text)
                for size in self._sizes:
                    if size <= end:
                        self._follows[tuple(text[end - size :])] = end
                text.append(token_id)
            return
        text += token_ids[known:]
        for size in self._sizes:
            first = max(known, size)  # the first position that n-grams are followed by
            columns = (text[first - size + i : len(text) - size + i] for i in range(size))
            self._follows.update(zip(zip(*columns, strict=True), range(first, len(text)), strict=True))

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """Copy what followed the most recent longest match, as long as it is wanted."""
        self.read(token_ids)
        return self.copy_after((), max_tokens, wants_more)

    def copy_after(self, drawn: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.CopyingDraftSession``."""
        text = [*self._indexed[-_LONGEST_LOOK_BACK:], *drawn]
        source = self._match(text)
        if source is None:
            return Draft(())
        return copied(self._indexed, drawn, source, self._match_length(text, source), max_tokens, wants_more)

    def commit(self, verdict: Verdict) -> None:
        """Nothing to undo: only the text itself is indexed."""

    def _match(self, text: Sequence[int]) -> int | None:
        """The position of the token that followed the best match of the end of ``text``, if there is one."""
        for size in self._sizes:
            if size <= len(text) and (source := self._follows.get(tuple(text[-size:]))) is not None:
                return source
        return None

    def _match_length(self, text: Sequence[int], source: int) -> int:
        """Of the end of ``text`` and what came before ``source``."""
        most, length = min(source, _LONGEST_LOOK_BACK, len(text)), 0
        while length < most and self._indexed[source - 1 - length] == text[-1 - length]:
            length += 1
        return length


def copied(
    text: Sequence[int], drawn: Sequence[int], source: int, match: int, max_tokens: int, wants_more: WantsMore
) -> Draft:
    """The tokens of ``text`` from ``source`` on, and then of what follows the text: ``drawn`` and the copy itself.

    ``match``: how many tokens before ``source`` are like the end of text and ``drawn``. So repetitions are continued.
    """
    token_ids: list[int] = []
    confidences: list[float] = []
    while len(token_ids) < max_tokens and wants_more(confidences, copy_confidence(match + len(token_ids))):
        at = source + len(token_ids) - len(text)
        confidences.append(copy_confidence(match + len(token_ids)))
        beyond = at - len(drawn)
        token_ids.append(text[at] if at < 0 else drawn[at] if beyond < 0 else token_ids[beyond])
    return Draft(tuple(token_ids), None, tuple(confidences), free=bool(token_ids))


def copy_confidence(match: int) -> float:
    """How sure to be of a token that follows a match of so many tokens: n / (n + 1), the surer the longer.

    The tokens of a copy belong to the match of those after them, since these only matter if the former were right.
    """
    return match / (match + 1)
