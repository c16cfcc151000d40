"""Small models for the native engine in every block type, without ``transformers``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from draftsmith.checkpoint import Checkpoint, ModelConfig, Tensor, open_checkpoint
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.quant import BlockType, dequantize, quantize
from tests.support.blocks import random_blocks
from tests.support.tiny_models import small_config, write_llama_gguf

__all__ = ["Recipe", "make_checkpoint", "make_tensors"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A small model: changes to the config of ``tiny_models``, the types of its matrices, how to load it.

    Types are chosen by the last but one part of a tensor's name ("q_proj"); "" is the default.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, BlockType] = field(default_factory=lambda: {"": BlockType.F32})
    load: Mapping[str, Any] = field(default_factory=dict)
    gguf: bool = False  # by way of a file


def make_tensors(config: ModelConfig, types: Mapping[str, BlockType], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a size at which attention attends to something and logits are of the order of 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for index, (name, shape) in enumerate(expected_tensors(config).items()):
        if len(shape) == 1:
            values = rng.standard_normal(shape) * 0.2 + ("norm" in name)
            tensors[name] = Tensor(name, BlockType.F32, shape, values.astype("<f4").view(np.uint8))
            continue
        kind = types.get(name.split(".")[-2], types[""])
        rows, cols = shape
        if kind.is_quantized:
            size = float(dequantize(kind, random_blocks(kind, rows, cols, seed), shape).std()) / 0.01
            blocks = random_blocks(kind, rows, cols, seed * 1000 + index, scale=1.5 * cols**-0.5 / size)
        else:
            values = random_blocks(BlockType.F32, rows, cols, seed * 1000 + index).view(np.float32) * (1.5 * cols**-0.5)
            blocks = quantize(kind, values.astype(np.float32))
        tensors[name] = Tensor(name, kind, shape, blocks)
    return tensors


def make_checkpoint(folder: Path, recipe: Recipe, seed: int = 0) -> Checkpoint:
    """A checkpoint with these weights: in a file, or (as no format can state all recipes) in memory.

    Those in memory borrow the identity of a file that has a model in it, too.
    """
    config = small_config(**{"max_context": 400, **recipe.config})
    tensors = make_tensors(config, recipe.types, seed)
    path = folder / f"model-{seed}.gguf"
    if recipe.gguf:
        write_gguf_model(path, config, tensors)
        return open_checkpoint(path)
    return dataclasses.replace(open_checkpoint(write_llama_gguf(path)), config=config, tensors=tensors)
