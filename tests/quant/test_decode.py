"""Decoding agrees to the bit with the ``gguf`` package, on every bit pattern that random blocks can hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from draftsmith.errors import CheckpointError
from draftsmith.quant import BlockType, dequantize

ROWS, COLS = 7, 1024


def random_blocks(block_type: BlockType, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """All bytes random; float scales kept finite, so that comparisons say something."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, ROWS * block_type.row_bytes(COLS), dtype=np.uint8)


@pytest.mark.parametrize("block_type", list(BlockType), ids=lambda block_type: block_type.name)
def test_agrees_with_reference(block_type: BlockType) -> None:
    data = random_blocks(block_type, seed=block_type.ggml_id)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(
            data.reshape(ROWS, -1), gguf.GGMLQuantizationType(block_type.ggml_id)
        ).reshape(ROWS, COLS)
    values = dequantize(block_type, data, (ROWS, COLS))
    assert values.dtype == np.float32
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(values), ~numbers)
    np.testing.assert_array_equal(values[numbers], expected[numbers])
    assert numbers.mean() > 0.9


@pytest.mark.parametrize("block_type", list(BlockType), ids=lambda block_type: block_type.name)
def test_sizes_are_those_of_the_format(block_type: BlockType) -> None:
    sizes = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(block_type.ggml_id)]
    assert (block_type.block_size, block_type.block_bytes) == sizes
    assert block_type.name == gguf.GGMLQuantizationType(block_type.ggml_id).name
    assert BlockType.from_ggml_id(block_type.ggml_id) is block_type


@pytest.mark.parametrize("block_type", [BlockType.Q4_1, BlockType.Q6_K, BlockType.F16])
def test_chunks_do_not_show(block_type: BlockType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_blocks(block_type, seed=1)
    whole = dequantize(block_type, data, (ROWS, COLS))
    monkeypatch.setattr("draftsmith.quant.decode.CHUNK_VALUES", 512)
    assert dequantize(block_type, data, (ROWS, COLS)).tobytes() == whole.tobytes()


def test_decodes_bytes_that_are_not_aligned() -> None:
    values = np.array([1.5, -2.25, 0.0], np.float32)
    data = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:]
    np.testing.assert_array_equal(dequantize(BlockType.F32, data, (3,)), values)


def test_refuses_wrong_sizes_and_unknown_types() -> None:
    with pytest.raises(CheckpointError, match=r"33 values.*multiple of 32"):
        dequantize(BlockType.Q8_0, np.zeros(34, np.uint8), (33,))
    with pytest.raises(CheckpointError, match="35 bytes of Q8_0"):
        dequantize(BlockType.Q8_0, np.zeros(35, np.uint8), (32,))
    with pytest.raises(CheckpointError, match="IQ4_XS is not supported"):
        BlockType.from_ggml_id(23)
    with pytest.raises(CheckpointError, match="number 99 is not supported"):
        BlockType.from_ggml_id(99)
