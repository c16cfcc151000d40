"""From blocks to float32, exactly as the GGUF format defines each block type.

Shape legend: N blocks. Every decoder takes uint8 [N, block_bytes] and gives float32 [N, block_size]. The arithmetic is
that of the format's reference (float32, one multiplication, then at most one addition), so results agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from draftsmith.errors import CheckpointError
from draftsmith.quant.block_types import BlockType

__all__ = ["dequantize"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CHUNK_VALUES: Final = 1 << 20  # decoded at a time, so that the temporary arrays stay in the cache


def dequantize(block_type: BlockType, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """float32 of the given shape from uint8 [all blocks], row-major; blocks run along the last dimension.

    Raises CheckpointError when the number of bytes is not that of the shape.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if data.size != size // shape[-1] * block_type.row_bytes(shape[-1]):
        raise CheckpointError(f"{data.size} bytes of {block_type.name} cannot be a tensor of the shape {shape}")
    blocks = data.reshape(-1, block_type.block_bytes)
    decode = _DECODERS[block_type]
    values = np.empty((blocks.shape[0], block_type.block_size), np.float32)
    step = CHUNK_VALUES // block_type.block_size
    with np.errstate(over="ignore", invalid="ignore"):  # damaged scales may be infinite; that is not ours to hide
        for start in range(0, blocks.shape[0], step):
            values[start : start + step] = decode(blocks[start : start + step])
    return values.reshape(shape)


def _f32(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f4")


def _f16(blocks: Bytes) -> Floats:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _halves(nibbles: Bytes) -> Bytes:
    """[N, ..., m] bytes to [N, ..., 2m] values of four bits: all low halves, then all high halves."""
    return np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1)


def _fifth_bits(blocks: Bytes) -> Bytes:
    """[N, 4] bytes to [N, 32] values, 0 or 16: bit i belongs to value i."""
    return np.unpackbits(blocks, axis=-1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Bytes) -> Floats:  # scale f16, 32 int8
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _f16(blocks[:, :2])


def _q4_0(blocks: Bytes) -> Floats:  # scale f16, 32 values of 4 bits, less 8
    return (_halves(blocks[:, 2:]).astype(np.float32) - np.float32(8)) * _f16(blocks[:, :2])


def _q4_1(blocks: Bytes) -> Floats:  # scale f16, minimum f16, 32 values of 4 bits
    return _halves(blocks[:, 4:]) * _f16(blocks[:, :2]) + _f16(blocks[:, 2:4])


def _q5_0(blocks: Bytes) -> Floats:  # scale f16, 32 fifth bits, 32 values of 4 bits, less 16
    quants = _halves(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return (quants.astype(np.float32) - np.float32(16)) * _f16(blocks[:, :2])


def _q5_1(blocks: Bytes) -> Floats:  # scale f16, minimum f16, 32 fifth bits, 32 values of 4 bits
    quants = _halves(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return quants * _f16(blocks[:, :2]) + _f16(blocks[:, 2:4])


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """float32 [N, 8, 1] scales and minima of a K block: two f16, then 16 numbers of 6 bits in 12 bytes.

    Bytes 0-3 and 4-7 hold scales and minima 0-3 in their low 6 bits; bytes 8-11 the low halves of scales and minima
    4-7, whose upper two bits are the upper two bits of bytes 0-3 and 4-7.
    """
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    first, second, rest = packed[:, 0], packed[:, 1], packed[:, 2]
    six, upper = np.uint8(63), np.uint8(48)
    scales = np.concatenate([first & six, (rest & np.uint8(15)) | (first >> np.uint8(2) & upper)], axis=-1)
    minima = np.concatenate([second & six, (rest >> np.uint8(4)) | (second >> np.uint8(2) & upper)], axis=-1)
    return (_f16(blocks[:, :2]) * scales)[:, :, None], (_f16(blocks[:, 2:4]) * minima)[:, :, None]


def _q4_k(blocks: Bytes) -> Floats:  # scales and minima, 4 times 32 bytes with two groups of 32 values of 4 bits
    scales, minima = _scales_and_minima(blocks)
    quants = _halves(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scales * quants - minima).reshape(-1, 256)


def _q5_k(blocks: Bytes) -> Floats:  # scales and minima, 32 bytes of fifth bits (bit g of byte i: group g), as q4_k
    scales, minima = _scales_and_minima(blocks)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)) << np.uint8(4)
    quants = _halves(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth
    return (scales * quants - minima).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> Floats:  # 128 bytes of low halves, 64 of upper bits, 16 int8 scales, scale f16
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & np.uint8(15)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    quants = low.reshape(-1, 256) | high.reshape(-1, 256) << np.uint8(4)
    scales = _f16(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    centred = (quants.astype(np.float32) - np.float32(32)).reshape(-1, 16, 16)
    return (scales[:, :, None] * centred).reshape(-1, 256)


_DECODERS: Final[Mapping[BlockType, Callable[[Bytes], Floats]]] = MappingProxyType(
    {
        BlockType.F32: _f32,
        BlockType.F16: _f16,
        BlockType.BF16: _bf16,
        BlockType.Q8_0: _q8_0,
        BlockType.Q4_0: _q4_0,
        BlockType.Q4_1: _q4_1,
        BlockType.Q5_0: _q5_0,
        BlockType.Q5_1: _q5_1,
        BlockType.Q4_K: _q4_k,
        BlockType.Q5_K: _q5_k,
        BlockType.Q6_K: _q6_k,
    }
)
