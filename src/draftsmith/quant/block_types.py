"""The block types: how a row of weights is stored as bytes.

A row of n values is n / block_size blocks of block_bytes bytes each; blocks never cross rows. Numbers are
little-endian.
The ids and layouts are those of the GGUF format (ggml's ``enum ggml_type``), so that blocks can be kept as they are.
"""

from __future__ import annotations

from enum import Enum

from draftsmith.errors import CheckpointError, UnsupportedModel

__all__ = ["BlockType"]


class BlockType(Enum):
    """One storage format. The value is (ggml id, values in a block, bytes in a block)."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    BF16 = (30, 1, 2)

    def __init__(self, ggml_id: int, block_size: int, block_bytes: int) -> None:
        self.ggml_id = ggml_id
        self.block_size = block_size
        self.block_bytes = block_bytes

    @classmethod
    def from_ggml_id(cls, ggml_id: int) -> BlockType:
        """The block type with this id in a GGUF file. Raises UnsupportedModel when it is not one of ours."""
        for block_type in cls:
            if block_type.ggml_id == ggml_id:
                return block_type
        known = ", ".join(block_type.name for block_type in cls)
        name = _OTHER_GGML_TYPES.get(ggml_id, f"number {ggml_id}")
        raise UnsupportedModel(f"the block type {name} is not supported; use a file with {known}")

    @property
    def is_quantized(self) -> bool:
        """True for blocks of several values that share a scale."""
        return self.block_size > 1

    @property
    def bits_per_weight(self) -> float:
        """Storage per value, scales included."""
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, num_values: int) -> int:
        """Bytes of a row of ``num_values`` values. Raises CheckpointError when blocks do not divide it."""
        if num_values % self.block_size:
            raise CheckpointError(
                f"a row of {num_values} values cannot be stored as {self.name}; "
                f"its length must be a multiple of {self.block_size}"
            )
        return num_values // self.block_size * self.block_bytes


_OTHER_GGML_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
