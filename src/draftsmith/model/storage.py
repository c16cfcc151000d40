"""In which block type the native engine keeps each tensor of a checkpoint."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint import Tensor
from draftsmith.errors import UsageError
from draftsmith.quant import BlockType, quantize

__all__ = ["CacheDtype", "Dtype", "Quantize", "storage_type", "stored_blocks"]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["4bit", "8bit"]
CacheDtype = Literal["auto", "float32", "float16", "int8"]  # of keys and values

_DTYPES = {"float32": BlockType.F32, "bfloat16": BlockType.BF16, "float16": BlockType.F16}
_QUANTIZED = {"4bit": BlockType.Q4_1, "8bit": BlockType.Q8_0}
# The embedding and the output layer meet every token: at 4 bits they cost more quality than all other tensors.
_ALWAYS_8BIT = ("model.embed_tokens.weight", "lm_head.weight")
_ROUTER = ".mlp.gate.weight"  # of a mixture of experts: small, and what it decides is all or nothing


def storage_type(tensor: Tensor, quantize: Quantize | None, dtype: Dtype) -> BlockType:
    """The block type to keep ``tensor`` in.

    Vectors (norms, biases) are F32. Matrices in quantised blocks stay exactly as they are in the file, whatever
    ``quantize`` says; ``dtype`` float32 unfolds them, losing nothing. Other matrices become 4- or 8-bit blocks with
    ``quantize``, else what ``dtype`` says, auto being the file's own type.

    Raises UsageError when quantised blocks are to be squeezed into 16 bits, which would round them again.
    """
    if len(tensor.shape) == 1:
        return BlockType.F32
    if tensor.block_type.is_quantized:
        if dtype in ("bfloat16", "float16"):
            raise UsageError(
                f"the weights are stored as {tensor.block_type.name} and dtype is {dtype}, which would round them a "
                "second time; use dtype auto (the blocks as they are) or float32"
            )
        return BlockType.F32 if dtype == "float32" and quantize is None else tensor.block_type
    if quantize is not None and tensor.shape[1] % 32 == 0 and not tensor.name.endswith(_ROUTER):
        return BlockType.Q8_0 if tensor.name in _ALWAYS_8BIT else _QUANTIZED[quantize]
    return tensor.block_type if dtype == "auto" else _DTYPES[dtype]


def stored_blocks(tensor: Tensor, block_type: BlockType) -> npt.NDArray[np.uint8]:
    """The tensor's bytes in ``block_type``: its own, or converted by way of float32."""
    if block_type is tensor.block_type:
        return np.ascontiguousarray(tensor.data)
    return quantize(block_type, tensor.dequantize())
