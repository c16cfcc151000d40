"""Counting rounds into ``SpeculationStats``."""

from __future__ import annotations

from draftsmith.speculate.loop import Round
from draftsmith.types import SpeculationStats

__all__ = ["SpeculationCounter"]


class SpeculationCounter:
    """Adds up the rounds of one or more texts. Rounds without a draft token are not counted."""

    def __init__(self, drafter: str) -> None:
        self._drafter = drafter
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._accepted_per_pos: list[int] = []

    def add(self, finished: Round) -> None:
        """Count one round, as cut to the text."""
        if finished.num_draft_tokens == 0:
            return
        self._num_drafts += 1
        self._num_draft_tokens += finished.num_draft_tokens
        self._accepted_per_pos += [0] * (finished.num_draft_tokens - len(self._accepted_per_pos))
        for i in range(finished.num_accepted):
            self._accepted_per_pos[i] += 1

    def stats(self) -> SpeculationStats:
        """The counts so far."""
        return SpeculationStats(
            drafter=self._drafter,
            num_drafts=self._num_drafts,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=sum(self._accepted_per_pos),
            num_accepted_tokens_per_pos=tuple(self._accepted_per_pos),
        )
