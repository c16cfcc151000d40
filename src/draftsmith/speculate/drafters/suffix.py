"""A suffix automaton over the text: propose what followed the longest earlier occurrence of the text's end.

Prompt lookup goes by the last few tokens; the automaton (Blumer et al. 1985) finds the longest match whatever its
length, in constant time for each token, and so prefers the occurrence whose history is most like the present one. It
can also hold past outputs (Hu et al. 2024, "SAM Decoding", arXiv:2411.10666); that is off by default, for what one
conversation said is not for the next to see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from draftsmith.errors import UsageError
from draftsmith.speculate.drafters.lookup import copied
from draftsmith.speculate.drafters.protocol import WantsMore
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["SuffixAutomaton", "SuffixDraftSession", "SuffixDrafter"]

_LINKS = 8  # shorter matches whose latest occurrence is kept up to date with every token


class SuffixAutomaton:
    """All substrings of the tokens so far. A state stands for substrings that end at the same places."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the state's longest substring
        self._end = [0]  # the position after a recent occurrence
        self._whole = 0  # the state of all tokens

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens; a few dictionary operations each."""
        for token_id in token_ids:
            self._append(token_id)

    def step(self, state: int, length: int, token_id: int) -> tuple[int, int]:
        """The longest match after one token more: from a match of ``length`` tokens in ``state`` to another such."""
        while state and token_id not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token_id)
        return (0, 0) if following is None else (following, min(length, self._length[state]) + 1)

    def narrowed(self, state: int, length: int) -> int:
        """The state that a match of ``length`` tokens in ``state`` is in now, since states may have been split."""
        while length <= self._length[self._link[state]] and state:
            state = self._link[state]
        return state

    def end_of(self, state: int) -> int:
        """The position after a recent occurrence of the state's substrings."""
        return self._end[state]

    def _append(self, token_id: int) -> None:
        end = len(self.token_ids) + 1
        self.token_ids.append(token_id)
        new = self._add({}, 0, self._length[self._whole] + 1, end)
        state = self._whole
        while state >= 0 and token_id not in self._next[state]:
            self._next[state][token_id] = new
            state = self._link[state]
        self._link[new] = 0 if state < 0 else self._shortened(state, token_id)
        self._whole = new
        state = self._link[new]
        for _ in range(_LINKS):  # the shorter suffixes have just occurred as well
            if state <= 0:
                break
            self._end[state] = end
            state = self._link[state]

    def _shortened(self, state: int, token_id: int) -> int:
        """The state of exactly ``state``'s longest substring and ``token_id``, split off where it shared another's."""
        shared = self._next[state][token_id]
        length = self._length[state] + 1
        if self._length[shared] == length:
            return shared
        split = self._add(dict(self._next[shared]), self._link[shared], length, self._end[shared])
        while state >= 0 and self._next[state].get(token_id) == shared:
            self._next[state][token_id] = split
            state = self._link[state]
        self._link[shared] = split
        return split

    def _add(self, following: dict[int, int], link: int, length: int, end: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        self._end.append(end)
        return len(self._end) - 1


class SuffixDrafter:
    """Matches shorter than ``min_match`` tokens are no reason for a draft.

    ``remember``: how many tokens of past texts to keep for later ones (0: none). Under the rejection rule sampled texts
    do not use them, or the same seed would give another text the second time. Raises UsageError for sizes out of range.
    """

    name = "suffix"

    def __init__(self, min_match: int = 2, *, remember: int = 0) -> None:
        if min_match < 1 or remember < 0:
            raise UsageError(f"min_match is {min_match} and remember {remember}; give at least 1 and 0")
        self._min_match = min_match
        self._remember = remember
        self._past: list[int] = []

    def start(self, request: Request, rule: VerificationRule) -> SuffixDraftSession:
        """A session that knows the past texts, if they are to be used."""
        return SuffixDraftSession(self, rule, request)

    @property
    def min_match(self) -> int:
        """The shortest match that counts."""
        return self._min_match

    def past(self, request: Request, rule: VerificationRule) -> Sequence[int]:
        """The tokens of past texts that ``request`` may draw on."""
        return self._past if rule == "coupled" or request.sampling.greedy else ()

    def keep(self, token_ids: Sequence[int]) -> None:
        """A text has ended: remember as much of it as is wanted."""
        if self._remember:
            self._past = [*self._past, *token_ids][-self._remember :]


class SuffixDraftSession:
    """One text's automaton, after the past ones', and the longest match of its end."""

    def __init__(self, drafter: SuffixDrafter, rule: VerificationRule, request: Request) -> None:
        self._drafter = drafter
        self._rule = rule
        self._match = (0, 0)  # the longest match of the text's end: its state, and its length
        self._source = 0  # the position of the token to copy first
        self._begin(request)

    def restart(self, request: Request) -> None:
        """Begin another text; the last one is remembered if that is wanted."""
        self._drafter.keep(self._automaton.token_ids[self._before :])
        self._begin(request)

    def read(self, token_ids: Sequence[int]) -> None:
        """Take in the tokens that came since the last call."""
        for token_id in token_ids[len(self._automaton.token_ids) - self._before :]:
            state, length = self._match
            state, length = self._automaton.step(state, length, token_id)  # before the token itself can be found
            self._source = self._automaton.end_of(state)
            self._automaton.extend((token_id,))
            self._match = self._automaton.narrowed(state, length), length

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """Copy what followed the longest match, as long as it is wanted; surer the longer the match.

        A copy that runs into the end of the text goes on with what was copied, so repetitions are continued.
        """
        self.read(token_ids)
        return self.copy_after((), max_tokens, wants_more)

    def copy_after(self, drawn: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.CopyingDraftSession``."""
        (state, length), source = self._match, self._source
        for token_id in drawn:
            state, length = self._automaton.step(state, length, token_id)
            source = self._automaton.end_of(state)
        if length < self._drafter.min_match:
            return Draft(())
        return copied(self._automaton.token_ids, drawn, source, length, max_tokens, wants_more)

    def commit(self, verdict: Verdict) -> None:
        """Nothing to undo: only the text itself is in the automaton."""

    def _begin(self, request: Request) -> None:
        past = self._drafter.past(request, self._rule)
        self._automaton = SuffixAutomaton()
        self._automaton.extend(past)
        self._before = len(past)
        self._match = (0, 0)
