"""A length policy for tests."""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.speculate import FixedLength


class Eager(FixedLength):
    """Takes a copy after drawn tokens, too, whenever there is one."""

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """Whether there are fewer tokens yet, of whatever kind."""
        del upcoming, instead, drawn
        return len(confidences) < self.length
