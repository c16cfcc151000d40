"""A checkpoint of ours (a GGUF file above all) as a model of ``transformers``: its blocks are unfolded to a dtype."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftsmith.checkpoint import Checkpoint, ModelConfig, rope_frequencies
from draftsmith.checkpoint.experts import refuse_experts
from draftsmith.model.torch_backend.rope import set_frequencies

__all__ = ["module_of_checkpoint"]


def module_of_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, max_context: int) -> Any:
    """The model with the checkpoint's weights, rounded to ``dtype``. RoPE is that of the native backend to the bit."""
    config = checkpoint.config
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(_config(config), dtype=dtype)  # type: ignore[no-untyped-call]
    weights = {
        name: torch.from_numpy(tensor.dequantize()).to(device=device, dtype=dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    module.load_state_dict(weights, strict=False, assign=True)
    module.tie_weights()
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"no weights for {missing}")
    frequencies, scaling = rope_frequencies(config.rope, config.head_dim, max_context)
    rotary = module.model.rotary_emb
    rotary.inv_freq = torch.empty(frequencies.shape, device=device)
    set_frequencies(rotary, torch.from_numpy(frequencies), scaling)
    return module.eval()


def _config(config: ModelConfig) -> Any:
    """The configuration object; RoPE scalings are left out, as the frequencies are set afterwards."""
    refuse_experts(config.experts, "torch cannot run its GGUF file; take the folder that it was made from, or native")
    values: dict[str, Any] = {
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
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
    }
    if config.architecture in ("llama", "qwen3"):
        values["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.architecture == "mistral":
        values["sliding_window"] = config.sliding_window
    elif config.sliding_window is not None:
        values |= {"use_sliding_window": True, "sliding_window": config.sliding_window}
        values["layer_types"] = ["sliding_attention" if s else "full_attention" for s in config.sliding_layers]
    return AutoConfig.for_model(config.architecture, **values)
