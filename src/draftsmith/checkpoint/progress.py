"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """Called with the bytes done so far and the bytes in all, 0 while that is unknown."""

    def __call__(self, done: int, total: int, /) -> None:
        """Hear of it; return soon."""


def no_progress(done: int, total: int, /) -> None:
    """Tell nobody."""
