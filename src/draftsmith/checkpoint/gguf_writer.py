"""Writes GGUF files, version 3, little-endian: from values, or from a model under its canonical names."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.atomic import atomic_file, require_space
from draftsmith.checkpoint.config import ModelConfig, RopeConfig
from draftsmith.checkpoint.gguf_model import GLOBAL_NAMES, LAYER_NAMES, interleaved_rows
from draftsmith.checkpoint.gguf_reader import DEFAULT_ALIGNMENT, GGUF_MAGIC
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.rope import rope_frequencies
from draftsmith.checkpoint.tensor import LazyTensor, Tensor, WritableTensor
from draftsmith.errors import CheckpointError, UnsupportedModel
from draftsmith.quant import BlockType

__all__ = ["write_gguf", "write_gguf_model"]

VERSION: Final = 3
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64 = 4, 5, 6, 7, 8, 9, 10, 11
CODES: Final = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?", UINT64: "<Q", INT64: "<q"}


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Iterable[WritableTensor], progress: Progress = no_progress
) -> None:
    """Write a file with these entries and tensors, in this order, atomically.

    Values are bool, int (stored in 32 bits where it fits, unsigned unless negative), float (in 32 bits), str, or a
    sequence of one of these; an empty one is of texts. Whole numbers in arrays are signed, as readers of token types
    expect. ``progress`` is told the bytes of tensors written and their sum.
    Raises DiskFull and ResourceError as atomic_file does, TypeError for a value of another type.
    """
    tensors = list(tensors)
    header = bytearray(GGUF_MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _typed(value)
    offset = done = 0
    for tensor in tensors:
        dims = tuple(reversed(tensor.shape))
        header += _text(tensor.name) + struct.pack(
            f"<I{len(dims)}QIQ", len(dims), *dims, tensor.block_type.ggml_id, offset
        )
        offset += _padded(tensor.num_bytes)
    header += bytes(_padded(len(header)) - len(header))
    require_space(path.parent, len(header) + offset, path.name)
    with atomic_file(path) as file:
        file.write(header)
        for tensor in tensors:
            file.write(tensor.data.data)
            file.write(bytes(_padded(tensor.num_bytes) - tensor.num_bytes))
            done += _padded(tensor.num_bytes)
            progress(done, offset)


def write_gguf_model(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor] | Mapping[str, LazyTensor],
    tokenizer: Mapping[str, Any] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Write a model with canonical names as the GGUF file that llama.cpp expects; blocks are kept as they are.

    ``tokenizer`` holds further metadata, such as the ``tokenizer.ggml.*`` keys. Raises CheckpointError when a tensor of
    the config is missing, UnsupportedModel when GGUF has no way to state the config.
    """
    interleaved = config.architecture in ("llama", "mistral", "mixtral")
    names = {canonical: name for name, canonical in GLOBAL_NAMES.items()}
    parts = {canonical: name for name, canonical in LAYER_NAMES.items()}
    stored: list[WritableTensor] = [*_rope_factors(config)]
    for canonical in expected_tensors(config):
        if ".experts." in canonical and ".experts.0." not in canonical:
            continue  # with those of the first expert
        if canonical not in tensors:
            raise CheckpointError(f"the tensor {canonical} is missing; {path} cannot be written")
        tensor, name = tensors[canonical], names.get(canonical)
        order = None
        if name is None:
            _, _, layer, part = canonical.split(".", 3)
            module, kind = part.rsplit(".", 1)
            if ".experts.0." in canonical and config.experts is not None:
                all_names = [
                    canonical.replace(".experts.0.", f".experts.{i}.") for i in range(config.experts.num_experts)
                ]
                every = [tensors[each] for each in all_names]
                name = f"blk.{layer}.{parts[module.replace('.0.', '.*.')]}.{kind}"
                stored.append(
                    LazyTensor(name, tensor.block_type, (len(every), *tensor.shape), partial(_stacked, every))
                )
                continue
            name = f"blk.{layer}.{parts[module]}.{kind}"
            heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}.get(module)
            if interleaved and heads is not None:
                order = interleaved_rows(heads, config.head_dim)
        stored.append(LazyTensor(name, tensor.block_type, tensor.shape, partial(_data, tensor, order)))
    write_gguf(path, {**_config_metadata(config), **(tokenizer or {})}, stored, progress)


def _stacked(tensors: Sequence[WritableTensor]) -> npt.NDArray[np.uint8]:
    """The data of the matrices of all experts, one after the other."""
    return np.concatenate([tensor.data for tensor in tensors])


def _data(tensor: WritableTensor, order: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint8]:
    """The tensor's data with its rows in this order."""
    data = tensor.data
    return data if order is None else data.reshape(order.size, -1)[order].reshape(-1)


def _config_metadata(config: ModelConfig) -> dict[str, Any]:
    """The keys from which gguf_model.gguf_config reads the same config (mistral is stored as llama)."""
    stored_as = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
    architecture = stored_as.get(config.architecture, config.architecture)
    if config.sliding_window is not None and not all(config.sliding_layers):
        raise UnsupportedModel("GGUF cannot state a sliding window for some layers only")
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope.theta,
        "vocab_size": config.vocab_size,
        **_rope_metadata(config.rope),
    }
    if config.sliding_window is not None:
        values["attention.sliding_window"] = config.sliding_window
    if config.experts is not None:
        if not config.experts.normalise:
            raise UnsupportedModel("GGUF cannot state that the weights of experts are not made to sum to 1")
        values["expert_count"] = config.experts.num_experts
        values["expert_used_count"] = config.experts.num_per_token
        values["expert_feed_forward_length"] = config.experts.intermediate_size
    metadata = {f"{architecture}.{name}": value for name, value in values.items()}
    return {"general.architecture": architecture, "general.quantization_version": 2, **metadata}


def _rope_metadata(rope: RopeConfig) -> dict[str, Any]:
    if rope.rope_type in ("default", "llama3"):  # llama3 is stored as a factor for each frequency
        return {}
    if rope.rope_type == "dynamic":
        raise UnsupportedModel("GGUF cannot state dynamic RoPE scaling")
    values: dict[str, Any] = {"rope.scaling.type": rope.rope_type, "rope.scaling.factor": rope.factor}
    if rope.original_max_position_embeddings is not None:
        values["rope.scaling.original_context_length"] = rope.original_max_position_embeddings
    if rope.rope_type == "yarn":
        values["rope.scaling.yarn_beta_fast"] = rope.beta_fast
        values["rope.scaling.yarn_beta_slow"] = rope.beta_slow
    if rope.rope_type in ("yarn", "longrope"):
        _, scaling = rope_frequencies(rope, max(2, 2 * len(rope.long_factor)), rope.max_position_embeddings)
        usual = 1 + 0.1 * math.log(max(rope.factor, 1)) if rope.rope_type == "yarn" else 1.0
        values["rope.scaling.attn_factor"] = scaling / usual
    return values


def _rope_factors(config: ModelConfig) -> list[Tensor]:
    """Factors of single frequencies, which GGUF keeps as tensors."""
    rope = config.rope
    factors = {
        "rope_freqs.weight": rope.frequency_factors,
        "rope_factors_long.weight": rope.long_factor,
        "rope_factors_short.weight": rope.short_factor,
    }
    if rope.rope_type == "llama3":
        scaled, _ = rope_frequencies(rope, config.head_dim)
        plain, _ = rope_frequencies(
            RopeConfig(theta=rope.theta, max_position_embeddings=rope.max_position_embeddings), config.head_dim
        )
        factors["rope_freqs.weight"] = tuple((plain.astype(np.float64) / scaled).tolist())
    return [
        Tensor(name, BlockType.F32, (len(values),), np.array(values, "<f4").view(np.uint8))
        for name, values in factors.items()
        if values
    ]


def _padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """Type id and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, Sequence):
        if not value:
            return struct.pack("<IIQ", ARRAY, STRING, 0)
        kind = _kind(value[0]) if not isinstance(value[0], int) or isinstance(value[0], bool) else INT32
        items = b"".join(_text(item) if kind == STRING else struct.pack(CODES[kind], item) for item in value)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + items
    kind = _kind(value)
    return struct.pack("<I", kind) + struct.pack(CODES[kind], value)


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str):
        return STRING
    if isinstance(value, float):
        return FLOAT32
    if isinstance(value, int):
        if value < 0:
            return INT32 if value >= -(1 << 31) else INT64
        return UINT32 if value < 1 << 32 else UINT64
    raise TypeError(f"a value of the type {type(value).__name__} cannot be stored in GGUF metadata")
