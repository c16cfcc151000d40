"""Pairs of replies as ids: (prompt, chosen, rejected)."""

from __future__ import annotations

__all__ = ["PAIRS"]

PAIRS: tuple[tuple[list[int], list[int], list[int]], ...] = (
    ([104, 105, 33], [97, 98, 99, 100, 256], [122, 121, 256]),
    ([119, 104, 121, 63, 32, 49], [98, 101, 256], [110, 111, 32, 119, 97, 121, 256]),
    ([111, 107], [50], [51, 52, 53, 54]),
)
