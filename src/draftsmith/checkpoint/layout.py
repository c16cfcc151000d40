"""Which tensors a model has, under the names that ``transformers`` gives them: the canonical names of draftsmith."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from draftsmith.checkpoint.config import ModelConfig
from draftsmith.checkpoint.experts import expert_shapes
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError, UnsupportedModel

__all__ = ["check_tensors", "expected_tensors"]

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a model of this config has, in the order in which they are used."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = (
        ("self_attn.q_proj", q_rows, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q_rows, config.o_bias),
    )
    dense = (
        ("mlp.gate_proj", inner, hidden, config.mlp_bias),
        ("mlp.up_proj", inner, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, inner, config.mlp_bias),
    )
    sparse = tuple(
        (name, rows, cols, False)
        for name, (rows, cols) in (expert_shapes(config.experts, hidden) if config.experts else {}).items()
    )
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        is_sparse = config.experts is not None and config.experts.sparse_layers[layer]
        for name, rows, cols, has_bias in (*attention, *(sparse if is_sparse else dense)):
            shapes[f"{prefix}{name}.weight"] = (rows, cols)
            if has_bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        if config.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes[OUTPUT] = (config.vocab_size, hidden)
    return shapes


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors in the order of ``expected_tensors``.

    Raises CheckpointError when one is missing or has another shape, UnsupportedModel when there is one that the
    architecture does not have: then the model computes something that we do not.
    """
    expected = expected_tensors(config)
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name}; the file or one of its parts is incomplete")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"the tensor {name} in {path} has the shape {tensors[name].shape}, but the config asks for {shape}"
            )
    for name in tensors:
        if name not in expected:
            raise UnsupportedModel(
                f"{path} holds the tensor {name[:120]!r}, which a {config.architecture} model with this config does "
                "not have; it cannot be run faithfully"
            )
    return {name: tensors[name] for name in expected}
