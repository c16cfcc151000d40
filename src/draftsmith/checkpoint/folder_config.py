"""ModelConfig from the config.json of a Hugging Face folder, as ``transformers`` 4 and 5 write it and understand it.

Where a key is absent, the default is that of the architecture's configuration class in ``transformers``.
"""

from __future__ import annotations

import math
from typing import Final, get_args

from draftsmith.checkpoint.config import ARCHITECTURES, MAX_LAYERS, ModelConfig, RopeConfig, RopeType
from draftsmith.checkpoint.experts import experts_of_folder
from draftsmith.checkpoint.json_file import JsonObject
from draftsmith.errors import CheckpointError, UnsupportedModel

__all__ = ["folder_config"]

ROPE_TYPES: Final[tuple[RopeType, ...]] = get_args(RopeType)
DEFAULT_THETA: Final = 10000.0


def folder_config(config: JsonObject) -> ModelConfig:
    """The model that a config.json describes.

    Raises UnsupportedModel for an architecture or a feature that we do not compute, CheckpointError for keys that are
    missing or make no sense.
    """
    stated = config.text("model_type")
    architecture = next((name for name in ARCHITECTURES if name == stated), None)
    if architecture is None:
        raise UnsupportedModel(
            f"{config.path} describes a model of the type {stated[:40]!r}; known are {', '.join(ARCHITECTURES)}"
        )
    _refuse_what_we_do_not_compute(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers")
    if architecture in ("qwen3", "qwen3_moe"):
        head_dim = config.integer("head_dim", 128)
    else:
        if not config.has("head_dim") and (heads < 1 or hidden % heads):
            raise CheckpointError(f"{config.path} states hidden_size = {hidden}, which {heads} heads do not divide")
        head_dim = config.integer("head_dim", hidden // max(heads, 1))
    attention_bias = architecture in ("llama", "qwen3", "qwen3_moe") and config.flag("attention_bias", False)
    sliding_window, sliding_layers = _sliding(config, architecture, num_layers)
    return ModelConfig(
        architecture=architecture,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", 8 if _absent_in_mistral(config, architecture) else heads),
        head_dim=head_dim,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        max_context=config.integer("max_position_embeddings"),
        tie_embeddings=config.flag("tie_word_embeddings", False),
        rope=_rope(config),
        qkv_bias=attention_bias or architecture == "qwen2",
        o_bias=attention_bias,
        mlp_bias=architecture == "llama" and config.flag("mlp_bias", False),
        qk_norm=architecture in ("qwen3", "qwen3_moe"),
        sliding_window=sliding_window,
        sliding_layers=sliding_layers,
        experts=experts_of_folder(config, architecture, num_layers),
    )


def _refuse_what_we_do_not_compute(config: JsonObject) -> None:
    activation = config.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"{config.path} states hidden_act = {activation[:40]!r}; only silu can be computed")
    if config.has("quantization_config"):
        method = config.object("quantization_config").text("quant_method", "unknown")
        raise UnsupportedModel(
            f"{config.path} describes weights quantised by the method {method[:40]!r}, which cannot be read; take the "
            "unquantised model or a GGUF file of it"
        )


def _absent_in_mistral(config: JsonObject, architecture: str) -> bool:
    return architecture in ("mistral", "mixtral") and "num_key_value_heads" not in config.values


def _sliding(config: JsonObject, architecture: str, num_layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """The window, None when no layer slides, and for each layer whether it does."""
    if not 1 <= num_layers <= MAX_LAYERS:
        raise CheckpointError(f"{config.path} states num_hidden_layers = {num_layers}; it must be 1 to {MAX_LAYERS}")
    if architecture == "llama":
        return None, ()
    unlimited = "sliding_window" in config.values and not config.has("sliding_window")  # stated as null
    if architecture == "mixtral" and "sliding_window" not in config.values:
        unlimited = True
    window = None if unlimited else config.integer("sliding_window", 4096)
    if architecture in ("mistral", "mixtral"):
        layers = (window is not None,) * num_layers
    elif not config.flag("use_sliding_window", False):
        window, layers = None, (False,) * num_layers
    elif config.has("layer_types"):
        kinds = config.texts("layer_types")
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedModel(f"{config.path} states the layer type {min(unknown)[:40]!r}, which is not known")
        layers = tuple(kind == "sliding_attention" for kind in kinds)
    else:
        first = config.integer("max_window_layers", 28)
        layers = tuple(window is not None and layer >= first for layer in range(num_layers))
    return (window if any(layers) else None), layers


def _rope(config: JsonObject) -> RopeConfig:
    """RoPE from ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling`` (transformers 4)."""
    scaling = config.object("rope_scaling")
    if not scaling.values:
        scaling = config.object("rope_parameters")
    if any(isinstance(value, dict) for value in scaling.values.values()):
        raise UnsupportedModel(f"{config.path} states other RoPE parameters for each type of layer, which is not known")
    stated = scaling.text("rope_type", scaling.text("type", "default"))
    rope_type = next((name for name in ROPE_TYPES if name == stated), None)
    if rope_type is None:
        raise UnsupportedModel(
            f"{config.path} states the RoPE scaling {stated[:40]!r}; known are {', '.join(ROPE_TYPES)}"
        )
    if scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)) != 1:
        raise UnsupportedModel(f"{config.path} rotates only a part of each head, which cannot be computed")
    context = config.integer("max_position_embeddings")
    source = config if config.has("original_max_position_embeddings") else scaling  # as transformers has it
    original = source.integer("original_max_position_embeddings", context)
    if context < 1 or original < 1:
        raise CheckpointError(
            f"{config.path} states a context of {context}, originally {original}; both must be above 0"
        )
    implied = context / original if rope_type in ("yarn", "longrope") else None
    return RopeConfig(
        theta=_above_zero(
            config, "rope_theta", scaling.number("rope_theta", config.number("rope_theta", DEFAULT_THETA))
        ),
        max_position_embeddings=context,
        rope_type=rope_type,
        factor=1.0 if rope_type == "default" else _above_zero(config, "factor", scaling.number("factor", implied)),
        original_max_position_embeddings=original,
        attention_factor=_optional(scaling, "attention_factor"),
        beta_fast=_above_zero(config, "beta_fast", scaling.number("beta_fast", 32.0)),
        beta_slow=_above_zero(config, "beta_slow", scaling.number("beta_slow", 1.0)),
        mscale=_optional(scaling, "mscale"),
        mscale_all_dim=_optional(scaling, "mscale_all_dim"),
        truncate=scaling.flag("truncate", True),
        low_freq_factor=scaling.number("low_freq_factor", None if rope_type == "llama3" else 1.0),
        high_freq_factor=scaling.number("high_freq_factor", None if rope_type == "llama3" else 4.0),
        short_factor=scaling.numbers("short_factor"),
        long_factor=scaling.numbers("long_factor"),
    )


def _optional(scaling: JsonObject, key: str) -> float | None:
    return scaling.number(key) if scaling.has(key) else None


def _above_zero(config: JsonObject, key: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise CheckpointError(f"{config.path} states {key} = {value}; it must be above 0")
    return value
