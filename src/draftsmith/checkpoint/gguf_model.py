"""From a GGUF file's own names, keys and row order to the canonical ones.

The llama architecture (Llama, SmolLM, TinyLlama, Mistral) is stored with the rows of q and k interleaved, because its
RoPE was written for neighbouring pairs (2i, 2i + 1); ``transformers`` and draftsmith rotate the pairs (i, i + d/2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.config import MAX_LAYERS, Architecture, ModelConfig, RopeConfig, RopeType
from draftsmith.checkpoint.experts import ExpertsConfig, split_experts
from draftsmith.checkpoint.gguf_reader import GGUFFile
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError, UnsupportedModel
from draftsmith.quant import BlockType

__all__ = ["gguf_config", "gguf_tensors", "interleaved_rows"]

GLOBAL_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": OUTPUT}
)
LAYER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "ffn_gate_inp": "mlp.gate",
        "ffn_gate_exps": "mlp.experts.*.gate_proj",
        "ffn_up_exps": "mlp.experts.*.up_proj",
        "ffn_down_exps": "mlp.experts.*.down_proj",
    }
)
_STORED_AS: Final[Mapping[str, Architecture]] = MappingProxyType(
    {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
)
ROPE_FACTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_LAYER_NAME = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)(?:\.(\d{1,4}))?\.(weight|bias)", re.ASCII)


def gguf_tensors(file: GGUFFile, config: ModelConfig) -> dict[str, Tensor]:
    """The weights under their canonical names and in canonical row order. RoPE factors belong to the config."""
    tensors = {}
    for name, tensor in file.tensors.items():
        if name in ROPE_FACTORS:
            continue
        canonical = _canonical_name(name)
        row_order = None
        if config.architecture in ("llama", "mixtral") and ".self_attn." in canonical and len(tensor.shape) <= 2:
            heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(canonical.split(".")[-2])
            if heads is not None and tensor.shape[0] == heads * config.head_dim:
                row_order = np.argsort(interleaved_rows(heads, config.head_dim))
        tensors[canonical] = Tensor(canonical, tensor.block_type, tensor.shape, tensor.stored, row_order)
    return {tensor.name: tensor for tensor in split_experts(tensors)}


def interleaved_rows(num_heads: int, head_dim: int) -> npt.NDArray[np.int64]:
    """int64 [num_heads * head_dim]: row i of GGUF's llama order is row ``result[i]`` of the canonical order."""
    rows = np.arange(num_heads * head_dim, dtype=np.int64).reshape(num_heads, 2, head_dim // 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def _canonical_name(name: str) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return name  # the check of the layout names it
    layer, part, expert, kind = match.groups()
    known = LAYER_NAMES.get(part if expert is None else f"{part}_exps")  # old files hold experts one by one
    if known is None:
        return name
    return f"model.layers.{int(layer)}.{known if expert is None else known.replace('*', str(int(expert)))}.{kind}"


def gguf_config(file: GGUFFile) -> ModelConfig:
    """The config that the file's metadata and its tensors' names state.

    Raises UnsupportedModel for an architecture or feature that we do not compute, CheckpointError for keys that are
    missing or make no sense.
    """
    keys = _Keys(file)
    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{file.path} lacks the tensor token_embd.weight; it is not a complete language model")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        if keys.integer(name, head_dim) != head_dim:
            raise UnsupportedModel(
                f"{file.path} states {keys.full(name)} = {keys.integer(name)}; only {head_dim}, the size of a key, "
                "can be computed"
            )
    layers = keys.integer("block_count")
    window = keys.integer("attention.sliding_window", 0) or None
    biases = {name: f"blk.0.{name}.bias" in file.tensors for name in ("attn_q", "attn_output", "ffn_gate")}
    return ModelConfig(
        architecture=keys.architecture,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=keys.integer("feed_forward_length", keys.integer("expert_feed_forward_length", 0) or None),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
        max_context=keys.integer("context_length"),
        tie_embeddings="output.weight" not in file.tensors,
        rope=_rope(keys, file),
        qkv_bias=biases["attn_q"],
        o_bias=biases["attn_output"],
        mlp_bias=biases["ffn_gate"],
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_window=window,
        sliding_layers=(window is not None,) * min(layers, MAX_LAYERS),
        experts=_experts(keys, file, min(layers, MAX_LAYERS)),
    )


def _experts(keys: _Keys, file: GGUFFile, num_layers: int) -> ExpertsConfig | None:
    """Both architectures that are stored with experts make their weights sum to 1."""
    number = keys.integer("expert_count", 0)
    if number == 0:
        return None
    return ExpertsConfig(
        num_experts=number,
        num_per_token=keys.integer("expert_used_count"),
        intermediate_size=keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length", 0)),
        sparse_layers=tuple(f"blk.{i}.ffn_gate_inp.weight" in file.tensors for i in range(num_layers)),
    )


def _rope(keys: _Keys, file: GGUFFile) -> RopeConfig:
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 1.0)
    kinds: dict[str, RopeType] = {"none": "default", "linear": "linear", "yarn": "yarn", "longrope": "longrope"}
    stated = keys.text("rope.scaling.type", "linear" if factor != 1 else "none")
    if stated not in kinds:
        raise UnsupportedModel(f"{file.path} states the RoPE scaling {stated[:40]!r}; known are {', '.join(kinds)}")
    attention_factor = keys.number("rope.scaling.attn_factor", 0.0) or None
    if stated == "yarn" and attention_factor is not None:
        attention_factor *= 1 + 0.1 * float(np.log(max(factor, 1.0)))  # the file states what comes on top of the paper
    return RopeConfig(
        theta=keys.number("rope.freq_base", 10000.0),
        max_position_embeddings=keys.integer("context_length"),
        rope_type=kinds[stated],
        factor=factor,
        original_max_position_embeddings=keys.integer("rope.scaling.original_context_length", 0) or None,
        attention_factor=attention_factor,
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
        frequency_factors=_floats(file, "rope_freqs.weight"),
        long_factor=_floats(file, "rope_factors_long.weight"),
        short_factor=_floats(file, "rope_factors_short.weight"),
    )


def _floats(file: GGUFFile, name: str) -> tuple[float, ...]:
    tensor = file.tensors.get(name)
    if tensor is None:
        return ()
    if tensor.block_type is not BlockType.F32 or len(tensor.shape) != 1:
        raise CheckpointError(f"the tensor {name} in {file.path} must be a vector of F32")
    return tuple(tensor.data.view(np.float32).tolist())


class _Keys:
    """Typed access to the metadata of the file's architecture."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        metadata = file.metadata
        name = metadata.get("general.architecture")
        if name not in _STORED_AS:
            raise UnsupportedModel(
                f"{file.path} holds a model of the architecture {str(name)[:40]!r}; known are llama, mistral and "
                "mixtral (stored as llama), qwen2, qwen3 and qwen3moe"
            )
        self.stored_as = str(name)
        experts = self.integer("expert_count", 0) > 0
        self.architecture: Architecture = "mixtral" if name == "llama" and experts else _STORED_AS[self.stored_as]
        if experts and self.architecture not in ("mixtral", "qwen3_moe"):
            raise UnsupportedModel(
                f"{file.path} holds a mixture of experts of the architecture {name}; known are mixtral and qwen3moe"
            )
        if metadata.get("split.count", 0) not in (0, 1):
            raise UnsupportedModel(f"{file.path} is one part of a split GGUF file; merge the parts first")
        if metadata.get("general.quantization_version", 2) != 2:
            raise UnsupportedModel(
                f"{file.path} holds blocks of an outdated layout; only quantization_version 2 is read"
            )

    def full(self, name: str) -> str:
        return f"{self.stored_as}.{name}"

    def _get(self, name: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        value = self._file.metadata.get(self.full(name), default)
        if value is None:
            raise CheckpointError(f"{self._file.path} lacks the metadata key {self.full(name)}")
        if isinstance(value, tuple):  # one entry a layer; files may write it so even if all are the same
            value = value[0] if value and all(item == value[0] for item in value) else value[:4]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise CheckpointError(f"{self._file.path} states {self.full(name)} = {value!r:.60}; it must be {what}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._get(name, (int,), "one whole number for all layers", default))

    def number(self, name: str, default: float | None = None) -> float:
        value = float(self._get(name, (int, float), "a number", default))
        if not np.isfinite(value):
            raise CheckpointError(f"{self._file.path} states {self.full(name)} = {value}; it must be finite")
        return value

    def text(self, name: str, default: str) -> str:
        return str(self._get(name, (str,), "a text", default))
