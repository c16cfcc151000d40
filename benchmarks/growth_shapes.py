"""Models of a shape, with random weights: speed does not depend on what the weights are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from draftsmith.checkpoint import ModelConfig, RopeConfig, Tensor
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.quant import BlockType

__all__ = ["write_tinyllama"]

CONTEXT = 32768 + 256


def write_tinyllama(path: Path) -> Path:
    """TinyLlama-1.1B's shape with Q4_0 matrices and a context of 32k, unless the file is there already."""
    if path.exists():
        return path
    config = ModelConfig(
        architecture="llama",
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_layers=22,
        num_heads=32,
        num_kv_heads=4,
        head_dim=64,
        rms_norm_eps=float(np.float32(1e-5)),
        max_context=CONTEXT,
        tie_embeddings=False,
        rope=RopeConfig(theta=10000.0, max_position_embeddings=CONTEXT),
    )
    random, tensors = np.random.default_rng(0), {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 1:
            tensors[name] = Tensor(name, BlockType.F32, shape, np.ones(shape, "<f4").view(np.uint8))
            continue
        blocks = random.integers(0, 256, (shape[0] * shape[1] // 32, 18), np.uint8)
        blocks[:, :2] = np.full(1, 0.005, "<f2").view(np.uint8)  # codes of -8..7, times this
        tensors[name] = Tensor(name, BlockType.Q4_0, shape, blocks.reshape(-1))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf_model(path, config, tensors, {"tokenizer.ggml.model": "no_vocab"})  # what llama.cpp wants to know
    return path
