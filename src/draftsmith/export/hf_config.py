"""config.json of a Hugging Face folder, in the words of ``transformers`` 4 and 5 side by side.

Readers from before transformers 5 know ``rope_theta`` and ``rope_scaling`` only, and take a base of 10,000 in silence
when they find neither; those from before 4.43 want exactly ``type`` and ``factor`` in ``rope_scaling``, so the two
scalings that they know are stated so. Newer ones read ``rope_parameters``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from draftsmith.checkpoint import ModelConfig, RopeConfig, rope_frequencies
from draftsmith.checkpoint.experts import refuse_experts
from draftsmith.text import Tokenizer

__all__ = ["generation_config", "hf_config"]

_CLASSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)
_OLD_SCALINGS: Final = ("linear", "dynamic")
# The scalings that Llama 3.1 to 3.3 were published with: factor, and original context. GGUF files state only the
# factors of single frequencies that follow from them.
_LLAMA3: Final = tuple((factor, original) for factor in (8.0, 32.0, 16.0, 4.0, 2.0) for original in (8192,))


def hf_config(config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """The content of config.json for a model whose weights are stored as ``dtype``."""
    refuse_experts(config.experts, "an export cannot write its folder; take the original one")
    rope = _rope_parameters(config)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    if rope["rope_type"] in _OLD_SCALINGS:
        scaling = {"type": rope["rope_type"], "factor": rope["factor"]}
    values: dict[str, Any] = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "rope_parameters": rope,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **_token_ids(tokenizer),
    }
    if config.architecture in ("llama", "qwen3"):
        values["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.architecture == "mistral":
        values["sliding_window"] = config.sliding_window
    if config.architecture in ("qwen2", "qwen3"):
        values |= _sliding(config)
    return values


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json: which tokens begin, end and fill."""
    values = _token_ids(tokenizer)
    if tokenizer.eos_ids:
        values["eos_token_id"] = list(tokenizer.eos_ids)
    return {key: value for key, value in values.items() if value is not None}


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}


def _sliding(config: ModelConfig) -> dict[str, Any]:
    """Which layers slide; transformers 4 knows only those from a certain layer on."""
    slides = config.sliding_window is not None
    first = config.sliding_layers.index(True) if slides else config.num_layers
    return {
        "use_sliding_window": slides,
        "sliding_window": config.sliding_window,
        "max_window_layers": first,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in config.sliding_layers],
    }


def _rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """RoPE as transformers 5 writes it."""
    rope = config.rope
    if rope.frequency_factors:
        rope = _named_factors(config)
    values: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.theta}
    if rope.rope_type == "default":
        return values
    values["factor"] = rope.factor
    original = rope.original_max_position_embeddings
    if rope.rope_type in ("yarn", "longrope", "llama3") and original is not None:
        values["original_max_position_embeddings"] = original
    optional = {
        "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        "longrope": ("attention_factor", "short_factor", "long_factor"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }
    for name in optional.get(rope.rope_type, ()):
        value = getattr(rope, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _named_factors(config: ModelConfig) -> RopeConfig:
    """The scaling that a GGUF file's factors of single frequencies stand for.

    llama3 if one of its published settings gives these factors; else longrope with the same factors for short and long
    texts, whose cosines are not scaled: that is division by the factors and nothing else.
    """
    rope = config.rope
    wanted, _ = rope_frequencies(rope, config.head_dim)
    plain = replace(rope, frequency_factors=())
    if rope.rope_type == "default":
        for factor, original in _LLAMA3:
            named = replace(
                plain,
                rope_type="llama3",
                factor=factor,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=original,
            )
            if np.allclose(rope_frequencies(named, config.head_dim)[0], wanted, rtol=1e-6, atol=0):
                return named
    factors = tuple(float(factor) for factor in rope.theta ** -(np.arange(len(wanted)) / len(wanted)) / wanted)
    return replace(
        plain,
        rope_type="longrope",
        factor=1.0,
        attention_factor=rope_frequencies(rope, config.head_dim)[1],
        short_factor=factors,
        long_factor=factors,
        original_max_position_embeddings=config.max_context,
    )
