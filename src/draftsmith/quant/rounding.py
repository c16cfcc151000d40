"""Arithmetic that the encoders share: levels, scales as they will be stored, sums over blocks.

Shape legend: N blocks of 32 values; scales are [N, 1].
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["F16_MAX", "Bytes", "Floats", "as_stored", "dot", "half_bytes", "levels", "pack_halves", "ratio"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

F16_MAX: Final = np.float32(65504)
NO_SCALE: Final = np.float32(1e-30)  # far below the smallest f16; its inverse would be infinite


def as_stored(scale: Floats) -> Floats:
    """The scale after a round trip through f16."""
    return np.clip(scale, -F16_MAX, F16_MAX).astype(np.float16).astype(np.float32)


def levels(values: Floats, scale: Floats, lowest: int, highest: int) -> Floats:
    """The nearest level of each value; 0 where the scale is 0 (or the lowest level, if that is above)."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > NO_SCALE)
    found = values * inverse
    np.rint(found, out=found)
    return np.clip(found, lowest, highest, out=found)


def dot(left: Floats, right: Floats) -> Floats:
    """[N, 1] scalar products of the blocks of two [N, 32] arrays."""
    product: Floats = np.einsum("ij,ij->i", left, right)
    return product[:, None]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def pack_halves(quants: Floats) -> Bytes:
    """[N, 2m] values from 0 to 15 to [N, m] bytes: the first m are the low halves."""
    nibbles = quants.astype(np.uint8)
    middle = nibbles.shape[1] // 2
    return nibbles[:, :middle] | nibbles[:, middle:] << np.uint8(4)


def half_bytes(scale: Floats) -> Bytes:
    """[N, 1] numbers to [N, 2] bytes of f16."""
    return scale.astype("<f2").view(np.uint8)
