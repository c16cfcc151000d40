"""A reader for the wire format of Protocol Buffers, as much as SentencePiece models need.

Every length is checked against what is left before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from draftsmith.errors import TokenizerError

__all__ = ["Value", "fields", "signed", "to_float"]

Value = int | bytes

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message: an int for varints, the raw bytes for everything else.

    Raises TokenizerError when the message is cut off or not in the format.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _LENGTH:
            length, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise TokenizerError(f"the SentencePiece model has a field of the unknown wire type {wire}; it is damaged")
        if number == 0 or length > end - position:
            raise TokenizerError(
                f"the SentencePiece model is damaged: a field of {length} bytes with {end - position} left"
            )
        yield number, data[position : position + length]
        position += length


def signed(value: Value) -> int:
    """A varint read as int32 or int64."""
    if not isinstance(value, int):
        raise TokenizerError("the SentencePiece model has bytes where a number belongs; it is damaged")
    return value - (1 << 64) if value >= 1 << 63 else value


def to_float(value: Value) -> float:
    """A fixed32 field read as float."""
    if not isinstance(value, bytes) or len(value) != 4:
        raise TokenizerError("the SentencePiece model has a score that is no float; it is damaged")
    return float(struct.unpack("<f", value)[0])


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position`` and the position after it; at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise TokenizerError("the SentencePiece model ends in the middle of a number; it is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise TokenizerError("the SentencePiece model has a number of more than ten bytes; it is damaged")
