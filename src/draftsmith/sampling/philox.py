"""Philox4x32-10: a counter-based random function (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers").

There is no state to keep: the same key and counter give the same 128 bits, in any order and on any machine.
Test vectors are those of the authors' Random123 library.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy.typing as npt

__all__ = ["philox4x32"]

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = TypeVar("Words", int, npt.NDArray[Any])  # the arrays are uint64


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words for a counter of four: plain ints, or uint64 [S] arrays (or ones that broadcast to it).

    All values, and the two words of ``key``, are below 2**32. Nothing is modified.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32) ^ c1 ^ k0
        c1 = product1 & _MASK
        c2 = (product0 >> 32) ^ c3 ^ k1
        c3 = product0 & _MASK
        k0 = (k0 + _KEY_STEPS[0]) & _MASK
        k1 = (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3
