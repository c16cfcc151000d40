"""Tiny models, made on the spot, in both file formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from draftsmith.checkpoint import ModelConfig, RopeConfig, Tensor
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.quant import BlockType, quantize

HF_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def small_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "architecture": "llama",
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": float(np.float32(1e-5)),
        "max_context": 256,
        "tie_embeddings": False,
        "rope": RopeConfig(theta=10000.0, max_position_embeddings=256),
    }
    return ModelConfig(**{**values, **changes})


def random_tensors(config: ModelConfig, block_type: BlockType = BlockType.F32, seed: int = 0) -> dict[str, Tensor]:
    """Small random weights; vectors are always F32."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(0.1)
        kind = block_type if len(shape) == 2 else BlockType.F32
        tensors[name] = Tensor(name, kind, shape, quantize(kind, values))
    return tensors


def save_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Independent of the package's own reader: header and data written by hand."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        offsets = [offset, offset + tensor.num_bytes]
        header[name] = {"dtype": tensor.block_type.name, "shape": list(tensor.shape), "data_offsets": offsets}
        offset += tensor.num_bytes
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(t.data.tobytes() for t in tensors.values()))


def write_folder(folder: Path, tensors: Mapping[str, Tensor] | None = None, **changes: Any) -> Path:
    """A Hugging Face folder without a tokenizer. ``changes`` to config.json; a value of None removes the key."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {key: value for key, value in {**HF_LLAMA, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(described))
    save_safetensors(folder / "model.safetensors", random_tensors(small_config()) if tensors is None else tensors)
    return folder


def write_llama_gguf(path: Path) -> Path:
    config = small_config()
    write_gguf_model(path, config, random_tensors(config))
    return path
