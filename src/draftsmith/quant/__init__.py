"""4- and 8-bit block formats, and the plain float ones: what they are, and how to get in and out of them."""

from draftsmith.quant.block_types import BlockType
from draftsmith.quant.decode import dequantize
from draftsmith.quant.encode import ENCODABLE, QUANTIZE_OPTIONS, quantize

__all__ = ["ENCODABLE", "QUANTIZE_OPTIONS", "BlockType", "dequantize", "quantize"]
