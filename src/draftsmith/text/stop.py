"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.errors import UsageError

__all__ = ["StopMatcher"]


class StopMatcher:
    """Finds the first stop string in text that arrives in pieces, and holds back only what may become one.

    The text stops as soon as any stop string is complete, reading character by character; where several become complete
    with the same character, the longest counts. So what is emitted in all never depends on how the text was cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises UsageError for an empty stop string (it would match everywhere)."""
        if not all(stops):
            raise UsageError("stop holds an empty string; leave it out")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing is emitted after it."""
        return self._stopped

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; returns what can be shown now and whether a stop string was met (it is not shown)."""
        if self._stopped:
            return "", True
        text = self._held + text
        # The first occurrence of each string is also the one that ends first.
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held, self._stopped = "", True
            return text[: min(found)[1]], True
        keep = self._longest_open_suffix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """The text has ended: what was held back (empty after a stop)."""
        held, self._held = self._held, ""
        return held

    def _longest_open_suffix(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        longest = min(len(text), max((len(stop) for stop in self._stops), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
