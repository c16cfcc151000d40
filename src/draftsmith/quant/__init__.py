"""4- and 8-bit block formats, and the plain float ones: what they are, and how to get in and out of them."""

from draftsmith.quant.block_types import BlockType

__all__ = ["BlockType"]
