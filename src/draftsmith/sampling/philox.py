"""Philox4x32-10: a counter-based random function (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers").

There is no state to keep: the same key and counter give the same 128 bits, in any order and on any machine.
Test vectors are those of the authors' Random123 library.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["philox4x32"]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_MASK = 0xFFFFFFFF

Words = npt.NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four 32-bit words for every counter; all arrays are uint64 [S] (or broadcast to it) with values below 2**32.

    ``key`` holds two words below 2**32. Nothing is modified.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _WORD) ^ c1 ^ np.uint64(k0)
        c1 = product1 & _LOW
        c2 = (product0 >> _WORD) ^ c3 ^ np.uint64(k1)
        c3 = product0 & _LOW
        k0 = (k0 + _KEY_STEPS[0]) & _MASK
        k1 = (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3
