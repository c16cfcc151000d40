"""One product alone: all kernel sets give the same bytes, alone or together, and they are the right numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from draftsmith.model import _native
from draftsmith.quant import BlockType
from tests.support.blocks import QUANTISED, exact_product, packed, random_blocks, set_halves

ALL = pytest.mark.parametrize("block_type", list(BlockType), ids=lambda block_type: block_type.name)
QUANTISED_ONLY = pytest.mark.parametrize("block_type", QUANTISED, ids=lambda block_type: block_type.name)
SETS = _native.instruction_sets()
EPSILON = 2.0**-24  # largest relative error of one float32 operation

Floats = npt.NDArray[np.float32]


def activations(m: int, cols: int, seed: int = 0) -> Floats:
    """Normal values with the outliers that real activations have, and a few groups of zeros."""
    rng = np.random.default_rng([seed, m, cols])
    x = rng.standard_normal((m, cols)).astype(np.float32)
    x[:, ::97] *= 30
    if cols >= 64:
        x[m // 2 :, 32:64] = 0
    return x


class Matrix:
    """A packed random matrix. The block types and sizes of these tests are all that ``matmul`` needs to know."""

    def __init__(self, block_type: BlockType, rows: int, cols: int, seed: int = 0, scale: float = 0.01) -> None:
        self.block_type, self.rows, self.cols = block_type, rows, cols
        self.blocks = random_blocks(block_type, rows, cols, seed, scale)
        self.packed = packed(block_type, rows, cols, self.blocks)

    def times(self, x: Floats, instruction_set: str = SETS[-1], threads: int = 1, repeats: int = 1) -> Floats:
        team = _native.ThreadTeam(threads)
        return _native.matmul(
            self.block_type.ggml_id, self.rows, self.cols, self.packed, x, instruction_set, team, repeats
        )


def test_the_specification_comes_first() -> None:
    assert SETS[0] == "portable"
    assert len(set(SETS)) == len(SETS)
    assert set(SETS) <= {"portable", "avx2", "avx512", "neon"}


@ALL
@pytest.mark.parametrize("m", range(1, 18))
def test_rows_checked_together_are_the_rows_checked_one_by_one(block_type: BlockType, m: int) -> None:
    """One reference, the portable kernels row by row; every set, both ways, and two threads must give its bytes."""
    matrix, x = Matrix(block_type, 83, 512), activations(m, 512)
    expected = np.concatenate([matrix.times(x[i : i + 1], "portable") for i in range(m)]).tobytes()
    for name in SETS:
        assert matrix.times(x, name).tobytes() == expected
    alone = [matrix.times(x[i : i + 1]) for i in range(m)]
    assert np.concatenate(alone).tobytes() == expected
    assert matrix.times(x, threads=2).tobytes() == expected


@ALL
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 63, 64, 65, 80, 96, 112, 128, 129, 600])
def test_every_number_of_weight_rows(block_type: BlockType, rows: int) -> None:
    """Tiles are worked on singly and by several, the last one may be partly empty, and threads share them out."""
    matrix, x = Matrix(block_type, rows, 256), activations(5, 256)
    expected = matrix.times(x, "portable")
    assert expected.shape == (5, rows)
    for name in SETS:
        for threads in (1, 2, 3):
            assert matrix.times(x, name, threads).tobytes() == expected.tobytes()
    blocks = matrix.blocks.reshape(rows, -1)
    one = Matrix(block_type, 1, 256)
    one.packed = packed(block_type, 1, 256, blocks[-1])
    assert one.times(x)[:, 0].tobytes() == expected[:, -1].tobytes()


@ALL
def test_many_rows_as_in_a_prompt(block_type: BlockType) -> None:
    matrix, x = Matrix(block_type, 40, 256), activations(256, 256)
    expected = matrix.times(x, "portable")
    for name in SETS:
        assert matrix.times(x, name, threads=2).tobytes() == expected.tobytes()
    for first, last in ((0, 1), (255, 256), (31, 64), (100, 203)):
        assert matrix.times(x[first:last]).tobytes() == expected[first:last].tobytes()


@ALL
@pytest.mark.parametrize("cols", [256, 2816])
def test_products_are_right(block_type: BlockType, cols: int) -> None:
    """Against float64 with the activations as they are read: nothing remains but the rounding of a float32 sum."""
    matrix, x = Matrix(block_type, 37, cols), activations(6, cols)
    expected, magnitudes = exact_product(block_type, matrix.blocks, (37, cols), x)
    # Terms added one after the other: a group of 32 (or 16) and its minimum at a time, or single columns. A few more
    # roundings are in each term: its scales. On the way a sum is never larger than the magnitudes.
    additions = cols if not block_type.is_quantized else cols // 16 + 4
    limit = additions * EPSILON * magnitudes
    assert (np.abs(matrix.times(x).astype(np.float64) - expected) <= limit).all()
    # Roundings do not conspire: on the whole they are far smaller. A wrong code, scale or sign would show here.
    assert np.abs(matrix.times(x) - expected).mean() < 0.05 * limit.mean() + 1e-12


@QUANTISED_ONLY
def test_each_code_counts_in_its_place(block_type: BlockType) -> None:
    """Activations with one column that is not zero pick single weights: each must be the value in the file."""
    rows, cols = 16, 256
    matrix = Matrix(block_type, rows, cols)
    x = np.zeros((cols, cols), np.float32)
    np.fill_diagonal(x, 127)  # exactly representable: scale 1, code 127
    values = _native.unpack_rows(block_type.ggml_id, rows, cols, matrix.packed, list(range(rows)))
    for name in SETS:
        product = matrix.times(x, name)
        np.testing.assert_allclose(product, 127 * values.T, rtol=4e-7, atol=float(np.abs(values).max()) * 3e-5)


@QUANTISED_ONLY
def test_integer_sums_do_not_overflow(block_type: BlockType) -> None:
    """The largest codes against the largest activations of one sign: no intermediate may saturate, in any set."""
    rows, cols = 48, 512
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        same = np.full(rows * block_type.row_bytes(cols), byte, np.uint8)
        blocks = set_halves(block_type, same, np.array([0.5, 0.25, 0.125], np.float16))
        matrix = Matrix(block_type, rows, cols)
        matrix.packed = packed(block_type, rows, cols, blocks)
        x = np.concatenate([np.full((3, cols), 2.5, np.float32), np.full((3, cols), -2.5, np.float32)])
        x[1, ::2] *= -1
        x[4, 1::2] *= -1
        expected, magnitudes = exact_product(block_type, blocks, (rows, cols), x)
        for name in SETS:
            product = matrix.times(x, name).astype(np.float64)
            assert (np.abs(product - expected) <= 1e-5 * magnitudes + 1e-30).all(), (name, byte)


@ALL
def test_tiny_and_huge_activations(block_type: BlockType) -> None:
    """Groups near zero count as zeros, and the largest floats do not end in infinities on the way."""
    matrix = Matrix(block_type, 20, 256)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((7, 256)).astype(np.float32) * np.float32(10.0) ** np.array(
        [[-38], [-31], [-29], [-5], [5], [25], [34]], np.float32
    )
    expected, magnitudes = exact_product(block_type, matrix.blocks, (20, 256), x)
    results = [matrix.times(x, name) for name in SETS]
    assert np.isfinite(results[0]).all()
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    assert (np.abs(results[0].astype(np.float64) - expected) <= 2e-5 * magnitudes + 1e-37).all()


def test_ties_are_rounded_to_even() -> None:
    """The specification of 8-bit activations: 0.5, 1.5 and 2.5 scales are codes 0, 2 and 2."""
    matrix = Matrix(BlockType.Q8_0, 16, 32, scale=1)
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]
    codes = np.zeros_like(x)
    codes[0, :8] = [127, 0, 2, 2, 0, -2, -2, 126]
    for name in SETS:
        assert matrix.times(x, name).tobytes() == matrix.times(codes, name).tobytes()


@pytest.mark.parametrize("block_type", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
def test_float_products_of_any_width(block_type: BlockType) -> None:
    for cols in (1, 5, 48, 100):
        matrix, x = Matrix(block_type, 70, cols), activations(5, cols)
        expected, magnitudes = exact_product(block_type, matrix.blocks, (70, cols), x)
        results = [matrix.times(x, name) for name in SETS]
        assert all(result.tobytes() == results[0].tobytes() for result in results)
        assert (np.abs(results[0] - expected) <= cols * EPSILON * magnitudes).all()


@ALL
def test_a_repeated_product_is_the_same(block_type: BlockType) -> None:
    matrix, x = Matrix(block_type, 500, 256), activations(3, 256)
    assert matrix.times(x, threads=2, repeats=20).tobytes() == matrix.times(x, repeats=1).tobytes()


def test_no_rows_give_no_rows() -> None:
    assert Matrix(BlockType.Q4_1, 32, 64).times(np.zeros((0, 64), np.float32)).shape == (0, 32)
