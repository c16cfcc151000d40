"""Random matrices in every block type, and what a product with them should be, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from draftsmith.model import _native
from draftsmith.quant import BlockType, dequantize, quantize

__all__ = ["QUANTISED", "activations_as_read", "exact_product", "packed", "random_blocks", "set_halves"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

QUANTISED = tuple(block_type for block_type in BlockType if block_type.is_quantized)
GROUP = 32  # columns that share one scale when activations are quantised
# Where the f16 numbers (scale, minimum) stand in a block.
_HALVES: dict[BlockType, tuple[int, ...]] = {
    BlockType.Q4_1: (0, 2),
    BlockType.Q5_1: (0, 2),
    BlockType.Q4_K: (0, 2),
    BlockType.Q5_K: (0, 2),
}
_HALVES |= {BlockType.Q4_0: (0,), BlockType.Q5_0: (0,), BlockType.Q8_0: (0,), BlockType.Q6_K: (208,)}


def set_halves(block_type: BlockType, blocks: Bytes, values: npt.NDArray[np.float16]) -> Bytes:
    """A copy of the blocks [all bytes] with their f16 numbers drawn from ``values`` in turn."""
    changed = blocks.reshape(-1, block_type.block_bytes).copy()
    for i, at in enumerate(_HALVES[block_type]):
        chosen = values[(np.arange(len(changed)) * (i + 1)) % len(values)]
        changed[:, at : at + 2] = chosen.view(np.uint8).reshape(-1, 2)
    return changed.reshape(-1)


def random_blocks(block_type: BlockType, rows: int, cols: int, seed: int = 0, scale: float = 0.01) -> Bytes:
    """uint8 [bytes of the matrix]: every code and small scale at random, f16 numbers about ``scale``, both signs."""
    rng = np.random.default_rng([seed, rows, cols, block_type.ggml_id])
    if not block_type.is_quantized:
        return quantize(block_type, rng.standard_normal((rows, cols)).astype(np.float32))
    blocks = rng.integers(0, 256, rows * block_type.row_bytes(cols), dtype=np.uint8)
    halves = (rng.uniform(0.5, 1.0, 997) * rng.choice((-scale, scale), 997)).astype(np.float16)
    return set_halves(block_type, blocks, halves)


def packed(block_type: BlockType, rows: int, cols: int, blocks: Bytes, threads: int = 1) -> Bytes:
    """The matrix as the engine keeps it. The buffer is filled first: packing must write every byte."""
    buffer = np.full(_native.packed_size(block_type.ggml_id, rows, cols), 0xA5, np.uint8)
    _native.pack(block_type.ggml_id, rows, cols, blocks, buffer, _native.ThreadTeam(threads))
    return buffer


def activations_as_read(block_type: BlockType, x: Floats) -> Doubles:
    """float64 [m, cols]: the activations that a product with these weights sees.

    For quantised weights they are 8-bit: a scale of largest / 127 for each 32 columns and codes rounded to nearest
    even, all in float32, as ``native/elementwise.hpp`` says.
    """
    if not block_type.is_quantized:
        return x.astype(np.float64)
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    zeros = ~(largest > np.float32(1e-30))
    inverse = np.where(zeros, np.float32(0), np.float32(127) / np.where(zeros, np.float32(1), largest))
    codes = np.rint(groups * inverse)
    scales = np.where(zeros, np.float32(0), largest / np.float32(127))
    return (codes.astype(np.float64) * scales.astype(np.float64)).reshape(x.shape)


def exact_product(block_type: BlockType, blocks: Bytes, shape: tuple[int, int], x: Floats) -> tuple[Doubles, Doubles]:
    """float64 [m, rows] twice: x times the transposed matrix, and the sums of the magnitudes of the terms."""
    weights = dequantize(block_type, blocks, shape).astype(np.float64)
    read = activations_as_read(block_type, x)
    return read @ weights.T, np.abs(read) @ np.abs(weights).T
