"""One tensor of a checkpoint: a name, a block type, a shape, and bytes that stay in the file until they are used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from draftsmith.quant import BlockType, dequantize

__all__ = ["LazyTensor", "Tensor", "WritableTensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A vector (n,) or a matrix (rows, cols) in one block type; blocks run along a row.

    ``stored``: uint8 [rows * bytes of a row], the bytes as they lie in the (memory-mapped) file, read-only.
    ``row_order``: None, or int64 [rows] ([n] for a vector): row i of the tensor is row ``row_order[i]`` of ``stored``.
    GGUF files of the llama architecture hold the rows of q and k in another order than ``transformers``; rows move
    whole, so blocks stay as they are.
    """

    name: str
    block_type: BlockType
    shape: tuple[int, ...]
    stored: npt.NDArray[np.uint8]
    row_order: npt.NDArray[np.int64] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of a matrix; 1 for a vector."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return int(self.stored.size)

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8 [num_bytes], row-major, in the tensor's own row order: a view into the file, or a copy if reordered."""
        if self.row_order is None:
            return self.stored
        return self.stored.reshape(self.row_order.size, -1)[self.row_order].reshape(-1)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 of the tensor's shape: the values that the blocks stand for."""
        return dequantize(self.block_type, self.data, self.shape)

    def dequantize_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start, cols]: some rows of a matrix, without unfolding the others."""
        rows = self.stored.reshape(self.shape[0], -1)
        chosen = rows[start:stop] if self.row_order is None else rows[self.row_order[start:stop]]
        return dequantize(self.block_type, chosen.reshape(-1), (stop - start, self.shape[1]))


class WritableTensor(Protocol):
    """What a file writer needs: the header's facts at once, the data when its turn comes."""

    @property
    def name(self) -> str:
        """The name in the file."""
        ...

    @property
    def block_type(self) -> BlockType:
        """How it is stored."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) or (rows, cols)."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        ...

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8 [num_bytes], row-major."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LazyTensor:
    """A tensor that is made when it is written, so that a whole model need not lie in memory.

    ``make`` gives uint8 [num_bytes] of the block type and shape, each time anew.
    """

    name: str
    block_type: BlockType
    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[np.uint8]]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape[:-1]) * self.block_type.row_bytes(self.shape[-1])

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """uint8 [num_bytes], row-major."""
        made = self.make()
        if made.size != self.num_bytes:
            raise ValueError(f"{self.name} was made with {made.size} bytes, not {self.num_bytes}")
        return made
